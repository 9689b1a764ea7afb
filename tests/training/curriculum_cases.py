"""Slides with labels and a recipe small enough for the tests of the curriculum; the command that a test kills."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import cv2
import numpy as np

from eosin.slides import Cohort

TINY = [
    "encoder.width=16",
    "encoder.depth=2",
    "encoder.heads=2",
    "encoder.patch=8",
    "encoder.grid=2",
    "encoder.drop_path=0.1",
    "pyramid.size_px=16",
    "pyramid.tile_px=16",
    "pyramid.side=4",
    "pyramid.region.width=16",
    "pyramid.region.depth=1",
    "pyramid.region.heads=2",
    "pyramid.region.drop_path=0.1",
    "pyramid.slide.width=16",
    "pyramid.slide.heads=2",
    "tiles.size_px=32",
    "views.global_px=16",
    "views.local_px=8",
    "views.local_count=2",
    "views.blur_kernel_px=3",
    "objective.dino_prototypes=16",
    "objective.head_hidden=16",
    "objective.dino_bottleneck=8",
    "step1.regions.side=2",
    "step1.regions.count=3",
    "step1.regions.min_tiles=1",
    "step1.regions.global_side=2",
    "step1.regions.local_side=1",
    "step1.regions.local_count=2",
    "step2.slides=4",
    "step2.passes=1",
    "step2.tile_frozen_slides=4",
    "step2.region_frozen_slides=0",
    "step2.warmup_slides=4",
    "step2.regions={side: 4, count: 3, min_tiles: 2, global_side: 3, local_side: 2, local_count: 2}",
    "labels.held_out=0.2",
    "labels.watch_every=1",
    "whole_slide.tile_chunk=7",
    "run.batch=8",
    "run.group=4",
    "run.steps=2",
    "run.precision=fp32",
    "run.workers=0",
    "run.log_every=1",
    "run.log_to=[]",
    "run.monitor_every=100",
    "run.monitor_tiles=16",
    "run.checkpoint_every=100",
]
"""Changes to `pyramid-quickstart`."""


def write_cohort(folder: Path, slides: int = 10, size_px: int = 160) -> Path:
    """Slides of stained noise on glass, indexed, with four columns of labels; returns the cohort file.

    msi: for the first 8 of 10; grade: three classes; age: a number; os_time, os_event. Patients have one slide.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    rows, scales = ["slide,patient,msi,grade,age,os_time,os_event"], ["slide,mpp"]
    for number in range(slides):
        pixels = np.full((size_px, size_px, 3), 245, np.uint8)
        inside = size_px - 32 - 16 * (number % 3)
        noise = generator.integers(60, 200, (inside // 4, inside // 4, 3), dtype=np.uint8)
        noise[..., 1] //= 2  # stained: green is taken away
        stained = cv2.resize(noise, (inside, inside), interpolation=cv2.INTER_NEAREST)
        pixels[16 : 16 + inside, 16 : 16 + inside] = stained
        cv2.imwrite(str(folder / f"s{number}.png"), pixels)
        msi = ("mss", "msi")[number % 2] if number % 10 < 8 else ""
        rows.append(f"s{number}.png,p{number},{msi},g{number % 3},{40 + number},{1 + number},{number % 3 > 0:d}")
        scales.append(f"s{number}.png,0.5")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "mpp.csv").write_text("\n".join(scales) + "\n")
    out = folder / "cohort.parquet"
    Cohort.index(
        [folder / f"s{number}.png" for number in range(slides)],
        out,
        metadata=folder / "labels.csv",
        mpp_csv=folder / "mpp.csv",
        workers=0,
    )
    return out


def train_words(cohort: Path, *changes: str) -> list[str]:
    """Words of `eosin train` behind which `-o RUN` comes."""
    sets = [word for change in (*TINY, *changes) for word in ("--set", change)]
    return ["train", "pyramid-quickstart", "--cohort", str(cohort), *sets]


def main() -> None:
    """`eosin ARGS`, but killed (-9) when the gradients of EOSIN_TEST_KILL slides have been saved."""
    from eosin.cli.main import main as eosin
    from eosin.training.curriculum import partial

    left = int(os.environ["EOSIN_TEST_KILL"])
    write = partial.PartialFile.write

    def write_and_die(self: partial.PartialFile, *words: object) -> None:
        nonlocal left
        write(self, *words)  # type: ignore[arg-type]
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    partial.PartialFile.write = write_and_die  # type: ignore[method-assign]
    eosin()


if __name__ == "__main__":
    main()
    sys.exit(0)
