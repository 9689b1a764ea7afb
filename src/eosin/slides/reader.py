"""A slide file opened at a known scale, and regions of it at any wanted µm/px.

µm/px is physical: a region is asked for by position, size and µm/px, never by pyramid level, and comes at
exactly that scale. What is not here: how the pixels of a level are fetched (tiff.py, openslide.py, image.py), where
tissue is (foreground.py). Label and macro images are never read.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np

from eosin.errors import RegionError, SlideError
from eosin.slides.resample import Axis, Pixels, resample
from eosin.slides.uri import Uri, is_uri

MPP_RANGE = (0.05, 20.0)
READERS = ("tiff", "openslide", "image")
TIFF_VENDORS = ("aperio", "philips", "generic-tiff", None)  # as OpenSlide calls them; None: it does not know the file
HOW_TO_STATE_MPP = "state it with --mpp-csv FILE (columns slide,mpp)"

# Two scales closer than this are one: a pyramid level 4.0004 times smaller serves 4 times the scale.
SAME_SCALE = 1e-3
# A stored level may be this much coarser than asked where `max_upsample` lets it: an Aperio pyramid of 0.2525 µm/px
# has a level of 1.01, and a tile of 1 µm/px would else be made of sixteen times the pixels.
NEAR_LEVEL = 1.02
_BAND_PIXELS = 1 << 25
_LARGEST_REGION = 1 << 27
_LARGEST_WHOLE = 1 << 28
MAX_SIDE = 1 << 20  # px: a glass slide of 76 mm has 760,000 px at 0.1 µm/px
SAME_SHAPE = 0.05  # levels of one pyramid have one shape, but for the pixels that rounding and padding add


class Level(NamedTuple):
    """One level of the pyramid: size in px and level-0 px per level px, along x and y."""

    width: int
    height: int
    downsample_x: float
    downsample_y: float


class Window(NamedTuple):
    """Part of a slide to cut tiles from: its top-left corner in level-0 px, and uint8 RGB [h, w, 3] from there."""

    x: float
    y: float
    pixels: Pixels


class Slide(ABC):
    """An open slide. Made by `open_slide`; use it as a context manager or `close()` it.

    path, vendor, reader ("tiff", "openslide" or "image"); width, height in level-0 px; mpp_x, mpp_y in µm per
    level-0 px; levels as they are stored, level 0 first; halved_levels, which a reader makes of stored ones for
    less than the work of reading those. Not picklable: other processes open the path again. Threads may share it.
    """

    reader: ClassVar[str]
    halved_levels: tuple[Level, ...] = ()

    def __init__(
        self, path: Path, vendor: str, levels: tuple[Level, ...], mpp: tuple[float | None, float | None]
    ) -> None:
        full = levels[0]
        if not 0 < min(full.width, full.height) <= max(full.width, full.height) <= MAX_SIDE:
            raise SlideError(f"{path}: damaged: {full.width}x{full.height} px, which no slide has")
        self.path = path
        self.vendor = vendor
        self.levels = levels
        self.width, self.height = levels[0].width, levels[0].height
        self.mpp_x, self.mpp_y = (believable_mpp(path, value) for value in mpp)

    @abstractmethod
    def _read(self, level: int, column: int, row: int, width: int, height: int, whole_tiles: bool = False) -> Pixels:
        """Pixels of one level, uint8 [height, width, 3]; the box lies inside the level.

        level: its number in `levels`, halved ones counted on after those. whole_tiles: see `region`.
        """

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height in px of the tiles in which a level (numbered as for `_read`) is stored; (1, 1): in none."""
        return 1, 1

    @property
    def damage(self) -> str | None:
        """What is known to be wrong with the file as a whole, in words."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Release the file and the memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def mpp(self) -> float:
        """The finest square µm/px that the slide holds: its coarser axis."""
        return max(self.mpp_x, self.mpp_y)

    def region(
        self,
        x: float,
        y: float,
        size_px: int | tuple[int, int],
        mpp: float,
        max_upsample: float = 1.0,
        whole_tiles: bool = False,
    ) -> Pixels:
        """Pixels at `mpp` µm/px from the level-0 position (x, y) of the region's top-left corner.

        Args:
            x, y: level-0 px, fractions allowed, also outside the slide.
            size_px: output side, or (width, height), in px of `mpp`.
            mpp: wanted µm/px, the same along x and y.
            max_upsample: how many times finer than the slide `mpp` may be (bilinear then).
            whole_tiles: decode stored tiles at the lower edge whole, not only the rows that show: for regions beside
                this one, which then find them kept, and to be told of damage. The pixels are the same.

        Returns:
            uint8 RGB [height, width, 3] that covers [x, x + width·mpp/mpp_x) × [y, y + height·mpp/mpp_y)
            level-0 px; white (255) outside the slide. The coarsest level that is fine enough is averaged by
            area; where it has the wanted scale already, its stored pixels come unchanged, placed to the
            nearest whole pixel.

        Raises:
            RegionError: finer than the slide has, or a size or scale that is none.
            SlideError: the file cannot be read there.
        """
        width, height = (size_px, size_px) if isinstance(size_px, int | np.integer) else size_px
        level = self.level_for(mpp, max_upsample)
        if min(width, height) < 1 or not (math.isfinite(x) and math.isfinite(y)):
            raise RegionError(f"{self.path}: no region of {width}x{height} px at ({x}, {y})")
        chosen = self._readable[level]
        across = Axis.of(x / chosen.downsample_x, mpp / (self.mpp_x * chosen.downsample_x), int(width))
        down = Axis.of(y / chosen.downsample_y, mpp / (self.mpp_y * chosen.downsample_y), int(height))
        if across.length * down.length > _LARGEST_REGION:
            raise RegionError(
                f"{self.path}: a region of {width}x{height} px at {mpp:g} µm/px needs "
                f"{across.length}x{down.length} stored px at once; read it in parts"
            )
        return resample(self._read_on_white(level, across, down, whole_tiles), across, down)

    def regions(
        self, corners: Sequence[tuple[float, float]], size_px: int, mpp: float, max_upsample: float = 1.0
    ) -> list[Pixels]:
        """`region` at several places near each other, from one read of the smallest box that holds them all.

        corners: (x, y) of each in level-0 px. The same pixels as `region` gives one by one; stored tiles that several
        of them touch are decoded once. Raises as `region`, also for damage between the regions.
        """
        level = self.level_for(mpp, max_upsample)
        chosen = self._readable[level]
        scale_x, scale_y = mpp / (self.mpp_x * chosen.downsample_x), mpp / (self.mpp_y * chosen.downsample_y)
        across = [Axis.of(x / chosen.downsample_x, scale_x, size_px) for x, _ in corners]
        down = [Axis.of(y / chosen.downsample_y, scale_y, size_px) for _, y in corners]
        width, height = _hull(across), _hull(down)
        if width.length * height.length > _LARGEST_REGION:
            raise RegionError(f"{self.path}: regions too far apart: {width.length}x{height.length} stored px at once")
        box = self._read_on_white(level, width, height)
        return [
            resample(
                np.ascontiguousarray(
                    box[
                        y.first - height.first : y.first - height.first + y.length,
                        x.first - width.first : x.first - width.first + x.length,
                    ]
                ),
                x,
                y,
            )
            for x, y in zip(across, down, strict=True)
        ]

    def expect(
        self, corners: Sequence[tuple[float, float]], size_px: int, mpp: float, max_upsample: float = 1.0
    ) -> None:
        """Says which regions will be read next, so that a slide that is far away fetches them all at once.

        Args as of `regions`. Raises RegionError, SlideError as `region`, StoreDown.
        """
        return  # a file is near

    def stored_tile(self, mpp: float, max_upsample: float = 1.0) -> tuple[float, float]:
        """Width and height in level-0 px of the stored tiles that regions at `mpp` are read from; see `tile_size`."""
        number = self.level_for(mpp, max_upsample)
        (width, height), level = self.tile_size(number), self._readable[number]
        return width * level.downsample_x, height * level.downsample_y

    def read_window(self, x: float, y: float, size_px: int, mpp: float, max_upsample: float = 1.0) -> Window:
        """Whole stored tiles around a region, read once, to cut several tiles from at the cost of little more than one.

        Args:
            x, y: level-0 px of a point in the window's first stored tile.
            size_px: least side of the window in px of `mpp`; it is widened to whole stored tiles and moved so that
                it lies inside the slide. Smaller only where the slide is.
            mpp, max_upsample: as for `region`.

        Returns:
            The window. Its pixel (r, c) is what `region` gives at (x + c·mpp/mpp_x, y + r·mpp/mpp_y) of its corner:
            the same pixels at a stored scale, else within 1 grey level, from rounding.

        Raises:
            RegionError, SlideError: as `region`.
        """
        corner_x, corner_y, width, height = self.window_box(x, y, size_px, mpp, max_upsample)
        return Window(corner_x, corner_y, self.region(corner_x, corner_y, (width, height), mpp, max_upsample))

    def window_box(
        self, x: float, y: float, size_px: int, mpp: float, max_upsample: float = 1.0
    ) -> tuple[float, float, int, int]:
        """Where `read_window` reads: its corner in level-0 px, width and height in px of `mpp`. Reads nothing."""
        number = self.level_for(mpp, max_upsample)
        if size_px < 1 or not (math.isfinite(x) and math.isfinite(y)):
            raise RegionError(f"{self.path}: no window of {size_px} px at ({x}, {y})")
        level, (tile_width, tile_height) = self._readable[number], self.tile_size(number)
        scale_x, scale_y = mpp / (self.mpp_x * level.downsample_x), mpp / (self.mpp_y * level.downsample_y)
        left, width = _whole_tiles(x / level.downsample_x, size_px * scale_x, level.width, tile_width)
        top, height = _whole_tiles(y / level.downsample_y, size_px * scale_y, level.height, tile_height)
        return (
            left * level.downsample_x,
            top * level.downsample_y,
            max(int(width / scale_x + SAME_SCALE), 1),
            max(int(height / scale_y + SAME_SCALE), 1),
        )

    def whole(self, mpp: float) -> Pixels:
        """The whole slide at `mpp` µm/px (not finer than `self.mpp`): uint8 RGB [h, w, 3].

        Pixel (r, c) covers µm [c·mpp, (c+1)·mpp) × [r·mpp, (r+1)·mpp). Read in bands from the coarsest
        level that serves, so memory is bounded and level 0 is touched only where there is no other.
        """
        chosen = self._readable[self.level_for(mpp, 1.0)]
        width = math.ceil(self.width * self.mpp_x / mpp - SAME_SCALE)
        height = math.ceil(self.height * self.mpp_y / mpp - SAME_SCALE)
        if width * height > _LARGEST_WHOLE:
            raise RegionError(f"{self.path}: {width}x{height} px at {mpp:g} µm/px are too many to hold at once")
        rows = _BAND_PIXELS * mpp / (chosen.width * self.mpp_y * chosen.downsample_y)
        band = min(max(int(rows), 1), max(height, 1))
        parts = [
            self.region(0, top * mpp / self.mpp_y, (max(width, 1), min(band, height - top)), mpp, whole_tiles=True)
            for top in range(0, max(height, 1), band)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def overview(self, max_px: int) -> tuple[Pixels, float]:
        """The whole slide with its longer side at most `max_px`: uint8 RGB [h, w, 3] and its µm/px."""
        longest_um = max(self.width * self.mpp_x, self.height * self.mpp_y)
        mpp = max(longest_um / max_px, self.mpp)
        return self.whole(mpp), mpp

    @cached_property
    def _readable(self) -> tuple[Level, ...]:
        return (*self.levels, *self.halved_levels)

    @cached_property
    def _scales(self) -> tuple[tuple[int, float, float], ...]:
        """Levels that can serve a region, coarsest first: number, µm/px along x and y; not one of a damaged shape."""
        levels = sorted(enumerate(self._readable), key=lambda item: -item[1].downsample_x)
        return tuple(
            (number, self.mpp_x * x, self.mpp_y * y) for number, (_, _, x, y) in levels if abs(x - y) <= SAME_SHAPE * x
        )

    def level_for(self, mpp: float, max_upsample: float = 1.0) -> int:
        """The level that a region is read from: the coarsest that is fine enough; `levels`, then `halved_levels`.

        max_upsample ≥ 1: the slide, and a level up to NEAR_LEVEL, may be that much coarser than `mpp`. Raises
        RegionError where the slide is coarser still.
        """
        if not (math.isfinite(mpp) and mpp > 0):
            raise RegionError(f"{self.path}: {mpp} is no µm/px")
        if self.mpp > mpp * max(max_upsample, 1.0) * (1 + SAME_SCALE):
            raise RegionError(f"{self.path}: {mpp:g} µm/px wanted, the slide has {self.mpp:g} at its finest")
        wanted = mpp * max(1 + SAME_SCALE, min(max_upsample, NEAR_LEVEL))
        for number, x, y in self._scales:
            if x <= wanted and y <= wanted:
                return number
        return 0

    def _read_on_white(self, level: int, across: Axis, down: Axis, whole_tiles: bool = False) -> Pixels:
        """The planned box of a level; what lies outside the level is white."""
        width, height, *_ = self._readable[level]
        left, right = min(max(across.first, 0), width), min(max(across.first + across.length, 0), width)
        top, bottom = min(max(down.first, 0), height), min(max(down.first + down.length, 0), height)
        if right - left == across.length and bottom - top == down.length:
            return self._read(level, left, top, right - left, bottom - top, whole_tiles)
        pixels = np.full((down.length, across.length, 3), 255, np.uint8)
        if right > left and bottom > top:
            inside = (
                slice(top - down.first, bottom - down.first),
                slice(left - across.first, right - across.first),
            )
            pixels[inside] = self._read(level, left, top, right - left, bottom - top, whole_tiles)
        return pixels


def open_slide(
    path: str | os.PathLike[str],
    mpp: float | None = None,
    reader: str | None = None,
    index: bytes | None = None,
    halve: bool = True,
) -> Slide:
    """Open a slide: a tiled TIFF, every other format of OpenSlide, else a plain TIFF, PNG or JPEG.

    Args:
        path: the file, or the URI of a tiled TIFF in an object store (`s3://`, `gs://`, `https://`).
        mpp: states the µm per level-0 px and goes before what the file says; without it the file has to say it.
        reader: "tiff", "openslide" or "image", as a cohort keeps it; None for the first of them that reads the file.
            What OpenSlide does not know is an "image" in its stead.
        index: of an earlier `TiffSlide.packed_index`, for reader "tiff".
        halve: see `TiffSlide`.

    Raises:
        SlideError: no such file, not a slide, damaged, or no believable scale (0.05 to 20 µm/px).
    """
    from eosin.slides.image import ImageSlide
    from eosin.slides.openslide import OpenSlideSlide, detect_vendor
    from eosin.slides.tiff import NotThisReader, TiffSlide

    if is_uri(path):
        from eosin.slides.remote_index import open_remote

        return open_remote(Uri.parse(path), mpp, reader, index, halve)
    file = Path(path)
    try:
        if file.is_file() and file.stat().st_size == 0:
            raise SlideError(f"{file}: empty file (0 bytes); copy it again")
        with open(file, "rb"):
            pass
    except OSError as error:
        raise SlideError(f"{file}: cannot be read: {error.strerror or error}") from error
    if reader not in (None, *READERS):
        raise SlideError(f"{file}: no reader is called {reader}; there are {', '.join(READERS)}")
    vendor = None if reader in ("tiff", "image") else detect_vendor(file)
    if reader == "tiff" or (reader is None and vendor in TIFF_VENDORS):
        try:
            return TiffSlide(file, mpp, index, halve=halve)
        except NotThisReader as error:
            if reader == "tiff":
                raise SlideError(f"{file}: not a tiled TIFF that is read directly: {error}") from error
    return OpenSlideSlide(file, mpp) if vendor else ImageSlide(file, mpp)


def believable_mpp(path: Path, value: float | None) -> float:
    """`value` as a float, if it is a µm/px that a slide can have; SlideError if not."""
    if value is None:
        raise SlideError(f"{path}: the file does not say its µm/px; {HOW_TO_STATE_MPP}")
    low, high = MPP_RANGE
    if not low <= value <= high:  # also false for NaN
        raise SlideError(f"{path}: {value:g} µm/px is not believable ({low:g} to {high:g}); {HOW_TO_STATE_MPP}")
    return float(value)


def mpp_of_resolution(pixels: float, unit: str) -> float | None:
    """µm/px of a TIFF resolution tag ("inch" or "centimeter"), None where it says nothing about a scanner.

    Image programs write print resolutions (72, 300, 2400 dpi …) into any file, so those and unknown units
    do not count.
    """
    um = {"inch": 25400.0, "centimeter": 10000.0}.get(unit)
    if um is None or not (math.isfinite(pixels) and pixels > 0):
        return None
    dpi = pixels * 25400.0 / um
    if any(abs(dpi - usual) < 0.001 * usual for usual in (72, 96, 100, 150, 200, 300, 600, 1200, 2400, 4800, 9600)):
        return None
    mpp = um / pixels
    return mpp if MPP_RANGE[0] <= mpp <= MPP_RANGE[1] else None


def levels_of(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their sizes in px. Downsamples are whole numbers where the sizes allow it.

    Scanners shrink by whole factors and drop or pad the remainder: 10249 rows become 2562, a ratio of
    4.0004 at a true factor of 4. The ratio is kept only where no whole factor gives both sizes to within
    one pixel.
    """
    full_width, full_height = sizes[0]
    levels = []
    for width, height in sizes:
        ratio_x, ratio_y = full_width / width, full_height / height
        whole = max(round(math.sqrt(ratio_x * ratio_y)), 1)
        if abs(full_width / whole - width) < 1 and abs(full_height / whole - height) < 1:
            ratio_x = ratio_y = float(whole)
        levels.append(Level(width, height, ratio_x, ratio_y))
    return tuple(levels)


def _hull(axes: list[Axis]) -> Axis:
    """The stored pixels of all of `axes`, as they are."""
    first, last = min(axis.first for axis in axes), max(axis.first + axis.length for axis in axes)
    return Axis(first, 1.0, last - first, first, last - first, cut=True)


def _whole_tiles(start: float, length: float, size: int, tile: int) -> tuple[int, int]:
    """First px and number of px of whole tiles of an axis that hold `length` px, from the tile that `start` is in."""
    count = max(math.ceil(length / tile - SAME_SCALE), 1)
    last = max(math.floor((size - length) / tile + SAME_SCALE), 0)  # from here on what follows is shorter than `length`
    first = min(max(math.floor(start / tile), 0), last) * tile
    return first, min(first + count * tile, size) - first
