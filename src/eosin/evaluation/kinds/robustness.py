"""Robustness: do features know the tissue, or the medical centre? Nothing is predicted of the samples.

Robustness index and average performance drop, as PathoROB has them (Kömen et al., arXiv 2507.17845). The split `train`
are the centres that train, `test` further ones. Intervals are over slides; those of the drop hold the training draws
fixed.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.errors import DataError
from eosin.evaluation.kinds.kind import Kind
from eosin.evaluation.outcome import Ints, Measure, Outcome
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.robustness import (
    Design,
    Drop,
    Neighbours,
    cells_of,
    four_site_design,
    neighbour_counts,
    performance_drop,
    refuse_few_neighbours,
    two_site_design,
)
from eosin.evaluation.tasks import Task


class Robustness(Kind):
    """Features float32 [N, D]; neighbours, and logistic regressions on chosen slides."""

    name = "robustness"

    def check(self, task: Task, protocol: Protocol) -> None:
        settings = protocol.settings_for(task.name)
        rows = _inside(task)
        refuse_few_neighbours(_numbers(task.slide, task)[rows], settings["k"])
        if (design := _design(task, settings)) is not None:
            sites, slides = _numbers(task.site, task), _numbers(task.slide, task)
            cells_of(task.labels, sites, slides, _outside(task), design)

    def judge(self, task: Task, inputs: Any, protocol: Protocol, device: torch.device) -> Outcome:
        started = time.perf_counter()
        settings, rows = protocol.settings_for(task.name), _inside(task)
        sites, slides = _numbers(task.site, task), _numbers(task.slide, task)
        features = np.asarray(inputs, dtype=np.float32)
        counts = neighbour_counts(features[rows], task.labels[rows], sites[rows], slides[rows], settings["k"])
        measures = [_index(counts, slides[rows])]
        tables: dict[str, npt.NDArray[Any]] = {"neighbours": counts}
        if (design := _design(task, settings)) is not None:
            drop = performance_drop(
                features, task.labels, sites, slides, _outside(task), design, settings["repeats"], protocol.seed
            )
            measures += [_drop(drop, place, name) for place, name in enumerate(("inside", "outside"))]
            tables |= {"inside_accuracy": drop.inside, "outside_accuracy": drop.outside}
        split = "train" if task.split is not None else "all"
        return Outcome(rows, split, tuple(measures), tables, [], time.perf_counter() - started)

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        """Neighbours by kind; balanced accuracy at each level of correlation between site and class."""
        names = Neighbours._fields
        found: dict[str, Any] = {
            "resampled": "slide",
            "neighbours": dict(zip(names, outcome.tables["neighbours"].sum(axis=0).tolist(), strict=True)),
        }
        for name in ("inside_accuracy", "outside_accuracy"):
            if name in outcome.tables:
                found[name] = outcome.tables[name].mean(axis=1).tolist()
        return found

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        return {"label": np.asarray(task.classes)[task.labels[outcome.rows]].tolist()}


def _index(counts: Ints, slides: Ints) -> Measure:
    """Robustness index of neighbours [n, 4]."""
    value = Neighbours(*(int(count) for count in counts.sum(axis=0))).robustness
    against = counts[:, 1] + counts[:, 2]
    statistics = np.stack([counts[:, 1], against], axis=1).astype(np.float64)[None]
    return Measure("robustness_index", value, np.array([value]), statistics, None, slides)


def _drop(drop: Drop, place: int, name: str) -> Measure:
    """Average performance drop on the same sites (place 0) or others (1); a run is a repeat."""
    scores = (drop.inside, drop.outside)[place]  # [L, R]
    used = np.flatnonzero(drop.tested[place].any(axis=0))  # [U']
    right = np.moveaxis(drop.right[place][:, :, used], 1, 2)  # [R, U', L]
    statistics = np.concatenate([right, drop.tested[place][:, used, None]], axis=2).astype(np.float64)
    runs = (scores[1:] / scores[0]).mean(axis=0) - 1.0
    value = (drop.inside_drop, drop.outside_drop)[place]
    tested = int(drop.tested[place].max(axis=0).sum())
    return Measure(
        f"performance_drop_{name}", value, runs, statistics, drop.label[used], drop.slide[used], count=tested
    )


def _design(task: Task, settings: dict[str, Any]) -> Design | None:
    """The design of the drop; None where the protocol knows none for this task."""
    word, *numbers = settings.get("design") or [None]
    if word is None:
        return None
    return four_site_design() if word == "four sites" else two_site_design(len(task.classes), *numbers)


def _inside(task: Task) -> Ints:
    """Samples of the centres that train."""
    return np.arange(len(task)) if task.split is None else np.flatnonzero(task.split == "train")


def _outside(task: Task) -> npt.NDArray[np.bool_]:
    """Which samples are of further centres."""
    split = np.full(len(task), "train") if task.split is None else task.split
    return np.asarray(split == "test")


def _numbers(names: Any, task: Task) -> Ints:
    """Ids as numbers from 0. DataError where the task has none."""
    if names is None:
        raise DataError(f"task {task.name}: robustness needs the site and the slide of each sample")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)
