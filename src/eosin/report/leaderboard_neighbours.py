"""Nearest neighbours on a leaderboard: a few reported tiles and the tiles that each model puts next to them.

From the features that a result keeps, by cosine; neighbours are training samples, or, in data without a split, samples
of other patients (slides). Nothing is embedded here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from eosin.errors import EosinError
from eosin.evaluation.kept import kept_features, kept_task
from eosin.evaluation.leaderboard import Column
from eosin.evaluation.tasks import Task
from eosin.report.page import Html, element, figure, joined, picture
from eosin.report.study_charts import named_arm

SHOWN_MODELS = 3
SHOWN_QUERIES = 6
NEIGHBOURS = 6
SIDE_PX = 128
_CHUNK = 8192

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def neighbours(column: Column, arms: Mapping[str, int]) -> list[Html]:
    """Rows of a query and its neighbours, the best model open, others folded; nothing where images or features are not
    there any more.
    """
    if column.kind not in ("classification", "robustness"):
        return []
    blocks: list[Html] = []
    for name, entry in column.entries.items():
        if len(blocks) == SHOWN_MODELS:
            break
        try:
            task = kept_task(entry.folder, column.task)
            features = kept_features(entry.folder, entry.row, len(task))
            if features is None or task.images is None:
                continue
            rows = _rows(task, features)
        except (EosinError, OSError):
            continue
        head = named_arm(arms[name], name)
        if not blocks:
            blocks.append(joined(element("p", head, class_="legend"), rows))
        else:
            blocks.append(element("details", element("summary", head), rows, style="margin-top:.6rem"))
    if not blocks:
        return []
    how = (
        "A reported tile (left) and the tiles that the model puts next to it, by cosine, nearest first; their class in "
        "green where it is that of the query, in red where not. Neighbours are training tiles, or tiles of others than "
        "the query's patient (slide) where the data have no split."
    )
    return [element("h3", "Nearest neighbours"), element("p", how, class_="how"), *blocks]


def _rows(task: Task, features: Floats) -> list[Html]:
    assert task.images is not None
    queries = queries_of(task)
    found = []
    for query, (rows, cosines) in zip(queries.tolist(), nearest(task, features, queries), strict=True):
        parts = [figure(_tile(task, query), _named(task, query), class_="query")]
        for row, cosine in zip(rows.tolist(), cosines.tolist(), strict=True):
            same = task.labels[row] == task.labels[query]
            words = element("span", _named(task, row), class_="good" if same else "bad")
            parts.append(figure(_tile(task, row), words, f" · {cosine:.3f}"))
        found.append(element("div", parts, class_="row", style="max-width:58rem"))
    return found


def queries_of(task: Task, count: int = SHOWN_QUERIES) -> Ints:
    """Numbers of at most `count` reported samples: classes in turn, samples of a class spread over the task."""
    reported = np.arange(len(task))
    if task.split is not None:
        reported = np.flatnonzero(task.split == task.reported_split)
    classes = [reported[task.labels[reported] == label] for label in range(len(task.classes))]
    classes = [own for own in classes if len(own)]
    if len(classes) > count:
        classes = [classes[n] for n in np.linspace(0, len(classes) - 1, count).round().astype(int)]
    each = [count // len(classes) + (number < count % len(classes)) for number in range(len(classes))]
    picks = [
        own[np.unique(np.linspace(0, len(own) - 1, few + 2).round().astype(int)[1:-1])]
        for own, few in zip(classes, each, strict=True)
    ]
    return np.concatenate(picks).astype(np.int64)


def nearest(task: Task, features: Floats, queries: Ints, count: int = NEIGHBOURS) -> list[tuple[Ints, Floats]]:
    """Numbers and cosines of the `count` samples nearest to each query among those that may be neighbours."""
    bank = np.arange(len(task)) if task.split is None else np.flatnonzero(task.split == "train")
    groups = task.groups
    asked = _unit(np.asarray(features[queries]))  # [Q, D]
    cosine = np.concatenate(
        [asked @ _unit(np.asarray(features[bank[first : first + _CHUNK]])).T for first in range(0, len(bank), _CHUNK)],
        axis=1,
    )  # [Q, B]
    found = []
    for number, query in enumerate(queries):
        others = bank != query if groups is None else groups[bank] != groups[query]
        allowed = np.flatnonzero(others)
        order = allowed[np.argsort(-cosine[number, allowed], kind="stable")[:count]]
        found.append((bank[order], cosine[number, order]))
    return found


def _unit(x: Floats) -> Floats:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _named(task: Task, row: int) -> str:
    """Class of a sample, with its site where the task knows sites."""
    site = "" if task.site is None or task.kind != "robustness" else f", {task.site[row]}"
    return f"{task.classes[task.labels[row]]}{site}"


def _tile(task: Task, row: int) -> Html:
    assert task.images is not None
    return picture(np.asarray(task.images[row]), f"{task.ids[row]}: {_named(task, row)}", SIDE_PX)
