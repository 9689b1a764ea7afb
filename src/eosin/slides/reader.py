"""A slide file opened at a known scale, and regions of it at any wanted µm/px.

µm/px is physical: a region is asked for by position, size and µm/px, never by pyramid level, and comes at
exactly that scale. What is not here: how the pixels of a level are fetched (openslide.py, image.py), where
tissue is (foreground.py). Label and macro images are never read.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np

from eosin.errors import RegionError, SlideError
from eosin.slides.resample import Axis, Pixels, resample

MPP_RANGE = (0.05, 20.0)
HOW_TO_STATE_MPP = "state it with --mpp-csv FILE (columns slide,mpp)"

# Two scales closer than this are one: a pyramid level 4.0004 times smaller serves 4 times the scale.
SAME_SCALE = 1e-3
_BAND_PIXELS = 1 << 25
_LARGEST_REGION = 1 << 28


class Level(NamedTuple):
    """One level of the pyramid: size in px and level-0 px per level px, along x and y."""

    width: int
    height: int
    downsample_x: float
    downsample_y: float


class Slide(ABC):
    """An open slide. Made by `open_slide`; use it as a context manager or `close()` it.

    path, vendor, reader ("openslide" or "image"); width, height in level-0 px; mpp_x, mpp_y in µm per
    level-0 px; levels, level 0 first. Not picklable: other processes open the path again. Threads may share
    it.
    """

    reader: ClassVar[str]

    def __init__(
        self, path: Path, vendor: str, levels: tuple[Level, ...], mpp: tuple[float | None, float | None]
    ) -> None:
        self.path = path
        self.vendor = vendor
        self.levels = levels
        self.width, self.height = levels[0].width, levels[0].height
        self.mpp_x, self.mpp_y = (believable_mpp(path, value) for value in mpp)

    @abstractmethod
    def _read(self, level: int, column: int, row: int, width: int, height: int) -> Pixels:
        """Pixels of one level, uint8 [height, width, 3]; the box lies inside the level."""

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
        self, x: float, y: float, size_px: int | tuple[int, int], mpp: float, max_upsample: float = 1.0
    ) -> Pixels:
        """Pixels at `mpp` µm/px from the level-0 position (x, y) of the region's top-left corner.

        Args:
            x, y: level-0 px, fractions allowed, also outside the slide.
            size_px: output side, or (width, height), in px of `mpp`.
            mpp: wanted µm/px, the same along x and y.
            max_upsample: how many times finer than the slide `mpp` may be (bilinear then).

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
        level = self._level_for(mpp, max_upsample)
        if min(width, height) < 1 or not (math.isfinite(x) and math.isfinite(y)):
            raise RegionError(f"{self.path}: no region of {width}x{height} px at ({x}, {y})")
        chosen = self.levels[level]
        across = Axis.of(x / chosen.downsample_x, mpp / (self.mpp_x * chosen.downsample_x), int(width))
        down = Axis.of(y / chosen.downsample_y, mpp / (self.mpp_y * chosen.downsample_y), int(height))
        if across.length * down.length > _LARGEST_REGION:
            raise RegionError(
                f"{self.path}: a region of {width}x{height} px at {mpp:g} µm/px needs "
                f"{across.length}x{down.length} stored px at once; read it in parts"
            )
        return resample(self._read_on_white(level, across, down), across, down)

    def whole(self, mpp: float) -> Pixels:
        """The whole slide at `mpp` µm/px (not finer than `self.mpp`): uint8 RGB [h, w, 3].

        Pixel (r, c) covers µm [c·mpp, (c+1)·mpp) × [r·mpp, (r+1)·mpp). Read in bands from the coarsest
        level that serves, so memory is bounded and level 0 is touched only where there is no other.
        """
        chosen = self.levels[self._level_for(mpp, 1.0)]
        width = math.ceil(self.width * self.mpp_x / mpp - SAME_SCALE)
        height = math.ceil(self.height * self.mpp_y / mpp - SAME_SCALE)
        rows = _BAND_PIXELS * mpp / (chosen.width * self.mpp_y * chosen.downsample_y)
        band = min(max(int(rows), 1), max(height, 1))
        parts = [
            self.region(0, top * mpp / self.mpp_y, (max(width, 1), min(band, height - top)), mpp)
            for top in range(0, max(height, 1), band)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def overview(self, max_px: int) -> tuple[Pixels, float]:
        """The whole slide with its longer side at most `max_px`: uint8 RGB [h, w, 3] and its µm/px."""
        longest_um = max(self.width * self.mpp_x, self.height * self.mpp_y)
        mpp = max(longest_um / max_px, self.mpp)
        return self.whole(mpp), mpp

    def _level_for(self, mpp: float, max_upsample: float) -> int:
        if not (math.isfinite(mpp) and mpp > 0):
            raise RegionError(f"{self.path}: {mpp} is no µm/px")
        if self.mpp > mpp * max(max_upsample, 1.0) * (1 + SAME_SCALE):
            raise RegionError(f"{self.path}: {mpp:g} µm/px wanted, the slide has {self.mpp:g} at its finest")
        fine_enough = [
            index
            for index, level in enumerate(self.levels)
            if max(self.mpp_x * level.downsample_x, self.mpp_y * level.downsample_y) <= mpp * (1 + SAME_SCALE)
        ]
        return max(fine_enough, key=lambda index: self.levels[index].downsample_x, default=0)

    def _read_on_white(self, level: int, across: Axis, down: Axis) -> Pixels:
        """The planned box of a level; what lies outside the level is white."""
        width, height = self.levels[level].width, self.levels[level].height
        left, right = (min(max(edge, 0), width) for edge in (across.first, across.first + across.length))
        top, bottom = (min(max(edge, 0), height) for edge in (down.first, down.first + down.length))
        if (right - left, bottom - top) == (across.length, down.length):
            return self._read(level, left, top, right - left, bottom - top)
        pixels = np.full((down.length, across.length, 3), 255, np.uint8)
        if right > left and bottom > top:
            inside = (
                slice(top - down.first, bottom - down.first),
                slice(left - across.first, right - across.first),
            )
            pixels[inside] = self._read(level, left, top, right - left, bottom - top)
        return pixels


def open_slide(path: str | os.PathLike[str], mpp: float | None = None) -> Slide:
    """Open a slide: every format of OpenSlide, else a plain TIFF, PNG or JPEG.

    `mpp` states the µm per level-0 px and goes before what the file says; without it the file has to say it.

    Raises:
        SlideError: no such file, not a slide, damaged, or no believable scale (0.05 to 20 µm/px).
    """
    from eosin.slides.image import ImageSlide
    from eosin.slides.openslide import OpenSlideSlide, detect_vendor

    file = Path(path)
    try:
        if file.is_file() and file.stat().st_size == 0:
            raise SlideError(f"{file}: empty file (0 bytes); copy it again")
        with open(file, "rb"):
            pass
    except OSError as error:
        raise SlideError(f"{file}: cannot be read: {error.strerror or error}") from error
    return OpenSlideSlide(file, mpp) if detect_vendor(file) else ImageSlide(file, mpp)


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
