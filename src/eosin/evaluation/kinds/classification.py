"""Classification: a probe on features says the class of each sample. Balanced accuracy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.evaluation.folds import Fold, folds_of, split_name
from eosin.evaluation.kinds.kind import Kind
from eosin.evaluation.outcome import Floats, Ints, Measure, Outcome, merged
from eosin.evaluation.probes import PROBES, Examples, Prediction, Probe
from eosin.evaluation.probes.simpleshot import draw_shots
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.statistics import balanced_accuracy, describe
from eosin.evaluation.tasks import Task
from eosin.randomness import Words

_FEW_RUNS = 50


class Classification(Kind):
    """Features float32 [N, D] of all N samples; k-NN, SimpleShot, logistic regression or linear heads."""

    name = "classification"

    def judge(self, task: Task, inputs: Any, protocol: Protocol, device: torch.device) -> Outcome:
        started = time.perf_counter()
        folds = folds_of(task, protocol)
        predictions = [_predict(task, inputs, protocol, fold, number) for number, fold in enumerate(folds)]
        choices = [prediction.choices for prediction in predictions]
        return outcome_of_classes(task, protocol, folds, predictions, choices, started)

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        return describe_classes(task, outcome)

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        return columns_of_classes(task, outcome)


def outcome_of_classes(
    task: Task,
    protocol: Protocol,
    folds: Sequence[Fold],
    predictions: Sequence[Prediction],
    choices: list[dict[str, Any]],
    started: float,
) -> Outcome:
    """The outcome of a fold's prediction each, in task order; `started`: time.perf_counter() before the work."""
    rows = np.concatenate([fold.test for fold in folds])
    order = np.argsort(rows, kind="stable")
    scores = np.concatenate([prediction.scores for prediction in predictions])[order]  # [n, C]
    runs = np.concatenate([prediction.runs for prediction in predictions], axis=1)[:, order]  # [R, n]
    rows = rows[order]
    labels, groups = task.labels[rows], task.groups
    hits = runs == labels  # [R, n]
    correct = hits.mean(axis=0)
    measure = Measure(
        metric=protocol.metric,
        value=balanced_accuracy(correct, labels),
        run_scores=_per_run(hits, labels),
        statistics=np.stack([correct, np.ones(len(rows))], axis=1)[None],
        part=labels,
        groups=None if groups is None else groups[rows],
    )
    predicted = runs[0] if len(runs) == 1 else scores.argmax(axis=1)
    tables = {"scores": scores, "predicted": predicted, "correct": correct}
    split = split_name(task, protocol, len(folds))
    return Outcome(rows, split, (measure,), tables, choices, time.perf_counter() - started)


def describe_classes(task: Task, outcome: Outcome) -> dict[str, Any]:
    """Chance, and what scikit-learn says of the predicted classes."""
    tables = outcome.tables
    return {
        "chance": 1.0 / len(task.classes),
        **describe(task.labels[outcome.rows], tables["predicted"], tables["scores"], task.classes),
    }


def columns_of_classes(task: Task, outcome: Outcome) -> dict[str, list[Any]]:
    """Label, prediction, share of right runs, and scores in the order of the classes."""
    names, tables = np.asarray(task.classes), outcome.tables
    return {
        "label": names[task.labels[outcome.rows]].tolist(),
        "predicted": names[tables["predicted"]].tolist(),
        "correct": tables["correct"].tolist(),
        "scores": tables["scores"].tolist(),
    }


def _predict(task: Task, features: npt.NDArray[np.float32], protocol: Protocol, fold: Fold, number: int) -> Prediction:
    def examples(rows: Ints) -> Examples:
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
    return Prediction(scores, np.concatenate([one.runs for one in found]), merged([one.choices for one in found]))


def _per_run(hits: npt.NDArray[np.bool_], labels: Ints) -> Floats:
    """Balanced accuracy [R] of hits [R, n]."""
    recalls = [hits[:, labels == label].mean(axis=1) for label in np.unique(labels)]
    return np.mean(recalls, axis=0)
