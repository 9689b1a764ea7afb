"""Bytes of a slide file by position: what the TIFF reader reads from.

A local file is read with `pread`, so threads share one descriptor without a lock. Any other store takes its place by
offering the same things: remote_source.py does for object stores.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from eosin.errors import SlideError

Span = tuple[int, int]  # offset and length in bytes


class ByteSource(Protocol):
    """A file that is read in spans. Threads may share it.

    name: what error lines call it. size: its length in bytes. far: each `read` costs a wait, however little it reads.
    """

    name: str
    size: int
    far: bool

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span; SlideError where they cannot be had in full."""
        ...

    def prefetch(self, spans: Sequence[Span]) -> None:
        """Says what will be read soon, so that a source that is far away can have it fetched at once.

        The spans may reach past the end of the file, and be longer than what is read of them in the end.
        """
        ...

    def close(self) -> None:
        """Release it; reading afterwards is a SlideError."""
        ...


class FileBytes:
    """A file on a local or mounted disk."""

    far = False

    def __init__(self, path: Path) -> None:
        """Open it; SlideError where it cannot be."""
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
            self._release = weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise SlideError(f"{path}: cannot be read: {error.strerror or error}") from error

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """See `ByteSource.read`."""
        return [self._read(offset, length) for offset, length in spans]

    def prefetch(self, spans: Sequence[Span]) -> None:
        """Nothing: a disk is near."""

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise SlideError(
                f"{self.name}: truncated or damaged: bytes {offset} to {offset + length} wanted, it has {self.size}"
            )
        try:
            data = _pread(self._descriptor, length, offset)
            while len(data) < length and (more := _pread(self._descriptor, length - len(data), offset + len(data))):
                data += more  # a signal or a network file system may cut one read short
        except (OSError, OverflowError) as error:
            raise SlideError(f"{self.name}: cannot be read: {error}") from error
        if len(data) < length:
            raise SlideError(f"{self.name}: became shorter while it was read")
        return data

    def close(self) -> None:
        """Close the file."""
        self._descriptor = -1
        self._release()


_seeking = threading.Lock()


def _seek_and_read(descriptor: int, length: int, offset: int) -> bytes:
    """`os.pread` for Windows, which has none: threads wait for each other."""
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


_pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)
