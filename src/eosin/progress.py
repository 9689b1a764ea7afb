"""Progress bars with rate and ETA on a terminal; one plain line now and then where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False)


class Bar(Protocol):
    """What a long loop reports to."""

    def advance(self, count: float = 1, note: str = "") -> None:
        """`count` more items are done; `note` is shown behind the rate."""


FIRST_LINE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds before the first plain line, and between two of them at most; pauses double until then."""


class _Lines:
    """A plain line now and then, for a log file: nothing at all where the work is short."""

    def __init__(self, title: str, unit: str, total: float | None, done: float) -> None:
        self._title, self._unit, self._total, self._done = title, unit, total, done
        self._pause = FIRST_LINE
        self._said_at, self._said = time.monotonic(), done

    def advance(self, count: float = 1, note: str = "") -> None:
        self._done += count
        now = time.monotonic()
        seconds = now - self._said_at
        if seconds < self._pause:
            return
        speed = (self._done - self._said) / seconds
        if speed <= 0:  # nothing was finished since the last line
            return
        of = "" if self._total is None else f" of {self._total:.0f}"
        left = "" if self._total is None else f", {_duration((self._total - self._done) / speed)} left"
        behind = f", {note}" if note else ""
        say(f"{self._title}: {self._done:.0f}{of} {self._unit}, {_rate(speed, self._unit)}{left}{behind}")
        self._said_at, self._said = now, self._done
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _rate(speed: float, unit: str) -> str:
    return f"{speed:.1f} {unit}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s/{unit}"


def _duration(seconds: float) -> str:
    for length, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"


class _Nothing:
    def advance(self, count: float = 1, note: str = "") -> None:
        return None


class _Rich:
    def __init__(self, progress: Progress, title: str, unit: str, total: float | None, done: int) -> None:
        self._progress = progress
        self._unit = unit
        self._task = progress.add_task(title, total=total, completed=done, rate="", note="")

    def remove(self) -> None:
        self._progress.remove_task(self._task)

    def advance(self, count: float = 1, note: str = "") -> None:
        self._progress.advance(self._task, count)
        task = next(task for task in self._progress.tasks if task.id == self._task)
        rate = _rate(task.speed or 0.0, self._unit)
        self._progress.update(self._task, rate=rate, note=note or task.fields["note"])


_shown: list[Progress] = []  # the display that is live, if any


@contextmanager
def progress_bar(title: str, total: float | None, unit: str, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` items called `unit`, `done` of them already; one inside another is a line more.

    Where stderr is no terminal, work that takes longer than FIRST_LINE seconds says a plain line now and then.
    """
    if not _speaks():
        yield _Nothing()
        return
    if not sys.stderr.isatty():
        yield _Lines(title, unit, total, done)
        return
    if _shown:
        inner = _Rich(_shown[0], title, unit, total, done)
        try:
            yield inner
        finally:
            inner.remove()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        _shown.append(progress)
        try:
            yield _Rich(progress, title, unit, total, done)
        finally:
            _shown.clear()


def say(line: str) -> None:
    """One line for the person at the terminal, on stderr; of several processes (torchrun) the first one speaks."""
    if _speaks():
        console.print(line, markup=False, soft_wrap=True)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
