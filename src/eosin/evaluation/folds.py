"""Which samples train a probe, which choose its settings, which are reported.

Train fits, val chooses, test is reported. Without a test split val is reported, and choices are made on an
inner part of train. Without any split: the folds that the task fixes, else k-fold cross-validation, stratified where
samples have classes, groups (patients) kept whole. A protocol that watches the reported split where there is no val
(eva's) gets it as `watch`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

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
        number = _folds_over_all(task, protocol)
        parts = [(np.flatnonzero(number != k), np.flatnonzero(number == k)) for k in np.unique(number)]
    else:
        reported = reported_split(task, protocol)
        parts = [(np.flatnonzero(task.split == "train"), np.flatnonzero(task.split == reported))]
        val = np.flatnonzero(task.split == "val") if reported == "test" else val
    folds = [_fold(task, protocol, train, test, val) for train, test in parts]
    for fold in folds:
        _check(task, fold, protocol)
    return folds


def split_name(task: Task, protocol: Protocol, folds: int) -> str:
    """What results are about, in a word: the reported split, or "5-fold"."""
    return reported_split(task, protocol) or f"{folds}-fold"


def reported_split(task: Task, protocol: Protocol) -> str | None:
    """The split that results of `protocol` are about; None = cross-validation over everything."""
    if "eva.report_val" in task.switches and "eva.report_val" in protocol.switches:
        return "val"
    return task.reported_split


def assign_folds(
    labels: Rows | None,
    groups: Rows | None,
    folds: int,
    seed: int,
    name: str = "",
    count: int = 0,
    purpose: str = "cross-validation",
    lacking: str = "a split",
) -> Rows:
    """Fold number of each sample, int64 [N] in 0..k-1: classes spread evenly, a group never in two folds.

    k = `folds`, or as many as the rarest class (or the number of groups) allows. `labels` None: `count` samples without
    classes. Raises DataError if k is below 2; it says what the folds are for, and what to give in their place.
    """
    count = count if labels is None else len(labels)
    fewest = count if labels is None else int(np.bincount(labels)[np.unique(labels)].min())
    k = min(folds, fewest if groups is None else len(np.unique(groups)))
    if k < 2:
        what = "samples" if groups is None else "groups (patients or slides)"
        what += " of the rarest class" if groups is None and labels is not None else ""
        raise DataError(f"task {name}: {purpose} needs at least two {what}; give {lacking}")
    # Order decides what scikit-learn's unshuffled folds are; it comes from our own words, so it never
    # changes.
    order = Words(seed, "folds").permutations(count)
    given = None if groups is None else groups[order]
    if labels is None:
        splitter = KFold(k) if groups is None else GroupKFold(k)
        parts = splitter.split(np.zeros(count), None, given)
    else:
        splitter = StratifiedKFold(k) if groups is None else StratifiedGroupKFold(k)
        parts = splitter.split(np.zeros(count), labels[order], given)
    number = np.empty(count, dtype=np.int64)
    for fold, (_, test) in enumerate(parts):
        number[order[test]] = fold
    return number


def _folds_over_all(task: Task, protocol: Protocol) -> Rows:
    """Fold of each sample of a task without a split."""
    if task.fold is None:
        return assign_folds(_classes_of(task), task.groups, protocol.folds, protocol.seed, task.name, len(task))
    if len(np.unique(task.fold)) < 2:
        raise DataError(f"task {task.name}: all samples lie in one fold; cross-validation needs at least two")
    return task.fold


def _classes_of(task: Task) -> Rows | None:
    """Class of each sample; None for kinds without."""
    return task.labels if task.kind in ("classification", "slide", "robustness") else None


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
    if protocol.inner_folds < 2:
        return []
    groups, labels = task.groups, _classes_of(task)
    number = assign_folds(
        None if labels is None else labels[train],
        None if groups is None else groups[train],
        protocol.inner_folds,
        protocol.seed,
        task.name,
        len(train),
        "choosing settings inside a training part",
        "a val split" if task.split is not None else "splits train, val and test",
    )
    return [(train[number != k], train[number == k]) for k in range(int(number.max()) + 1)]


def _check(task: Task, fold: Fold, protocol: Protocol) -> None:
    labels = _classes_of(task)
    if not len(fold.test):
        raise DataError(f"task {task.name}: the reported split is empty")
    if labels is None:
        return
    present = np.bincount(labels[fold.train], minlength=len(task.classes))
    if any(len(np.unique(labels[rows])) < 2 for rows in (fold.train, *(fit for fit, _ in fold.inner))):
        raise DataError(f"task {task.name}: a training part has one class only; give a split")
    shots = protocol.settings.get("shots", task.shots or 0)
    if shots > present.min():
        rare = task.classes[int(present.argmin())]
        raise DataError(
            f"task {task.name}: {protocol.id} needs {shots} training samples a class, {rare!r} has {present.min()}"
        )
