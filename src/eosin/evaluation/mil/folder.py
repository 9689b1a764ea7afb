"""The folder of `eosin mil train`: finished runs, what they belong to, and the files that people read.

identity.json, runs/*.safetensors (one a finished run: weights, logits of its val and test bags, curve), heads/,
results.json, comparisons.json, predictions.csv, curves.json, report.html. A killed call goes on after what it finished.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eosin.errors import DataError, ResumeError
from eosin.evaluation.mil.batches import Fixed, Problem
from eosin.evaluation.mil.fit import Fitted
from eosin.evaluation.mil.intervals import Predicted
from eosin.evaluation.mil.splits import Run
from eosin.files import PathLike, atomic_path, check_writable, write_json, write_text
from eosin.models.slide_task import SlideTask
from eosin.provenance import hash_of

_PINNED = ("settings", "labels", "features", "tasks")


class MilFolder:
    """Paths and records of one `-o` folder. Raises OutputError where it cannot be written."""

    def __init__(self, root: PathLike, fresh: bool = False) -> None:
        self.root = check_writable(root)
        self.identity = self.root / "identity.json"
        self.runs = self.root / "runs"
        self.heads = self.root / "heads"
        self.results = self.root / "results.json"
        self.comparisons = self.root / "comparisons.json"
        self.predictions = self.root / "predictions.csv"
        self.curves = self.root / "curves.json"
        if fresh and self.identity.exists():
            for folder in (self.runs, self.heads):
                shutil.rmtree(folder, ignore_errors=True)
            for name in ("identity.json", "results.json", "comparisons.json", "predictions.csv", "curves.json"):
                (self.root / name).unlink(missing_ok=True)

    def claim(self, identity: dict[str, Any]) -> None:
        """Write down what the runs belong to; ResumeError where the folder holds runs of something else."""
        if self.identity.is_file():
            try:
                known = json.loads(self.identity.read_text())
            except (OSError, ValueError) as error:
                raise ResumeError(f"{self.identity} is damaged; use --fresh to start again") from error
            changed = [name for name in _PINNED if known.get(name) != identity.get(name)]
            if changed:
                raise ResumeError(
                    f"{self.root} holds heads of other {' and '.join(changed)}; give another -o, or --fresh"
                )
        write_json(self.identity, identity)

    def path(self, problem: Problem, run: Run) -> Path:
        """File of a finished run."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", problem.name)[:60]
        return self.runs / f"{plain}-{hash_of(problem.name)[:6]}-seed{run.seed}-fold{run.fold}.safetensors"

    def keep(self, problem: Problem, fitted: Fitted) -> None:
        """Write a finished run, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {f"state/{name}": value.contiguous() for name, value in fitted.state.items()}
        for part, outputs in (("val", fitted.val), ("test", fitted.test)):
            tensors |= {f"{part}/{name}": torch.from_numpy(values) for name, values in outputs.items()}
        if fitted.fixed.scale is not None:
            tensors["scale/mean"], tensors["scale/sd"] = map(torch.from_numpy, fitted.fixed.scale)
        told = {
            "problem": problem.name,
            "bags": self._bags(problem, fitted.run),
            "seed": fitted.run.seed,
            "fold": fitted.run.fold,
            "values": fitted.fixed.values,
            "cuts": fitted.fixed.cuts,
            "curve": fitted.curve,
            "best_epoch": fitted.best_epoch,
            "seconds": fitted.seconds,
        }
        with atomic_path(self.path(problem, fitted.run)) as temporary:
            save_file(tensors, temporary, metadata={"eosin": json.dumps(told)})

    def kept(self, problem: Problem, run: Run) -> Fitted | None:
        """A finished run; None where it is not there, damaged or of other bags."""
        from safetensors import safe_open

        try:
            with safe_open(self.path(problem, run), framework="pt") as file:
                told = json.loads(file.metadata()["eosin"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
            if told["bags"] != self._bags(problem, run):
                return None

            def part(name: str) -> dict[str, Any]:
                return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}

            scale = part("scale")
            values = {name: (float(mean), float(sd)) for name, (mean, sd) in told["values"].items()}
            cuts = {name: tuple(edges) for name, edges in told["cuts"].items()}
            fixed = Fixed((scale["mean"].numpy(), scale["sd"].numpy()) if scale else None, values, {}, cuts)
            val, test = ({name: own.numpy() for name, own in part(name).items()} for name in ("val", "test"))
            return Fitted(run, part("state"), fixed, val, test, told["curve"], told["best_epoch"], told["seconds"])
        except Exception:
            # Whatever is wrong with a kept file, the run is simply trained again.
            return None

    @staticmethod
    def _bags(problem: Problem, run: Run) -> str:
        """Hash of which bags train, stop and test the run."""
        return hash_of([[problem.bags.names[row] for row in part] for part in (run.train, run.val, run.test)])


def write_predictions(path: Path, entries: Sequence[tuple[SlideTask, str, Predicted]]) -> None:
    """predictions.csv: one row a bag and run; (task, split, what the run said) of each."""
    classes = list(dict.fromkeys(name for task, _, _ in entries for name in task.classes))
    columns = ["task", "slide", "patient", "split", "seed", "fold", "label"]
    columns += [*(f"p_{name}" for name in classes), "value", "risk", "time", "event"]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    for task, split, run in entries:
        for number, name in enumerate(run.ids):
            row: dict[str, Any] = {
                "task": task.name,
                "slide": name,
                "patient": run.patients[number],
                "split": split,
                "seed": run.seed,
                "fold": run.fold,
            }
            label, said = run.labels[number], run.predictions[number]
            if task.has_classes:
                row["label"] = task.classes[int(label)]
                row |= {f"p_{name}": f"{value:.9g}" for name, value in zip(task.classes, said, strict=True)}
            elif task.kind == "regression":
                row |= {"label": f"{label:.9g}", "value": f"{said[0]:.9g}"}
            else:
                row |= {"time": f"{label[0]:.9g}", "event": int(label[1]), "risk": f"{said[0]:.9g}"}
            table.writerow(row)
    write_text(path, text.getvalue())


def read_predictions(folder: PathLike, task: SlideTask) -> list[Predicted]:
    """Test predictions of `task` in the folder of another `eosin mil train`. Raises DataError where it has none."""
    import pandas

    path = Path(folder) / "predictions.csv"
    try:
        words = dict.fromkeys(("task", "slide", "patient", "label"), str)
        table = pandas.read_csv(path, dtype=words, keep_default_na=False, na_values=[""])  # a class may be called None
        table = table[(table["task"] == task.name) & (table["split"] == "test")]
        columns = [f"p_{name}" for name in task.classes] or ["value" if task.kind == "regression" else "risk"]
        found = []
        for (seed, fold), own in table.groupby(["seed", "fold"], sort=True):
            if task.has_classes:
                labels: Any = np.array([task.classes.index(label) for label in own["label"]], dtype=np.int64)
            else:
                labels = own["label"].astype(float) if task.kind == "regression" else own[["time", "event"]]
                labels = labels.to_numpy(dtype=np.float64)
            ids, patients = tuple(own["slide"]), tuple(own["patient"])
            values = own[columns].to_numpy(dtype=np.float64)
            found.append(Predicted(int(seed), int(fold), ids, patients, labels, values))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot compare with {path}: {error}") from error
    if not found:
        raise DataError(f"{path} has no test predictions of task {task.name}")
    return found
