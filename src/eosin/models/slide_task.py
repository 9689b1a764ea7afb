"""What is predicted of a slide or patient: its kind, its classes or time bins, and how many logits it takes.

MIL heads and the slide-level supervision of the pyramid describe their tasks with this one class. Losses are in
`eosin.objectives.multitask`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError

TaskKind = Literal["classification", "binary", "regression", "survival"]
KINDS: tuple[str, ...] = get_args(TaskKind)


@dataclass(frozen=True)
class SlideTask:
    """One label of a slide.

    name: of the task, unique among the tasks of a head. kind: classification (`classes`, at least 2), binary
    (`classes` = negative, positive), regression, or survival. cuts: survival in discrete time: the inner edges of its
    time bins, rising; without them survival is learned with Cox's partial likelihood. Raises DataError.

    >>> SlideTask("msi", "binary").outputs
    2
    >>> SlideTask("os", "survival", cuts=(1.0, 2.0, 5.0)).loss
    'hazard'
    """

    name: str
    kind: TaskKind
    classes: tuple[str, ...] = ()
    cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise DataError("a slide task needs a name")
        if self.kind not in KINDS:
            raise DataError(f"task {self.name}: unknown kind {self.kind!r}; choose from {', '.join(KINDS)}")
        classes = tuple(str(name) for name in self.classes)
        if self.kind == "binary" and not classes:
            classes = ("negative", "positive")
        cuts = tuple(float(cut) for cut in self.cuts)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "cuts", cuts)
        if len(set(classes)) != len(classes):
            raise DataError(f"task {self.name}: a class is named twice in {', '.join(classes)}")
        if self.kind == "classification" and len(classes) < 2:
            raise DataError(f"task {self.name}: classification needs at least 2 classes, not {len(classes)}")
        if self.kind == "binary" and len(classes) != 2:
            raise DataError(f"task {self.name}: binary needs (negative, positive), not {len(classes)} classes")
        if self.kind in ("regression", "survival") and classes:
            raise DataError(f"task {self.name}: {self.kind} has no classes")
        if cuts and self.kind != "survival":
            raise DataError(f"task {self.name}: time cuts are for survival, not for {self.kind}")
        if any(not math.isfinite(cut) for cut in cuts) or any(a >= b for a, b in pairwise(cuts)):
            raise DataError(f"task {self.name}: time cuts must be finite and rise, not {cuts}")

    @property
    def outputs(self) -> int:
        """Logits of the task: classes, 2 (binary), 1 (regression, Cox) or time bins (cuts + 1)."""
        if self.has_classes:
            return len(self.classes)
        return len(self.cuts) + 1

    @property
    def has_classes(self) -> bool:
        """Whether the label is a class number (classification and binary)."""
        return self.kind in ("classification", "binary")

    @property
    def loss(self) -> Literal["cross-entropy", "mse", "hazard", "cox"]:
        """How the task is learned."""
        if self.has_classes:
            return "cross-entropy"
        if self.kind == "regression":
            return "mse"
        return "hazard" if self.cuts else "cox"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; `from_dict` reads it back."""
        return {"name": self.name, "kind": self.kind, "classes": list(self.classes), "cuts": list(self.cuts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SlideTask:
        """The task of a dictionary made by `to_dict`; raises DataError on unknown or missing keys."""
        unknown = set(data) - {"name", "kind", "classes", "cuts"}
        missing = {"name", "kind"} - set(data)
        if unknown or missing:
            wrong = ", ".join(sorted(unknown)) or ", ".join(sorted(missing))
            raise DataError(f"slide task: {'unknown' if unknown else 'missing'} {wrong} in {dict(data)}")
        return cls(data["name"], data["kind"], tuple(data.get("classes", ())), tuple(data.get("cuts", ())))


def checked_tasks(tasks: Iterable[SlideTask]) -> tuple[SlideTask, ...]:
    """The tasks as a tuple; raises DataError if there is none or a name occurs twice."""
    found = tuple(tasks)
    if not found:
        raise DataError("no slide task: give at least one")
    names = [task.name for task in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"slide task {twice[0]} is given twice")
    return found


def hazard_cuts(times: npt.ArrayLike, events: npt.ArrayLike, bins: int = 4) -> tuple[float, ...]:
    """Inner edges of `bins` time bins that hold equally many observed events (quantiles of their times).

    times, events: [N], NaN = missing, any time unit. Censored cases do not move the edges (Zadeh and Schmid 2020).
    Edges that coincide are given once. Raises DataError if fewer than `bins` different event times are known.
    """
    time, event = np.asarray(times, dtype=np.float64), np.asarray(events, dtype=np.float64)
    observed = time[np.isfinite(time) & (event == 1)]
    if bins < 2 or len(np.unique(observed)) < bins:
        raise DataError(f"{len(np.unique(observed))} different event times cannot be cut into {bins} time bins")
    edges = np.unique(np.quantile(observed, np.arange(1, bins) / bins))
    return tuple(float(edge) for edge in edges)
