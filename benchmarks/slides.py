"""Random tiles from slides per CPU-second: eosin, other readers, and the pure decoding of the same stored tiles.

Slides of at least SIDE px in four layouts are written from the real images of DATA/monuseg_train
(benchmarks/slides_files.py) unless OUT has them. Each cell is tiles of 256 or 392 px per second of CPU time of the
whole process (so threads that a reader starts gain nothing), from random positions whose tile is tissue: the best of
ROUNDS rounds, in which all readers take turns. The decode limit is libjpeg-turbo (OpenJPEG for JPEG 2000) on all
stored tiles that a region touches, whole, at the scale at which eosin decodes them, with their bytes in memory
already. "Windows of 4" are 4 random tiles out of one window of at least 1.5 tile sides, widened to whole stored tiles;
"visits of 4" are 4 tiles as training draws them, from a cell of the stored tile grid. eosin's store of decoded tiles
is off, the others' are as they come. Peers that are not installed are left out (pip install zarr tiffslide fastslide;
cucim-cu12 --no-deps with click and lazy_loader). Then pixels are checked (benchmarks/slides_pixels.py), and each target
is told with PASS or FAIL.

    python benchmarks/slides.py DATA -o OUT [--side 30000] [--seconds 1.2] [--layouts generic,aperio] [--readers …]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np
from slides_files import LAYOUTS, MASK_STEP, MPP, Written, write_slides
from slides_pixels import check_pixels
from slides_readers import READERS, THROUGH, Reader, missing
from threadpoolctl import threadpool_limits

from eosin.slides import open_slide, tiff_cache
from eosin.slides.resample import Axis
from eosin.slides.tiff import TiffSlide

SIZES, SCALES = (256, 392), (0.25, 0.5, 1.0, 2.0)
EXTRA_SCALE = 0.7  # no stored level and no half of one: fractional area resampling
ROUNDS = 3
PLACES = 400
PACKAGES = ("eosin", "openslide-python", "simplejpeg", "imagecodecs", "cucim-cu12", "fastslide", "tiffslide", "zarr")
LIMIT, WINDOWS, VISITS = "decode limit", "eosin, windows of 4", "eosin, visits of 4"
Place = tuple[int, int]
Work = Callable[[], int]  # reads something, tells how many tiles it gave
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


def rates(works: dict[str, Work], seconds: float) -> dict[str, float]:
    """Tiles per CPU-second of the process, each the best of ROUNDS rounds in turns; NaN for one that fails."""
    best = dict.fromkeys(works, 0.0)
    for turn in range(ROUNDS):
        for name, work in works.items():
            if np.isnan(best[name]):
                continue
            try:
                if turn == 0:
                    work()
                done, start = 0, time.process_time()
                while (spent := time.process_time() - start) < seconds / ROUNDS:
                    done += work()
            except Exception as error:  # a peer may refuse a layout
                print(f"{name}: {type(error).__name__}: {str(error)[:120]}")
                best[name] = float("nan")
            else:
                best[name] = max(best[name], done / spent)
    return best


def decoding(slide: TiffSlide, places: list[Place], size: int, mpp: float) -> Work:
    """Nothing but the decoding of the stored tiles that regions touch."""
    number = slide.level_for(mpp, 1.0)
    level, plan = slide._readable[number], slide._plan(number)
    jobs = []
    for place in places[:100]:
        axes = [Axis.of(at / level.downsample_x, mpp / (slide.mpp * level.downsample_x), size) for at in place]
        columns, rows = (
            range(axis.first // tile, (axis.first + axis.length - 1) // tile + 1)
            for axis, tile in zip(axes, plan.tile, strict=True)
        )
        tiles = [row * plan.stored.across + column for row in rows for column in columns]
        jobs.append(slide._source.read([(int(plan.stored.offsets[t]), int(plan.stored.counts[t])) for t in tiles]))
    turn = count()

    def work() -> int:
        for data in jobs[next(turn) % len(jobs)]:
            plan.decoder.decode(data, plan.half)
        return 1

    return work


def windows(slide: TiffSlide, places: list[Place], size: int, mpp: float) -> Work:
    """4 tiles cut from each window."""
    rng, turn = np.random.default_rng(1), count()
    cuts = rng.random((PLACES, 4, 2)).tolist()

    def work() -> int:
        number = next(turn) % len(places)
        pixels = slide.read_window(*places[number], size * 3 // 2, mpp).pixels
        for down, right in cuts[number]:
            top, left = int(down * (pixels.shape[0] - size + 1)), int(right * (pixels.shape[1] - size + 1))
            np.ascontiguousarray(pixels[top : top + size, left : left + size])
        return 4

    return work


def visits(slide: TiffSlide, places: list[Place], size: int, mpp: float) -> Work:
    """4 tiles whose corners lie in one cell of the stored tile grid, of about a tile's side."""
    rng, turn = np.random.default_rng(2), count()
    stored, side = slide.stored_tile(mpp)[0], size * mpp / MPP
    cell = stored * round(side / stored) if side >= stored else stored / round(stored / side)
    visited = [
        [tuple(at // cell * cell + part for at, part in zip(place, parts, strict=True)) for parts in four]
        for place, four in zip(places, (rng.random((len(places), 4, 2)) * cell).round().tolist(), strict=True)
    ]
    return lambda: len(slide.regions(visited[next(turn) % len(places)], size, mpp))


def measure(slide: Written, name: str, readers: list[str], seconds: float) -> Cells:
    """All cells of one layout: row, then "size @ mpp"."""
    cells: Cells = {}
    opened = {}
    tiff_cache.shared.limit = 0  # kept tiles would hide the cost of reading: the coarse levels fit into the store
    for reader in readers:
        try:
            opened[reader] = READERS[reader](slide.file, MPP, LAYOUTS[name].factors)
        except Exception as error:  # a peer may refuse a layout
            print(f"{name}, {reader}: {type(error).__name__}: {str(error)[:120]}")
    with open_slide(slide.file, reader="tiff") as ours:
        assert isinstance(ours, TiffSlide)
        for size in SIZES:
            for mpp in (*SCALES, EXTRA_SCALE):
                places = list(islice(positions(slide.mask, slide.side, size, mpp), PLACES))
                wide = list(islice(positions(slide.mask, slide.side, 2 * size, mpp), PLACES))
                works = {LIMIT: decoding(ours, places, size, mpp)}
                works |= {reader: _reading(one, places, size, mpp) for reader, one in opened.items()}
                works |= {WINDOWS: windows(ours, wide, size, mpp), VISITS: visits(ours, wide, size, mpp)}
                for row, value in rates(works, seconds).items():
                    cells.setdefault(row, {})[f"{size} @ {mpp:g}"] = value
    for reader in opened.values():
        reader.close()
    return cells


def _reading(reader: Reader, places: list[Place], size: int, mpp: float) -> Work:
    turn = count()

    def work() -> int:
        reader.read(*places[next(turn) % len(places)], size, mpp)
        return 1

    return work


def show(name: str, cells: Cells) -> None:
    """Print one layout's table: tiles per CPU-second, then eosin's share of the limit and its lead."""
    columns = list(cells[LIMIT])
    print(f"\n{name}: tiles per CPU-second, columns are size in px @ µm/px")
    print(f"{'':26}" + "".join(f"{column:>12}" for column in columns))
    for row, values in cells.items():
        print(f"{row:26}" + "".join(f"{values[column]:12.0f}" for column in columns))
    for row, over in (("eosin", LIMIT), ("eosin", "openslide-python"), (WINDOWS, "openslide-python")):
        if row in cells and over in cells:
            shares = "".join(f"{cells[row][column] / cells[over][column]:12.2f}" for column in columns)
            print(f"{row.replace('eosin, ', '') + ' / ' + over:26}{shares}")


def verdicts(cells: Cells) -> list[tuple[bool, str]]:
    """The targets of one layout."""
    if "eosin" not in cells:
        return []
    columns = list(cells[LIMIT])
    native = [column for column in columns if column.endswith(f"@ {SCALES[0]:g}")]
    coarser = [column for column in columns if column not in native and not column.endswith(f"@ {EXTRA_SCALE:g}")]
    told = []
    if "openslide-python" in cells:
        told.append(_least(cells, "eosin", ["openslide-python"], native, 2.0))
        told.append(_least(cells, "eosin", ["openslide-python"], coarser, 4.0))
        told.append(_least(cells, WINDOWS, ["openslide-python"], [*native, *coarser], 8.0))
    peers = [row for row in cells if row in READERS and not row.startswith("eosin")]
    if peers:
        told.append(_least(cells, "eosin", peers, columns, 1.0))
    return [*told, _least(cells, "eosin", [LIMIT], columns, 0.8)]


def _least(cells: Cells, row: str, others: list[str], columns: list[str], wanted: float) -> tuple[bool, str]:
    """Whether a row is `wanted` times as fast as others everywhere, and where it is nearest to not being so."""
    found = [(cells[row][c] / cells[other][c], other, c) for other in others for c in columns]
    ratio, other, column = min(one for one in found if not np.isnan(one[0]))
    text = f"{row} at least {wanted:g} x {other if len(others) == 1 else 'every peer'}: least {ratio:.2f} at {column}"
    if len(others) > 1:
        text += f" ({other})"
    highest = cells[LIMIT][column] / cells[other][column]
    if ratio < wanted and row == "eosin" and other != LIMIT and highest < wanted:
        text += f"; decoding alone gives {highest:.2f}"
    return ratio >= wanted, text


def main() -> None:
    """Write the slides, measure, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds monuseg_train/images")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the slides and slides.json go")
    parser.add_argument("--side", type=int, default=30_000, help="least px of the slides")
    parser.add_argument("--seconds", type=float, default=1.2, help="CPU time of one cell")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--readers", default=",".join(name for name in READERS if name != THROUGH))
    words = parser.parse_args()
    cv2.setNumThreads(1)
    threadpool_limits(1)
    started = time.monotonic()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{package} {_version(package)}" for package in PACKAGES))
    absent = {name: missing(READERS[name]) for name in words.readers.split(",")}
    for name, why in absent.items():
        if why:
            print(f"{name}: {why}")
    layouts = words.layouts.split(",")
    slides = write_slides(words.data / "monuseg_train" / "images", words.out, words.side, layouts)
    told, judged = {}, []
    for name, slide in slides.items():
        told[name] = measure(slide, name, [one for one, why in absent.items() if why is None], words.seconds)
        show(f"{name}, {slide.side} px, {slide.file.stat().st_size / 1e6:.0f} MB", told[name])
        places = list(islice(positions(slide.mask, slide.side, 256, 0.25), 20))
        pixels = check_pixels(slide.file, MPP, LAYOUTS[name].factors, places)
        judged += [(bool(passed), f"{name}: {text}") for passed, text in verdicts(told[name]) + pixels]
    print()
    for passed, text in judged:
        print("PASS" if passed else "FAIL", text)
    print(f"{sum(passed for passed, _ in judged)} of {len(judged)} hold, {time.monotonic() - started:.0f} s")
    (words.out / "slides.json").write_text(json.dumps({"cells": told, "targets": judged}, indent=1))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
