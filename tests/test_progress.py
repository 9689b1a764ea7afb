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


def test_no_terminal_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress.progress_bar("study", 2, "runs") as bar:
        bar.advance()
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
