"""Run by test_curriculum_processes.py: the same small curriculum by one process and by two, which stop in the middle.

    python curriculum_by_two.py COHORT OUT

Started as a script; imports once, then forks. Writes the run folders OUT/WAY.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from curriculum_cases import TINY
from meeting import join, open_stores

from eosin.errors import EosinError
from eosin.training import train
from eosin.training.curriculum import partial

SET = [*TINY, "run.precision=fp64", "run.steps=1", "tasks=[{column: msi}, {column: age, kind: regression}]"]
SET += ["step2.tile_frozen_slides=0", "whole_slide.region_grad=true"]
STANDARDISED = ["pyramid.region.standardise=true", "step1.regions.count=0"]
WAYS: dict[str, tuple[int, list[str], bool]] = {
    "1": (1, [], False),
    "2-slides": (2, [], False),
    "2-regions": (2, ["whole_slide.spread=regions"], False),
    "1-standardised": (1, STANDARDISED, False),
    "2-standardised": (2, STANDARDISED, False),
    "2-stopped": (2, [], True),
    "1-after-2": (1, [], False),
    "2-after-2": (2, [], False),
    "2-regions-after-2": (2, ["whole_slide.spread=regions"], False),
}
"""Processes, changes of the recipe, whether it is stopped between slides of step 2; `…-after-2` go on from there."""


def run(rank: int, size: int, port: int, cohort: str, out: Path, changes: list[str], stops: bool) -> None:
    """One way, as one of its processes."""
    join(port, rank, size)
    write = partial.PartialFile.write

    def write_and_stop(self: partial.PartialFile, *words: Any) -> None:
        write(self, *words)
        os.kill(os.getpid(), signal.SIGTERM)

    if stops:
        partial.PartialFile.write = write_and_stop  # type: ignore[method-assign]
    try:
        train("pyramid-quickstart", out, cohort=[cohort], set=[*SET, *changes], device="cpu")
    except EosinError as error:
        if not stops or "stopped by a signal at step 1" not in str(error):
            raise
    finally:
        partial.PartialFile.write = write  # type: ignore[method-assign]


def main(rank: int, cohort: str, out: Path, ports: list[int]) -> None:
    """All ways in turn; the first process says when the next one may begin."""
    torch.set_num_threads(1)
    for port, (name, (size, changes, stops)) in zip(ports, WAYS.items(), strict=True):
        ready = out / f"{name}.ready"
        if rank == 0:
            if name.endswith("after-2"):
                shutil.copytree(out / "2-stopped", out / name)
            ready.touch()
        while not ready.exists():
            time.sleep(0.01)
        if rank < size:
            run(rank, size, port, cohort, out / name, changes, stops)


if __name__ == "__main__":
    stores = open_stores(len(WAYS))
    words = sys.argv[1], Path(sys.argv[2]), [store.port for store in stores]
    if (child := os.fork()) == 0:
        try:
            main(1, *words)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    try:
        main(0, *words)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    sys.exit(os.waitpid(child, 0)[1] != 0)
