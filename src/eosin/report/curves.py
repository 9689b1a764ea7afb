"""The curves of a run page: one small chart for each number that a run logs, grouped by what it tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eosin import figures
from eosin.report.page import Html, Section, element, number

# Logged name -> (title, how to read it). Names that are not listed are shown too, last, as they are called.
_GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Loss": {
        "loss": (
            "Loss",
            "sum of the weighted terms; its level depends on the recipe, its fall is what counts",
        ),
        "loss/dino_local": (
            "DINO, local crops",
            "cross-entropy of small crops against the teacher's view of the tile",
        ),
        "loss/dino_global": ("DINO, global crops", "cross-entropy of the two large crops against each other"),
        "loss/ibot": ("iBOT", "cross-entropy of hidden patch tokens against the teacher's"),
        "loss/uniformity": (
            "Uniformity term",
            "pushes embeddings of different tiles apart; lower is more spread",
        ),
    },
    "What the embeddings are like": {
        "rankme": (
            "RankMe",
            "directions in use: near the embedding width D means all, falling towards 1 means collapse",
        ),
        "odcorr": (
            "ODCorr",
            "correlation between features: 0 is independent, 1 means all features say the same",
        ),
        "uniformity": ("Uniformity", "lower is more evenly spread over the sphere; 0 means collapse"),
        "knn": ("k-NN probe", "how often the nearest labelled tiles share the class; higher is better"),
    },
    "Schedule and speed": {
        "lr": ("Learning rate", "after warm-up, as the recipe has it"),
        "last_layer_lr": ("Learning rate, last layer", "zero while the prototypes are frozen"),
        "weight_decay": ("Weight decay", "as the recipe has it"),
        "momentum": ("Teacher momentum", "1 means that the teacher stands still"),
        "teacher_temperature": ("Teacher temperature", "lower means sharper targets"),
        "uniformity_ramp": ("Ramp of the uniformity term", "share of its weight that is in force"),
        "grad_norm": ("Gradient norm", "before clipping; spikes are normal, steady growth is not"),
        "img_s": ("Tiles per second", "a falling rate usually means slow slide reading"),
        "mfu": ("MFU", "share of the device's datasheet peak that is used"),
    },
}
_NOT_CURVES = frozenset({"step", "tiles", "seconds", "time", "epoch"})


def series(metrics: Sequence[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """Logged rows turned into curves: name -> (steps, finite values), in the order of first appearance."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in metrics:
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int | float):
            continue
        for name, value in row.items():
            if name in _NOT_CURVES or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if math.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(float(step))
                values.append(float(value))
    return found


def curves_section(metrics: Sequence[dict[str, Any]], width: int | None = None) -> Section:
    """All curves in groups; `width` is the embedding dimension D, drawn as the most that RankMe can be."""
    curves = series(metrics)
    body: list[Html] = []
    for title, known in _GROUPS.items():
        names = [name for start in known for name in curves if _belongs(name, start)]
        charts = [_chart(name, curves.pop(name), known, width) for name in dict.fromkeys(names)]
        if charts:
            body += [element("h3", title), element("div", charts, class_="charts")]
    if curves:
        charts = [_chart(name, points, {}, width) for name, points in curves.items()]
        body += [element("h3", "Other"), element("div", charts, class_="charts")]
    how = (
        "Each number against the optimiser step, its last value on the right; a healthy run has a falling "
        "loss, a RankMe that rises or holds, and a probe that climbs."
    )
    return Section("curves", "Curves", how, body, "the run has not logged a step yet (no usable row in metrics.jsonl).")


def _belongs(name: str, known: str) -> bool:
    """`knn/colon` belongs to knn; loss/ibot is not a part of loss, it has its own line."""
    return name == known or (known != "loss" and name.startswith(f"{known}/"))


def _chart(
    name: str,
    points: tuple[list[float], list[float]],
    known: dict[str, tuple[str, str]],
    width: int | None,
) -> Html:
    steps, values = points
    start = next((key for key in known if _belongs(name, key)), "")
    title, hint = known.get(start, (name, ""))
    if start and name != start:
        title = f"{title}: {name[len(start) + 1 :]}"
    reference = float(width) if name == "rankme" and width else None
    if reference:
        hint = hint.replace("the embedding width D", f"the embedding width D = {width} (dashed)")
    first, last = (f"{number(values[at])} at step {number(steps[at])}" for at in (0, -1))
    alt = f"{title} from {first} to {last}"
    drawing = element(
        "div", Html(figures.line_chart(steps, values, name, reference=reference)), role="img", aria_label=alt
    )
    head = element("header", element("b", title), element("span", number(values[-1]), class_="number"))
    return element("figure", head, drawing, element("figcaption", hint) if hint else "", class_="chart")
