"""Slides of 30,000 px and more for benchmarks/slides.py, written from real H&E pixels in the layouts of scanners.

Pixels are a mosaic of real images at 0.25 µm/px, turned and flipped, blended into noisy glass by a random blob mask.
Four layouts of the same pixels: a generic pyramid 1/2/4/8 (JPEG 4:2:0), and Aperio pyramids 1/4/16 as JPEG 4:2:2, as
JPEG/RGB of 240-px tiles, and as JPEG 2000. Tile edges are cut off so that every level holds whole tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

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


def write_slides(images: Path, folder: Path, side: int, names: list[str]) -> tuple[dict[str, Path], np.ndarray]:
    """Files by layout, made where they are not there yet, and the tissue mask, bool [h, w] of MASK_STEP px."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}-{side}{LAYOUTS[name].suffix}" for name in names}
    mask_file, pixels_file = folder / f"mask-{side}.npy", folder / f"pixels-{side}.npy"
    todo = [name for name, file in files.items() if not file.exists()]
    if todo or not mask_file.exists():
        pixels = _pixels(images, pixels_file, mask_file, side)
        for name in todo:
            _write(files[name], pixels, LAYOUTS[name])
        pixels_file.unlink()
    return files, np.load(mask_file)


def _pixels(images: Path, file: Path, mask_file: Path, side: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    sources = [np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]) for path in sorted(images.glob("*.png"))]
    if not sources:
        raise SystemExit(f"{images} holds no PNG images")
    cells = -(-side // MASK_STEP)
    field = cv2.GaussianBlur(rng.standard_normal((cells, cells)), (0, 0), cells / 13)
    mask = (field > np.quantile(field, 0.7)).astype(np.float32)
    np.save(mask_file, mask > 0)
    soft = cv2.GaussianBlur(mask, (0, 0), 0.8)
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(side, side, 3))
    step = min(source.shape[0] for source in sources)
    for top in range(0, side, step):
        for left in range(0, side, step):
            box = pixels[top : top + step, left : left + step]
            height, width = box.shape[:2]
            source = np.rot90(sources[rng.integers(len(sources))], rng.integers(4))[:height, :width]
            rows, columns = (
                ((np.arange(start, start + size) + 0.5) / MASK_STEP - 0.5).astype(np.float32)
                for start, size in ((top, height), (left, width))
            )
            share = cv2.remap(soft, *np.meshgrid(columns, rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            glass = np.array(_GLASS) + rng.integers(-2, 3, (height, width, 1))
            box[:] = source * share[..., None] + glass * (1 - share[..., None])
    return pixels


def _write(file: Path, pixels: np.ndarray, layout: Layout) -> None:
    whole = pixels.shape[0] // (layout.tile * layout.factors[-1]) * layout.tile * layout.factors[-1]
    base = f"Aperio Image Library v11.2.1 \r\n{whole}x{whole} ({layout.tile}x{layout.tile})"
    tiles = sum((whole // factor // layout.tile) ** 2 for factor in layout.factors)
    temporary = file.with_suffix(".part")
    with tifffile.TiffWriter(temporary, bigtiff=True) as out, progress_bar(f"write {file.name}", tiles, "tiles") as bar:
        level = pixels[:whole, :whole]
        for number, factor in enumerate(layout.factors):
            if number:
                level = _shrunk(level, factor // layout.factors[number - 1])
            words = _words(layout, level.shape, number)
            if layout.aperio:
                text = f"{base}|AppMag = 40|MPP = {MPP}" if number == 0 else f"{base} -> {level.shape[1]}"
                words["description"] = text
            out.write(_encoded(level, layout, bar.advance), **words)
            if number == 0 and layout.aperio:  # readers built on tifffile take the second image for the thumbnail
                small = _shrunk(pixels[:whole, :whole], whole // 512)
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


def _encoded(level: np.ndarray, layout: Layout, done: object) -> Iterator[bytes]:
    """Compressed tiles in file order, encoded by two threads a little ahead."""

    def encode(place: tuple[int, int]) -> bytes:
        tile = np.ascontiguousarray(level[place[0] : place[0] + layout.tile, place[1] : place[1] + layout.tile])
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

    places = ((y, x) for y in range(0, level.shape[0], layout.tile) for x in range(0, level.shape[1], layout.tile))
    with ThreadPoolExecutor(2) as pool:
        while batch := list(islice(places, 64)):
            for data in pool.map(encode, batch):
                yield data
                done(1)


def _shrunk(level: np.ndarray, factor: int) -> np.ndarray:
    """Means over factor x factor px, strip by strip; what is left over at the edges is dropped."""
    height, width = level.shape[0] // factor, level.shape[1] // factor
    small = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 256):
        strip = np.ascontiguousarray(level[top * factor : min(top + 256, height) * factor, : width * factor])
        small[top : top + 256] = cv2.resize(strip, (width, len(strip) // factor), interpolation=cv2.INTER_AREA)
    return small
