"""Drawings of a study page, as SVG that takes its colours from the page: curves by arm, dots by arm, scatter.

An arm keeps its colour and its mark everywhere. Draws what it is given; computes no statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from eosin.report.page import Html, element, joined, number

WIDTH, HEIGHT = 330, 196
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 32
COLOURS = 8
_LEVEL_DASHES = ("5 3", "1.5 2.5")
_MARKS = ("circle", "square", "up", "diamond", "down")


class Curve(NamedTuple):
    """An arm over steps: its number, and lists of one length: steps, mean, lowest and highest run."""

    arm: int
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Dots(NamedTuple):
    """An arm's runs of one metric: values with their names, and the mean with its interval (None where unknown)."""

    arm: int
    values: Sequence[tuple[float, str]]
    mean: float | None
    low: float | None
    high: float | None


class Point(NamedTuple):
    """A run in a scatter."""

    arm: int
    x: float
    y: float
    name: str


class Axis:
    """A linear scale from values to pixels, with round ticks."""

    def __init__(self, values: Sequence[float], start_px: float, end_px: float, ticks: int = 6) -> None:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
            pad = abs(low) * 0.05 or 1.0
            low, high = low - pad, high + pad
        margin = 0.04 * (high - low)
        self.low, self.high = low - margin, high + margin
        self._start, self._end = start_px, end_px
        self.step = _round_step((self.high - self.low) / ticks)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return round(self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start), 2)

    @property
    def ticks(self) -> list[float]:
        """Round values inside the scale."""
        first = math.ceil(self.low / self.step - 1e-9)
        return [n * self.step for n in range(first, math.floor(self.high / self.step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick in as few digits as its step needs."""
        if self.step >= 1:
            return number(int(round(value)), 9)
        digits = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{value:.{digits}f}".replace("-", "−") if digits < 5 else f"{value:.1e}".replace("-", "−")


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 × 10ⁿ that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def colour(arm: int) -> str:
    """The page's colour of an arm."""
    return f"var(--arm-{arm % COLOURS})"


def _dash(arm: int) -> str | None:
    """Arms beyond the number of colours are dashed."""
    return None if arm < COLOURS else "5 3" if arm < 2 * COLOURS else "1.5 2.5"


def mark(arm: int, x: float, y: float, title: str = "", size: float = 4.0) -> Html:
    """An arm's mark at a pixel; `title` is shown by the browser."""
    kind = _MARKS[arm % len(_MARKS)]
    words = [element("title", title)] if title else []
    style: dict[str, str | int | float | None] = {"fill": colour(arm), "fill_opacity": 0.85}
    if kind == "circle":
        return element("circle", words, cx=x, cy=y, r=size, **style)
    s = size * 1.15
    shapes = {
        "square": [(-s * 0.8, -s * 0.8), (s * 0.8, -s * 0.8), (s * 0.8, s * 0.8), (-s * 0.8, s * 0.8)],
        "up": [(0, -s), (s, s * 0.8), (-s, s * 0.8)],
        "diamond": [(0, -s * 1.1), (s * 1.1, 0), (0, s * 1.1), (-s * 1.1, 0)],
        "down": [(0, s), (s, -s * 0.8), (-s, -s * 0.8)],
    }
    corners = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in shapes[kind])
    return element("polygon", words, points=corners, **style)


def swatch(arm: int) -> Html:
    """Line and mark of an arm, for a legend."""
    line = element("line", x1=1, x2=27, y1=7, y2=7, stroke=colour(arm), stroke_width=2, stroke_dasharray=_dash(arm))
    return element("svg", line, mark(arm, 14, 7), viewBox="0 0 28 14", class_="swatch", aria_hidden="true")


def named_arm(arm: int, name: str) -> Html:
    """An arm's swatch and name, for tables and legends."""
    return element("span", swatch(arm), f" {name}", class_="arm")


def curve_chart(curves: Sequence[Curve], label: str) -> Html:
    """Curves of all arms against the step, each with a band from lowest to highest run. `label`: for readers aloud."""
    x = Axis([step for curve in curves for step in curve.steps], LEFT, WIDTH - RIGHT)
    y = Axis([v for curve in curves for values in (curve.low, curve.high) for v in values], HEIGHT - BOTTOM, TOP)
    parts = _frame(x, y, "step")
    for curve in curves:
        there = [f"{x.at(s)},{y.at(v)}" for s, v in zip(curve.steps, curve.high, strict=True)]
        back = [f"{x.at(s)},{y.at(v)}" for s, v in zip(curve.steps, curve.low, strict=True)][::-1]
        parts.append(element("polygon", points=" ".join(there + back), fill=colour(curve.arm), fill_opacity=0.16))
    for curve in curves:
        line = " ".join(f"{x.at(s)},{y.at(v)}" for s, v in zip(curve.steps, curve.mean, strict=True))
        style = {"stroke": colour(curve.arm), "stroke_dasharray": _dash(curve.arm)}
        parts.append(element("polyline", points=line, fill="none", stroke_width=1.7, **style))
        parts.append(mark(curve.arm, x.at(curve.steps[-1]), y.at(curve.mean[-1]), size=3.2))
    return _svg(parts, label)


def dot_chart(arms: Sequence[Dots], names: Sequence[str], levels: Sequence[tuple[str, float]], label: str) -> Html:
    """A line an arm: its runs as marks, mean and interval as a bar. `levels`: (name, value) of at most two lines."""
    room = max(LEFT, min(186, 12 + 5.4 * max((len(name) for name in names), default=0)))
    values = [v for dots in arms for v in (*(v for v, _ in dots.values), dots.low, dots.high) if v is not None]
    x = Axis([*values, *(value for _, value in levels)], room, WIDTH - RIGHT, ticks=5)
    height = TOP + 22 * len(arms) + BOTTOM + (12 if levels else 0)
    bottom = TOP + 22 * len(arms) + 4
    parts = [_tick(x, tick, bottom) for tick in x.ticks]
    for (name, value), dash in zip(levels, _LEVEL_DASHES, strict=False):
        line = {"stroke": "var(--second)", "stroke_dasharray": dash}
        parts.append(element("line", element("title", name), x1=x.at(value), x2=x.at(value), y1=TOP, y2=bottom, **line))
    if levels:
        kinds = zip(levels, ("dashed", "dotted"), strict=False)
        words = ", ".join(f"{kind}: {name} {value:.3f}" for (name, value), kind in kinds)
        parts.append(element("text", words, x=WIDTH - RIGHT, y=height - 5, class_="axis", text_anchor="end"))
    for row, dots in enumerate(arms):
        y = TOP + 22 * row + 12
        parts.append(
            element("text", _cut(names[dots.arm], room), x=room - 8, y=y + 3, class_="axis", text_anchor="end")
        )
        if dots.low is not None and dots.high is not None:
            low, high = x.at(dots.low), x.at(dots.high)
            bar: dict[str, str | float] = {"stroke": colour(dots.arm), "stroke_width": 6, "stroke_opacity": 0.28}
            parts.append(element("line", x1=low, x2=high, y1=y, y2=y, **bar))
        if dots.mean is not None:
            at = x.at(dots.mean)
            parts.append(element("line", x1=at, x2=at, y1=y - 8, y2=y + 8, stroke=colour(dots.arm), stroke_width=2))
        parts += [mark(dots.arm, x.at(value), y, name, size=3.4) for value, name in dots.values]
    return _svg(parts, label, height)


def _cut(name: str, room: float) -> str:
    most = int((room - 8) / 5.2)
    return name if len(name) <= most else f"{name[: most - 1]}…"


def scatter_chart(points: Sequence[Point], x_label: str, y_label: str, label: str) -> Html:
    """Runs as marks in two measures."""
    x = Axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    y = Axis([point.y for point in points], HEIGHT - BOTTOM, TOP + 14)
    parts = [*_frame(x, y, x_label), element("text", y_label, x=2, y=TOP + 2, class_="axis")]
    parts += [mark(point.arm, x.at(point.x), y.at(point.y), point.name) for point in points]
    return _svg(parts, label)


def _frame(x: Axis, y: Axis, x_label: str) -> list[Html]:
    """Grid lines, ticks and the name of the horizontal axis."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        place = y.at(tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=place, y2=place, stroke="var(--rule)"))
        parts.append(element("text", y.text(tick), x=LEFT - 5, y=place + 3, class_="axis", text_anchor="end"))
    parts += [_tick(x, tick, bottom) for tick in x.ticks]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", x_label, x=middle, y=HEIGHT - 4, class_="axis", text_anchor="middle"))
    return parts


def _tick(x: Axis, value: float, bottom: float) -> Html:
    place = x.at(value)
    return joined(
        element("line", x1=place, x2=place, y1=bottom, y2=bottom + 3, stroke="var(--soft)"),
        element("text", x.text(value), x=place, y=bottom + 13, class_="axis", text_anchor="middle"),
    )


def _svg(parts: Sequence[Html], label: str, height: float = HEIGHT) -> Html:
    return element("svg", parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)
