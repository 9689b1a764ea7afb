"""Run by test_curriculum_parting.py: two processes learn a small curriculum, and the second one fails in every way.

    python curriculum_parting.py COHORT OUT

Started as a script; imports once, then forks. Writes OUT/CASE.RANK, the line told.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent))

from curriculum_cases import TINY
from meeting import join, open_stores

from eosin.errors import DataError, EosinError
from eosin.training import train
from eosin.training.curriculum import step

SET = [*TINY, "run.steps=1", "tasks=[{column: msi}]", "run.monitor_every=100"]
SECOND_STEP = 2


def fails(act: Callable[[], object], name: str) -> Any:
    """`name` of the step's module, but at its second call something happens first."""
    calls, real = list[int](), getattr(step, name)

    def instead(*arguments: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == SECOND_STEP:
            act()
        return real(*arguments, **words)

    return patch.object(step, name, instead)


def refuse() -> NoReturn:
    raise DataError("this tile has no pixels")


def break_down() -> NoReturn:
    raise RuntimeError("out of memory")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "tiles-refused": (refuse, "micro_batches"),
    "loss-refused": (refuse, "dino_losses"),
    "slide-broken": (break_down, "learn_slide"),
    "loss-broken": (break_down, "dino_losses"),
    "loss-killed": (die, "dino_losses"),
}
"""What happens to the second process, and where. The last one ends it."""


def run(cohort: str, out: Path) -> str:
    """What this process is told."""
    try:
        train("pyramid-quickstart", out, cohort=[cohort], set=SET, device="cpu")
    except (EosinError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main(rank: int, cohort: str, out: Path, ports: list[int]) -> None:
    torch.set_num_threads(1)
    for port, (name, (act, where)) in zip(ports, CASES.items(), strict=True):
        join(port, rank, 2)
        with fails(act if rank == 1 else lambda: None, where):
            told = run(cohort, out / name)
        (out / f"{name}.{rank}").write_text(told)


if __name__ == "__main__":
    stores = open_stores(len(CASES))
    words = sys.argv[1], Path(sys.argv[2]), [store.port for store in stores]
    if (child := os.fork()) == 0:
        main(1, *words)
        os._exit(0)
    main(0, *words)
    sys.exit(0 if os.waitpid(child, 0)[1] == signal.SIGKILL else 1)
