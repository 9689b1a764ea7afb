"""What a pyramid learns from the columns of a cohort: tasks, one target a slide, missing labels, who is held out.

Columns are read as `eosin mil` reads its label table, so classes have the same order there and here. Regression targets
are brought to mean 0 and sd 1; survival becomes hazards in four time bins, since slides are learned from one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from eosin.errors import CohortError, DataError
from eosin.evaluation.mil.label_file import LabelFile
from eosin.evaluation.mil.labels import TaskLabels, columns_of_tasks, read_column
from eosin.models.slide_task import SlideTask, hazard_cuts
from eosin.progress import say
from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.slides import Cohort
from eosin.slides.cohort import COLUMNS
from eosin.training.curriculum.config import TaskValues

EMPTY = ("", "na", "n/a", "#n/a", "<na>", "nan", "null")
"""What a cell without a label says, as in a label table; `none` is a class there, such as that of an invasion."""


@dataclass(frozen=True, eq=False)
class SlideLabels:
    """Labels of N slides.

    tasks: what is learned. values: task -> int64 [N] (-1 missing), float64 [N] (NaN missing; as the column has it) or
    float64 [N, 2] (time, event; NaN missing). weights: those that the recipe gives. centre: task -> mean and sd of a
    regression.
    """

    tasks: tuple[SlideTask, ...] = ()
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    centre: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which slides have a label for each task, bool [N, tasks]."""
        return np.stack([self._known(task) for task in self.tasks], axis=1)

    def _known(self, task: SlideTask) -> npt.NDArray[np.bool_]:
        values = self.values[task.name]
        if task.has_classes:
            return np.asarray(values >= 0)
        finite = np.isfinite(values)
        return finite.all(axis=1) if task.kind == "survival" else finite

    def take(self, rows: npt.ArrayLike) -> SlideLabels:
        """The same tasks of a choice of slides, in that order."""
        return replace(self, values={name: part[np.asarray(rows, np.int64)] for name, part in self.values.items()})

    def targets(self, row: int) -> dict[str, Tensor]:
        """One slide's labels as `SlideSample` takes them."""
        found = {}
        for task in self.tasks:
            value = np.asarray(self.values[task.name][row : row + 1])
            if task.kind == "regression":
                mean, sd = self.centre[task.name]
                value = (value - mean) / sd
            found[task.name] = torch.from_numpy(value if task.has_classes else value.astype(np.float32))
        return found

    def strata(self, task: SlideTask) -> npt.NDArray[np.int64]:
        """What sampling is balanced over: class; event or censored; half of a regression; -1 missing. int64 [N]."""
        values, known = self.values[task.name], self._known(task)
        if task.has_classes:
            return values.astype(np.int64)
        found = np.full(len(values), -1, dtype=np.int64)
        if known.any():
            found[known] = values[known, 1] if task.kind == "survival" else values[known] > np.median(values[known])
        return found

    @property
    def hash(self) -> str:
        """Of everything that decides what is learned from labels."""
        values = {name: np.nan_to_num(part.astype(np.float64), nan=-9e9).tolist() for name, part in self.values.items()}
        return hash_of([[task.to_dict() for task in self.tasks], values])

    @property
    def told(self) -> list[str]:
        """A line a task: how many labels of each kind."""
        lines = []
        for task in self.tasks:
            strata = self.strata(task)
            words = (
                task.classes or {"survival": ("censored", "event"), "regression": ("lower", "upper half")}[task.kind]
            )
            counts = ", ".join(f"{word} {int((strata == number).sum())}" for number, word in enumerate(words))
            lines.append(f"task {task.name} ({task.kind}): {int((strata >= 0).sum())} slides, {counts}")
        return lines


