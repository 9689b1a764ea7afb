"""Slides of object stores opened, with the places of their tiles remembered on the local disk.

To find its tiles costs a slide some twenty requests, most of them one after the other. What they found is kept in a
folder of its own, one file a slide, so that a run over many slides opens each with one request. A file is for one
object as it was: its name is made of URI, size and ETag, and what it holds is checked against them. The folder is a
cache: whatever is deleted from it is made again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from eosin.errors import OutputError, SlideError
from eosin.files import write_bytes
from eosin.progress import say
from eosin.provenance import hash_of
from eosin.slides.remote_source import RemoteBytes
from eosin.slides.tiff import NotThisReader, TiffSlide
from eosin.slides.tiff_index import TiffIndex
from eosin.slides.uri import Uri

CACHE_DIR = "EOSIN_CACHE_DIR"
_FORMAT = "eosin remote index 1"  # another number where the same file would give another index
_MOST_KEPT = 64 * 2**20  # bytes of a file that is taken for a kept index; they have some tens of kilobytes
_told_unwritable: list[str] = []


def open_remote(
    uri: Uri,
    mpp: float | None = None,
    reader: str | None = None,
    index: bytes | None = None,
    halve: bool = True,
) -> TiffSlide:
    """Open a slide in an object store.

    mpp, index, halve: see `TiffSlide`. reader: "tiff" or None. Raises SlideError for what cannot be read there, with
    the way out.
    """
    if reader not in (None, "tiff"):
        raise SlideError(f"{uri}: {_only_tiff(f'the reader {reader} reads local files only')}")
    source = RemoteBytes(uri)
    if source.size == 0:
        raise SlideError(f"{uri}: empty (0 bytes); copy it again")
    known = index or _remembered(source)
    try:
        slide = TiffSlide(uri.path, mpp, known, source, halve)
    except NotThisReader as error:
        raise SlideError(f"{uri}: {_only_tiff(str(error))}") from error
    if known is None:
        _remember(source, slide.packed_index())
    return slide


def cache_folder() -> Path | None:
    """Where indexes are kept: EOSIN_CACHE_DIR, else the user's cache folder; None where that variable is empty."""
    told = os.environ.get(CACHE_DIR)
    if told is not None:
        return Path(told) / "tile-indexes" if told else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "eosin" / "tile-indexes"


def _only_tiff(why: str) -> str:
    return f"from object stores only tiled TIFF is read (SVS, OME-TIFF, Philips, generic): {why}; download it"


def _file(source: RemoteBytes) -> tuple[Path | None, bytes]:
    """Where the index of an object is kept, and how that file begins."""
    told = [_FORMAT, source.name, source.size, source.known.mark]
    folder, name = cache_folder(), hash_of(told)
    return folder and folder / name[:2] / f"{name}.index", json.dumps(told).encode() + b"\n"


def _remembered(source: RemoteBytes) -> bytes | None:
    file, head = _file(source)
    if file is None:
        return None
    try:
        with open(file, "rb") as handle:
            data = handle.read(_MOST_KEPT)
        if data.startswith(head) and TiffIndex.unpack(data[len(head) :]).size == source.size:
            return data[len(head) :]
    except (OSError, SlideError):
        pass  # not there, or damaged: made again
    return None


def _remember(source: RemoteBytes, packed: bytes) -> None:
    file, head = _file(source)
    if file is None:
        return
    try:
        write_bytes(file, head + packed)
    except OutputError as error:
        if not _told_unwritable:  # once a process: reading goes on without it
            _told_unwritable.append(str(error))
            say(f"{error}; slides of object stores open slower without (set {CACHE_DIR})")
