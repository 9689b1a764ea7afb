"""Which samples train a probe, which choose its settings, which are reported.

Train fits, val chooses, test is reported. Without a test split val is reported, and choices are made on an
inner part of train. Without any split: k-fold cross-validation, stratified, groups (patients) kept whole. A
protocol that watches the reported split where there is no val (eva's) gets it as `watch`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from eosin.errors import DataError
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task
from eosin.randomness import Words

Rows = npt.NDArray[np.int64]


class Fold(NamedTuple):
    """Sample numbers: `train` fits the probe, `test` is reported.

    Settings are chosen by fitting the first and judging the second of each pair in `inner`, taken together. `watch`:
    what best checkpoints are chosen on, None where the protocol has none; `inner` is empty then.
    """

    train: Rows
    test: Rows
    inner: list[tuple[Rows, Rows]]
    watch: Rows | None = None


def folds_of(task: Task, protocol: Protocol) -> list[Fold]:
    """The folds by which `protocol` judges `task`; one where the task has a split. Raises DataError if
    impossible.
    """
    val = np.empty(0, dtype=np.int64)
    if task.split is None:
        number = assign_folds(task.labels, task.groups, protocol.folds, protocol.seed, task.name)
        parts = [(np.flatnonzero(number != k), np.flatnonzero(number == k)) for k in range(int(number.max()) + 1)]
    else:
        reported = reported_split(task, protocol)
        parts = [(np.flatnonzero(task.split == "train"), np.flatnonzero(task.split == reported))]
        val = np.flatnonzero(task.split == "val") if reported == "test" else val
    folds = [_fold(task, protocol, train, test, val) for train, test in parts]
    for fold in folds:
        _check(task, fold, protocol)
    return folds


def reported_split(task: Task, protocol: Protocol) -> str | None:
    """The split that results of `protocol` are about; None = cross-validation over everything."""
    if "eva.report_val" in task.switches and "eva.report_val" in protocol.switches:
        return "val"
    return task.reported_split


def assign_folds(
    labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64] | None, folds: int, seed: int, name: str = ""
) -> Rows:
    """Fold number of each sample, int64 [N] in 0..k-1: classes spread evenly, a group never in two folds.

    k = `folds`, or as many as the rarest class (or the number of groups) allows. Raises DataError if that is
    below 2.
    """
    rarest = int(np.bincount(labels)[np.unique(labels)].min())
    k = min(folds, rarest if groups is None else len(np.unique(groups)))
    if k < 2:
        what = "samples of the rarest class" if groups is None else "groups (patients or slides)"
        raise DataError(f"task {name}: cross-validation needs at least two {what}; give a split")
    # Order decides what scikit-learn's unshuffled folds are; it comes from our own words, so it never
    # changes.
    order = Words(seed, "folds").permutations(len(labels))
    splitter = StratifiedKFold(k) if groups is None else StratifiedGroupKFold(k)
    number = np.empty(len(labels), dtype=np.int64)
    parts = splitter.split(np.zeros(len(labels)), labels[order], None if groups is None else groups[order])
    for fold, (_, test) in enumerate(parts):
        number[order[test]] = fold
    return number


def _fold(task: Task, protocol: Protocol, train: Rows, test: Rows, val: Rows) -> Fold:
    """The fold with what its settings or checkpoints are chosen on: `val` if there is one."""
    if protocol.watch is None:
        return Fold(train, test, [(train, val)] if len(val) else _inner(task, train, protocol))
    if len(val):
        return Fold(train, test, [], val)
    if protocol.watch == "reported":
        return Fold(train, test, [], test)
    fit, held_out = _inner(task, train, protocol)[0]
    return Fold(fit, test, [], held_out)


def _inner(task: Task, train: Rows, protocol: Protocol) -> list[tuple[Rows, Rows]]:
    """Folds of `train`: the part that fits while settings are chosen, and the part they are judged on."""
    groups = None if task.groups is None else task.groups[train]
    number = assign_folds(task.labels[train], groups, protocol.inner_folds, protocol.seed, task.name)
    return [(train[number != k], train[number == k]) for k in range(int(number.max()) + 1)]


def _check(task: Task, fold: Fold, protocol: Protocol) -> None:
    present = np.bincount(task.labels[fold.train], minlength=len(task.classes))
    if any(len(np.unique(task.labels[rows])) < 2 for rows in (fold.train, *(fit for fit, _ in fold.inner))):
        raise DataError(f"task {task.name}: a training part has one class only; give a split")
    shots = protocol.settings.get("shots", task.shots or 0)
    if shots > present.min():
        rare = task.classes[int(present.argmin())]
        raise DataError(
            f"task {task.name}: {protocol.id} needs {shots} training samples a class, {rare!r} has {present.min()}"
        )
