"""results.json and comparisons.json of `eosin mil train`: what the runs of each task are worth, and against others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eosin import __version__
from eosin.errors import DataError
from eosin.evaluation.mil.bags import FeatureSource
from eosin.evaluation.mil.batches import Problem
from eosin.evaluation.mil.config import MilConfig
from eosin.evaluation.mil.fit import Fitted
from eosin.evaluation.mil.folder import read_predictions
from eosin.evaluation.mil.intervals import Predicted, compare, estimate
from eosin.evaluation.mil.labels import TaskLabels
from eosin.evaluation.mil.problems import check_counts, predicted
from eosin.evaluation.mil.scores import SCORES
from eosin.models.slide_task import SlideTask
from eosin.provenance import hash_of

ENCODER_KEYS = (
    *("model", "model_name", "model_hash", "mpp", "size_px", "stride_px", "min_foreground", "precision", "transform"),
    *("patch_size", "patch_size_level0", "target_magnification"),
)
"""What of embedding.json, or of the feature files, heads keep: enough to embed other slides alike."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A problem with its finished runs."""

    problem: Problem
    fitted: list[Fitted]
    config: MilConfig
    seeds: int

    def labels(self, task: SlideTask) -> TaskLabels:
        """Labels of a task, row i for bag i."""
        return next(own for own in self.problem.bags.table.tasks if own.name == task.name)

    def said(self, task: SlideTask, part: str) -> list[Predicted]:
        """What each run said of its labelled `val` or `test` bags."""
        average = self.config.group == "average"
        return [
            predicted(
                self.problem,
                task,
                fitted.run,
                fitted.run.val if part == "val" else fitted.run.test,
                fitted.val if part == "val" else fitted.test,
                average,
            )
            for fitted in self.fitted
        ]

    def entries(self, part: str) -> list[tuple[SlideTask, str, Predicted]]:
        """The same of all tasks, as predictions.csv lists them."""
        return [(task, part, run) for task in self.problem.tasks for run in self.said(task, part)]


def encoder_of(source: FeatureSource) -> dict[str, Any]:
    """What is known of the encoder behind the features."""
    found = {key: source.info[key] for key in ENCODER_KEYS if source.info.get(key) is not None}
    found.setdefault("model", str(source.root))
    found.setdefault("model_hash", None)
    return found


def encoder_training(source: FeatureSource) -> tuple[set[str], set[str]]:
    """Tasks and patients that the encoder was trained on, as embedding.json says."""
    block = source.info.get("training") or {}
    tasks = source.info.get("training_tasks") or block.get("tasks") or []
    patients = source.info.get("training_patients") or block.get("patients") or []
    return {str(task) for task in tasks}, {str(patient) for patient in patients}


def result_rows(judged: Judged) -> list[dict[str, Any]]:
    """The rows of all tasks of a problem: one a metric, the main one of its kind first."""
    config, source = judged.config, judged.problem.bags.source
    encoder = encoder_of(source)
    seen_tasks, seen = encoder_training(source)
    rows = []
    for task in judged.problem.tasks:
        runs = judged.said(task, "test")
        labels = judged.labels(task)
        tested = [run for run in runs if run.seed == runs[0].seed]
        patients = {patient for run in tested for patient in run.patients}
        for metric, score in SCORES[task.kind].items():
            found = estimate(score, runs, config.protocol.draws, config.protocol.split_seed)
            rows.append(
                {
                    "task": task.name,
                    "kind": task.kind,
                    "split": "test",
                    "metric": metric,
                    "mean": found.value,
                    "run_sd": None if np.isnan(found.run_sd) else found.run_sd,
                    "run_sd_over": found.over,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "n": sum(len(run.ids) for run in tested),
                    "n_patients": len(patients),
                    "n_per_class": _per_class(task, tested),
                    "n_train": labels.counts(np.concatenate([judged.fitted[0].run.train, judged.fitted[0].run.val])),
                    "runs": len(runs),
                    "run_scores": list(found.run_scores),
                    "classes": list(task.classes),
                    "protocol": config.protocol.name,
                    "protocol_hash": hash_of([config.protocol.hash, judged.seeds]),
                    "group": config.group,
                    "joint": len(judged.problem.tasks) > 1,
                    "head": config.kind,
                    "settings_hash": config.hash,
                    "model": encoder["model"],
                    "model_hash": encoder["model_hash"],
                    "mpp": encoder.get("mpp"),
                    "task_in_training": task.name in seen_tasks,
                    "patients_in_training": len(patients & seen),
                    "counts_differ": check_counts(labels, judged.fitted[0].run, config, quiet=True),
                    "resampled": "patient",
                    "seconds": sum(fitted.seconds for fitted in judged.fitted),
                    "version": __version__,
                }
            )
    return rows


def _per_class(task: SlideTask, tested: Sequence[Predicted]) -> dict[str, int]:
    """How many tested bags have each class; of survival events and censored ones."""
    labels = np.concatenate([run.labels for run in tested])
    if task.has_classes:
        return {name: int((labels == number).sum()) for number, name in enumerate(task.classes)}
    if task.kind == "survival":
        return {"event": int((labels[:, 1] == 1).sum()), "censored": int((labels[:, 1] == 0).sum())}
    return {"value": len(labels)}


def comparisons_of(judged: Sequence[Judged], against: Path, config: MilConfig) -> list[dict[str, Any]]:
    """This call minus another, on the same bags and the same resamples of patients, for every task that both have."""
    found = []
    for one in judged:
        for task in one.problem.tasks:
            other, runs = read_predictions(against, task), one.said(task, "test")
            for metric, score in SCORES[task.kind].items():
                try:
                    difference = compare(score, runs, other, config.protocol.draws, config.protocol.split_seed)
                except DataError as error:
                    raise DataError(f"task {task.name}, against {against}: {error}") from error
                found.append(
                    {
                        "task": task.name,
                        "metric": metric,
                        "protocol": config.protocol.name,
                        "head": config.kind,
                        "model": encoder_of(one.problem.bags.source)["model"],
                        "against": str(against),
                        "difference": difference.value,
                        "ci_low": difference.low,
                        "ci_high": difference.high,
                        "p": difference.p,
                        "n": sum(len(run.ids) for run in runs if run.seed == runs[0].seed),
                        "resampled": "patient",
                        "draws": config.protocol.draws,
                    }
                )
    return found
