"""Where every tile of a tiled TIFF lies and how it is stored: all that has to be known of a slide before reading it.

An index is made from the file's directories once, packs into some tens of kilobytes, and opens a slide without
looking at the directories again. Read are Aperio SVS, Philips TIFF, OME-TIFF and generic pyramids, with 8-bit
grey, RGB or YCbCr pixels; anything else is `NotThisReader`. Only directories of the pyramid are taken: label and
macro images are never among the levels.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from eosin.errors import SlideError
from eosin.slides.reader import MAX_SIDE, SAME_SHAPE, mpp_of_resolution
from eosin.slides.tiff_codecs import (
    COMPRESSIONS,
    GREY,
    JPEG,
    JPEG_2000,
    MAX_TILE_PIXELS,
    RGB,
    YCC,
    Coding,
    DecodeError,
    Decoder,
)
from eosin.slides.tiff_source import ByteSource, Span
from eosin.slides.tiff_tags import (
    BITS_PER_SAMPLE,
    COMPRESSION,
    IMAGE_DESCRIPTION,
    IMAGE_LENGTH,
    IMAGE_WIDTH,
    JPEG_TABLES,
    NEW_SUBFILE_TYPE,
    PHOTOMETRIC,
    PLANAR_CONFIG,
    PREDICTOR,
    RESOLUTION_UNIT,
    SAMPLE_FORMAT,
    SAMPLES_PER_PIXEL,
    SOFTWARE,
    TILE_BYTE_COUNTS,
    TILE_LENGTH,
    TILE_OFFSETS,
    TILE_WIDTH,
    X_RESOLUTION,
    Y_RESOLUTION,
    Directory,
    NotThisReader,
    prefetch,
    read_directories,
    read_sub_directories,
)

_MOST_UNPACKED = 256 * 2**20  # bytes: 22 million tiles
_FARTHEST = 1 << 50  # bytes: beyond it lies no file
_PACKED = b"eosin tiles 1\n"
_NDPI = 65420  # a tag of Hamamatsu's, whose tiles are not those of TIFF

Mpp = tuple[float | None, float | None]


@dataclass(frozen=True)
class TiffLevel:
    """One level: its size in px, its tiles row by row (byte offsets and lengths; 0 bytes = none stored)."""

    width: int
    height: int
    coding: Coding
    offsets: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]

    @property
    def across(self) -> int:
        """Tiles in a row."""
        return -(-self.width // self.coding.tile_width)

    @property
    def down(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.coding.tile_height)


@dataclass(frozen=True)
class TiffIndex:
    """A slide's levels, full size first; vendor; µm per level-0 px as far as the file says them; the file's bytes."""

    vendor: str
    mpp: Mpp
    size: int
    levels: tuple[TiffLevel, ...]

    @property
    def beyond_the_end(self) -> int:
        """How many tiles do not lie inside the file: it was cut off, or its directory is damaged."""
        return sum(
            int(((level.offsets + level.counts > self.size) & (level.counts > 0)).sum()) for level in self.levels
        )

    def pack(self) -> bytes:
        """The index as bytes: what `TiffIndex.unpack` opens."""
        heads, arrays = [], []
        for level in self.levels:
            heads.append([level.width, level.height, asdict(level.coding) | {"tables": level.coding.tables.hex()}])
            gaps = np.diff(level.offsets, prepend=0)
            gaps[1:] -= level.counts[:-1]  # mostly 0: tiles lie back to back
            arrays += [gaps.astype("<i8").tobytes(), level.counts.astype("<u4").tobytes()]
        head = json.dumps({"vendor": self.vendor, "mpp": self.mpp, "size": self.size, "levels": heads}).encode()
        return _PACKED + zlib.compress(len(head).to_bytes(4, "little") + head + b"".join(arrays))

    @staticmethod
    def unpack(data: bytes) -> TiffIndex:
        """The index of `pack`; SlideError where the bytes are none."""
        try:
            if not data.startswith(_PACKED):
                raise ValueError("another version")
            unpacking = zlib.decompressobj()
            plain = unpacking.decompress(data[len(_PACKED) :], _MOST_UNPACKED)
            if not unpacking.eof:
                raise ValueError("cut short, or too large")
            start = 4 + int.from_bytes(plain[:4], "little")
            head = json.loads(plain[4:start])
            levels = []
            for width, height, told in head["levels"]:
                level = TiffLevel(width, height, Coding(**told | {"tables": bytes.fromhex(told["tables"])}), *_NONE)
                tiles = level.across * level.down
                gaps = np.frombuffer(plain, "<i8", tiles, start)
                counts = np.frombuffer(plain, "<u4", tiles, start + tiles * 8).astype(np.uint32)
                start += tiles * 12
                offsets = np.cumsum(gaps, dtype=np.int64)
                offsets[1:] += np.cumsum(counts[:-1], dtype=np.int64)
                levels.append(TiffLevel(width, height, level.coding, offsets, counts))
            return TiffIndex(head["vendor"], (head["mpp"][0], head["mpp"][1]), head["size"], tuple(levels))
        except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError, zlib.error) as error:
            raise SlideError(f"a kept slide index is damaged or of another version: {error}; index again") from error


_NONE = (np.empty(0, np.int64), np.empty(0, np.uint32))


def read_index(source: ByteSource) -> TiffIndex:
    """Index a file; NotThisReader where another reader has to do it, SlideError where it cannot be read."""
    directories = read_directories(source)
    if not directories or TILE_OFFSETS not in directories[0]:
        raise NotThisReader("its first image is not tiled")
    prefetch(directories, source)
    first = directories[0]
    vendor, text = _vendor(first)
    below = read_sub_directories(source, first) if vendor == "ome-tiff" else []
    prefetch(below, source)
    levels = [_level(part) for part in ([first, *below] if below else directories) if _in_pyramid(part, first, vendor)]
    if vendor == "philips":
        levels = _without_padding(levels, text)
    _check_pyramid(levels, vendor)
    firsts = [_first_tile(source, level) for level in levels]
    source.prefetch([span for span in firsts if span])
    for level, span in zip(levels, firsts, strict=True):
        _check_tile(source, level, span)
    return TiffIndex(vendor, _mpp(first, vendor, text, levels[0]), source.size, tuple(levels))


def _vendor(first: Directory) -> tuple[str, str]:
    """Who wrote the file, and its description."""
    text, software = first.text(IMAGE_DESCRIPTION), first.text(SOFTWARE)
    if _NDPI in first:
        raise NotThisReader("Hamamatsu NDPI")
    if text.startswith("Aperio"):
        return "aperio", text
    if software.startswith("Philips") and "DPUfsImport" in text:
        return "philips", text
    if re.search(r"<(\w+:)?OME[\s>]", text[:4096]):
        return "ome-tiff", text
    return "generic-tiff", text


def _in_pyramid(directory: Directory, first: Directory, vendor: str) -> bool:
    """Whether a directory is a level; what is not tiled (label, macro, thumbnail) never is."""
    if TILE_OFFSETS not in directory:
        return False
    if directory is first or vendor == "aperio":
        return True
    if vendor == "philips":
        return not directory.text(IMAGE_DESCRIPTION).lower().startswith(("label", "macro"))
    sizes = ((part.number(IMAGE_WIDTH, 0), part.number(IMAGE_LENGTH, 0)) for part in (first, directory))
    return directory.number(NEW_SUBFILE_TYPE, 0) == 1 and _same_shape(*sizes)


def _same_shape(full: tuple[int, int], small: tuple[int, int]) -> bool:
    """Whether an image of size `small` (width, height) can be a coarser level of one of size `full`."""
    if not (0 < small[0] < full[0] and 0 < small[1] < full[1]):
        return False
    return abs(full[1] * small[0] / full[0] - small[1]) <= max(SAME_SHAPE * small[1], 1.0)


def _level(directory: Directory) -> TiffLevel:
    width, height = directory.number(IMAGE_WIDTH, 0), directory.number(IMAGE_LENGTH, 0)
    coding = _coding(directory)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise NotThisReader(f"an image of {width}x{height} px")
    offsets, counts = directory.numbers(TILE_OFFSETS), directory.numbers(TILE_BYTE_COUNTS)
    level = TiffLevel(width, height, coding, offsets, counts.astype(np.uint32))
    if not len(offsets) == len(counts) == level.across * level.down:
        raise NotThisReader(f"{len(offsets)} tiles where {level.across * level.down} belong")
    if min(offsets.min(), counts.min()) < 0 or offsets.max() > _FARTHEST or counts.max() >= 1 << 32:
        raise NotThisReader("tiles at impossible places")
    return level


def _coding(directory: Directory) -> Coding:
    samples = directory.number(SAMPLES_PER_PIXEL, 1)
    coding = Coding(
        tile_width=directory.number(TILE_WIDTH, 0),
        tile_height=directory.number(TILE_LENGTH, 0),
        compression=directory.number(COMPRESSION, 1),
        photometric=directory.number(PHOTOMETRIC, -1),
        samples=samples,
        predictor=directory.number(PREDICTOR, 1) == 2,
        tables=directory.data(JPEG_TABLES),
    )
    if min(coding.tile_width, coding.tile_height) < 1 or coding.tile_width * coding.tile_height > MAX_TILE_PIXELS:
        raise NotThisReader(f"tiles of {coding.tile_width}x{coding.tile_height} px")
    if coding.compression not in COMPRESSIONS:
        raise NotThisReader(f"compression {coding.compression}")
    transformed = coding.compression == JPEG or coding.compression in JPEG_2000
    if (samples, coding.photometric) not in ((1, GREY), (3, RGB), (3, YCC)):
        raise NotThisReader(f"{samples} samples of photometric kind {coding.photometric}")
    if coding.photometric == YCC and coding.compression != JPEG:
        raise NotThisReader("YCbCr that is not JPEG")
    if set(directory.numbers(BITS_PER_SAMPLE).tolist()) != {8} or set(directory.numbers(SAMPLE_FORMAT).tolist()) - {1}:
        raise NotThisReader("samples that are not of 8 bits")
    if (samples > 1 and directory.number(PLANAR_CONFIG, 1) != 1) or directory.number(PREDICTOR, 1) > 2:
        raise NotThisReader("planes, or a predictor of another kind")
    if transformed and coding.predictor:
        raise NotThisReader("JPEG with a predictor")
    return coding


def _check_pyramid(levels: Sequence[TiffLevel], vendor: str) -> None:
    for finer, coarser in pairwise(levels):
        sizes = (finer.width, finer.height), (coarser.width, coarser.height)
        if not _same_shape(*sizes):
            raise NotThisReader("levels of several shapes, or not in order")
    if vendor == "aperio" and any((level.counts == 0).any() for level in levels[1:]):
        raise NotThisReader("tiles missing at a coarse level, to be filled from a finer one")


def _first_tile(source: ByteSource, level: TiffLevel) -> Span | None:
    """Where the level's first tile lies, if any has bytes."""
    stored = np.flatnonzero((level.counts > 0) & (level.offsets + level.counts <= source.size))
    if len(stored) == 0:
        return None
    count = int(level.counts[stored[0]])
    if count > level.coding.most_bytes:
        raise NotThisReader(f"a tile of {count} bytes")
    return int(level.offsets[stored[0]]), count


