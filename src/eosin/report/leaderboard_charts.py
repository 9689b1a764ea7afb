"""Drawings of a leaderboard beside those of `mil_charts`: score against size, and ROC curves from scores of tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.report.mil_charts import round_ticks
from eosin.report.page import Html, element, number
from eosin.report.study_charts import colour, mark

Floats = npt.NDArray[np.float64]
ROC_POINTS = 201
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 20, 22, 40


class SizePoint(NamedTuple):
    """A model: colour number, size (above 0), score, its interval (None where unknown), name."""

    arm: int
    x: float
    y: float
    low: float | None
    high: float | None
    name: str


def size_chart(points: Sequence[SizePoint], label: str, x_label: str, y_label: str) -> Html:
    """Scores against a size on a logarithmic axis, each with its interval and its name beside it."""
    decades = [math.log10(point.x) for point in points]
    x_low, x_high = min(decades) - 0.25, max(decades) + 0.25
    ends = [v for point in points for v in (point.y, point.low, point.high) if v is not None]
    pad = 0.06 * (max(ends) - min(ends)) or 0.02
    y_low, y_high = min(ends) - pad, max(ends) + pad

    def px(value: float) -> float:
        return round(_LEFT + (math.log10(value) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT), 2)

    def py(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 2)

    parts = []
    for tick in round_ticks(y_low, y_high):
        parts.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=py(tick), y2=py(tick), stroke="var(--rule)"))
        parts.append(_text(number(tick, 3), _LEFT - 5, py(tick) + 3, "end"))
    for tick in log_ticks(10**x_low, 10**x_high):
        foot = _HEIGHT - _BOTTOM
        parts.append(element("line", x1=px(tick), x2=px(tick), y1=foot, y2=foot + 3, stroke="var(--soft)"))
        parts.append(_text(short_number(tick), px(tick), foot + 14, "middle"))
    parts.append(_text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle"))
    parts.append(_text(y_label, 4, 12, "start"))
    taken: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda point: -point.y):
        x, y = px(point.x), py(point.y)
        if point.low is not None and point.high is not None:
            whisker: dict[str, str | float] = {"stroke": colour(point.arm), "stroke_width": 1.3, "stroke_opacity": 0.7}
            parts.append(element("line", x1=x, x2=x, y1=py(point.low), y2=py(point.high), **whisker))
        parts.append(mark(point.arm, x, y, f"{point.name}: {point.y:.3f}, {short_number(point.x)}"))
        parts.append(_label(_cut(point.name, 34), x, y, taken))
    return element("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)


def _label(words: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> Html:
    """A name beside its point, above or below where no earlier name is (`taken`: from x, to x, y of those)."""
    end, width = x > 0.7 * _WIDTH, 5.7 * len(words)
    left = x - 8 - width if end else x + 8

    def free(place: float) -> bool:
        return all(left > b or left + width < a or abs(place - height) > 11 for a, b, height in taken)

    place = next((y + shift for shift in (-5, 12, 24, -17, 36) if free(y + shift)), y - 5)
    taken.append((left, left + width, place))
    return _text(words, x - 8 if end else x + 8, place, "end" if end else "start", ink=True)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within low..high; powers alone where that would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 100 else (1, 3) if high / low < 2000 else (1,)
    return [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high]


def short_number(value: float) -> str:
    """A count in few characters.

    >>> short_number(21_700_000), short_number(350_000), short_number(12)
    ('21.7 M', '350 k', '12')
    """
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def roc_points(positive: npt.NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats, float] | None:
    """False and true positive rates and the area of `scores` [n] for `positive` [n]; None without both sides.

    The curve is thinned to about 200 points, the area is of the whole one.
    """
    from sklearn.metrics import auc, roc_curve

    if positive.all() or not positive.any():
        return None
    x, y, _ = roc_curve(positive, scores)
    area = float(auc(x, y))
    if len(x) > ROC_POINTS:
        kept = np.unique(np.linspace(0, len(x) - 1, ROC_POINTS).round().astype(int))
        x, y = x[kept], y[kept]
    return x, y, area


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(words: str, x: float, y: float, anchor: str, ink: bool = False) -> Html:
    style = "fill:var(--ink);font-size:10.5px" if ink else None
    return element("text", words, x=round(x, 2), y=round(y, 2), class_="axis", text_anchor=anchor, style=style)