def read_tasks(
    path: Path, table: pd.DataFrame, wanted: Sequence[TaskValues], learned: npt.NDArray[np.bool_]
) -> SlideLabels:
    """The labels of slides, the N usable rows `table` of a cohort (`path`: for the lines of errors).

    wanted: the recipe's tasks; none: every column of one's own that is a task. learned: bool [N], slides that are
    learned from: time bins and the scale of a regression are theirs. Raises DataError, one line: no such column, one
    class, no label at all.
    """
    words = LabelFile(path, _columns(table), list(range(1, len(table) + 1)))
    names = columns_of_tasks(words)
    asked = list(wanted) or [TaskValues(column=name) for name in names]
    if not asked:
        raise DataError(f"{path} has no column with labels; add some with `eosin index --metadata`")
    found = SlideLabels()
    tasks: list[SlideTask] = []
    for one in asked:
        if one.column not in names:
            raise DataError(f"{path} has no column {one.column} to learn from; it has {', '.join(names) or 'none'}")
        try:
            labels = _read(words, one, learned)
            kept = labels.take(np.flatnonzero(learned))
            task = _task(kept)
            centre = _centre(kept) if labels.kind == "regression" else None
        except DataError as error:
            if wanted:
                raise
            say(f"column {one.column} is not learned from: {error}")
            continue
        tasks.append(task)
        found.values[one.column] = labels.values
        if one.weight is not None:
            found.weights[one.column] = one.weight
        if centre is not None:
            found.centre[one.column] = centre
    if not tasks:
        raise DataError(f"{path}: none of its columns {', '.join(names)} is a task")
    return replace(found, tasks=tuple(tasks))


def _read(words: LabelFile, one: TaskValues, learned: npt.NDArray[np.bool_]) -> TaskLabels:
    """One column. Raises DataError where the slides that are learned from have no label, or one class only."""
    column = words.columns.get(one.column)
    if column is not None and not any(column):
        raise DataError(f"task {one.column}: no slide of {words.path} has a label")
    labels = read_column(words, one.column, kind=one.kind)
    kept = labels.take(np.flatnonzero(learned))
    if not kept.known.any():
        raise DataError(f"task {one.column}: no slide of {words.path} that is learned from has a label")
    if labels.classes and len(set(kept.values[kept.known].tolist())) < 2:
        only = labels.classes[int(kept.values[kept.known][0])]
        raise DataError(f"task {one.column}: the slides that are learned from have one class only ({only})")
    return labels


def _columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """The cohort's own columns as words, "" where a cell is empty."""
    found = {"slide": [str(name) for name in table["slide_id"]], "patient": patients_of(table)}
    for name in table.columns:
        if name not in COLUMNS:
            cells = ["" if pd.isna(cell) else _word(cell) for cell in table[name]]
            found[str(name)] = cells
    return found


def _word(cell: object) -> str:
    text = str(cell).strip()
    return "" if text.casefold() in EMPTY else text


def _task(labels: TaskLabels) -> SlideTask:
    if labels.kind == "survival":
        try:
            cuts = hazard_cuts(labels.values[:, 0], labels.values[:, 1])
        except DataError as error:
            raise DataError(f"task {labels.name}: of the slides that are learned from, {error}") from error
        return SlideTask(labels.name, "survival", cuts=cuts)
    return SlideTask(labels.name, labels.kind, labels.classes)


def _centre(labels: TaskLabels) -> tuple[float, float]:
    known = labels.values[labels.known]
    if known.std() == 0:
        raise DataError(f"task {labels.name}: all labels are {known[0]:g}")
    return float(known.mean()), float(known.std())


def patients_of(table: pd.DataFrame) -> list[str]:
    """Patient of each slide, the slide itself where none is known."""
    known = table["patient"].notna() & (table["patient"].astype(str) != "")
    return [str(name) for name in table["patient"].where(known, table["slide_id"])]


def parted(cohorts: Sequence[Cohort], share: float, seed: int) -> list[tuple[Cohort, Cohort | None]]:
    """Of each cohort, the slides to learn from and those of the patients who are held out; the same for the same seed.

    `share` of the patients of each cohort are held out, and who is held out in one is so in all: a patient may have
    slides in several. Raises CohortError where that leaves nobody of a cohort to learn from.
    """
    patients = [patients_of(cohort.usable) for cohort in cohorts]
    held: set[str] = set()
    for names in patients:
        ranked = sorted(set(names), key=lambda name: float(Words(seed, "held out", name).uniform()))
        held |= set(ranked[: round(share * len(ranked))])
    parts: list[tuple[Cohort, Cohort | None]] = []
    for cohort, names in zip(cohorts, patients, strict=True):
        slides = cohort.usable["slide_id"].astype(str)
        inside = [slide for slide, patient in zip(slides, names, strict=True) if patient in held]
        if len(inside) == len(names):
            none_left = f"labels.held_out {share} leaves none of {len(set(names))} patients to learn from"
            raise CohortError(f"{cohort.path}: {none_left}")
        if inside:
            parts.append((cohort.where(f"slide_id not in {inside!r}"), cohort.where(f"slide_id in {inside!r}")))
        else:
            parts.append((cohort, None))
    return parts
