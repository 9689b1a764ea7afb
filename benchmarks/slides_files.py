"""Slides of 30,000 px and more for benchmarks/slides.py, written from real H&E pixels in the layouts of scanners.

Pixels are a block of about 8,000 px, a mosaic of real images at 0.25 µm/px, turned and flipped, blended into noisy
glass by a random blob mask; the slide is that block again and again, each time with bytes of its own in the file, so
that writing takes seconds a slide. Four layouts: a generic pyramid 1/2/4/8/16 (JPEG 4:2:0), and Aperio pyramids 1/4/16
as JPEG 4:2:2, as JPEG/RGB of 240-px tiles, and as JPEG 2000. A block is whole tiles at every level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import imagecodecs
import numpy as np
import tifffile

from eosin.progress import progress_bar

MPP = 0.25
MASK_STEP = 64  # px of the slide per px of the tissue mask
_GLASS = (243, 242, 245)


@dataclass(frozen=True)
class Layout:
    """How one file is stored."""

    name: str
    suffix: str
    tile: int
    factors: tuple[int, ...]
    coding: str  # "420", "422", "rgb" or "j2k"
    quality: int

    @property
    def aperio(self) -> bool:
        return self.suffix == ".svs"


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("generic", ".tif", 256, (1, 2, 4, 8, 16), "420", 80),
        Layout("aperio", ".svs", 256, (1, 4, 16), "422", 80),
        Layout("aperio-rgb", ".svs", 240, (1, 4, 16), "rgb", 70),
        Layout("aperio-j2k", ".svs", 256, (1, 4, 16), "j2k", 70),
    )
}


class Written(NamedTuple):
    """A slide: its file, its side in px, and its tissue mask, bool [h, w] of MASK_STEP px."""

    file: Path
    side: int
    mask: np.ndarray


def write_slides(images: Path, folder: Path, side: int, names: list[str]) -> dict[str, Written]:
    """Slides of at least `side` px by layout, made where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    made, blocks = {}, {}
    for name in names:
        layout = LAYOUTS[name]
        period = layout.tile * layout.factors[-1] * 2
        repeats = -(-side // period)
        file = folder / f"{name}-{period * repeats}{layout.suffix}"
        mask = _mask(period)
        if not file.exists():
            if period not in blocks:
                blocks[period] = _block(images, mask)
            _write(file, blocks[period], repeats, layout)
        made[name] = Written(file, period * repeats, np.tile(mask > 0, (repeats, repeats)))
    return made


def _mask(period: int) -> np.ndarray:
    """Blobs over half of a block of `period` px, float32 [cells, cells], that go on at the opposite edges."""
    cells = period // MASK_STEP
    noise = np.tile(np.random.default_rng(0).standard_normal((cells, cells)), (3, 3))
    field = cv2.GaussianBlur(noise, (0, 0), cells / 8)[cells : 2 * cells, cells : 2 * cells]
    return (field > np.median(field)).astype(np.float32)


def _block(images: Path, mask: np.ndarray) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of the block that the mask is of."""
    rng = np.random.default_rng(1)
    sources = [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in sorted(images.glob("*.png"))]
    if not sources:
        raise SystemExit(f"{images} holds no PNG images")
    side = mask.shape[0] * MASK_STEP
    pixels = np.empty((side, side, 3), np.uint8)
    wide = cv2.copyMakeBorder(cv2.GaussianBlur(mask, (0, 0), 0.8), 1, 1, 1, 1, cv2.BORDER_WRAP)
    step = min(source.shape[0] for source in sources)
    for top in range(0, side, step):
        for left in range(0, side, step):
            box = pixels[top : top + step, left : left + step]
            height, width = box.shape[:2]
            source = np.rot90(sources[rng.integers(len(sources))], rng.integers(4))[:height, :width]
            rows, columns = (
                ((np.arange(start, start + size) + 0.5) / MASK_STEP + 0.5).astype(np.float32)
                for start, size in ((top, height), (left, width))
            )
            share = cv2.remap(wide, *np.meshgrid(columns, rows), cv2.INTER_LINEAR)[..., None]
            glass = np.array(_GLASS, np.float32) + rng.integers(-2, 3, (height, width, 1), dtype=np.int8)
            box[:] = source * share + glass * (1 - share)
    return pixels


def _write(file: Path, block: np.ndarray, repeats: int, layout: Layout) -> None:
    whole = block.shape[0] * repeats
    base = f"Aperio Image Library v11.2.1 \r\n{whole}x{whole} ({layout.tile}x{layout.tile})"
    tiles = sum((whole // factor // layout.tile) ** 2 for factor in layout.factors)
    temporary = file.with_suffix(".part")
    with tifffile.TiffWriter(temporary, bigtiff=True) as out, progress_bar(f"write {file.name}", tiles, "tiles") as bar:
        level = block
        for number, factor in enumerate(layout.factors):
            if number:
                level = _shrunk(level, factor // layout.factors[number - 1])
            side = level.shape[0] * repeats
            words = _words(layout, (side, side, 3), number)
            if layout.aperio:
                text = f"{base}|AppMag = 40|MPP = {MPP}" if number == 0 else f"{base} -> {side}"
                words["description"] = text
            out.write(_encoded(level, repeats, layout, bar.advance), **words)
            if number == 0 and layout.aperio:  # readers built on tifffile take the second image for the thumbnail
                small = np.tile(_shrunk(block, whole // 512), (repeats, repeats, 1))
                out.write(small, photometric="rgb", description=f"{base} -> thumbnail", metadata=None, rowsperstrip=16)
    temporary.replace(file)


def _words(layout: Layout, shape: tuple[int, ...], number: int) -> dict[str, object]:
    words: dict[str, object] = {"shape": shape, "dtype": np.uint8, "tile": (layout.tile,) * 2, "metadata": None}
    if layout.coding == "j2k":
        words |= {"compression": 33005, "photometric": "rgb"}
    else:
        words |= {"compression": "jpeg", "photometric": "ycbcr"}
    if layout.coding == "rgb":
        words |= {"photometric": "rgb", "compressionargs": {"outcolorspace": "RGB"}}
    elif layout.coding in ("420", "422"):
        words["subsampling"] = (2, 2) if layout.coding == "420" else (2, 1)
    if not layout.aperio:
        words |= {"resolution": (1e4 / MPP,) * 2, "resolutionunit": 3, "subfiletype": int(number > 0)}
    return words


def _encoded(level: np.ndarray, repeats: int, layout: Layout, done: Callable[[int], object]) -> Iterator[bytes]:
    """Compressed tiles in file order, each of the block encoded once."""
    tile, count = layout.tile, level.shape[0] // layout.tile

    def encode(place: tuple[int, int]) -> bytes:
        top, left = place[0] * tile, place[1] * tile
        return _compressed(np.ascontiguousarray(level[top : top + tile, left : left + tile]), layout)

    rows: list[list[bytes]] = []
    with ThreadPoolExecutor(2) as pool:
        for number in range(count * repeats):
            if number < count:
                rows.append(list(pool.map(encode, [(number, column) for column in range(count)])))
            for data in rows[number % count] * repeats:
                yield data
                done(1)


def _compressed(tile: np.ndarray, layout: Layout) -> bytes:
    if layout.coding == "j2k":
        return imagecodecs.jpeg2k_encode(
            tile, level=36, codecformat="j2k", reversible=False, resolutions=5, numthreads=1
        )
    ycc = layout.coding != "rgb"
    return imagecodecs.jpeg8_encode(
        tile,
        level=layout.quality,
        colorspace="RGB",
        outcolorspace="YCBCR" if ycc else "RGB",
        subsampling=layout.coding if ycc else "444",
    )


def _shrunk(level: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor px, strip by strip; what is left over at the edges is dropped."""
    height, width = level.shape[0] // factor, level.shape[1] // factor
    small = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        strip = np.ascontiguousarray(level[top * factor : min(top + 256, height) * factor, : width * factor])
        small[top : top + 256] = cv2.resize(strip, (width, len(strip) // factor), interpolation=cv2.INTER_AREA)
    return small
