"""Regression: a probe on features says one or more numbers of each sample, such as the expression of genes.

The score is Pearson's correlation, of each target within each fold, averaged over targets and then over folds, as in
HEST-bench (Jaume et al., NeurIPS 2024).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from eosin.errors import DataError
from eosin.evaluation.folds import folds_of, split_name
from eosin.evaluation.kinds.kind import Kind
from eosin.evaluation.outcome import Floats, Measure, Outcome
from eosin.evaluation.probes.ridge import ridge
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task


class Regression(Kind):
    """Features float32 [N, D] of all N samples; ridge on principal components."""

    name = "regression"

    def check(self, task: Task, protocol: Protocol) -> None:
        folds, values = folds_of(task, protocol), _values(task)
        if not np.isfinite(values).all():
            row, column = (int(place) for place in np.argwhere(~np.isfinite(values))[0])
            raise DataError(f"task {task.name}: {task.classes[column]} of {task.ids[row]} is no number")
        for number, fold in enumerate(folds):
            for part, rows in (("training", fold.train), ("reported", fold.test)):
                if len(rows) < 2:
                    raise DataError(f"task {task.name}: the {part} part of fold {number} has fewer than 2 samples")
            for part, rows in (("reported", fold.test), ("training", fold.train)):
                still = np.flatnonzero(np.ptp(values[rows], axis=0) == 0)
                if len(still):
                    told = f"in the {part} part of fold {number} ({len(rows)} samples)"
                    raise DataError(
                        f"task {task.name}: {task.classes[still[0]]} does not vary {told}, so nothing correlates with"
                        f" it; leave it out ({len(still)} of {len(task.classes)} targets are like that)"
                    )

    def judge(self, task: Task, inputs: Any, protocol: Protocol, device: torch.device) -> Outcome:
        started = time.perf_counter()
        folds, values = folds_of(task, protocol), _values(task)
        settings = protocol.settings_for(task.name)
        found = [ridge(inputs[fold.train], values[fold.train], inputs[fold.test], **settings) for fold in folds]
        rows = np.concatenate([fold.test for fold in folds])
        order = np.argsort(rows, kind="stable")
        predicted = np.concatenate([one.values for one in found])[order]  # [n, K]
        part = np.concatenate([np.full(len(fold.test), number) for number, fold in enumerate(folds)])[order]
        rows, groups = rows[order], task.groups
        by_fold = np.stack([pearson(values[f.test], one.values) for f, one in zip(folds, found, strict=True)])  # [F, K]
        score = float(by_fold.mean(axis=1).mean())
        measure = Measure(
            metric=protocol.metric,
            value=score,
            run_scores=np.array([score]),
            statistics=np.concatenate([values[rows], predicted], axis=1)[None],
            part=part,
            groups=None if groups is None else groups[rows],
        )
        r2 = np.stack([_r2(values[f.test], one.values) for f, one in zip(folds, found, strict=True)])
        return Outcome(
            rows=rows,
            split=split_name(task, protocol, len(folds)),
            measures=(measure,),
            tables={"predicted": predicted, "by_fold": by_fold, "r2_by_fold": r2},
            choices=[one.choices for one in found],
            seconds=time.perf_counter() - started,
        )

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        """Correlation of each target, of each fold; R² as well."""
        by_fold, r2 = outcome.tables["by_fold"], outcome.tables["r2_by_fold"]
        return {
            "chance": 0.0,
            "per_target": dict(zip(task.classes, by_fold.mean(axis=0).tolist(), strict=True)),
            "fold_scores": by_fold.mean(axis=1).tolist(),
            "r2": float(r2.mean()),
        }

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        return {"scores": outcome.tables["predicted"].tolist(), "truth": _values(task)[outcome.rows].tolist()}


def pearson(truth: Floats, predicted: Floats) -> Floats:
    """Pearson's correlation of each column of two [n, K]; 0 where a prediction does not vary."""
    x, y = truth - truth.mean(axis=0), predicted - predicted.mean(axis=0)
    lengths = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    # What rounding leaves of a constant is not taken for a spread.
    varies = np.linalg.norm(y, axis=0) > 1e-12 * np.linalg.norm(predicted, axis=0)
    return np.where(varies, (x * y).sum(axis=0) / np.where(varies, lengths, 1.0), 0.0)


def _r2(truth: Floats, predicted: Floats) -> Floats:
    """Coefficient of determination of each column of two [n, K]."""
    left = np.square(truth - predicted).sum(axis=0)
    return 1.0 - left / np.square(truth - truth.mean(axis=0)).sum(axis=0)


def _values(task: Task) -> Floats:
    """The numbers to predict, float64 [N, K]."""
    if task.kind != "regression" or not isinstance(task.targets, np.ndarray):
        raise DataError(f"task {task.name}: a {task.kind} task has no numbers to predict")
    return task.targets.astype(np.float64).reshape(len(task), -1)
