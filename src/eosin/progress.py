"""Progress bars with rate and ETA on a terminal; one plain line now and then where there is none."""

from __future__ import annotations

import sys
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


class _Quiet:
    def advance(self, count: float = 1, note: str = "") -> None:
        return None


class _Rich:
    def __init__(self, progress: Progress, unit: str, total: float | None) -> None:
        self._progress = progress
        self._unit = unit
        self._task = progress.add_task("", total=total, rate="", note="")

    def advance(self, count: float = 1, note: str = "") -> None:
        self._progress.advance(self._task, count)
        task = self._progress.tasks[0]
        speed = task.speed or 0.0
        rate = f"{speed:.1f} {self._unit}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s/{self._unit}"
        self._progress.update(self._task, rate=rate, note=note or task.fields["note"])


@contextmanager
def progress_bar(title: str, total: float | None, unit: str) -> Iterator[Bar]:
    """A bar for `total` items called `unit`; silent where stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield _Quiet()
        return
    columns = (
        SpinnerColumn(),
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Rich(progress, unit, total)


def say(line: str) -> None:
    """One line for the person at the terminal, on stderr."""
    console.print(line, markup=False, soft_wrap=True)
