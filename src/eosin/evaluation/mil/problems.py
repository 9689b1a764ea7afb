"""From bags with labels to what a head learns: tasks with their targets, and predictions back from logits.

Each task has a head of its own, trained on the bags that are labelled for it; `joint` puts all tasks on one head,
where a bag without a label for a task adds nothing to that task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.mil.bags import Bags, patient_row
from eosin.evaluation.mil.batches import Pool, Problem, cuts_of
from eosin.evaluation.mil.config import MilConfig
from eosin.evaluation.mil.fit import Outputs
from eosin.evaluation.mil.intervals import Predicted
from eosin.evaluation.mil.labels import TaskLabels
from eosin.evaluation.mil.scores import Floats
from eosin.evaluation.mil.splits import Rows, Run, Subjects, plan_runs
from eosin.evaluation.mil.task_files import SURVIVAL_BINS
from eosin.models.slide_task import SlideTask
from eosin.progress import say

JOINT = "all tasks"
POOLED: dict[str, Pool] = {"mean-linear": "mean", "max-linear": "max"}
"""Heads that read one vector of a bag. Scaling features goes before pooling or after it alike."""


def make_problems(bags: Bags, config: MilConfig, seeds: int) -> list[tuple[Problem, list[Run]]]:
    """What is trained, with its runs. Raises DataError where labels, split and protocol do not go together."""
    tasks = bags.table.tasks
    groups = [tasks] if config.joint and len(tasks) > 1 else [(task,) for task in tasks]
    return [_problem(bags, own, config, seeds) for own in groups]


def _problem(bags: Bags, tasks: tuple[TaskLabels, ...], config: MilConfig, seeds: int) -> tuple[Problem, list[Run]]:
    name = tasks[0].name if len(tasks) == 1 else JOINT
    if any(task.split != tasks[0].split for task in tasks):
        raise DataError("tasks with different splits cannot share a head: a patient would train one and test another")
    rows = np.flatnonzero(np.any([task.known for task in tasks], axis=0))
    if config.protocol.name == "exaone" and tasks[0].split:
        placed = np.array([bool(word) for word in tasks[0].split])[rows]
        if dropped := int((~placed).sum()):
            say(f"task {name}: {dropped} labelled bags have no split and are not used")
        rows = rows[placed]
    if not len(rows):
        raise DataError(f"task {name}: no labelled bag with features is left")
    own = take(bags, rows)
    chosen = tuple(task for task in own.table.tasks if task.name in {given.name for given in tasks})
    if config.group == "average":
        _check_patients(own, chosen)
    subjects = Subjects(
        own.table.patients,
        own.table.sites,
        chosen[0].split,
        np.stack([task.strata() for task in chosen], axis=1),
        tuple(task.name for task in chosen),
        tuple(task.kind for task in chosen),
    )
    runs = plan_runs(config.protocol, subjects, seeds)
    for task in chosen:
        check_counts(task, runs[0], config)
    fitting = np.arange(len(rows)) if config.protocol.name == "5-fold" else np.concatenate([runs[0].train, runs[0].val])
    slide_tasks = tuple(_slide_task(task, fitting, config) for task in chosen)
    targets = {task.name: task.values for task in chosen}
    weights = {task.name: task.file.weight if task.file else 1.0 for task in chosen}
    pool: Pool = POOLED.get(config.kind, "") if config.train.max_tiles is None else ""
    return Problem(name, own, slide_tasks, targets, weights, pool), runs


def take(bags: Bags, rows: Rows) -> Bags:
    """A choice of bags, in that order."""
    members = tuple(bags.members[row] for row in rows)
    return replace(bags, table=bags.table.take(rows), members=members, tiles=bags.tiles[rows])


def _check_patients(bags: Bags, tasks: Sequence[TaskLabels]) -> None:
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(bags.table.patients):
        rows.setdefault(patient, []).append(row)
    for task in tasks:
        for patient, own in rows.items():
            patient_row(task, patient, own)


def check_counts(task: TaskLabels, run: Run, config: MilConfig, quiet: bool = False) -> str | None:
    """Say (unless `quiet`) and return the first count that differs from what the task file expects; None without."""
    if task.file is None or not task.file.counts or config.protocol.name != "exaone":
        return None
    found = {"train": np.concatenate([run.train, run.val]), "val": run.val, "test": run.test}
    for split, expected in task.file.counts.items():
        counts = task.counts(found.get(split, np.empty(0, dtype=np.int64)))
        for name, wanted in expected.items():
            if counts[name] != wanted:
                line = f"task {task.name}: {counts[name]} {name} in {split}, {wanted} in the published task"
                if not quiet:
                    say(f"{line}; published scores are of other bags")
                return line
    return None


def _slide_task(task: TaskLabels, rows: Rows, config: MilConfig) -> SlideTask:
    """The task as heads know it; of survival with time bins of `rows`. Runs train with bins of their own (Fixed)."""
    if task.kind != "survival":
        return SlideTask(task.name, task.kind, task.classes)
    if config.train.survival == "cox":
        return SlideTask(task.name, "survival")
    labels = task.values[rows]
    cuts = cuts_of(labels, task.file.bins if task.file else SURVIVAL_BINS)
    if not cuts:
        raise DataError(f"task {task.name}: one event time at most is known; discrete survival needs two or more")
    return SlideTask(task.name, "survival", cuts=cuts)


def predictions_of(task: SlideTask, logits: npt.NDArray[np.float32]) -> Floats:
    """What logits [n, k] say: class probabilities [n, C], a value [n, 1], or a risk [n, 1] (high = early event)."""
    values = logits.astype(np.float64)
    if task.has_classes:
        shifted = np.exp(values - values.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
    if task.kind == "survival" and task.loss == "hazard":
        alive = np.cumprod(1 / (1 + np.exp(np.clip(values, -60, 60))), axis=1)
        return -alive.sum(axis=1, keepdims=True)
    return values[:, :1]


def predicted(problem: Problem, task: SlideTask, run: Run, rows: Rows, outputs: Outputs, average: bool) -> Predicted:
    """What a run says of the labelled ones among `rows`; patients' slides averaged where `average`."""
    labels = next(own for own in problem.bags.table.tasks if own.name == task.name)
    known = labels.known[rows]
    kept, values = rows[known], predictions_of(task, outputs[task.name][known])
    names = [problem.bags.names[row] for row in kept]
    patients = [problem.bags.table.patients[row] for row in kept]
    truth: npt.NDArray[Any] = labels.values[kept]
    if average and len(kept):
        order, first, member = np.unique(np.asarray(patients), return_index=True, return_inverse=True)
        count = np.bincount(member)[:, None]
        values = np.stack([np.bincount(member, column) for column in values.T], axis=1) / count
        names, patients, truth = order.tolist(), order.tolist(), truth[first]
    return Predicted(run.seed, run.fold, tuple(names), tuple(patients), truth, values)
