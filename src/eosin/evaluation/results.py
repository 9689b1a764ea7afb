"""The files of an evaluation: results.json, comparisons.json, predictions.parquet, tasks.json, and what makes a rerun
instant.

cache/features holds embeddings, cache/outcomes predictions, both by content hash; the four files describe
one call. tasks.json has the words that open each task again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import parquet

from eosin.errors import DataError, ResumeError
from eosin.evaluation.kinds import kind_of
from eosin.evaluation.outcome import Measure, Outcome
from eosin.evaluation.tasks import Task
from eosin.files import PathLike, atomic_path, check_writable, write_json


class ResultsFolder:
    """Paths and records of one `-o` folder. Raises OutputError where it cannot be written."""

    def __init__(self, root: PathLike, fresh: bool = False) -> None:
        self.root = check_writable(root)
        self.results = self.root / "results.json"
        self.comparisons = self.root / "comparisons.json"
        self.predictions = self.root / "predictions.parquet"
        self.tasks = self.root / "tasks.json"
        self.features = self.root / "cache" / "features"
        self.outcomes = self.root / "cache" / "outcomes"
        if fresh:
            shutil.rmtree(self.root / "cache", ignore_errors=True)
            for path in (self.results, self.comparisons, self.predictions, self.tasks):
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
                return _unpacked({name: kept[name] for name in kept.files})
        except Exception:
            # Whatever is wrong with a kept file, the probe is simply run again.
            return None

    def keep_outcome(self, key: str, outcome: Outcome) -> None:
        """Write an outcome, whole or not at all."""
        with atomic_path(self.outcomes / f"{key}.npz") as temporary, open(temporary, "wb") as handle:
            np.savez(handle, allow_pickle=False, **_packed(outcome))

    def write(
        self,
        rows: list[dict[str, Any]],
        comparisons: list[dict[str, Any]],
        predictions: list[tuple[str, Task, str, Outcome]],
        opened: dict[str, dict[str, Any]],
    ) -> None:
        """Write the four files; `predictions` = (model, task, protocol id, outcome) of each row, `opened`: by task."""
        tables = [prediction_table(*entry) for entry in predictions]
        with atomic_path(self.predictions) as temporary:
            parquet.write_table(pyarrow.concat_tables(tables), temporary)
        write_json(self.tasks, opened)
        write_json(self.comparisons, comparisons)
        write_json(self.results, rows)


_OF_MEASURE = ("run_scores", "statistics", "part", "groups")


def _packed(outcome: Outcome) -> dict[str, npt.NDArray[Any]]:
    """An outcome as named arrays."""
    told = {
        "split": outcome.split,
        "choices": outcome.choices,
        "seconds": outcome.seconds,
        "measures": [[measure.metric, measure.value, measure.count] for measure in outcome.measures],
    }
    arrays = {"told": np.array(json.dumps(told)), "rows": outcome.rows}
    arrays |= {f"table/{name}": table for name, table in outcome.tables.items()}
    for number, measure in enumerate(outcome.measures):
        found = {name: getattr(measure, name) for name in _OF_MEASURE}
        arrays |= {f"{number}/{name}": array for name, array in found.items() if array is not None}
    return arrays


def _unpacked(arrays: dict[str, npt.NDArray[Any]]) -> Outcome:
    told = json.loads(str(arrays["told"]))
    return Outcome(
        rows=arrays["rows"],
        split=told["split"],
        measures=tuple(
            Measure(
                metric=metric,
                value=value,
                run_scores=arrays[f"{number}/run_scores"],
                statistics=arrays[f"{number}/statistics"],
                part=arrays.get(f"{number}/part"),
                groups=arrays.get(f"{number}/groups"),
                count=count,
            )
            for number, (metric, value, count) in enumerate(told["measures"])
        ),
        tables={name.removeprefix("table/"): arrays[name] for name in arrays if name.startswith("table/")},
        choices=told["choices"],
        seconds=told["seconds"],
    )


def prediction_table(model: str, task: Task, protocol: str, outcome: Outcome) -> pyarrow.Table:
    """One row a reported sample: who predicted what for it.

    `scores` are in the order of `classes`; `correct` is the share of runs that were right. `statistics` and `part`: of
    the main measure `metric`, from which it and its interval can be worked out again (scores.py), where they are not
    those of `correct` and the label: [R', m] of each sample.
    """
    count = len(outcome.rows)

    def ids(column: npt.NDArray[Any] | None) -> list[str | None]:
        return [None] * count if column is None else column[outcome.rows].tolist()

    text, number = pyarrow.string(), pyarrow.float64()
    types = {"label": text, "predicted": text, "correct": number}
    types |= {"classes": pyarrow.list_(text), "scores": pyarrow.list_(number), "truth": pyarrow.list_(number)}
    given = {"classes": [list(task.classes)] * count, **kind_of(task).columns(task, outcome)}
    columns = {
        "task": pyarrow.array([task.name] * count, text),
        "protocol": pyarrow.array([protocol] * count, text),
        "model": pyarrow.array([model] * count, text),
        "sample": pyarrow.array(task.ids[outcome.rows].tolist(), text),
        "patient": pyarrow.array(ids(task.patient), text),
        "slide": pyarrow.array(ids(task.slide), text),
        **{name: pyarrow.array(given.get(name, [None] * count), kind) for name, kind in types.items()},
        **_statistics(outcome),
    }
    return pyarrow.table(columns)


def _statistics(outcome: Outcome) -> dict[str, pyarrow.Array]:
    """Columns of the main measure; empty where `correct` and the label say the same or it is not of the samples."""
    main, count = outcome.main, len(outcome.rows)
    known = main.metric == "balanced_accuracy" or len(main) != count
    part = None if known or main.part is None else main.part.tolist()
    statistics = None if known else np.moveaxis(main.statistics, 0, 1).tolist()
    return {
        "metric": pyarrow.array([main.metric] * count, pyarrow.string()),
        "part": pyarrow.array(part or [None] * count, pyarrow.int64()),
        "statistics": pyarrow.array(statistics or [None] * count, pyarrow.list_(pyarrow.list_(pyarrow.float64()))),
    }


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