def _check_tile(source: ByteSource, level: TiffLevel, span: Span | None) -> None:
    """The header of a tile must be of a kind that is decoded here."""
    if span is None:
        return
    try:
        Decoder(level.coding).check(source.read([span])[0])
    except DecodeError as error:
        raise NotThisReader(str(error)) from error


def _without_padding(levels: Sequence[TiffLevel], text: str) -> list[TiffLevel]:
    """Philips pads each level to whole tiles; its true size follows from the pixel spacings of the description."""
    spacings = [float(pair[1]) for pair in _spacings(text)[1:]]
    if len(spacings) != len(levels) or min(spacings, default=0.0) <= 0:
        raise NotThisReader("a Philips file that does not say the spacings of its levels")
    full, trimmed = levels[0], []
    for level, spacing in zip(levels, spacings, strict=True):
        factor = spacing / spacings[0]
        width, height = round(full.width / factor), round(full.height / factor)
        if not (0 < width <= level.width and 0 < height <= level.height):
            raise NotThisReader("a Philips file with spacings that do not fit its levels")
        trimmed.append(_cropped(level, width, height))
    return trimmed


def _cropped(level: TiffLevel, width: int, height: int) -> TiffLevel:
    """The level's top-left `width` x `height` px."""
    rows, columns = -(-height // level.coding.tile_height), -(-width // level.coding.tile_width)
    kept = np.arange(level.down * level.across).reshape(level.down, level.across)[:rows, :columns].ravel()
    return TiffLevel(width, height, level.coding, level.offsets[kept], level.counts[kept])


def _spacings(text: str) -> list[tuple[str, str]]:
    """All DICOM pixel spacings of a Philips description, mm, (down, across): of the image, then of each level."""
    found = re.findall(r'Name="DICOM_PIXEL_SPACING"[^>]*>\s*([^<]*)<', text)
    numbers = [re.findall(r"\d+(?:\.\d*)?(?:[eE][-+]?\d+)?", values) for values in found]
    return [(pair[0], pair[1]) for pair in numbers if len(pair) == 2]


def _mpp(first: Directory, vendor: str, text: str, level: TiffLevel) -> Mpp:
    """µm per level-0 px along x and y: what the vendor writes, else a resolution tag that can be a scanner's."""
    if vendor == "aperio":
        found = re.search(r"\|\s*MPP\s*=\s*([^|]*)", text)
        value = _float(found[1]) if found else None
        return value, value
    if vendor == "philips":
        down, across = _spacings(text)[0]
        return float(across) * 1000, float(down) * 1000
    if vendor == "ome-tiff" and (stated := _ome_mpp(text, level)) != (None, None):
        return stated
    unit = {2: "inch", 3: "centimeter"}.get(first.number(RESOLUTION_UNIT, 2), "")
    return mpp_of_resolution(first.ratio(X_RESOLUTION), unit), mpp_of_resolution(first.ratio(Y_RESOLUTION), unit)


def _ome_mpp(text: str, level: TiffLevel) -> Mpp:
    """PhysicalSizeX and -Y of the image that has the size of level 0."""
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", text):
        told = dict(re.findall(r'(\w+)="([^"]*)"', pixels))
        if (told.get("SizeX"), told.get("SizeY")) == (str(level.width), str(level.height)):
            scale = {"µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1000.0, "nm": 0.001, "cm": 10000.0}
            size = [
                _float(told[f"PhysicalSize{axis}"]) * scale.get(told.get(f"PhysicalSize{axis}Unit", "µm"), np.nan)
                if f"PhysicalSize{axis}" in told
                else None
                for axis in "XY"
            ]
            return size[0], size[1]
    return None, None


def _float(text: str) -> float:
    """A number, a decimal comma allowed; NaN, which no slide has, where it is none."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return float("nan")
