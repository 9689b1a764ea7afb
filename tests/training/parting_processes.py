"""Run by test_parting.py: two processes of which one fares otherwise than its fellow, in every way in turn, each in a
process group of its own. Started as a script; imports once, then forks. Writes OUT/CASE.RANK, the line told.

    python parting_processes.py TILES OUT PORT
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent))

from meeting import join, open_stores

from conftest import TINY
from eosin.errors import EosinError, PlanError
from eosin.tiles import TileBatch
from eosin.training import train
from eosin.training.loop import _tiles
from eosin.training.pretrain import pretrain_step

SET = [*TINY, "run.checkpoint_every=6", "run.monitor_every=6", "run.log_to=[]"]


def other_tiles(act: Callable[[], object]) -> Callable[..., Iterator[TileBatch]]:
    """The tiles of a run; before those of step 3 something happens."""

    def tiles(*arguments: Any) -> Iterator[TileBatch]:
        for batch in _tiles(*arguments):
            if batch.step == 3:
                act()
            yield batch

    return tiles


def no_tile() -> None:
    raise PlanError("no tile passes after 800 tries")


def slow_step(*arguments: Any) -> Any:
    time.sleep(5)
    return pretrain_step(*arguments)


def signal_at_the_end_of_a_step(networks: Any, optimizer: Any, *others: Any) -> Any:
    """In the third step, behind which the teacher would be watched."""
    losses = pretrain_step(networks, optimizer, *others)
    if next(iter(optimizer.state.values()))["step"].item() == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return losses


LOOP = "eosin.training.loop"
CASES: dict[str, dict[str, Any]] = {
    "apart": {"apart": True},
    "probe": {"probe": ["x=/nowhere"]},
    "late": {
        "set": ["watch.data_stall=stop", "watch.no_tiles_seconds=0.5"],
        "patch": (f"{LOOP}._tiles", other_tiles(lambda: time.sleep(30))),
    },
    "none": {"patch": (f"{LOOP}._tiles", other_tiles(no_tile))},
    "signal": {"patch": (f"{LOOP}._tiles", other_tiles(lambda: os.kill(os.getpid(), signal.SIGTERM)))},
    "watch": {
        "set": ["run.monitor_every=3"],
        "patch": ("eosin.training.method.pretrain_step", signal_at_the_end_of_a_step),
    },
    "slow": {"patch": ("eosin.training.method.pretrain_step", slow_step), "timeout": 2},
}


def run(rank: int, tiles: str, out: Path, case: dict[str, Any]) -> str:
    """What the process of `rank` is told; only the second one meets the case."""
    meets = rank == 1
    words = {"probe": case["probe"]} if meets and "probe" in case else {}
    folder = out / (f"{rank}" if "apart" in case else "run")
    name, value = case["patch"] if meets and "patch" in case else (f"{LOOP}.SIGN", None)
    with (
        patch(name, value, create=name == f"{LOOP}.SIGN"),
        patch("eosin.training.prepare.SHARED_SECONDS", 0.3),
        patch("eosin.distributed.TIMEOUT", timedelta(seconds=case.get("timeout", 60))),
    ):
        try:
            train("quickstart", folder, tiles=[tiles], mpp=0.5, set=[*SET, *case.get("set", [])], device="cpu", **words)
        except EosinError as error:
            return f"{type(error).__name__}: {error}"
    return "done"


def main(rank: int, tiles: str, out: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for port, (name, case) in zip(ports, CASES.items(), strict=True):
        join(port, rank, 2)
        began = time.monotonic()
        told = run(rank, tiles, out / name, case)
        (out / f"{name}.{rank}").write_text(f"{told}\n{time.monotonic() - began}")


if __name__ == "__main__":
    stores = open_stores(len(CASES))
    words = sys.argv[1], Path(sys.argv[2]), [store.port for store in stores]
    child = os.fork()
    if child == 0:
        main(1, *words)
        os._exit(0)
    main(0, *words)
    sys.exit(os.waitpid(child, 0)[1])
