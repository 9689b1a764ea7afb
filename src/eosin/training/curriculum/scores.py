"""How well a run predicts its tasks while it learns: of slides as they were learned from, and of patients held out.

The first is of what the network said of a slide just before it learned from it, the last time that it saw it; that
flatters, since earlier passes had seen the slide. The second has never been learned from. Scores are those of
`eosin mil`, with n and an interval over patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.evaluation.mil.intervals import Predicted, estimate
from eosin.evaluation.mil.scores import SCORES
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import hazard_risk
from eosin.training.curriculum.targets import SlideLabels

DRAWS = 500
"""Resamples of patients behind an interval."""


def predictions_of(task: SlideTask, logits: npt.ArrayLike, centre: tuple[float, float] | None = None) -> Any:
    """Logits [n, k] -> what is scored, float64 [n, C]: probabilities, values in the column's unit, or risks."""
    found = torch.as_tensor(np.asarray(logits, dtype=np.float64))
    if task.has_classes:
        return torch.softmax(found, dim=-1).numpy()
    if task.kind == "survival":
        return hazard_risk(found)[:, None].numpy()
    mean, sd = centre or (0.0, 1.0)
    return found.numpy() * sd + mean


def task_scores(
    labels: SlideLabels, patients: Sequence[str], outputs: Mapping[int, Mapping[str, Sequence[float]]], under: str
) -> dict[str, float]:
    """Scores of the slides in `outputs` (row of `labels` -> task -> logits), under `{under}/TASK/METRIC`.

    Beside each metric its /low and /high (95 % over patients) and, once a task, /n: slides with a label. What cannot
    be scored yet (one class so far) is NaN.
    """
    told: dict[str, float] = {}
    for column, task in enumerate(labels.tasks):
        rows = [row for row in sorted(outputs) if labels.known[row, column]]
        told[f"{under}/{task.name}/n"] = float(len(rows))
        if not rows:
            continue
        logits = [outputs[row][task.name] for row in rows]
        run = Predicted(
            0,
            0,
            tuple(str(row) for row in rows),
            tuple(patients[row] for row in rows),
            labels.values[task.name][rows],
            predictions_of(task, logits, labels.centre.get(task.name)),
        )
        for metric, score in SCORES[task.kind].items():
            found = estimate(score, [run], DRAWS)
            told[f"{under}/{task.name}/{metric}"] = found.value
            told[f"{under}/{task.name}/{metric}/low"] = found.low
            told[f"{under}/{task.name}/{metric}/high"] = found.high
    return told
