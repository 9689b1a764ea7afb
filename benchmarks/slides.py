"""Random tiles from slides per CPU-second: eosin, other readers, and the pure decoding of the same stored tiles.

Slides of four layouts are written from the real images of DATA/monuseg_train (benchmarks/slides_files.py). Each cell is
tiles of 256 or 392 px per second of CPU time of the whole process (so threads that a reader starts gain nothing), from
random positions whose tile is tissue. The decode limit is libjpeg-turbo (OpenJPEG for JPEG 2000) on all stored tiles
that eosin touches, at the scale at which eosin decodes them, with their bytes in memory already. "Windows of 4" are 4
random tiles out of one window of at least 1.5 tile sides, widened to whole stored tiles. Other readers are left out
where they are not installed (pip install zarr tiffslide fastslide; cucim-cu12 --no-deps with click and lazy_loader).

    python benchmarks/slides.py DATA -o FOLDER [--side 30720] [--seconds 2] [--layouts generic,aperio] [--readers …]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from slides_files import LAYOUTS, MASK_STEP, MPP, write_slides
from slides_readers import READERS, Reader, missing
from threadpoolctl import threadpool_limits

from eosin.slides import open_slide
from eosin.slides.resample import Axis
from eosin.slides.tiff import TiffSlide

SIZES, SCALES = (256, 392), (0.25, 0.5, 1.0, 2.0)
EXTRA_SCALE = 0.7  # no stored level and no half of one: fractional area resampling
PACKAGES = ("eosin", "openslide-python", "simplejpeg", "imagecodecs", "cucim-cu12", "fastslide", "tiffslide", "zarr")
Place = tuple[int, int]
Cells = dict[str, dict[str, float]]


def positions(mask: np.ndarray, side: int, size: int, mpp: float) -> Iterator[Place]:
    """Endless random level-0 corners of tiles that are tissue by nine tenths, or as far as the slide has such."""
    rng = np.random.default_rng(0)
    reach = size * mpp / MPP
    cells = max(round(reach / MASK_STEP), 1)
    count = (side - int(np.ceil(reach))) // MASK_STEP - 1
    if count < 1:
        raise SystemExit(f"--side {side} is too small for {size} px at {mpp:g} µm/px")
    table = cv2.integral(mask.astype(np.uint8)).astype(np.int64)
    ends = table[cells:, cells:], table[:-cells, :-cells], table[cells:, :-cells], table[:-cells, cells:]
    share = (ends[0] + ends[1] - ends[2] - ends[3])[:count, :count] / cells**2
    rows, columns = np.nonzero(share >= min(0.9, np.quantile(share, 0.98)))
    while True:
        pick = rng.integers(len(rows))
        x, y = rng.integers(0, MASK_STEP, 2) + MASK_STEP * np.array([columns[pick], rows[pick]])
        yield int(x), int(y)


def rate(work: Callable[[Place], object], places: Iterator[Place], seconds: float, each: int = 1) -> float:
    """Items per CPU-second of the process, the better of two rounds."""
    work(next(places))
    best = 0.0
    for _ in range(2):
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds / 2:
            work(next(places))
            done += each
        best = max(best, done / (time.process_time() - cpu))
    return best


def decode_limit(path: Path, places: list[Place], size: int, mpp: float, seconds: float) -> float:
    """Tiles per CPU-second if reading were nothing but decoding the stored tiles that they touch."""
    with open_slide(path, reader="tiff") as slide:
        assert isinstance(slide, TiffSlide)
        jobs = [_stored(slide, place, size, mpp) for place in places]
        plan = slide._plan(slide._level_for(mpp, 1.0))

        def work(place: Place) -> None:
            for data in jobs[place[0]]:
                plan.decoder.decode(data, plan.half)

        return rate(work, ((number % len(jobs), 0) for number in count()), seconds)


def _stored(slide: TiffSlide, place: Place, size: int, mpp: float) -> list[bytes]:
    number = slide._level_for(mpp, 1.0)
    level, plan = slide._readable[number], slide._plan(number)
    spans = []
    axes = [Axis.of(at / level.downsample_x, mpp / (slide.mpp * level.downsample_x), size) for at in place]
    columns, rows = (
        range(axis.first // tile, (axis.first + axis.length - 1) // tile + 1)
        for axis, tile in zip(axes, plan.tile, strict=True)
    )
    for row in rows:
        for column in columns:
            tile = row * plan.stored.across + column
            spans.append((int(plan.stored.offsets[tile]), int(plan.stored.counts[tile])))
    return slide._source.read(spans)


def windows(path: Path, places: Iterator[Place], size: int, mpp: float, seconds: float) -> float:
    """Tiles per CPU-second, 4 of them cut from each window."""
    rng = np.random.default_rng(1)
    with open_slide(path, reader="tiff") as slide:

        def work(place: Place) -> None:
            pixels = slide.read_window(*place, size * 3 // 2, mpp).pixels
            for _ in range(4):
                top, left = rng.integers(0, [pixels.shape[0] - size + 1, pixels.shape[1] - size + 1])
                np.ascontiguousarray(pixels[top : top + size, left : left + size])

        return rate(work, places, seconds, each=4)


def measure(path: Path, name: str, mask: np.ndarray, side: int, readers: list[str], seconds: float) -> Cells:
    """All cells of one layout: row, then "size @ mpp"."""
    cells: Cells = {}
    whole = side // (LAYOUTS[name].tile * LAYOUTS[name].factors[-1]) * LAYOUTS[name].tile * LAYOUTS[name].factors[-1]
    for size in SIZES:
        for mpp in (*SCALES, EXTRA_SCALE):
            column = f"{size} @ {mpp:g}"
            some = positions(mask, whole, size, mpp)
            first = [next(some) for _ in range(200)]
            cells.setdefault("decode limit", {})[column] = decode_limit(path, first, size, mpp, seconds)
            for reader in readers:
                opened = READERS[reader](path, MPP, LAYOUTS[name].factors)
                try:
                    work = _reading(opened, size, mpp)
                    cells.setdefault(reader, {})[column] = rate(work, positions(mask, whole, size, mpp), seconds)
                except Exception as error:  # a peer may refuse a layout
                    cells.setdefault(reader, {})[column] = float("nan")
                    print(f"{name}, {reader}, {column}: {type(error).__name__}: {str(error)[:120]}")
                opened.close()
            wide = positions(mask, whole, 2 * size, mpp)
            cells.setdefault("eosin, windows of 4", {})[column] = windows(path, wide, size, mpp, seconds)
    return cells


def _reading(reader: Reader, size: int, mpp: float) -> Callable[[Place], np.ndarray]:
    return lambda place: reader.read(*place, size, mpp)


def show(name: str, cells: Cells) -> None:
    """Print one layout's table: tiles per CPU-second, then eosin's share of the limit and its lead."""
    columns = list(next(iter(cells.values())))
    print(f"\n{name}: tiles per CPU-second, columns are size in px @ µm/px")
    print(f"{'':26}" + "".join(f"{column:>12}" for column in columns))
    for row, values in cells.items():
        print(f"{row:26}" + "".join(f"{values[column]:12.0f}" for column in columns))
    ours, limit, slow = cells.get("eosin"), cells["decode limit"], cells.get("openslide-python")
    if ours:
        print(f"{'eosin / decode limit':26}" + "".join(f"{ours[c] / limit[c]:12.2f}" for c in columns))
        if slow:
            print(f"{'eosin / openslide-python':26}" + "".join(f"{ours[c] / slow[c]:12.1f}" for c in columns))
            four = cells["eosin, windows of 4"]
            print(f"{'windows / openslide-python':26}" + "".join(f"{four[c] / slow[c]:12.1f}" for c in columns))
        for row, values in cells.items():
            behind = [c for c in columns if row in READERS and row != "eosin" and values[c] > ours[c]]
            if behind:
                print(f"{row} is faster than eosin at {', '.join(behind)}")


def main() -> None:
    """Write the slides, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds monuseg_train/images")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the slides and slides.json go")
    parser.add_argument("--side", type=int, default=30720, help="px of the slides")
    parser.add_argument("--seconds", type=float, default=2.0, help="wall time of one cell")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--readers", default=",".join(READERS))
    words = parser.parse_args()
    cv2.setNumThreads(1)
    threadpool_limits(1)
    layouts = words.layouts.split(",")
    absent = {name: missing(READERS[name]) for name in words.readers.split(",")}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    packages = (
        "eosin",
        "openslide-python",
        "simplejpeg",
        "imagecodecs",
        "cucim-cu12",
        "fastslide",
        "tiffslide",
        "zarr",
    )
    print(", ".join(f"{package} {_version(package)}" for package in packages))
    for name, why in absent.items():
        if why:
            print(f"{name}: {why}")
    files, mask = write_slides(words.data / "monuseg_train" / "images", words.out, words.side, layouts)
    readers = [name for name, why in absent.items() if why is None]
    told = {}
    for name in layouts:
        told[name] = measure(files[name], name, mask, words.side, readers, words.seconds)
        show(f"{name}, {words.side} px, {files[name].stat().st_size / 1e6:.0f} MB", told[name])
    (words.out / "slides.json").write_text(json.dumps(told, indent=1))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
