"""The label table: one row a slide, one column a task, an empty cell = no label.

    slide,patient,site,split,tp53,grade,os_time,os_event
    A1,P1,Leeds,train,mut,2,14.5,1

Columns `slide` and `patient` are needed (`slide_id`, `case_id`, `patient_id` are read as well), `site` and `split`
are optional, and NAME_split divides the task NAME in another way than `split`. Every other column is a task.

What a column holds, where no task file says it:
- NAME_time and NAME_event: survival (time >= 0 in any unit; event 1 = happened, 0 = censored)
- two distinct values: binary; the negative class is the one that says so (0, no, wild, negative, low ...), else the
  first by number or name
- three to ten distinct whole numbers, or words: classification, classes by number or name
- other numbers: regression

What the file may look like otherwise: `label_file.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.mil.label_file import ALIASES, LabelFile, read_label_file
from eosin.evaluation.mil.task_files import Kind, TaskFile, find_task
from eosin.evaluation.tasks.task import class_order
from eosin.files import PathLike
from eosin.provenance import hash_of

KEYS = ("slide", "patient", "site", "split")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NEGATIVE = (
    *("0", "no", "false", "negative", "neg", "wild", "wildtype", "wild-type", "wt", "low", "normal", "benign"),
    *("absent", "mss", "control", "healthy", "none"),
)
_EVENTS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
MOST_CLASSES = 10
"""Whole numbers with more distinct values than this are a regression."""


@dataclass(frozen=True, eq=False)
class TaskLabels:
    """Labels of one task, row i of everything for slide i.

    `values`: int64 [N] (index into `classes`, -1 missing), float64 [N] (regression, NaN missing) or float64 [N, 2]
    (survival: time, event; NaN missing). `split`: its own train | val | test words, "" without one.
    """

    name: str
    kind: Kind
    values: npt.NDArray[Any]
    classes: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    file: TaskFile | None = None

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which rows have a label: bool [N]."""
        if self.kind in ("binary", "classification"):
            return np.asarray(self.values >= 0)
        return np.isfinite(self.values) if self.values.ndim == 1 else np.isfinite(self.values).all(axis=1)

    def take(self, rows: npt.NDArray[np.int64]) -> TaskLabels:
        """The same task for a choice of rows, in that order."""
        split = tuple(self.split[row] for row in rows) if self.split else ()
        return replace(self, values=self.values[rows], split=split)

    def strata(self) -> npt.NDArray[np.int64]:
        """What folds are to be balanced over: class; event or not; thirds of a regression; -1 missing. int64 [N]."""
        if self.kind in ("binary", "classification"):
            return self.values.astype(np.int64)
        known, found = self.known, np.full(len(self.values), -1, dtype=np.int64)
        if self.kind == "survival":
            found[known] = self.values[known, 1].astype(np.int64)
        elif known.any():
            found[known] = np.digitize(self.values[known], np.quantile(self.values[known], [1 / 3, 2 / 3]))
        return found

    def counts(self, rows: npt.NDArray[np.int64]) -> dict[str, int]:
        """How many of `rows` have each class (of survival: event, censored; of regression: value)."""
        kept = self.take(rows)
        if self.kind in ("binary", "classification"):
            return {name: int((kept.values == number).sum()) for number, name in enumerate(self.classes)}
        if self.kind == "survival":
            events = kept.values[kept.known, 1]
            return {"event": int((events == 1).sum()), "censored": int((events == 0).sum())}
        return {"value": int(kept.known.sum())}


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Slides with patients, sites (or None) and the labels of each task, N rows."""

    source: Path
    slides: tuple[str, ...]
    patients: tuple[str, ...]
    sites: tuple[str, ...] | None
    tasks: tuple[TaskLabels, ...]

    def __len__(self) -> int:
        return len(self.slides)

    def take(self, rows: npt.NDArray[np.int64]) -> LabelTable:
        """The table of a choice of rows, in that order."""
        return LabelTable(
            self.source,
            tuple(self.slides[row] for row in rows),
            tuple(self.patients[row] for row in rows),
            None if self.sites is None else tuple(self.sites[row] for row in rows),
            tuple(task.take(rows) for task in self.tasks),
        )

    @property
    def hash(self) -> str:
        """Hash of everything that decides a result."""
        tasks = [[t.name, t.kind, t.classes, t.split, np.nan_to_num(t.values, nan=-9e9).tolist()] for t in self.tasks]
        return hash_of([self.slides, self.patients, self.sites, tasks])


def read_labels(path: PathLike, tasks: Sequence[str] | None = None) -> LabelTable:
    """The label table `path` with `tasks` (columns, shipped task names, task files), all columns without.

    Rows without a label for any task are left out. Raises DataError naming column, line or slide.
    """
    table = read_label_file(path)
    columns = table.columns
    shared = _splits(table, "split")
    found = []
    for word in tasks if tasks else columns_of_tasks(table):
        meant = find_task(word, columns_of_tasks(table))
        name = meant if isinstance(meant, str) else meant.name
        column = meant if isinstance(meant, str) else meant.source_column
        if isinstance(meant, TaskFile) and column not in columns_of_tasks(table) and name in columns:
            column = name
        labels = read_column(table, column, None if isinstance(meant, str) else meant)
        own = _splits(table, f"{column}_split")
        found.append(replace(labels, name=name, split=own or shared))
    if not found:
        raise DataError(f"{path} has no column with labels beside {', '.join(columns)}")
    if twice := [task.name for task in found if [t.name for t in found].count(task.name) > 1]:
        raise DataError(f"task {twice[0]} is given twice")
    sites = tuple(columns["site"]) if "site" in columns else None
    if sites and "" in sites:
        line = table.lines[sites.index("")]
        raise DataError(f"{path} line {line} has no site; fill it in, or drop the column")
    whole = LabelTable(table.path, tuple(columns["slide"]), tuple(columns["patient"]), sites, tuple(found))
    known = np.any([task.known for task in found], axis=0)
    return whole.take(np.flatnonzero(known))


def columns_of_tasks(table: LabelFile) -> list[str]:
    """Names of the tasks that the columns spell, survival pairs as one."""
    columns = list(table.columns)
    survival = {c.removesuffix("_time") for c in columns if c.endswith("_time") and c[:-5] + "_event" in columns}
    names: list[str] = []
    for column in columns:
        stem = next((s for s in survival if column in (f"{s}_time", f"{s}_event")), column)
        if column in KEYS or column in ALIASES or column.endswith("_split") or stem in names:
            continue
        names.append(stem)
    return names


def _splits(table: LabelFile, column: str) -> tuple[str, ...]:
    words = [word.lower() for word in table.columns.get(column, ())]
    for slide, word in zip(table.columns["slide"], words, strict=False):
        if word and word not in _SPLITS:
            raise DataError(f"{table.path}: {column} of slide {slide} is {word!r}, none of train, val, test")
    return tuple(_SPLITS.get(word, "") for word in words)


def read_column(table: LabelFile, column: str, file: TaskFile | None = None, kind: Kind | None = None) -> TaskLabels:
    """The task that `column` spells, as `file` or `kind` want it read, else as the column itself says.

    Raises DataError naming column and line: no such column, one class only, words that are none of the kind.
    """
    path, name, kind = table.path, file.name if file else column, file.kind if file else kind
    if f"{column}_time" in table.columns and f"{column}_event" in table.columns:
        if kind not in (None, "survival"):
            said = "the task file says" if file else "the recipe says"
            raise DataError(f"task {name}: {path} has {column}_time and {column}_event; {said} {kind}")
        return TaskLabels(name, "survival", _survival(table, column), file=file)
    if kind == "survival":
        raise DataError(f"task {name}: {path} needs columns {column}_time and {column}_event")
    if column not in table.columns:
        raise DataError(f"task {name}: {path} has no column `{column}`; found {', '.join(table.columns)}")
    # Programs write whole numbers as 1.0 where a column has gaps.
    words = [re.sub(r"^(-?[0-9]+)\.0+$", r"\1", word) for word in table.columns[column]]
    kind = kind or _kind(path, column, words)
    if kind == "regression":
        return TaskLabels(name, "regression", _numbers(table, column), file=file)
    if file is not None:
        classes = file.classes
        read = [file.class_of(word) if word else "" for word in words]
        if None in read:
            raise DataError(
                f"task {name}: {words[read.index(None)]!r} in column {column} of {path} is none of"
                f" {', '.join(classes)}; name it under `values` in a task file"
            )
    else:
        classes, read = _classes(words, kind), list(words)
    number: dict[str | None, int] = {label: index for index, label in enumerate(classes)}
    values = np.array([number.get(word, -1) for word in read], dtype=np.int64)
    if len(present := np.unique(values[values >= 0])) < 2:
        only = classes[int(present[0])] if len(present) else "no label at all"
        raise DataError(f"task {name}: column {column} of {path} has one class only ({only}); two are needed")
    return TaskLabels(name, kind, values, classes, file=file)


def _kind(path: Path, column: str, words: Sequence[str]) -> Kind:
    distinct = {word for word in words if word}
    numbers = [_number(word) for word in distinct]
    if len(distinct) <= 2:
        return "binary"
    if all(number is not None for number in numbers):
        whole = all(number == int(number) for number in numbers if number is not None)
        return "classification" if whole and len(distinct) <= MOST_CLASSES else "regression"
    fractions = [number for number in numbers if number is not None and number != int(number)]
    if fractions:
        odd = sorted(word for word in distinct if _number(word) is None)[0]
        raise DataError(f"column {column} of {path} holds numbers and also {odd!r}; empty the cell, or use --task")
    if len(distinct) > max(MOST_CLASSES, sum(bool(word) for word in words) // 2):
        raise DataError(
            f"column {column} of {path} has {len(distinct)} different words and looks like no task;"
            " choose the tasks with --task"
        )
    return "classification"


def _classes(words: Sequence[str], kind: Kind) -> tuple[str, ...]:
    order = class_order([word for word in words if word])
    if kind == "binary":
        order.sort(key=lambda word: word.casefold() not in _NEGATIVE)
    return tuple(order)


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _numbers(table: LabelFile, column: str) -> npt.NDArray[np.float64]:
    words = table.columns[column]
    values = [_number(word) if word else np.nan for word in words]
    if None in values:
        row = values.index(None)
        raise DataError(f"{table.path} line {table.lines[row]}: {column} is {words[row]!r}, not a number")
    return np.array(values, dtype=np.float64)


def _survival(table: LabelFile, name: str) -> npt.NDArray[np.float64]:
    times = _numbers(table, f"{name}_time")
    words = [word.lower() for word in table.columns[f"{name}_event"]]
    for line, time, word in zip(table.lines, times, words, strict=True):
        if word and word not in _EVENTS:
            raise DataError(f"{table.path} line {line}: {name}_event is {word!r}; 1 = happened, 0 = censored")
        if bool(word) != bool(np.isfinite(time)):
            raise DataError(f"{table.path} line {line}: {name} has a time or an event, not both")
        if time < 0:
            raise DataError(f"{table.path} line {line}: {name}_time is negative")
    events = np.array([_EVENTS.get(word, np.nan) for word in words])
    if not (events == 1).any():
        raise DataError(f"task {name}: {table.path} has no event; survival needs some")
    return np.stack([times, events], axis=1)
