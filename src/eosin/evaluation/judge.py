"""One model's features on one task under one protocol: fit, predict, and what the predictions are worth.

Knows no encoder and no files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.evaluation.folds import Fold, folds_of, reported_split
from eosin.evaluation.probes import PROBES, Examples, Prediction, Probe
from eosin.evaluation.probes.simpleshot import draw_shots
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.statistics import describe, interval
from eosin.evaluation.tasks import Task
from eosin.randomness import Words

_FEW_RUNS = 50


@dataclass(frozen=True, eq=False)
class Outcome:
    """Predictions for the n reported samples of a task, in task order.

    `rows`: their numbers in the task, int64 [n]. `scores` [n, C]. `predicted` int64 [n]. `correct` [n]: share
    of runs that were right. `run_scores` [R]: balanced accuracy of each run. `choices`: what the probe chose,
    a fold each. `seconds`: fitting and predicting.
    """

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]
    correct: npt.NDArray[np.float64]
    run_scores: npt.NDArray[np.float64]
    choices: list[dict[str, Any]]
    seconds: float


def judge(task: Task, features: npt.NDArray[np.float32], protocol: Protocol) -> Outcome:
    """Judge `features` float32 [N, D] of all N samples of `task`. Deterministic on a CPU."""
    started = time.perf_counter()
    folds = folds_of(task, protocol)
    predictions = [_predict(task, features, protocol, fold, number) for number, fold in enumerate(folds)]
    rows = np.concatenate([fold.test for fold in folds])
    order = np.argsort(rows, kind="stable")
    scores = np.concatenate([prediction.scores for prediction in predictions])[order]  # [n, C]
    runs = np.concatenate([prediction.runs for prediction in predictions], axis=1)[:, order]  # [R, n]
    rows = rows[order]
    hits = runs == task.labels[rows]  # [R, n]
    return Outcome(
        rows=rows,
        scores=scores,
        predicted=runs[0] if len(runs) == 1 else scores.argmax(axis=1),
        correct=hits.mean(axis=0),
        run_scores=_per_run(hits, task.labels[rows]),
        choices=[prediction.choices for prediction in predictions],
        seconds=time.perf_counter() - started,
    )


def row_of(task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
    """The part of a results.json row that task, protocol and outcome decide."""
    labels, groups = task.labels[outcome.rows], reported_groups(task, outcome)
    value, low, high = interval(outcome.correct, labels, groups, protocol.draws, protocol.seed)
    runs = len(outcome.run_scores)
    patients = None if task.patient is None else len(np.unique(task.patient[outcome.rows]))
    return {
        "task": task.name,
        "split": reported_split(task, protocol) or f"{len(outcome.choices)}-fold",
        "metric": protocol.metric,
        "mean": value,
        "run_sd": float(outcome.run_scores.std(ddof=1)) if runs > 1 else None,
        "ci_low": low,
        "ci_high": high,
        "n": len(outcome.rows),
        "n_patients": patients,
        "runs": runs,
        "chance": 1.0 / len(task.classes),
        "resampled": task.group_name,
        "shared_groups": task.shared_groups(),
        "protocol": protocol.id,
        "protocol_hash": protocol.hash,
        "settings": protocol.settings_for(task.name),
        **describe(labels, outcome.predicted, outcome.scores, task.classes),
        "choices": _merged(outcome.choices),
        "seconds": outcome.seconds,
    }


def reported_groups(task: Task, outcome: Outcome) -> npt.NDArray[np.int64] | None:
    """Group of each reported sample, or None where samples stand alone."""
    groups = task.groups
    return None if groups is None else groups[outcome.rows]


def _predict(task: Task, features: npt.NDArray[np.float32], protocol: Protocol, fold: Fold, number: int) -> Prediction:
    def examples(rows: npt.NDArray[np.int64]) -> Examples:
        # Rows in one piece are not copied: large tasks have their splits in order.
        piece = slice(int(rows[0]), int(rows[-1]) + 1)
        whole = piece.stop - piece.start == len(rows) and bool((np.diff(rows) == 1).all())
        found = features[piece] if whole else features[rows]
        return Examples(np.asarray(found, dtype=np.float32), task.labels[rows])

    settings = protocol.settings_for(task.name)
    if fold.watch is not None:
        settings["watch"] = examples(fold.watch)
    settings.update(seed=protocol.seed, fold=number)
    train, test = examples(fold.train), examples(fold.test).x
    inner = [(examples(fit), examples(val)) for fit, val in fold.inner]
    probe = PROBES[protocol.probe]
    if task.shots is None or "shots" in settings:
        return probe(train, test, len(task.classes), inner=inner, **settings)
    if protocol.probe == "linear":
        return probe(train, test, len(task.classes), inner=inner, shots=task.shots, **settings)
    return _on_few(probe, train, test, len(task.classes), inner, task.shots, settings)


def _on_few(
    probe: Probe,
    train: Examples,
    test: npt.NDArray[np.float32],
    classes: int,
    inner: Sequence[tuple[Examples, Examples]],
    shots: int,
    settings: dict[str, Any],
) -> Prediction:
    """A probe that knows nothing of few samples, on `_FEW_RUNS` draws of `shots` samples a class: a run each."""

    def draws(part: Examples) -> list[Examples]:
        words = Words(settings["seed"], "few shots", shots, settings["fold"])
        picks = draw_shots(part.y, classes, shots, _FEW_RUNS, words).reshape(_FEW_RUNS, -1)
        return [Examples(part.x[rows], part.y[rows]) for rows in picks]

    # Choices are made with as few, drawn from what the first held-out part does not have.
    judges = [(few, held_out) for fit, held_out in inner[:1] for few in draws(fit)]
    found = [probe(few, test, classes, inner=judges[run : run + 1], **settings) for run, few in enumerate(draws(train))]
    scores = np.mean([one.scores for one in found], axis=0)
    return Prediction(scores, np.concatenate([one.runs for one in found]), _merged([one.choices for one in found]))


def _per_run(hits: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Balanced accuracy [R] of hits [R, n]."""
    recalls = [hits[:, labels == label].mean(axis=1) for label in np.unique(labels)]
    return np.mean(recalls, axis=0)


def _merged(choices: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """{setting: [its value in each fold]}."""
    return {key: [choice[key] for choice in choices] for key in (choices[0] if choices else {})}
