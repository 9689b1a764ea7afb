"""train_mil: features and labels -> heads, scores with intervals, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eosin import __version__
from eosin.errors import DataError
from eosin.evaluation.mil.bags import Bags, make_bags, open_features
from eosin.evaluation.mil.batches import Problem
from eosin.evaluation.mil.card import head_card
from eosin.evaluation.mil.config import MilConfig, make_config
from eosin.evaluation.mil.fit import Fitted, check_cox, fit_runs
from eosin.evaluation.mil.folder import MilFolder, read_predictions, write_predictions
from eosin.evaluation.mil.labels import read_labels
from eosin.evaluation.mil.problems import make_problems
from eosin.evaluation.mil.rows import Judged, comparisons_of, encoder_of, encoder_training, result_rows
from eosin.evaluation.mil.saved import save_heads
from eosin.evaluation.mil.splits import PROTOCOLS, Run
from eosin.features.extract import find_device
from eosin.files import PathLike, write_json
from eosin.progress import say


def train_mil(
    features: PathLike,
    labels: PathLike,
    out: PathLike,
    *,
    head: str,
    protocol: str,
    tasks: Sequence[str] | None = None,
    group: str = "slide",
    joint: bool = False,
    seeds: int | None = None,
    changes: list[str] | None = None,
    against: PathLike | None = None,
    device: str | None = None,
    fresh: bool = False,
) -> list[dict[str, Any]]:
    """Train `head` on the bags in `features` by `protocol`; returns the rows of results.json.

    features: folder of <slide>.h5, CLAM's h5_files or pt_files, or a Parquet table `slide, vector`. labels: see
    `labels.py`. tasks: columns, shipped task names or task files; all columns without. group: slide | patient (one bag
    a patient) | average (a bag a slide, a patient's slides averaged). joint: one head for all tasks. seeds: by the
    protocol without. changes: "train.lr=2e-4" … against: folder of another call, compared bag by bag. The same call
    again goes on; ResumeError for other settings, labels or features unless `fresh`. Raises EosinError, one line.
    """
    config, marks = make_config(head, protocol, group, joint, changes)
    count = seeds if seeds is not None else PROTOCOLS[protocol]
    if count < 1:
        raise DataError("--seeds must be 1 or more")
    place = find_device(device)
    table = read_labels(labels, tasks)
    bags = make_bags(open_features(features, config.train.memory_gb), table, config.group)
    problems = make_problems(bags, config, count)
    told = {task.name: task.to_dict() for problem, _ in problems for task in problem.tasks}
    _check_head(problems, config)
    if against is not None:
        for problem, _ in problems:
            for task in problem.tasks:
                read_predictions(against, task)
    folder = MilFolder(out, fresh)
    folder.claim(
        {
            "settings": config.hash,
            "labels": table.hash,
            "features": bags.checksum,
            "tasks": told,
            "config": config.model_dump(mode="json"),
            "version": __version__,
        }
    )
    warn_of_training(bags, told)
    judged = []
    for problem, runs in problems:
        fitted = _fit(folder, problem, runs, config, place)
        judged.append(Judged(problem, fitted, config, count))
    return _write(folder, judged, config, marks, against)


def _check_head(problems: Sequence[tuple[Problem, list[Run]]], config: MilConfig) -> None:
    """Refuse settings and bags that the head cannot take, before any training."""
    from eosin.models.mil import build_head

    for problem, runs in problems:
        check_cox(problem, runs, config)
        build_head(config.kind, problem.bags.width, problem.tasks, **config.head)
        if config.kind == "linear" and int(problem.bags.tiles.max()) > 1:
            raise DataError(
                "head linear reads one vector a slide (--slide-features F.parquet); for bags of tiles use mean-linear,"
                " and --group average for patients with several slides"
            )


def warn_of_training(bags: Bags, tasks: dict[str, Any]) -> None:
    """Say where the encoder has already learnt from a task or a patient that is judged here."""
    known_tasks, known_patients = encoder_training(bags.source)
    for task in tasks:
        if task in known_tasks:
            say(f"task {task} was a training task of the encoder: its score is no test")
    if seen := sorted(set(bags.table.patients) & known_patients):
        say(f"{len(seen)} patients were in the encoder's training, first {seen[0]}: scores on them are no test")


def _fit(
    folder: MilFolder, problem: Problem, runs: Sequence[Run], config: MilConfig, device: torch.device
) -> list[Fitted]:
    """All runs of a problem, kept ones read and the others trained."""
    found = {(run.seed, run.fold): folder.kept(problem, run) for run in runs}
    missing = [run for run in runs if found[run.seed, run.fold] is None]
    if done := len(runs) - len(missing):
        say(f"{problem.name}: {done} of {len(runs)} runs are finished already")

    def keep(fitted: Fitted) -> None:
        folder.keep(problem, fitted)
        found[fitted.run.seed, fitted.run.fold] = fitted

    if missing:
        fit_runs(problem, missing, config, device, keep)
    return [fitted for run in runs if (fitted := found[run.seed, run.fold]) is not None]


def _write(
    folder: MilFolder, judged: Sequence[Judged], config: MilConfig, marks: dict[str, str], against: PathLike | None
) -> list[dict[str, Any]]:
    """The files of the call; returns the rows."""
    rows = [row for one in judged for row in result_rows(one)]
    source = judged[0].problem.bags.source
    tasks, patients = encoder_training(source)
    info = {
        **encoder_of(source),
        "model": source.info.get("model"),
        "features": str(source.root),
        "kind": config.kind,
        "width": judged[0].problem.bags.width,
        "settings": config.head,
        "group": config.group,
        "joint": config.joint,
        "train": config.train.model_dump(mode="json"),
        "protocol": config.protocol.model_dump(mode="json"),
        "marks": marks,
        "settings_hash": config.hash,
        "version": __version__,
        "training": {"tasks": sorted(tasks), "patients": sorted(patients)},
        "start_licence": (source.info.get("info") or {}).get("start_licence"),
        "scores": rows,
    }
    slide_tasks = [task for one in judged for task in one.problem.tasks]
    groups = [(one.problem.name, one.problem.tasks, one.fitted) for one in judged]
    save_heads(folder.heads, groups, info, head_card(info, slide_tasks, rows))
    entries = [entry for one in judged for part in ("val", "test") for entry in one.entries(part)]
    write_predictions(folder.predictions, entries)
    curves = [
        {
            "task": one.problem.name,
            "seed": fitted.run.seed,
            "fold": fitted.run.fold,
            "best_epoch": fitted.best_epoch,
            "epochs": fitted.curve,
        }
        for one in judged
        for fitted in one.fitted
    ]
    write_json(folder.curves, curves)
    write_json(folder.results, rows)
    if against is not None:
        write_json(folder.comparisons, comparisons_of(judged, Path(against), config))
    return rows
