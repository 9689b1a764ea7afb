"""AUROC over tasks as a radar, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eosin.report.mil_charts import axis_text, cut, drawing
from eosin.report.page import Html, element
from eosin.report.study_charts import colour


def radar_chart(
    tasks: Sequence[str],
    polygons: Sequence[tuple[int, Sequence[float]]],
    band: tuple[Sequence[float], Sequence[float]] | None,
    anchor: Sequence[float] | None,
    label: str,
) -> Html:
    """One axis a task, one polygon a run (arm, value by task), AUROC from the centre to 1 at the rim.

    `band`: lowest and highest published value of each task, a grey ring; `anchor`: one published model, dashed.
    """
    width, height, radius = 560, 370, 140
    cx, cy = width / 2, height / 2
    values = [v for _, line in polygons for v in line] + list(band[0] if band else []) + list(anchor or [])
    low = min(0.4, math.floor(min(values, default=0.5) * 10) / 10)

    def at(task: int, value: float) -> tuple[float, float]:
        angle = 2 * math.pi * task / len(tasks) - math.pi / 2
        r = radius * max(value - low, 0) / (1 - low)
        return round(cx + r * math.cos(angle), 2), round(cy + r * math.sin(angle), 2)

    def path(line: Sequence[float]) -> str:
        return " ".join(f"{x},{y}" for x, y in (at(n, value) for n, value in enumerate(line)))

    parts: list[Html] = []
    if band is not None:
        rings = ["M" + path(line).replace(" ", "L") + "Z" for line in (band[1], band[0])]
        parts.append(element("path", d="".join(rings), fill="var(--soft)", fill_opacity=0.2, fill_rule="evenodd"))
    for ring in np.arange(math.ceil(low * 10 + 1e-9), 11) / 10:
        style: dict[str, str | None] = {"stroke": "var(--second)" if abs(ring - 0.5) < 1e-9 else "var(--rule)"}
        style["stroke_dasharray"] = "4 3" if abs(ring - 0.5) < 1e-9 else None
        parts.append(element("polygon", points=path([float(ring)] * len(tasks)), fill="none", **style))
    for n, task in enumerate(tasks):
        x, y = at(n, 1.0)
        parts.append(element("line", x1=cx, y1=cy, x2=x, y2=y, stroke="var(--rule)"))
        dx, dy = (x - cx) / radius, (y - cy) / radius
        anchor_word = "middle" if abs(dx) < 0.2 else "start" if dx > 0 else "end"
        parts.append(axis_text(cut(task, 24), x + 8 * dx, y + 8 * dy + 4 + 4 * dy, anchor_word, ink=True))
    if anchor is not None:
        parts.append(
            element(
                "polygon",
                points=path(anchor),
                fill="none",
                stroke="var(--soft)",
                stroke_width=1.4,
                stroke_dasharray="5 3",
            )
        )
    for arm, line in polygons:
        style = {"stroke": colour(arm), "fill": colour(arm)}
        parts.append(element("polygon", points=path(line), stroke_width=2, fill_opacity=0.08, **style))
        parts += [
            element(
                "circle",
                element("title", f"{tasks[n]}: {v:.3f}"),
                cx=at(n, v)[0],
                cy=at(n, v)[1],
                r=3,
                fill=colour(arm),
            )
            for n, v in enumerate(line)
        ]
    for ring in (0.5, 1.0):
        parts.append(axis_text(f"{ring:g}", cx + 4, at(0, ring)[1] + 10, "start"))
    return drawing(parts, label, width, height)
