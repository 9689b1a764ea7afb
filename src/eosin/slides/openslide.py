"""Slides that OpenSlide reads: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM, Philips and generic tiled TIFF, others.

OpenSlide places level pixels by level-0 coordinates and interpolates between pixels where those do not
meet. So only windows that begin on a whole level pixel are asked for, through the level-0 coordinate that
OpenSlide maps closest to it; cutting and resampling is done by `Slide.region`. Where OpenSlide's own
downsample is fractional (4.0002), its rounding leaves a shift of at most half a level-0 pixel. ICC profiles
are not applied. Associated images (label, macro) are never touched.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import openslide

from eosin.errors import SlideError
from eosin.slides.reader import Slide, levels_of, mpp_of_resolution
from eosin.slides.resample import Pixels

CACHE_BYTES = 64 * 2**20
_BLENDED_PIXELS = 1 << 20

_cache: tuple[int, openslide.OpenSlideCache] | None = None


class OpenSlideSlide(Slide):
    """A slide behind an OpenSlide handle."""

    reader = "openslide"

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        """Open `path`; SlideError where OpenSlide cannot, or where no believable µm/px is known."""
        try:
            self._handle = openslide.OpenSlide(path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(f"{path}: OpenSlide cannot open it, it may be truncated: {error}") from error
        try:
            self._handle.set_cache(_shared_cache())
            self._downsamples = self._handle.level_downsamples
            properties, sizes = self._handle.properties, list(self._handle.level_dimensions)
            if min(min(size) for size in sizes) < 1:
                raise SlideError(f"{path}: damaged: a level without pixels")
            super().__init__(
                path,
                vendor=properties.get("openslide.vendor", "unknown"),
                levels=levels_of(sizes),
                mpp=(mpp, mpp) if mpp is not None else (_mpp(properties, "x"), _mpp(properties, "y")),
            )
        except BaseException:
            self._handle.close()
            raise

    def _read(self, level: int, column: int, row: int, width: int, height: int, whole_tiles: bool = False) -> Pixels:
        factor = self._downsamples[level]
        try:
            image = self._handle.read_region((round(column * factor), round(row * factor)), level, (width, height))
        except (openslide.OpenSlideError, ValueError, MemoryError) as error:
            raise SlideError(f"{self.path}: cannot be read at level {level}: {error}") from error
        return _on_white(np.asarray(image))

    def tile_size(self, level: int) -> tuple[int, int]:
        """See `Slide.tile_size`."""
        stated = [
            self._handle.properties.get(f"openslide.level[{level}].tile-{side}", "") for side in ("width", "height")
        ]
        width, height = (int(text) if text.isdigit() and int(text) > 0 else 1 for text in stated)
        return width, height

    def close(self) -> None:
        """Close the handle."""
        self._handle.close()


def _on_white(pixels: Pixels) -> Pixels:
    """RGB [h, w, 3] of RGBA [h, w, 4] that is not premultiplied."""
    plain = np.ascontiguousarray(pixels[..., :3])
    if pixels[..., 3].min() == 255:
        return plain
    step = max(_BLENDED_PIXELS // pixels.shape[1], 1)
    for top in range(0, len(pixels), step):  # in strips: single precision takes four times the memory
        rows = slice(top, top + step)
        share = pixels[rows, :, 3:].astype(np.float32) / 255
        plain[rows] = (pixels[rows, :, :3] * share + 255 * (1 - share) + 0.5).astype(np.uint8)
    return plain


def detect_vendor(path: Path) -> str | None:
    """The vendor name that OpenSlide gives the file; None where it is not one of its formats."""
    return openslide.OpenSlide.detect_format(path)


def _mpp(properties: openslide.PropertyMap, axis: str) -> float | None:
    """µm/px along one axis: OpenSlide's own property, else a TIFF resolution that can be a scanner's."""
    try:
        if f"openslide.mpp-{axis}" in properties:
            return float(properties[f"openslide.mpp-{axis}"])
        if properties.get("openslide.vendor") == "generic-tiff":
            pixels = float(properties.get(f"tiff.{axis.upper()}Resolution", "nan"))
            return mpp_of_resolution(pixels, properties.get("tiff.ResolutionUnit", ""))
    except ValueError:
        return float("nan")
    return None


def _shared_cache() -> openslide.OpenSlideCache:
    """One tile cache for all slides of this process: OpenSlide's own is 32 MB a handle."""
    global _cache
    if _cache is None or _cache[0] != os.getpid():
        _cache = (os.getpid(), openslide.OpenSlideCache(CACHE_BYTES))
    return _cache[1]
