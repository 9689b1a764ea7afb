"""The tags of a TIFF or BigTIFF file, read lazily and with bounds: a damaged file costs an error, never time or memory.

Only what says how an image is stored: directories in file order, sub-directories where they are asked for. The bytes
of images are not read here. Follows TIFF 6.0 and the BigTIFF layout of libtiff.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.errors import SlideError
from eosin.slides.tiff_source import ByteSource, Span

MAX_DIRECTORIES = 512
MAX_ENTRIES = 1024
MAX_TEXT = 16 * 2**20  # Philips keeps all its metadata in one tag
_USUAL_ENTRIES = 16  # of a directory; those of slides have 11 to 20

NEW_SUBFILE_TYPE, IMAGE_WIDTH, IMAGE_LENGTH, BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
IMAGE_DESCRIPTION, SAMPLES_PER_PIXEL, X_RESOLUTION, Y_RESOLUTION, PLANAR_CONFIG = 270, 277, 282, 283, 284
RESOLUTION_UNIT, SOFTWARE, PREDICTOR, TILE_WIDTH, TILE_LENGTH = 296, 305, 317, 322, 323
TILE_OFFSETS, TILE_BYTE_COUNTS, SUB_IFDS, SAMPLE_FORMAT, JPEG_TABLES = 324, 325, 330, 339, 347
_USED = frozenset([BITS_PER_SAMPLE, IMAGE_DESCRIPTION, X_RESOLUTION, Y_RESOLUTION, SOFTWARE, SAMPLE_FORMAT]) | {
    *(TILE_OFFSETS, TILE_BYTE_COUNTS, SUB_IFDS, JPEG_TABLES)
}

# TIFF field types: numpy letters of whole numbers, and the size in bytes of all
_WHOLE = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class NotThisReader(Exception):
    """The file is not a tiled TIFF of a kind that is read here; another reader may do it. Says why."""


class _Field(NamedTuple):
    kind: int
    values: int
    inline: bytes | None
    offset: int


class Directory:
    """One image file directory: the tags of one image."""

    def __init__(self, source: ByteSource, order: str, fields: dict[int, _Field]) -> None:
        """`order`: "<" or ">"."""
        self._source, self._order, self._fields = source, order, fields

    def __contains__(self, tag: int) -> bool:
        return tag in self._fields

    def numbers(self, tag: int) -> npt.NDArray[np.int64]:
        """All values of a tag of whole numbers as int64 [n], empty where it is absent."""
        field = self._fields.get(tag)
        if field is None:
            return np.empty(0, np.int64)
        if field.kind not in _WHOLE:
            raise NotThisReader(f"tag {tag} has no whole numbers")
        values = np.frombuffer(self._bytes(tag), self._order + _WHOLE[field.kind])
        if values.dtype.kind == "u" and values.dtype.itemsize == 8 and values.max(initial=0) > np.iinfo(np.int64).max:
            raise NotThisReader(f"tag {tag} has absurd values")
        return values.astype(np.int64)

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag, `default` where it is absent."""
        field = self._fields.get(tag)
        if field is not None and field.values > MAX_ENTRIES:
            raise NotThisReader(f"tag {tag} has {field.values} values")
        values = self.numbers(tag)
        return int(values[0]) if len(values) else default

    def ratio(self, tag: int) -> float:
        """A rational tag, NaN where it is absent or none."""
        field = self._fields.get(tag)
        if field is None or field.kind != 5 or field.values != 1:
            return float("nan")
        above, below = struct.unpack(self._order + "II", self._bytes(tag))
        return above / below if below else float("nan")

    def text(self, tag: int) -> str:
        """A text tag up to its first zero byte, "" where it is absent."""
        field = self._fields.get(tag)
        if field is None or field.kind not in (1, 2, 7):
            return ""
        return self._bytes(tag).split(b"\0", 1)[0].decode("utf-8", "replace")

    def data(self, tag: int) -> bytes:
        """The bytes of a tag as they are stored, empty where it is absent."""
        return self._bytes(tag) if tag in self._fields else b""

    def spans(self) -> list[Span]:
        """Where those values lie that are used and not in the directory itself."""
        wanted = [tag for tag in _USED & self._fields.keys() if self._fields[tag].inline is None]
        found = [(self._fields[tag].offset, self._length(tag)) for tag in wanted]
        return [(offset, length) for offset, length in found if offset + length <= self._source.size]

    def _length(self, tag: int) -> int:
        return self._fields[tag].values * _SIZES[self._fields[tag].kind]

    def _bytes(self, tag: int) -> bytes:
        field = self._fields[tag]
        if field.inline is not None:
            return field.inline
        length = self._length(tag)
        limit = self._source.size if tag in (TILE_OFFSETS, TILE_BYTE_COUNTS) else MAX_TEXT
        if length > min(limit, self._source.size - field.offset):
            raise NotThisReader(f"tag {tag} reaches past the end of the file")
        return self._source.read([(field.offset, length)])[0]


