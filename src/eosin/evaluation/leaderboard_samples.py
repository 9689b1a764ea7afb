"""What models said of each sample, read from the predictions beside their results.

predictions.parquet of `eosin eval`, predictions.csv of `eosin mil train`. What does not give the score of its result is
of another call, and is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.scores import SCORES

if TYPE_CHECKING:
    from eosin.evaluation.mil.intervals import Predicted

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_SAME = 1e-6  # a score and the one of its predictions


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said of the n judged samples: ids and labels [n] (words; "" where a sample has none).

    `statistics` [R', n, m] and `part` [n]: what the metric and its resamples are worked out from (`outcome.Measure`).
    `groups`: what is resampled as a whole, [n] words or None. `scores` [n, C] in the order of `classes`, width 0 where
    samples have none. `runs`: of `eosin mil`, the predictions of every run; the other fields are then empty.
    """

    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    statistics: Floats
    part: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_] | None
    classes: tuple[str, ...]
    scores: Floats
    runs: tuple[Predicted, ...] = ()

    def order_of(self, other: Said) -> npt.NDArray[np.int64] | None:
        """Rows of `other` in the order of these samples; None where they are not the same samples, each once."""
        mine, theirs = np.argsort(self.ids, kind="stable"), np.argsort(other.ids, kind="stable")
        if len(mine) != len(theirs) or not np.array_equal(self.ids[mine], other.ids[theirs]):
            return None
        if len(np.unique(self.ids)) != len(self.ids):
            return None if not np.array_equal(self.ids, other.ids) else np.arange(len(self.ids))
        rows = np.empty(len(mine), dtype=np.int64)
        rows[mine] = theirs
        return rows

    def other_labels(self, other: Said) -> bool:
        """Whether the same samples carry other labels in `other`."""
        if self.runs or other.runs:
            return False
        rows = self.order_of(other)
        return rows is not None and not np.array_equal(self.labels, other.labels[rows])


def samples_of(folder: Path, row: dict[str, Any], kind: str) -> Said | None:
    """What predictions.parquet or predictions.csv of the folder has of a row; None without.

    DataError where the file is there and damaged.
    """
    return _slides_of(folder, row) if kind == "mil" else _tiles_of(folder, row)


@lru_cache(maxsize=4)
def _table(path: Path, written: float) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _tiles_of(folder: Path, row: dict[str, Any]) -> Said | None:
    """Of a result of `eosin eval`; None where the file has nothing that gives the score of the row."""
    from pyarrow import compute

    path = folder / "predictions.parquet"
    if not path.is_file():
        return None
    table = _table(path, path.stat().st_mtime)
    if not {"task", "protocol", "model", "sample"} <= set(table.column_names):
        return None
    wanted = [compute.equal(table[key], str(row[key])) for key in ("task", "protocol", "model")]
    own = table.filter(compute.and_(compute.and_(wanted[0], wanted[1]), wanted[2]))
    if own.num_rows == 0 or own.num_rows != row.get("n"):
        return None
    by = row.get("resampled")
    groups = _words(own, by) if by in ("patient", "slide") else None
    if by in ("patient", "slide") and groups is None:
        return None
    labels = _words(own, "label")
    found = _statistics(own, str(row["metric"]), labels)
    if found is None or not _gives(str(row["metric"]), *found, row["mean"]):
        return None
    ids = np.asarray(own["sample"].to_pylist(), dtype=np.str_)
    classes = tuple(own["classes"][0].as_py() or ()) if "classes" in own.column_names else ()
    scores = _numbers(own, "scores") if labels is not None else None
    if scores is None or scores.shape[1] != len(classes):
        scores = np.empty((len(ids), 0))
    truth = _numbers(own, "truth")
    told = labels if labels is not None else np.array([""] * len(ids) if truth is None else [str(t) for t in truth])
    return Said(ids, told, *found, groups, classes, scores)


def _statistics(own: Any, metric: str, labels: npt.NDArray[np.str_] | None) -> tuple[Floats, Ints] | None:
    """Statistics [R', n, m] and part [n] of the samples, as the file has them, or of `correct` and the labels."""
    columns = set(own.column_names)
    if "statistics" in columns and own["metric"][0].as_py() == metric and own["statistics"].null_count == 0:
        values = np.asarray(own["statistics"].to_pylist(), dtype=np.float64)  # [n, R', m]
        unknown = own["part"].null_count
        part = np.zeros(len(values), dtype=np.int64) if unknown else own["part"].to_numpy().astype(np.int64)
        return np.moveaxis(values, 0, 1), part
    if metric != "balanced_accuracy" or labels is None or "correct" not in columns or own["correct"].null_count:
        return None
    correct = own["correct"].to_numpy().astype(np.float64)
    part = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return np.stack([correct, np.ones_like(correct)], axis=1)[None], part


def _gives(metric: str, statistics: Floats, part: Ints, mean: Any) -> bool:
    """Whether the statistics give the score that the result states: else they are of another call."""
    score = SCORES.get(metric)
    if score is None:
        return True
    values = statistics if score.moments is None else score.moments(statistics, part)
    sums = np.stack([values[:, part == one].sum(axis=1) for one in np.unique(part)], axis=1)  # [R', P, m]
    return bool(abs(float(np.mean(score.of_sums(sums))) - float(mean or 0)) <= _SAME)


def _words(own: Any, column: str) -> npt.NDArray[np.str_] | None:
    if column not in own.column_names or own[column].null_count:
        return None
    return np.asarray(own[column].to_pylist(), dtype=np.str_)


def _numbers(own: Any, column: str) -> Floats | None:
    """A column of lists of one length as [n, K]."""
    if column not in own.column_names or own[column].null_count:
        return None
    found = own[column].to_pylist()
    return np.asarray(found, dtype=np.float64) if len({len(value) for value in found}) == 1 else None


def _slides_of(folder: Path, row: dict[str, Any]) -> Said | None:
    from eosin.evaluation.mil.folder import read_predictions
    from eosin.models.slide_task import SlideTask

    if not (folder / "predictions.csv").is_file() or not row.get("kind"):
        return None
    task = SlideTask(str(row["task"]), row["kind"], tuple(row.get("classes") or ()))
    runs = tuple(read_predictions(folder, task))
    nothing = np.empty(0, dtype=np.str_)
    none = np.empty((0, 0, 0)), np.empty(0, dtype=np.int64)
    return Said(nothing, nothing, *none, None, task.classes, np.empty((0, 0)), runs)
