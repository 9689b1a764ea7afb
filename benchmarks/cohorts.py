"""What a large cohort costs: opening it, drawing from it, and the memory of a process that reads tiles of it.

Cohort files of 1,000 to 100,000 rows are written with foregrounds and thumbnails of real size (7 KB and 8 KB on
average); their slides are not there, since nothing here reads a slide. Seconds are CPU seconds of the process and wall
seconds. A worker is a fresh process that is sent a SlideSource and draws tiles from it; its memory is told beyond that
of a worker of the smallest cohort. Re-indexing reads a folder of as many (empty) files whose rows are known already.

    python benchmarks/cohorts.py -o FOLDER [--counts 1000,10000,100000] [--draws 500] [--keep]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from eosin.provenance import hash_of
from eosin.slides import Cohort, index
from eosin.slides.annotations import DEFAULT_CHOICE
from eosin.slides.cohort_file import COLUMNS, write_rows
from eosin.tiles.config import TilesConfig
from eosin.tiles.plan import TilePlan
from eosin.tiles.slide_source import SlideSource

MASKS, THUMBNAIL_BYTES = 16, 8192
PACKAGES = ("eosin", "pandas", "pyarrow", "numpy")


def main() -> None:
    """Write the cohorts, measure each in a process of its own, print a table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("-o", "--out", type=Path, required=True, help="an empty folder with 3 GB of space")
    words.add_argument("--counts", default="1000,10000,100000")
    words.add_argument("--draws", type=int, default=500)
    words.add_argument("--keep", action="store_true", help="leave the cohorts in the folder")
    words.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.step:
        step, path = given.step
        print(json.dumps(STEPS[step](Path(path), given.draws)))
        return
    told = f"{platform.machine()}, {os.cpu_count()} cores, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{time.strftime('%Y-%m-%d')}, {told}")
    found = []
    for count in (int(text) for text in given.counts.split(",")):
        folder = given.out / f"{count}"
        made = _in_a_process("write", folder / "slides", given, count)
        made |= _in_a_process("open", folder / "cohort.parquet", given)
        made |= _in_a_process("worker", folder / "source.pickle", given)
        made |= _in_a_process("reindex", folder / "slides", given)
        found.append(made)
        if not given.keep:
            shutil.rmtree(folder)
    print(pd.DataFrame(found).T.to_string(header=False, float_format=lambda value: f"{value:,.4g}"))


def _in_a_process(step: str, path: Path, given: argparse.Namespace, count: int | None = None) -> dict[str, float]:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "-o", str(given.out), "--draws", str(count or given.draws)]
    done = subprocess.run([*command, "--step", step, str(path)], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


class _Clock:
    """CPU and wall seconds since the last call."""

    def __init__(self) -> None:
        self.last = time.process_time(), time.perf_counter()

    def __call__(self, name: str) -> dict[str, float]:
        now = time.process_time(), time.perf_counter()
        cpu, wall = (after - before for after, before in zip(now, self.last, strict=True))
        self.last = now
        return {f"{name}, CPU s": cpu, f"{name}, s": wall}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def write(slides: Path, count: int) -> dict[str, float]:
    """A cohort of `count` rows beside the folder `slides`, with an empty file for each."""
    slides.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pictures = [_mask(rng) for _ in range(MASKS)]
    names = [f"slide-{n:06}" for n in range(count)]
    for name in names:
        (slides / f"{name}.svs").touch()
    jobs = [index._job(name, str(slides / f"{name}.svs"), None, None, None, DEFAULT_CHOICE) for name in names]
    digests = [hash_of(name) for name in names]

    def rows() -> Iterator[dict[str, Any]]:
        for n, job in enumerate(jobs):
            mask, png = pictures[n % MASKS]
            row = dict.fromkeys(COLUMNS) | {
                "slide_id": job.slide_id, "path": job.path, "vendor": "aperio", "reader": "tiff", "width": 40_000,
                "height": 30_080, "mpp_x": 0.25, "mpp_y": 0.25, "levels": 4, "status": "ok", "foreground": png,
                "tissue_mm2": float(mask.sum()) * 64e-6, "foreground_mpp": 8.0, "patient": f"P{n // 3:06}",
                "thumbnail": rng.bytes(THUMBNAIL_BYTES),
            }  # fmt: skip
            yield row

    clock = _Clock()
    write_rows(
        slides.parent / "cohort.parquet", rows(), pd.DataFrame(index=range(count)), digests, [j.key for j in jobs]
    )
    size = (slides.parent / "cohort.parquet").stat().st_size / 2**20
    return {"slides": count, "file, MB": size} | clock("write") | {"write, peak MB": _peak_mb()}


def _mask(rng: np.random.Generator) -> tuple[np.ndarray, bytes]:
    """A ragged foreground, bool [940, 1250], and its PNG of about 7 KB."""
    small = cv2.GaussianBlur(rng.normal(size=(47, 63)), (0, 0), 8)
    mask = cv2.resize(small, (1250, 940), interpolation=cv2.INTER_LINEAR) > np.quantile(small, 0.7)
    return mask, bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255, (cv2.IMWRITE_PNG_BILEVEL, 1))[1])


def open_(path: Path, draws: int) -> dict[str, float]:
    """What the process that trains does: open, select, make the plan, draw."""
    clock = _Clock()
    cohort = Cohort.read(path)
    found = clock("Cohort.read")
    assert len(cohort.usable) == len(cohort)
    found |= clock(".usable")
    assert len(cohort.where("tissue_mm2 > 1 and patient >= 'P0'"))
    found |= clock(".where")
    cohort.hash  # noqa: B018
    found |= clock(".hash")
    source = SlideSource(cohort, TilesConfig(mpp=[0.5]), 0)
    plan = TilePlan([source], 0)
    plan.hash  # noqa: B018
    found |= clock("SlideSource and TilePlan")
    data = pickle.dumps(source, protocol=5)
    found |= clock("pickle")
    path.with_name("source.pickle").write_bytes(data)
    rng = np.random.default_rng(1)
    clock("")
    for n in rng.integers(len(cohort), size=draws):
        cohort.foreground(int(n))
    each = clock("foreground")
    found["a foreground, CPU ms"] = 1000 * each["foreground, CPU s"] / draws
    return found | {"pickle, bytes a row": len(data) / len(cohort), "opener, peak MB": _peak_mb()}


def worker(path: Path, draws: int) -> dict[str, float]:
    """What a worker does: take the source and draw positions."""
    before = _now_mb()
    clock = _Clock()
    source = pickle.loads(path.read_bytes())
    found = clock("unpickle")
    for n in range(draws):
        source.draw(0, 0, n, 0)
    each = clock("draw")
    found["a draw, CPU ms"] = 1000 * each["draw, CPU s"] / draws
    return found | {"worker before the source, MB": before, "worker after its draws, MB": _now_mb()}


def reindex(slides: Path, _: int) -> dict[str, float]:
    """`eosin index` of a folder whose rows are all known."""
    clock = _Clock()
    read = index.read_all

    def none(jobs: list[index.Job], *words: Any) -> Any:
        assert not jobs, "a slide that is known was to be read"
        return read(jobs, *words)

    index.read_all = none  # type: ignore[assignment]
    Cohort.index(slides, slides.parent / "cohort.parquet", workers=0)
    return clock("index again") | {"index again, peak MB": _peak_mb()}


STEPS = {"write": write, "open": open_, "worker": worker, "reindex": reindex}

if __name__ == "__main__":
    main()
