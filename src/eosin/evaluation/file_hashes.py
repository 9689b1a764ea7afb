"""Hashes of files that are remembered, so that a data set of many gigabytes is read once and not at each call.

A hash is taken again where size or modification time of the file has changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eosin.files import write_json
from eosin.provenance import hash_file


class FileHashes:
    """Called with a path, gives `hash_file` of it; `kept` is the JSON file that remembers."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self._known: dict[str, list[int | str]] = _read(kept)
        self._new = 0

    def __call__(self, path: Path) -> str:
        """Hash of the bytes of `path`. Raises OSError where it cannot be read."""
        stat, key = path.stat(), str(path.absolute())
        known = self._known.get(key)
        if known is not None and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(known[2])
        found = hash_file(path)
        self._known[key] = [stat.st_size, stat.st_mtime_ns, found]
        self._new += 1
        return found

    def save(self) -> None:
        """Write what is new. Raises OutputError where that is not possible."""
        if self._new:
            write_json(self.kept, self._known)
            self._new = 0


@contextmanager
def file_hashes(kept: Path) -> Iterator[FileHashes]:
    """`FileHashes(kept)`, saved at the end, also of a block that is interrupted."""
    hashes = FileHashes(kept)
    try:
        yield hashes
    finally:
        hashes.save()


def _read(kept: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(kept.read_text())
        return {str(path): [int(size), int(time), str(found)] for path, (size, time, found) in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # without it, or with a damaged one, files are read again
