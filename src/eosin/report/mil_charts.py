"""Drawings of a MIL page, as SVG that takes its colours from the page: ROC, bars with intervals, confusion.

A run keeps its colour everywhere; published values are grey diamonds. Draws what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.report.page import Html, element, joined, number
from eosin.report.study_charts import colour

FloatsLike = Sequence[float] | npt.NDArray[np.float64]
_DASHES = (None, "6 3", "2 2")


class Line(NamedTuple):
    """A line of a chart: colour number, x and y, name for the pointer, thin (a single run) or not, dash number."""

    arm: int
    x: FloatsLike
    y: FloatsLike
    name: str = ""
    thin: bool = False
    dash: int = 0


class Bar(NamedTuple):
    """A score with its interval (None where unknown) and the scores of its runs."""

    arm: int
    name: str
    mean: float
    low: float | None
    high: float | None
    runs: Sequence[float] = ()


class BarGroup(NamedTuple):
    """Bars of one task, and what others published for it by model."""

    task: str
    bars: Sequence[Bar]
    published: dict[str, float]


def line_chart(
    lines: Sequence[Line],
    label: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    diagonal: bool = False,
    square: bool = False,
) -> Html:
    """Lines in a frame with round ticks; `label`: for readers aloud. `diagonal`: from corner to corner, dashed."""
    width, height = (300, 300) if square else (330, 210)
    left, right, top, bottom = 46, 10, 22, 36

    def px(x: float) -> float:
        return round(left + (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1) * (width - left - right), 2)

    def py(y: float) -> float:
        return round(height - bottom - (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1) * (height - top - bottom), 2)

    parts = []
    for tick in round_ticks(*y_range):
        parts.append(element("line", x1=left, x2=width - right, y1=py(tick), y2=py(tick), stroke="var(--rule)"))
        parts.append(axis_text(number(tick, 3), left - 5, py(tick) + 3, "end"))
    for tick in round_ticks(*x_range):
        parts.append(
            element("line", x1=px(tick), x2=px(tick), y1=height - bottom, y2=height - bottom + 3, stroke="var(--soft)")
        )
        parts.append(axis_text(number(tick, 3), px(tick), height - bottom + 14, "middle"))
    parts.append(axis_text(x_label, (left + width - right) / 2, height - 6, "middle"))
    parts.append(axis_text(y_label, 4, 12, "start"))
    if diagonal:
        ends = {"x1": px(x_range[0]), "y1": py(y_range[0]), "x2": px(x_range[1]), "y2": py(y_range[1])}
        parts.append(element("line", **ends, stroke="var(--soft)", stroke_dasharray="4 3"))
    for line in sorted(lines, key=lambda line: not line.thin):
        points = " ".join(f"{px(x)},{py(y)}" for x, y in zip(line.x, line.y, strict=True))
        words = [element("title", line.name)] if line.name else []
        style: dict[str, str | float | None] = {
            "stroke_width": 0.9 if line.thin else 2.1,
            "stroke_dasharray": _DASHES[line.dash % 3],
        }
        parts.append(
            element(
                "polyline",
                words,
                points=points,
                fill="none",
                stroke=colour(line.arm),
                stroke_opacity=0.4 if line.thin else 1,
                **style,
            )
        )
    return drawing(parts, label, width, height)


def scatter(points: Sequence[tuple[int, float, float, str]], label: str, x_label: str, y_label: str) -> Html:
    """Points (arm, x, y, name) on equal axes with the diagonal."""
    values = [v for _, x, y, _ in points for v in (x, y)] or [0.0, 1.0]
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 1.0
    low, high = low - pad, high + pad
    frame = line_chart([], label, x_label, y_label, (low, high), (low, high), diagonal=True, square=True)
    left, right, top, bottom, side = 46, 10, 22, 36, 300
    dots = []
    for arm, x, y, name in points:
        cx = left + (x - low) / (high - low) * (side - left - right)
        cy = side - bottom - (y - low) / (high - low) * (side - top - bottom)
        dots.append(
            element(
                "circle",
                element("title", name),
                cx=round(cx, 2),
                cy=round(cy, 2),
                r=3,
                fill=colour(arm),
                fill_opacity=0.7,
            )
        )
    return Html(frame.removesuffix("</svg>") + joined(dots) + "</svg>")


def bar_chart(groups: Sequence[BarGroup], chance: float | None, label: str) -> Html:
    """A block of bars a task: from chance (or 0) to the mean, whiskers to the interval's ends, a dot a run.

    Below the bars of a task, published values as diamonds.
    """
    width, left, right = 760, 190, 54
    values = [v for g in groups for b in g.bars for v in (b.mean, b.low, b.high) if v is not None]
    values += [v for g in groups for v in g.published.values()]
    base = chance if chance is not None else 0.0
    low, high = min([base, *values]), max([base, *values])
    low, high = (
        (max(0.0, math.floor(low * 10) / 10), 1.0) if low >= 0 and high <= 1 else (low - 0.05 * (high - low), high)
    )

    def px(value: float) -> float:
        return round(left + (value - low) / ((high - low) or 1) * (width - left - right), 2)

    parts: list[Html] = []
    y = 8.0
    for group in groups:
        start = y
        for bar in group.bars:
            parts += _bar(bar, px, px(base), y, width)
            y += 19
        for name, value in group.published.items():
            parts.append(diamond(px(value), y + 6, f"{name}: {value:.3f}, published"))
        y += 16 if group.published else 0
        rows = len(group.bars) + bool(group.published)
        parts.append(
            axis_text(
                cut(group.task, 27), left - 10, start + 9.5 * rows + 3 - (2 if group.published else 0), "end", ink=True
            )
        )
        y += 10
    grid = []
    for tick in round_ticks(low, high):
        grid.append(element("line", x1=px(tick), x2=px(tick), y1=4, y2=y - 4, stroke="var(--rule)"))
        grid.append(axis_text(number(tick, 3), px(tick), y + 10, "middle"))
    if chance is not None:
        grid.append(
            element(
                "line", x1=px(chance), x2=px(chance), y1=2, y2=y - 2, stroke="var(--second)", stroke_dasharray="4 3"
            )
        )
        grid.append(axis_text("chance", px(chance), y + 22, "middle"))
    return drawing([*grid, *parts], label, width, y + 28)


def _bar(bar: Bar, px: Callable[[float], float], base: float, y: float, width: float) -> list[Html]:
    at, middle = px(bar.mean), y + 8
    ends = "" if bar.low is None or bar.high is None else f", {bar.low:.3f} to {bar.high:.3f}"
    words = element("title", f"{bar.name}: {bar.mean:.3f}{ends}")
    box = {"x": min(base, at), "y": y + 2, "width": max(abs(at - base), 0.5), "height": 12}
    parts = [element("rect", words, **box, rx=1.5, fill=colour(bar.arm), fill_opacity=0.55)]
    if bar.low is not None and bar.high is not None:
        style: dict[str, str | float] = {"stroke": "var(--ink)", "stroke_width": 1.3}
        parts.append(element("line", x1=px(bar.low), x2=px(bar.high), y1=middle, y2=middle, **style))
        parts += [
            element("line", x1=px(v), x2=px(v), y1=middle - 3.5, y2=middle + 3.5, **style) for v in (bar.low, bar.high)
        ]
    parts += [
        element("circle", cx=px(run), cy=middle, r=2, fill=colour(bar.arm), stroke="var(--card)", stroke_width=0.6)
        for run in bar.runs
    ]
    parts.append(axis_text(f"{bar.mean:.3f}", width - 6, middle + 3.5, "end", ink=True))
    return parts


def diamond(x: float, y: float, title: str = "") -> Html:
    """The mark of a published value."""
    words = [element("title", title)] if title else []
    points = f"{x},{y - 4.5} {x + 4.5},{y} {x},{y + 4.5} {x - 4.5},{y}"
    return element("polygon", words, points=points, fill="var(--card)", stroke="var(--soft)", stroke_width=1.3)


def confusion_table(counts: npt.NDArray[np.int64], classes: Sequence[str], caption: str) -> Html:
    """Counts with the share of their row as shade; rows are true classes, columns predicted ones."""
    head = [
        element("th", "true / predicted", scope="col"),
        *(element("th", name, scope="col", class_="number") for name in classes),
    ]
    rows = []
    for name, row in zip(classes, counts.tolist(), strict=True):
        total = max(sum(row), 1)
        cells = []
        for count in row:
            share = element("span", f"{count / total:.0%}", class_="soft small")
            shade = f"color-mix(in srgb,var(--accent) {50 * count // total}%,transparent)"
            style = f"padding:.4rem .6rem;background:{shade}"
            cells.append(element("td", number(count, 9), " ", share, class_="number", style=style))
        rows.append(element("tr", element("td", name), cells))
    inner = [element("caption", caption), element("thead", element("tr", head)), element("tbody", rows)]
    return element("div", element("table", inner), class_="scroll compact", style="margin:0")


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values within low..high."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= span / most * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def cut(text: str, most: int) -> str:
    """At most `most` characters of a name."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def axis_text(words: str, x: float, y: float, anchor: str, ink: bool = False) -> Html:
    """Words of an axis at (x, y); `anchor` start, middle or end; `ink`: as dark as running text."""
    style = "fill:var(--ink);font-size:11px" if ink else None
    return element("text", words, x=round(x, 2), y=round(y, 2), class_="axis", text_anchor=anchor, style=style)


def drawing(parts: Sequence[Html], label: str, width: float, height: float) -> Html:
    """The parts as one picture; `label`: for readers aloud."""
    return element("svg", parts, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)
