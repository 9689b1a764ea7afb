"""Bars on a terminal: one inside another is a line of the same display and goes when it is done."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from eosin import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_inside_a_bar_is_a_line_more(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(progress, "console", Console(file=terminal, force_terminal=True, width=120))
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress_bar("study", 2, "runs") as outer:
        with progress.progress_bar("train", 10, "tiles") as inner:
            inner.advance(4)
            (display,) = progress._shown
            display.refresh()
            assert [(task.description, task.completed) for task in display.tasks] == [("study", 0), ("train", 4)]
        outer.advance()
        assert [(task.description, task.completed) for task in display.tasks] == [("study", 1)]
    assert progress._shown == []
    assert "4/10" in terminal.getvalue()


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_long_work_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = _Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "console", Console(file=log, width=40))
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("train", 100_000, "tiles", done=600) as bar:  # one of them resumed at 600
        for _ in range(3600):
            clock.now += 1
            bar.advance(4)
    lines = log.getvalue().splitlines()
    assert lines[0] == "train: 720 of 100000 tiles, 4.0 tiles/s, 7 h left"
    assert [int(line.split()[1]) for line in lines] == [
        600 + 4 * at for at in (30, 90, 210, 450, 930, 1530, 2130, 2730, 3330)
    ]
    monkeypatch.setenv("RANK", "1")
    with progress.progress_bar("train", None, "tiles") as bar:
        clock.now += 1000
        bar.advance()
    assert len(log.getvalue().splitlines()) == len(lines)


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_bar("study", 2, "runs") as bar:
        bar.advance()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
