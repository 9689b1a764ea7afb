"""Rows of results.json: read and checked, and what they say of classes, guessing and leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eosin.errors import DataError

Row = dict[str, Any]

_NEEDED = ("task", "metric", "mean", "model", "protocol", "protocol_hash")
_GUESSING = {"auroc": 0.5, "c_index": 0.5, "pearson": 0.0, "r2": 0.0}
"""What guessing gets by each metric, whatever the data; of others a row says it."""
OUT_OF_ONE = frozenset(
    {
        *("balanced_accuracy", "accuracy", "macro_f1", "auroc", "c_index", "robustness_index"),
        *("dice", "dice_per_image", "dice_per_window", "iou", "pearson", "r2"),
    }
)
"""Metrics whose best value is 1, so that they may share the axes of a radar."""


def read_rows(file: Path) -> list[Row]:
    """The rows of a results.json, checked. DataError where it is missing, damaged, empty, or a row lacks something."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no results in {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is not a list of results; `eosin eval` and `eosin mil train` write such files")
    if not rows:
        raise DataError(f"{file} has no results: its list is empty")
    for number, row in enumerate(rows, 1):
        if missing := [key for key in _NEEDED if key not in row or row[key] == ""]:
            raise DataError(f"{file}: result {number} has no {missing[0]}; it was not written by this eosin")
        if row["mean"] is not None and not is_number(row["mean"]):
            raise DataError(f"{file}: result {number} ({row['task']}) has the mean {row['mean']!r}, not a number")
    return rows


def classes_of(row: Row) -> list[str]:
    """Class names that a row knows; empty for a task without."""
    told = row.get("classes") or row.get("per_class") or row.get("n_per_class") or []
    return [str(name) for name in told] if row.get("kind") not in ("regression", "survival") else []


def class_counts(row: Row) -> list[int] | None:
    """How many judged samples each class has; None where the row does not say."""
    if row.get("kind") == "segmentation":  # its confusion is of pixels
        return None
    if isinstance(row.get("confusion"), list):
        return [int(sum(line)) for line in row["confusion"]]
    if isinstance(row.get("n_per_class"), dict):
        return [int(count) for count in row["n_per_class"].values()]
    return None


def leaks_of(row: Row) -> list[str]:
    """What makes a score look better than it is, in a few words each."""
    found = []
    if row.get("task_in_training"):
        found.append("trained on labels of this task")
    seen = row.get("patients_in_training")
    if seen:
        count = len(seen) if isinstance(seen, list) else seen
        found.append(f"{count} of its patients were in training")
    if row.get("shared_groups"):
        found.append(f"{row['shared_groups']} {row.get('resampled') or 'group'}s in train and test")
    if row.get("complete") is False:
        found.append("not the full data set")
    return found


def parts_of(row: Row) -> list[str]:
    """Names of what a result has a score of its own for: classes, or the targets of a regression."""
    return classes_of(row) or [str(name) for name in row.get("per_target") or []]


def chance_of(row: Row) -> float | None:
    """What guessing gets by the metric of a row; None where nobody knows."""
    told: Any = row.get("chance")
    return float(told) if is_number(told) else _GUESSING.get(str(row["metric"]))


def is_number(value: Any) -> bool:
    """Whether `value` is a number that is not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
