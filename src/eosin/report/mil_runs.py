"""What `eosin mil train` left in a folder, as the page needs it: scores, predictions of test bags, curves, settings.

Reads results.json, predictions.csv, curves.json and heads/config.json; a file that is absent or damaged leaves its part
of the page out. Also the curves that are drawn from predictions: ROC, confusion, Kaplan-Meier.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from eosin.errors import DataError
from eosin.files import PathLike

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]
ROC_POINTS = 201


@dataclass
class MilRun:
    """One folder. `arm`: its number on the page, `name`: how it is called there."""

    folder: Path
    results: list[Row]
    predictions: pd.DataFrame
    curves: Any
    config: dict[str, Any]
    arm: int = 0
    name: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """Kind of head."""
        return str(next((row["head"] for row in self.results if row.get("head")), self.config.get("kind", "")))

    @property
    def model(self) -> str:
        """Word of the encoder."""
        return str(next((row["model"] for row in self.results if row.get("model")), ""))

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of results.json."""
        return list(dict.fromkeys(str(row["task"]) for row in self.results))

    def rows(self, task: str) -> list[Row]:
        """Results of a task, test split."""
        return [row for row in self.results if row["task"] == task and row.get("split", "test") == "test"]

    def row(self, task: str, metric: str) -> Row | None:
        """Result of one metric."""
        return next((row for row in self.rows(task) if row["metric"] == metric), None)

    def tested(self, task: str) -> pd.DataFrame:
        """Predictions of a task's test bags, one row a bag and run."""
        table = self.predictions
        if not {"task", "split"} <= set(table.columns):
            return table.iloc[:0]
        return table[(table["task"] == task) & (table["split"] == "test")]

    def classes(self, task: str) -> list[str]:
        """Classes of a task, negative one first; none for regression and survival."""
        for told in self.config.get("tasks", []):
            if isinstance(told, dict) and told.get("name") == task and told.get("classes"):
                return [str(name) for name in told["classes"]]
        table = self.tested(task)
        return [name[2:] for name in table.columns if name.startswith("p_") and table[name].notna().any()]


def read_mil_run(folder: PathLike) -> MilRun:
    """Read a folder of `eosin mil train`; DataError where it has no results.json of the right form."""
    root = Path(folder)
    try:
        results = json.loads((root / "results.json").read_text(encoding="utf-8"))
        if not isinstance(results, list) or not all(isinstance(row, dict) and "task" in row for row in results):
            raise ValueError("not a list of results")
        for row in results:
            row.setdefault("metric", "")
    except OSError as error:
        raise DataError(f"no results.json in {root}; give the folder that `eosin mil train -o` wrote") from error
    except ValueError as error:
        raise DataError(f"{root / 'results.json'} is damaged: {error}") from error
    if not results:
        raise DataError(f"{root / 'results.json'} holds no results")
    problems: list[str] = []
    return MilRun(
        root,
        results,
        _predictions(root / "predictions.csv", problems),
        _json(root / "curves.json", problems),
        _json(root / "heads" / "config.json", problems) or {},
        problems=problems,
    )


def _json(path: Path, problems: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error.__class__.__name__}).")
        return None


def _predictions(path: Path, problems: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"task": str, "label": str, "patient": str, "slide": str}, encoding="utf-8")
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error.__class__.__name__}).")
        return pd.DataFrame()
    for name in ("seed", "fold"):
        if name not in table:
            table[name] = 0
        table[name] = table[name].fillna(0).astype(int)
    return table


def name_arms(runs: Sequence[MilRun]) -> None:
    """Number the runs, and name each by what tells it from the others: head, encoder, folder."""
    heads, models = {run.head for run in runs}, {run.model for run in runs}
    for number, run in enumerate(runs):
        parts = [run.head] if len(heads) > 1 or len(models) == 1 else []
        parts += [Path(run.model).name or run.model] if len(models) > 1 else []
        run.arm, run.name = number, " · ".join(filter(None, parts)) or run.folder.name
    for run in runs:
        if sum(other.name == run.name for other in runs) > 1:
            run.name = f"{run.name} · {run.folder.name}"


def tasks_with(runs: Sequence[MilRun], metric: str) -> list[str]:
    """Tasks that any run was judged on by `metric`."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks if run.row(task, metric) is not None))


def mean_auroc(run: MilRun, task: str) -> float | None:
    """AUROC of a task, mean over seeds or folds."""
    row = run.row(task, "auroc")
    return float(row["mean"]) if row is not None and isinstance(row.get("mean"), int | float) else None


class Roc(NamedTuple):
    """ROC curves of one class against the rest: of each run, and their mean at equal false positive rates."""

    positive: str
    runs: list[tuple[Floats, Floats]]
    x: Floats
    mean: Floats


def roc_of(table: pd.DataFrame, positive: str) -> Roc | None:
    """ROC of class `positive` in predictions of one task; None where no run has bags on both sides."""
    from sklearn.metrics import roc_curve

    column = f"p_{positive}"
    if column not in table:
        return None
    curves = []
    for _, run in table.dropna(subset=[column]).groupby(["seed", "fold"]):
        truth = (run["label"] == positive).to_numpy()
        if truth.any() and not truth.all():
            x, y, _ = roc_curve(truth, run[column].to_numpy(float))
            curves.append((x, y))
    if not curves:
        return None
    grid = np.linspace(0, 1, ROC_POINTS)
    # At a rate where a curve stands upright its upper end counts; at 0 all begin at 0.
    at = [np.interp(grid, x + 1e-9 * np.arange(len(x)), y) for x, y in curves]
    mean = np.mean(at, axis=0)
    mean[-1] = 1.0
    return Roc(positive, curves, np.append(0.0, grid), np.append(0.0, mean))


def confusion_of(table: pd.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """Counts [true, predicted] of bags by their probabilities averaged over runs; None without predictions."""
    columns = [f"p_{name}" for name in classes]
    if not classes or any(column not in table for column in columns):
        return None
    bag = next((name for name in ("slide", "bag", "patient") if name in table and table[name].notna().all()), None)
    known = table.dropna(subset=columns)
    if bag is None or known.empty:
        return None
    merged = known.groupby(bag).agg({"label": "first", **dict.fromkeys(columns, "mean")})
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for label, chosen in zip(merged["label"], merged[columns].to_numpy(float).argmax(axis=1), strict=True):
        if label in classes:
            counts[list(classes).index(label), chosen] += 1
    return counts


def kaplan_meier(times: Floats, events: Floats) -> tuple[Floats, Floats]:
    """Share still without event after each event time (Kaplan & Meier 1958): x and y of a step line from (0, 1)."""
    x, y, alive = [0.0], [1.0], 1.0
    for time in np.unique(times[events == 1]):
        alive *= 1 - float((events[times == time] == 1).sum()) / float((times >= time).sum())
        x += [float(time), float(time)]
        y += [y[-1], alive]
    return np.array([*x, float(times.max(initial=0.0))]), np.array([*y, alive])
