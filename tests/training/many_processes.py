"""Run by test_parallel.py: four processes that train the same small recipe in every way it can be spread, one after
another, each way in a process group of its own. Started as a script; imports once, then forks.

    python many_processes.py TILES OUT PORT
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

from meeting import join, open_stores

from conftest import TINY
from eosin.training import train

SET = [*TINY, "run.precision=fp64", "run.group=1", "run.steps=20", "run.checkpoint_every=10", "run.keep_last=9"]
SET += ["run.log_every=1", "run.monitor_every=10"]
CENTERING = ["objective.targets=centering", "objective.uniformity=koleo", "objective.shared_head=true"]
CENTERING += ["objective.ibot_prototypes=16", "encoder.drop_path_form=sample"]
WAYS: dict[str, tuple[int, list[str]]] = {
    "1": (1, []),
    "1-accumulate": (1, ["parallel.accumulate=2"]),
    "2-ddp": (2, ["parallel.strategy=ddp"]),
    "2-fsdp-accumulate": (2, ["parallel.strategy=fsdp", "parallel.accumulate=2"]),
    "4-ddp": (4, ["parallel.strategy=ddp"]),
    "4-ddp-accumulate": (4, ["parallel.strategy=ddp", "parallel.accumulate=2"]),
    "4-fsdp": (4, ["parallel.strategy=fsdp"]),
    "4-fsdp-accumulate": (4, ["parallel.strategy=fsdp", "parallel.accumulate=2"]),
    "centering-1": (1, CENTERING),
    "centering-4-ddp": (4, [*CENTERING, "parallel.strategy=ddp"]),
    "centering-4-fsdp-accumulate": (4, [*CENTERING, "parallel.strategy=fsdp", "parallel.accumulate=2"]),
}
RESUMED = {"resumed-2-fsdp": (2, ["parallel.strategy=fsdp"]), "resumed-1": (1, [])}


def run(rank: int, size: int, port: int, tiles: str, out: Path, changes: list[str]) -> None:
    join(port, rank, size)
    train("quickstart", out, tiles=[tiles], mpp=0.5, set=[*SET, *changes], device="cpu")


def main(rank: int, tiles: str, out: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for port, (name, (size, changes)) in zip(ports, (WAYS | RESUMED).items(), strict=True):
        if rank >= size:
            continue
        if name in RESUMED and rank == 0:  # as the four processes left it after 10 steps
            shutil.copytree(out / "4-fsdp", out / name, ignore=lambda at, names: {"step_00000020"} & set(names))
        wait = out / f"{name}.ready"
        if rank == 0:
            wait.touch()
        while not wait.exists():
            time.sleep(0.01)
        run(rank, size, port, tiles, out / name, changes)


def child(rank: int, *words: Any) -> None:
    """One of the other processes; its exit status says whether all went well."""
    try:
        main(rank, *words)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    stores = open_stores(len(WAYS | RESUMED))
    words = sys.argv[1], Path(sys.argv[2]), [store.port for store in stores]
    children = []
    for rank in range(1, 4):
        if (number := os.fork()) == 0:
            child(rank, *words)
        children.append(number)
    try:
        main(0, *words)
    except BaseException:
        for number in children:
            os.kill(number, signal.SIGKILL)
        raise
    sys.exit(any(os.waitpid(number, 0)[1] for number in children))