def read_directories(source: ByteSource) -> list[Directory]:
    """The main directories of a file, in their order.

    NotThisReader where it is no TIFF or a damaged one; SlideError where it is one that was cut off before them all.
    """
    layout = _layout(source)
    if layout.first >= source.size:
        raise SlideError(f"{source.name}: truncated: what describes its images is gone; copy it again")
    return [directory for _, directory in zip(range(MAX_DIRECTORIES), _chain(source, layout), strict=False)]


def read_sub_directories(source: ByteSource, parent: Directory) -> list[Directory]:
    """The directories that the tag SubIFDs of `parent` points to."""
    layout = _layout(source)
    offsets = parent.numbers(SUB_IFDS)
    if len(offsets) > MAX_DIRECTORIES:
        raise NotThisReader(f"{len(offsets)} sub-directories")
    return [_directory(source, layout, int(offset))[0] for offset in offsets]


def prefetch(directories: Sequence[Directory], source: ByteSource) -> None:
    """Have all values of tiled images fetched at once that are used of them."""
    source.prefetch([span for directory in directories if TILE_OFFSETS in directory for span in directory.spans()])


class _Layout(NamedTuple):
    order: str
    big: bool
    first: int


def _layout(source: ByteSource) -> _Layout:
    head = source.read([(0, min(16, source.size))])[0]
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        raise NotThisReader("no TIFF")
    version = struct.unpack_from(order + "H", head, 2)[0]
    if version == 42:
        return _Layout(order, False, struct.unpack_from(order + "I", head, 4)[0])
    if version == 43 and struct.unpack_from(order + "HH", head, 4) == (8, 0):
        return _Layout(order, True, struct.unpack_from(order + "Q", head, 8)[0])
    raise NotThisReader("no TIFF")


def _chain(source: ByteSource, layout: _Layout) -> Iterator[Directory]:
    """Directory after directory; one that is reached again ends it with NotThisReader."""
    seen: set[int] = set()
    offset = layout.first
    while offset:
        if offset in seen:
            raise NotThisReader("its directories lead in a circle")
        seen.add(offset)
        directory, offset = _directory(source, layout, offset)
        yield directory


def _directory(source: ByteSource, layout: _Layout, offset: int) -> tuple[Directory, int]:
    """The directory at `offset` and where the next one is, 0 for none."""
    order, big = layout.order, layout.big
    head, entry, pointer = (8, 20, 8) if big else (2, 12, 4)
    if offset + head > source.size:
        raise NotThisReader("a directory lies past the end of the file")
    source.prefetch([(offset, head + _USUAL_ENTRIES * entry + pointer)])
    count = struct.unpack(order + ("Q" if big else "H"), source.read([(offset, head)])[0])[0]
    length = count * entry + pointer
    if not 0 < count <= MAX_ENTRIES or offset + head + length > source.size:
        raise NotThisReader(f"a directory with {count} entries")
    data = source.read([(offset + head, length)])[0]
    fields = {}
    for place in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        values = struct.unpack_from(order + ("Q" if big else "I"), data, place + 4)[0]
        size = values * _SIZES.get(kind, 0)
        if size == 0:
            continue  # a private type, or empty
        at = place + entry - pointer
        if size <= pointer:
            fields[tag] = _Field(kind, values, data[at : at + size], 0)
        else:
            fields[tag] = _Field(kind, values, None, struct.unpack_from(order + ("Q" if big else "I"), data, at)[0])
    return Directory(source, order, fields), struct.unpack_from(order + ("Q" if big else "I"), data, count * entry)[0]
