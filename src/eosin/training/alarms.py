"""Alarms: what in the numbers of a run says that something is wrong, and whether the run warns or stops.

A run whose loss is not finite always stops (`loop.py`). Knows no networks and no tiles: it sees logged numbers, and is
told when tiles do not come.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eosin.distributed import World
from eosin.errors import TrainingStopped
from eosin.progress import console
from eosin.runs import RunFolder, append_line, read_lines, rewrite_lines

Action = Literal["off", "warn", "stop"]

REPEATS = 10
"""A rule that goes on holding speaks at most so many times over the length of a run."""


class WatchConfig(BaseModel):
    """What raises an alarm, and what the run does then. Changes nothing that is learned.

    Collapse is judged against the run itself. No share of the width would do: an untrained ViT-Ti uses 3 to 40 of its
    192 directions, a small run that learns well 30 to 60, a pretrained start hundreds. Losing three quarters of what
    the same run had on the same tiles is a collapse at every size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    collapse: Action = "warn"
    rankme_share: float = Field(0.25, ge=0, lt=1, description="collapse: RankMe below this share of the run's best")
    uniformity_share: float = Field(0.25, ge=0, lt=1, description="collapse: uniformity, seen from 0, likewise")
    data_stall: Action = "warn"
    data_wait: float = Field(0.3, gt=0, le=1, description="stall: share of the time spent waiting for tiles")
    data_wait_rows: int = Field(10, ge=1, description="logged rows over which that share is averaged")
    no_tiles_seconds: float = Field(300.0, gt=0, description="stall: no tiles for so long")


