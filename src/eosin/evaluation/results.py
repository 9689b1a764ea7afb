"""The files of an evaluation: results.json, comparisons.json, predictions.parquet, and what makes a rerun
instant.

cache/features holds embeddings, cache/outcomes predictions, both by content hash; the three files describe
one call.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from eosin.errors import DataError, ResumeError
from eosin.evaluation.judge import Outcome
from eosin.evaluation.tasks import Task
from eosin.files import PathLike, atomic_path, check_writable, write_json


class ResultsFolder:
    """Paths and records of one `-o` folder. Raises OutputError where it cannot be written."""

    def __init__(self, root: PathLike, fresh: bool = False) -> None:
        self.root = check_writable(root)
        self.results = self.root / "results.json"
        self.comparisons = self.root / "comparisons.json"
        self.predictions = self.root / "predictions.parquet"
        self.features = self.root / "cache" / "features"
        self.outcomes = self.root / "cache" / "outcomes"
        if fresh:
            shutil.rmtree(self.root / "cache", ignore_errors=True)
            for path in (self.results, self.comparisons, self.predictions):
                path.unlink(missing_ok=True)

    def refuse_others(self, planned: set[tuple[str, str, str, str]]) -> None:
        """Raise ResumeError where results.json has rows that a call with `planned` rows would drop or change.

        A row is (task, protocol, model, model hash).
        """
        if not self.results.is_file():
            return
        try:
            rows = json.loads(self.results.read_text())
            present = {(row["task"], row["protocol"], row["model"], row["model_hash"]) for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(f"{self.results} is not a list of results; use --fresh to replace it") from error
        if lost := sorted(present - planned):
            task, protocol, model, _ = lost[0]
            changed = any(row[:3] == lost[0][:3] for row in planned)
            what = "of other weights" if changed else "that were not asked for now"
            raise ResumeError(
                f"{self.results} has results {what} ({model}, {task}, {protocol});"
                " give another -o, or --fresh to drop them"
            )

    def read_outcome(self, key: str) -> Outcome | None:
        """A kept outcome; None where there is none or it is damaged."""
        try:
            with np.load(self.outcomes / f"{key}.npz", allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
            return Outcome(
                choices=json.loads(str(arrays.pop("choices"))), seconds=float(arrays.pop("seconds")), **arrays
            )
        except Exception:
            # Whatever is wrong with a kept file, the probe is simply run again.
            return None

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        """Write an outcome, whole or not at all."""
        arrays = {name: getattr(outcome, name) for name in ("rows", "scores", "predicted", "correct", "run_scores")}
        with atomic_path(self.outcomes / f"{key}.npz") as temporary, open(temporary, "wb") as handle:
            np.savez(handle, choices=json.dumps(outcome.choices), seconds=outcome.seconds, **arrays)

    def write(
        self,
        rows: list[dict[str, Any]],
        comparisons: list[dict[str, Any]],
        predictions: list[tuple[str, Task, str, Outcome]],
    ) -> None:
        """Write the three files; `predictions` = (model, task, protocol id, outcome) of each row."""
        tables = [prediction_table(*entry) for entry in predictions]
        with atomic_path(self.predictions) as temporary:
            parquet.write_table(pyarrow.concat_tables(tables), temporary)
        write_json(self.comparisons, comparisons)
        write_json(self.results, rows)


def prediction_table(model: str, task: Task, protocol: str, outcome: Outcome) -> pyarrow.Table:
    """One row a reported sample: who predicted what for it.

    `scores` are in the order of `classes`; `correct` is the share of runs that were right.
    """
    names = np.asarray(task.classes)
    count = len(outcome.rows)

    def ids(column: np.ndarray[Any, Any] | None) -> list[str | None]:
        return [None] * count if column is None else column[outcome.rows].tolist()

    text = pyarrow.string()
    columns = {
        "task": pyarrow.array([task.name] * count, text),
        "protocol": pyarrow.array([protocol] * count, text),
        "model": pyarrow.array([model] * count, text),
        "sample": pyarrow.array(task.ids[outcome.rows].tolist(), text),
        "patient": pyarrow.array(ids(task.patient), text),
        "slide": pyarrow.array(ids(task.slide), text),
        "label": pyarrow.array(names[task.labels[outcome.rows]].tolist(), text),
        "predicted": pyarrow.array(names[outcome.predicted].tolist(), text),
        "correct": pyarrow.array(outcome.correct),
        "classes": pyarrow.array([list(task.classes)] * count, pyarrow.list_(text)),
        "scores": pyarrow.array(outcome.scores.tolist(), pyarrow.list_(pyarrow.float64())),
    }
    return pyarrow.table(columns)


def read_results(path: PathLike) -> list[dict[str, Any]]:
    """Rows of a results.json, or of the one in a folder. Raises DataError where there is none."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read results {path}: {error}") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a list of results")
    return rows
