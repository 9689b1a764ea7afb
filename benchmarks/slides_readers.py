"""The readers that benchmarks/slides.py compares: each gives `size` px at `mpp` µm/px from a level-0 position.

Peers are asked as their documentation shows: the coarsest level that is fine enough, then OpenCV's area reduction
where the scale is not a stored one. A reader that is not installed is left out and named.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import cv2
import numpy as np


class Reader(ABC):
    """One reader on one slide."""

    needs: tuple[str, ...] = ()
    slide: Any

    def __init__(self, path: Path, mpp: float, factors: tuple[int, ...]) -> None:
        """mpp: µm per level-0 px; factors: downsamples of the stored levels."""
        self.mpp, self.factors = mpp, factors
        self.open(path)

    @abstractmethod
    def open(self, path: Path) -> None:
        """Open the slide."""

    @abstractmethod
    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        """uint8 [size, size, 3 or 4] of a level from level-0 px (x, y)."""

    def read(self, x: int, y: int, size: int, mpp: float) -> np.ndarray:
        """uint8 [size, size, 3] at `mpp`."""
        number = max(n for n, factor in enumerate(self.factors) if factor * self.mpp <= mpp * 1.001)
        side = round(size * mpp / (self.mpp * self.factors[number]))
        pixels = self.level(number, x, y, side)
        return pixels if side == size else cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)

    def close(self) -> None:
        """Release the slide."""
        del self.slide


class Eosin(Reader):
    def open(self, path: Path) -> None:
        from eosin.slides import open_slide

        self.slide = open_slide(path, reader="tiff")

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        raise NotImplementedError

    def read(self, x: int, y: int, size: int, mpp: float) -> np.ndarray:
        return self.slide.region(x, y, size, mpp)

    def close(self) -> None:
        self.slide.close()


class EosinThroughOpenSlide(Eosin):
    def open(self, path: Path) -> None:
        from eosin.slides import open_slide

        self.slide = open_slide(path, reader="openslide")


class OpenSlide(Reader):
    needs = ("openslide",)

    def open(self, path: Path) -> None:
        import openslide

        self.slide = openslide.OpenSlide(path)

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x, y), number, (size, size)).convert("RGB"))

    def close(self) -> None:
        self.slide.close()


class TifffileZarr(Reader):
    needs = ("tifffile", "zarr")

    def open(self, path: Path) -> None:
        import tifffile
        import zarr

        self.file = tifffile.TiffFile(path)
        group = zarr.open(self.file.series[0].aszarr(), mode="r")
        self.levels = [group[str(number)] for number in range(len(self.factors))]

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        left, top = x // self.factors[number], y // self.factors[number]
        return np.asarray(self.levels[number][top : top + size, left : left + size])

    def close(self) -> None:
        self.file.close()


class TiffSlide(Reader):
    needs = ("tiffslide",)

    def open(self, path: Path) -> None:
        import tiffslide

        self.slide = tiffslide.TiffSlide(path)

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        return self.slide.read_region((x, y), number, (size, size), as_array=True)

    def close(self) -> None:
        self.slide.close()


class CuCim(Reader):
    needs = ("cucim",)

    def open(self, path: Path) -> None:
        from cucim import CuImage

        self.slide = CuImage(str(path))

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        return np.asarray(self.slide.read_region((x, y), (size, size), level=number))


class FastSlide(Reader):
    needs = ("fastslide",)

    def open(self, path: Path) -> None:
        import fastslide

        self.slide = fastslide.FastSlide.from_file_path(str(path))

    def level(self, number: int, x: int, y: int, size: int) -> np.ndarray:
        factor = self.factors[number]
        return self.slide.read_region((x // factor, y // factor), number, (size, size)).numpy()


THROUGH = "eosin through openslide"
READERS: dict[str, type[Reader]] = {
    "eosin": Eosin,
    THROUGH: EosinThroughOpenSlide,
    "openslide-python": OpenSlide,
    "tifffile + zarr": TifffileZarr,
    "tiffslide": TiffSlide,
    "cuCIM (CPU)": CuCim,
    "fastslide": FastSlide,
}


def missing(reader: type[Reader]) -> str | None:
    """The first package that is not there; None if the reader can be used."""
    for name in reader.needs:
        try:
            importlib.import_module(name)
        except Exception as error:  # a package may be there and fail to load
            return f"{name} not installed ({type(error).__name__})"
    return None
