"""The curves of a run page: one small chart for each number that a run logs, grouped by what it tells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
            "directions in use: the more the better, falling towards 1 means collapse",
        ),
        "odcorr": (
            "ODCorr",
            "correlation between features: 0 is independent, 1 means all features say the same",
        ),
        "uniformity": ("Uniformity", "lower is more evenly spread over the sphere; 0 means collapse"),
        "knn": ("k-NN probe", "how often the nearest labelled tiles share the class; higher is better"),
        "logreg": ("Logistic regression probe", "score of the task on labelled tiles; higher is better"),
        "simpleshot": ("SimpleShot probe", "score with few labelled tiles a class; higher is better"),
        "strict": ("Linear probe or decoder", "score of the task after few steps of training; higher is better"),
        "eva-v2": ("Probe as eva 0.4.5 does it", "score of the task; higher is better"),
        "eva-v1": ("Probe as eva 0.0.1 did it", "score of the task; higher is better"),
        "midnight": ("Probe as Midnight's authors did it", "score of the task; higher is better"),
        "teacher_entropy": (
            "Teacher entropy",
            "how undecided the teacher is between prototypes, in nats, before targets are balanced; 0 is one prototype "
            "a tile, and neither end is good",
        ),
        "prototypes_used": (
            "Prototypes used",
            "share that is the first choice of some watched tile, of those that could be; near 0 means collapse",
        ),
    },
    "Schedule and speed": {
        "lr": ("Learning rate", "after warm-up, as the recipe has it"),
        "encoder_lr": ("Learning rate, encoder", "zero while only the heads learn"),
        "last_layer_lr": ("Learning rate, last layer", "zero while the prototypes are frozen"),
        "weight_decay": ("Weight decay", "as the recipe has it"),
        "momentum": ("Teacher momentum", "1 means that the teacher stands still"),
        "teacher_temperature": ("Teacher temperature", "lower means sharper targets"),
        "uniformity_ramp": ("Ramp of the uniformity term", "share of its weight that is in force"),
        "grad_norm": ("Gradient norm", "before clipping; spikes are normal, steady growth is not"),
        "img_s": ("Tiles per second", "a falling rate usually means slow slide reading"),
        "data_wait": ("Data wait", "share of the time that steps stood still for want of tiles; should be near 0"),
        "mfu": ("MFU", "share of the device's datasheet peak that is used"),
    },
}
_NOT_CURVES = frozenset({"step", "tiles", "seconds", "time", "epoch", "last_layer_frozen"})


Curve = tuple[list[float], list[float]]
"""Steps and values."""


class Level(NamedTuple):
    """A dashed line in a chart, and what it stands for."""

    value: float
    words: str


def levels_of(recipe: Mapping[str, Any]) -> dict[str, Level]:
    """The most that RankMe and teacher entropies can be, as far as the recipe tells: by name of the number."""

    def value(group: str, key: str) -> int:
        found = recipe.get(group)
        found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, int) and found > 0 else 0

    levels = {}
    width, tiles = value("encoder", "width"), value("run", "monitor_tiles")
    if width and tiles and tiles < width:
        levels["rankme"] = Level(tiles, f"the {tiles} watched tiles, fewer than the width {width}")
    elif width:
        levels["rankme"] = Level(width, f"the embedding width {width}")
    shared = isinstance(goal := recipe.get("objective"), dict) and goal.get("shared_head")
    for name, head in (("teacher_entropy", "dino"), ("teacher_entropy/ibot", "dino" if shared else "ibot")):
        if count := value("objective", f"{head}_prototypes"):
            levels[name] = Level(math.log(count), f"ln {number(count)}, no preference")
    return levels


def series(metrics: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Logged rows turned into curves: name -> (steps, finite values), in the order of first appearance."""
    found: dict[str, Curve] = {}
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


def curves_section(metrics: Sequence[dict[str, Any]], levels: Mapping[str, Level] | None = None) -> Section:
    """All curves in groups, with `levels` drawn by the name of the number."""
    curves, levels = series(metrics), levels or {}
    ends = _intervals(curves)
    for name in ("encoder_lr", "last_layer_lr"):  # most recipes have one learning rate for all
        if name in curves and curves[name] == curves.get("lr"):
            del curves[name]
    body: list[Html] = []
    for title, known in _GROUPS.items():
        names = [name for start in known for name in curves if _belongs(name, start)]
        charts = [
            _chart(name, curves.pop(name), known, levels.get(name), ends.get(name)) for name in dict.fromkeys(names)
        ]
        if charts:
            body += [element("h3", title), element("div", charts, class_="charts")]
    if curves:
        charts = [_chart(name, points, {}, None, ends.get(name)) for name, points in curves.items()]
        body += [element("h3", "Other"), element("div", charts, class_="charts")]
    how = (
        "Each number against the optimiser step, its last value on the right; a healthy run has a falling "
        "loss, a RankMe that rises or holds, and a probe that climbs."
    )
    return Section("curves", "Curves", how, body, "the run has not logged a step yet (no usable row in metrics.jsonl).")


def _intervals(curves: dict[str, Curve]) -> dict[str, tuple[Curve, Curve]]:
    """The ends of intervals, taken out of `curves`: knn_low and knn_high are of knn, knn_low/colon of knn/colon."""
    found = {}
    for name in list(curves):
        start, slash, part = name.partition("/")
        low, high = (f"{start}{end}{slash}{part}" for end in ("_low", "_high"))
        if low in curves and high in curves:
            found[name] = curves.pop(low), curves.pop(high)
    return found


def _belongs(name: str, known: str) -> bool:
    """`knn/colon` belongs to knn, strict-200 to strict; loss/ibot is not a part of loss, it has its own line."""
    rest = name.removeprefix(known)
    return name == known or (known != "loss" and rest != name and rest[0] in "/-~")


def _chart(
    name: str,
    points: Curve,
    known: dict[str, tuple[str, str]],
    level: Level | None,
    ends: tuple[Curve, Curve] | None = None,
) -> Html:
    steps, values = points
    start = next((key for key in known if _belongs(name, key)), "")
    title, hint = known.get(start, (name, ""))
    if start and name != start:
        part = name[len(start) + 1 :]
        title = f"{title}: {'iBOT' if part == 'ibot' else part.replace('/', ', ')}"
    interval = None
    if ends is not None and ends[0][0] == ends[1][0] == steps:
        interval = ends[0][1], ends[1][1]
        hint = f"{hint}; band: 95 % interval, last {number(ends[0][1][-1])} to {number(ends[1][1][-1])}"
    if level:
        hint = f"{hint}; dashed: {level.words}"
    first, last = (f"{number(values[at])} at step {number(steps[at])}" for at in (0, -1))
    alt = f"{title} from {first} to {last}"
    chart = figures.line_chart(steps, values, name, reference=level.value if level else None, interval=interval)
    drawing = element("div", Html(chart), role="img", aria_label=alt)
    head = element("header", element("b", title), element("span", number(values[-1]), class_="number"))
    return element("figure", head, drawing, element("figcaption", hint) if hint else "", class_="chart")
