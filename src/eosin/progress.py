"""Progress bars with rate and ETA on a terminal; one plain line now and then where there is none."""

from __future__ import annotations

import os
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
    def __init__(self, progress: Progress, title: str, unit: str, total: float | None) -> None:
        self._progress = progress
        self._unit = unit
        self._task = progress.add_task(title, total=total, rate="", note="")

    def remove(self) -> None:
        self._progress.remove_task(self._task)

    def advance(self, count: float = 1, note: str = "") -> None:
        self._progress.advance(self._task, count)
        task = next(task for task in self._progress.tasks if task.id == self._task)
        speed = task.speed or 0.0
        rate = f"{speed:.1f} {self._unit}/s" if speed >= 1 or speed == 0 else f"{1 / speed:.1f} s/{self._unit}"
        self._progress.update(self._task, rate=rate, note=note or task.fields["note"])


_shown: list[Progress] = []  # the display that is live, if any


@contextmanager
def progress_bar(title: str, total: float | None, unit: str) -> Iterator[Bar]:
    """A bar for `total` items called `unit`; one inside another is a line more. Silent where stderr is no terminal."""
    if not sys.stderr.isatty() or not _speaks():
        yield _Quiet()
        return
    if _shown:
        inner = _Rich(_shown[0], title, unit, total)
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
            yield _Rich(progress, title, unit, total)
        finally:
            _shown.clear()


def say(line: str) -> None:
    """One line for the person at the terminal, on stderr; of several processes (torchrun) the first one speaks."""
    if _speaks():
        console.print(line, markup=False, soft_wrap=True)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"
