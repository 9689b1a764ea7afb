"""Slides written by the tests: small pyramids with known pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

WriteSlide = Callable[..., Path]


@pytest.fixture(scope="session")
def write_aperio() -> WriteSlide:
    """write(path, levels, mpp): a lossless Aperio SVS of these levels (uint8 [h, w, 3], full size first)."""

    def write(path: Path, levels: Sequence[np.ndarray], mpp: float | str | None = 0.25, tile: int = 64) -> Path:
        height, width = levels[0].shape[:2]
        with tifffile.TiffWriter(path) as file:
            for level in levels:
                text = f"Aperio Image Library v11.2.1 \r\n{width}x{height} ({tile}x{tile})"
                text += " -> " if level is not levels[0] else ""
                text += "|AppMag = 40" + (f"|MPP = {mpp}" if mpp is not None else "")
                file.write(level, tile=(tile, tile), photometric="rgb", description=text, metadata=None)
        return path

    return write


@pytest.fixture(scope="session")
def write_tiff() -> WriteSlide:
    """write(path, pixels, **words of tifffile): a TIFF with one image."""

    def write(path: Path, pixels: np.ndarray, **words: object) -> Path:
        tifffile.imwrite(path, pixels, metadata=None, photometric="rgb", **words)
        return path

    return write


@pytest.fixture(scope="session")
def noise_levels() -> list[np.ndarray]:
    """Smoothed noise, 700 x 900 px, and its means over 4 x 4 and 16 x 16 pixels, as pyramids have them."""
    rough = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    full = cv2.GaussianBlur(rough, (0, 0), 0.7)
    return [full, *(cv2.resize(full, (900 // f, 700 // f), interpolation=cv2.INTER_AREA) for f in (4, 16))]


@pytest.fixture(scope="session")
def pink_slide(tmp_path_factory: pytest.TempPathFactory, write_aperio: WriteSlide) -> Path:
    """A slide of 1,024 px at 1 µm/px: pink textured tissue, 512 x 512 px in the middle of glass."""
    return write_aperio(tmp_path_factory.mktemp("pink") / "pink.svs", pink_levels(), mpp=1.0)


def pink_levels(seed: int = 0, tissue: bool = True) -> list[np.ndarray]:
    """Pixels of `pink_slide` at downsamples 1 and 4."""
    rng = np.random.default_rng(seed)
    full = np.array([240, 239, 241]) + rng.normal(0, 1, (1024, 1024, 3))
    if tissue:
        texture = cv2.GaussianBlur(rng.normal(0, 1, (512, 512, 1)), (0, 0), 8)[..., None] * 400
        full[256:768, 256:768] = np.array([200, 120, 170]) + texture
    full = full.clip(0, 255).astype(np.uint8)
    return [full, cv2.resize(full, (256, 256), interpolation=cv2.INTER_AREA)]
