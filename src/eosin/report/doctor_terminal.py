"""`eosin doctor` on the terminal: tables on one that shows them, plain aligned text into a file or a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from eosin.report.doctor import VISIT_TILES, Diagnosis, SlideReport
from eosin.report.doctor_problems import MEANING
from eosin.report.doctor_words import (
    Line,
    Rows,
    cohort_lines,
    how_measured,
    level_rows,
    machine_lines,
    offer_rows,
    sample_rows,
    scale_rows,
    slide_lines,
    speed_rows,
    starvation_lines,
)

_PLAIN_WIDTH = 118
_COLOURS = {"stops": "bold red", "slow": "yellow", "look": "cyan"}


def show(told: Diagnosis, console: Console | None = None) -> None:
    """Print all of it, the problems last, where the eye is."""
    console = console or Console(highlight=False)
    if console.is_terminal:
        _show(told, console)
        return
    plain = Console(file=io.StringIO(), width=_PLAIN_WIDTH, highlight=False, no_color=True, force_terminal=False)
    with plain.capture() as text:
        _show(told, plain)
    console.file.writelines(f"{line.rstrip()}\n" for line in text.get().splitlines())


def _show(told: Diagnosis, console: Console) -> None:
    if told.cohort is None:
        _slide(console, told.slides[0], told)
    else:
        _cohort(console, told)
    if told.starvation is not None:
        _title(console, "Would a GPU starve?")
        _lines(console, starvation_lines(told.starvation))
    _title(console, "Machine")
    _lines(console, machine_lines(told.machine))
    _problems(console, told)


def _slide(console: Console, slide: SlideReport, told: Diagnosis) -> None:
    console.print(Text(slide.name, style="bold"))
    _lines(console, slide_lines(slide))
    _title(console, "Levels")
    _table(console, level_rows(slide.anatomy.levels))
    _title(console, "Scales")
    _table(console, scale_rows(slide.scales))
    _title(console, "Speed")
    _table(console, speed_rows(slide.scales, VISIT_TILES))
    console.print(Padding(Text(how_measured(told), style="dim"), (0, 0, 0, 2)))


def _cohort(console: Console, told: Diagnosis) -> None:
    facts = told.cohort
    assert facts is not None
    console.print(Text(told.target, style="bold"))
    _lines(console, cohort_lines(told))
    _title(console, "µm/px of the slides")
    most = max((part.slides for part in facts.mpp), default=1)
    bars = [
        [f"{part.low:g} to {part.high:g}", "█" * round(40 * part.slides / most) or "▏", f"{part.slides:,}"]
        for part in facts.mpp
        if part.slides
    ]
    _table(console, Rows(["µm/px", "", "slides"], bars, (2,)))
    _title(console, "Scales")
    _table(console, offer_rows(told))
    console.print(Padding(Text(how_measured(told), style="dim"), (0, 0, 0, 2)))
    if told.slides:
        _title(console, f"{len(told.slides)} slides measured, tiles/s a core at each µm/px")
        _table(console, sample_rows(told))


def _problems(console: Console, told: Diagnosis) -> None:
    if not told.problems:
        _title(console, "Problems")
        console.print("  none found")
        return
    _title(console, f"Problems ({len(told.problems)}), the most important first")
    for place, problem in enumerate(told.problems, start=1):
        grid = Table.grid(padding=(0, 1))
        grid.add_column(justify="right", width=4)
        grid.add_column(overflow="fold")
        grid.add_row(f"{place}.", Text(problem.what) + Text(f"  [{MEANING[problem.weight]}]", _COLOURS[problem.weight]))
        grid.add_row("", Text(f"→ {problem.remedy}"))
        console.print(grid)


def _title(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold"))


def _lines(console: Console, lines: Sequence[Line]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(min_width=12)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(Text(label, style="dim"), Text(value))
    console.print(Padding(grid, (0, 0, 0, 2)))


def _table(console: Console, told: Rows) -> None:
    lines = console.is_terminal
    shown = Table(box=box.SIMPLE_HEAD if lines else None, pad_edge=False, padding=(0, 0 if lines else 3, 0, 0))
    for at, name in enumerate(told.head):
        shown.add_column(Text(name), justify="right" if at in told.numeric else "left", overflow="fold")
    for row in told.rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(Padding(shown, (0, 0, 0, 2)))