class Alarms:
    """The alarms of one run. Every process has one and calls `check` alike; the first one judges and writes."""

    def __init__(self, run: RunFolder, config: WatchConfig, first_step: int, steps: int, workers: int) -> None:
        """first_step: of the checkpoint that the run goes on from; later alarms of an earlier start are dropped.
        steps: length of the run. workers: reading processes, for the advice.
        """
        self.stopping = ""
        """Why the run should save and stop; empty while it should go on."""
        self._run, self._config, self._world = run, config, World.here()
        self._advice = stall_advice(workers)
        self._repeat = max(1, steps // REPEATS)
        self._step = first_step
        self._waits: deque[float] = deque(maxlen=config.data_wait_rows)
        self._best: dict[str, tuple[float, int]] = {}
        self._said: dict[str, int] = {}
        if self._world.is_first:
            rows = read_lines(run.alarms)
            kept = [row for row in rows if row["step"] <= first_step]
            if len(kept) < len(rows):
                rewrite_lines(run.alarms, kept)
            self._said = {row["alarm"]: row["step"] for row in kept}
            for row in run.read_metrics():
                if row["step"] <= first_step:
                    self._remember(row["step"], row)

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Judge the numbers logged after `step` steps (those of the first process count).

        Raises TrainingStopped, in all processes, for a collapse that is set to stop: such a state is not worth saving.
        A data stall that is set to stop sets `stopping`: the run is healthy and saves first.
        """
        self._step = step
        collapse = stall = ""
        if self._world.is_first:
            collapse, stall = self._collapse(values), self._stall(values)
            self._raise_alarm("collapse", self._config.collapse, collapse)
            self._raise_alarm("data_stall", self._config.data_stall, stall)
            self._remember(step, values)
        stops = self._config.collapse == "stop", self._config.data_stall == "stop"
        if any(stops):
            collapse, stall = self._world.first((collapse, stall))
        if collapse and stops[0]:
            raise TrainingStopped(_stopped("collapse", step, collapse))
        if stall and stops[1]:
            self.stopping = _stopped("data_stall", step, stall)

    def _remember(self, step: int, values: Mapping[str, Any]) -> None:
        """The best so far of what collapse is judged against."""
        for name, better in (("rankme", max), ("uniformity", min)):
            value = values.get(name)
            if value is not None and value == value:
                best = self._best.get(name, (value, step))
                self._best[name] = better(best, (value, step), key=lambda pair: pair[0])

    def _collapse(self, values: Mapping[str, float]) -> str:
        config, said = self._config, []
        for name, words, share in (
            ("rankme", "RankMe {} is below", config.rankme_share),
            ("uniformity", "uniformity {} is nearer to 0 than", config.uniformity_share),
        ):
            value = values.get(name)
            if value is None or value != value or name not in self._best:
                continue
            best, at = self._best[name]
            if abs(value) < share * abs(best):
                said.append(f"{words.format(f'{value:.3g}')} {share:.0%} of the run's best ({best:.3g} at step {at})")
        return f"the embeddings collapse: {'; '.join(said)}" if said else ""

    def _stall(self, values: Mapping[str, float]) -> str:
        if "data_wait" not in values or self.stopping:
            return ""
        self._waits.append(values["data_wait"])
        mean = sum(self._waits) / len(self._waits)
        if len(self._waits) < self._config.data_wait_rows or mean <= self._config.data_wait:
            return ""
        return f"{mean:.0%} of the time went into waiting for tiles; {self._advice}"

    def tiles_are_late(self, seconds: float, waiting: int | None) -> None:
        """Tiles have not come for `seconds`; called from another thread, in whichever process waits.

        waiting: the thread that waits, if it is the main one: it is interrupted where a stall is set to stop.
        """
        who = f"process {self._world.rank}: " if self._world.size > 1 else ""
        text = f"{who}no tiles for {seconds:.0f} seconds; {self._advice}"
        self._raise_alarm("no_tiles", self._config.data_stall, text)
        if self._config.data_stall == "stop" and waiting is not None:
            self.stopping = _stopped("data_stall", self._step, text)
            signal.pthread_kill(waiting, WAKE)

    def _raise_alarm(self, alarm: str, action: Action, text: str) -> None:
        """One line on stderr and a row in alarms.jsonl, unless this alarm was raised a short while ago."""
        if not text or action == "off":
            return
        before = self._said.get(alarm)
        if action == "warn" and before is not None and self._step - before < self._repeat:
            return
        self._said[alarm] = self._step
        append_line(self._run.alarms, {"step": self._step, "alarm": alarm, "action": action, "text": text})
        if action == "warn":
            console.print(f"warning at step {self._step}: {text}", markup=False, soft_wrap=True)


def _stopped(rule: str, step: int, text: str) -> str:
    return f"watch.{rule} stopped the run at step {step}: {text}; with --set watch.{rule}=warn it goes on"


def stall_advice(workers: int) -> str:
    """What to do when tiles come too slowly, by whether cores are left for more reading processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if workers < mine:
        count = f"{mine} cores" if mine > 1 else "1 core"
        return f"give more reading processes (run.workers is {workers}, there are {count}) or a faster disk"
    return f"there are as many reading processes as cores ({mine}): a faster disk, or tiles cut beforehand (--tiles)"


WAKE = signal.SIGURG
"""What ends a wait for tiles. Not SIGINT: a shell's `&` and nohup have that ignored. Without a handler this one does
nothing, so that one which comes too late does no harm.
"""


class Woken(BaseException):
    """The wait for tiles was ended by `Alarms.tiles_are_late`."""


@contextmanager
def wakeable() -> Iterator[None]:
    """A block that WAKE ends with Woken, where this is the main thread."""
    if main_thread() is None:
        yield
        return
    waits = True

    def wake(number: int, frame: FrameType | None) -> None:
        if waits:
            raise Woken

    before = signal.signal(WAKE, wake)
    try:
        yield
    finally:
        waits = False
        signal.signal(WAKE, before or signal.SIG_DFL)


def main_thread() -> int | None:
    """The number of this thread if it is the main one, which alone can be interrupted by a signal."""
    return threading.get_ident() if threading.current_thread() is threading.main_thread() else None
