"""evaluate: models x tasks x protocols -> rows with intervals, and differences between models on the same
samples.

Everything is checked before the first image is embedded. Features and outcomes are kept by content hash, so a
killed call goes on where it was and a repeated one is instant.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin import __version__
from eosin.errors import DataError
from eosin.evaluation.file_hashes import file_hashes
from eosin.evaluation.folds import folds_of
from eosin.evaluation.judge import Outcome, judge, reported_groups, row_of
from eosin.evaluation.protocols import Protocol, find_protocols
from eosin.evaluation.results import ResultsFolder
from eosin.evaluation.statistics import paired_difference
from eosin.evaluation.tasks import Task, open_tasks
from eosin.features import Encoder, FeatureStore, embed_images, feature_key, load_model
from eosin.features.extract import find_device
from eosin.files import PathLike
from eosin.progress import say
from eosin.provenance import hash_of

JUDGED_KINDS = ("classification",)
"""Kinds of tasks that some protocol judges."""

Outcomes = dict[tuple[str, str, str], Outcome]
"""By model, task and protocol id."""


@dataclass(frozen=True)
class Subject:
    """What is judged: an encoder, or (None) features that came with the task. `model` is its name in results."""

    model: str
    model_hash: str
    encoder: Encoder | None


def evaluate(
    model: PathLike | Encoder | None,
    tasks: Sequence[str],
    protocol: str | Sequence[str],
    out: PathLike,
    data: PathLike | None = None,
    against: Sequence[PathLike | Encoder] = (),
    *,
    baselines: bool = False,
    pooling: str | None = None,
    input_size: int | None = None,
    weights: PathLike | None = None,
    random_init: bool = False,
    features: PathLike | None = None,
    batch: int = 64,
    workers: int = 0,
    device: str | None = None,
    seed: int = 0,
    fresh: bool = False,
    any_count: bool = False,
) -> list[dict[str, Any]]:
    """Judge `model` on `tasks` by `protocol` (names, comma lists); returns the rows of results.json.

    `tasks`: "NAME=PATH", public tasks by name, or "all" of those that lie below `data`; `any_count` takes a
    public task that has not its known number of samples.

    `against`: further models, judged alike; `model` minus each is in comparisons.json. `baselines` adds two:
    random weights in the same architecture (drawn from `seed`) and colour only. `weights`, `random_init`: of
    `model`; `pooling`, `input_size`: of all. `features`: an .npz with features and labels in place of model
    and tasks. `out`: folder for results.json, comparisons.json, predictions.parquet; the same call again
    resumes, one that would drop results is refused unless `fresh`. Raises EosinError, one line, before long
    work wherever that is possible.
    """
    place = find_device(device)
    protocols = find_protocols(protocol)
    if features is not None:
        if model is not None or tasks or against or baselines:
            raise DataError("features come without a model, tasks and other models; give one or the other")
        opened = _open_tasks([f"{Path(features).stem}={features}"], None, protocols)
        subjects = [Subject("features", opened[0].content_hash(), None)]
    else:
        if model is None or not tasks:
            raise DataError("nothing to judge: give a model and tasks (a name or NAME=PATH), or features")
        opened = _open_tasks(tasks, data, protocols, model, any_count)
        pooling = pooling or pooling_of(protocols)
        subjects = _subjects(model, against, baselines, pooling, input_size, weights, random_init, seed)
    folder = ResultsFolder(out, fresh)
    folder.refuse_others({(t.name, p.id, s.model, s.model_hash) for t in opened for p in protocols for s in subjects})

    outcomes: Outcomes = {}
    with file_hashes(folder.root / "cache" / "files.json") as hashed:
        contents = {task.name: task.content_hash(hashed) for task in opened}
    for subject in subjects:
        for task in opened:
            found = _outcomes(folder, subject, task, contents[task.name], protocols, place, batch, workers)
            outcomes.update({(subject.model, task.name, name): outcome for name, outcome in found.items()})
        if subject.encoder is not None:
            subject.encoder.cpu()
    return _write(folder, subjects, opened, protocols, outcomes)


def pooling_of(protocols: Sequence[Protocol]) -> str | None:
    """The pooling that the protocols ask for, None where none does. DataError where they differ."""
    wanted = {protocol.pooling: protocol.id for protocol in protocols if protocol.pooling is not None}
    if len(wanted) > 1:
        told = " and ".join(f"{name} reads {pooling}" for pooling, name in wanted.items())
        raise DataError(f"{told}: judge by one protocol at a time, or say --pooling")
    return next(iter(wanted), None)


def _outcomes(
    folder: ResultsFolder,
    subject: Subject,
    task: Task,
    content: str,
    protocols: Sequence[Protocol],
    device: torch.device,
    batch: int,
    workers: int,
) -> dict[str, Outcome]:
    """Outcome of each protocol, by id; kept ones are read, features are made only if a probe needs them."""
    source = content if subject.encoder is None else feature_key(subject.encoder, content)
    found: dict[str, Outcome] = {}
    for protocol in protocols:
        key = hash_of([source, task.label_hash(), protocol.hash, __version__])
        outcome = folder.read_outcome(key)
        if outcome is None:
            table = task.features
            if subject.encoder is not None and task.images is not None:
                make = partial(_embed, subject, task, device, batch, workers)
                table = FeatureStore(folder.features).get_or(source, make)
            assert table is not None
            outcome = judge(task, table, protocol)
            folder.keep_outcome(key, outcome)
        found[protocol.id] = outcome
    return found


def _write(
    folder: ResultsFolder,
    subjects: Sequence[Subject],
    tasks: Sequence[Task],
    protocols: Sequence[Protocol],
    outcomes: Outcomes,
) -> list[dict[str, Any]]:
    """Write the files of the call; returns the rows."""
    entries = [(s, t, p, outcomes[s.model, t.name, p.id]) for s in subjects for t in tasks for p in protocols]
    rows = [{**row_of(t, p, outcome), **_identity(s, t)} for s, t, p, outcome in entries]
    predictions = [(s.model, t, p.id, outcome) for s, t, p, outcome in entries]
    folder.write(rows, _comparisons(subjects, tasks, protocols, outcomes), predictions)
    return rows


def _embed(subject: Subject, task: Task, device: torch.device, batch: int, workers: int) -> npt.NDArray[np.float32]:
    assert subject.encoder is not None
    assert task.images is not None
    encoder = subject.encoder.to(device)
    return embed_images(encoder, task.images, batch, workers, f"{subject.model}, {task.name}")


def _subjects(
    model: PathLike | Encoder,
    against: Sequence[PathLike | Encoder],
    baselines: bool,
    pooling: str | None,
    input_size: int | None,
    weights: PathLike | None,
    random_init: bool,
    seed: int,
) -> list[Subject]:
    """What is judged, `model` first; each under its own name."""
    options = {"pooling": pooling, "input_size": input_size}
    first = _subject(model, weights=weights, random_init=random_init, seed=seed, **options)
    subjects = [first, *(_subject(other, **options) for other in against)]
    subjects += _baselines(model, first, seed) if baselines else []
    names = [subject.model for subject in subjects]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{sorted(repeated)[0]} is given twice; a model is not compared with itself")
    return subjects


def _subject(model: PathLike | Encoder, **options: Any) -> Subject:
    if isinstance(model, Encoder):
        return Subject(model.name, model.model_hash, model)
    encoder = load_model(model, **options)
    suffix = " (random init)" if options.get("random_init") else ""
    return Subject(f"{str(model).rstrip('/')}{suffix}", encoder.model_hash, encoder)


def _baselines(model: PathLike | Encoder, first: Subject, seed: int) -> list[Subject]:
    """Random weights in the architecture of `model`, seen the same way; colour only."""
    if isinstance(model, Encoder) or first.encoder is None:
        raise DataError("baselines need a model by name or folder: its architecture is built again")
    options = {"pooling": first.encoder.pooling, "input_size": first.encoder.input_size}
    return [_subject(model, random_init=True, seed=seed, **options), _subject("colour")]


def _identity(subject: Subject, task: Task) -> dict[str, Any]:
    """The part of a row that says which model it was and whether it had seen the task before."""
    info = subject.encoder.info if subject.encoder is not None else {}
    training = info.get("training") or {}
    patients = set() if task.patient is None else set(task.patient.tolist())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "model": subject.model,
        "model_hash": subject.model_hash,
        "recipe_hash": info.get("recipe_hash"),
        "cohort_hash": info.get("cohort_hash"),
        "transform": subject.encoder.transform if subject.encoder is not None else None,
        "complete": task.complete,
        "task_in_training": task.name in (training.get("tasks") or []),
        "patients_in_training": len(patients & {str(patient) for patient in training.get("patients") or []}),
        "peak_mb": round(peak, 1),
        "version": __version__,
    }


def _comparisons(
    subjects: Sequence[Subject],
    tasks: Sequence[Task],
    protocols: Sequence[Protocol],
    outcomes: Outcomes,
) -> list[dict[str, Any]]:
    """The first subject minus each other one, on the same samples and resamples."""
    found = []
    for task in tasks:
        for protocol in protocols:
            first = outcomes[subjects[0].model, task.name, protocol.id]
            labels, groups = task.labels[first.rows], reported_groups(task, first)
            for other in subjects[1:]:
                second = outcomes[other.model, task.name, protocol.id]
                difference = paired_difference(
                    first.correct, second.correct, labels, groups, protocol.draws, protocol.seed
                )
                found.append(
                    {
                        "task": task.name,
                        "protocol": protocol.id,
                        "protocol_hash": protocol.hash,
                        "metric": protocol.metric,
                        "model": subjects[0].model,
                        "model_hash": subjects[0].model_hash,
                        "against": other.model,
                        "against_hash": other.model_hash,
                        "difference": difference.value,
                        "ci_low": difference.low,
                        "ci_high": difference.high,
                        "p": difference.p,
                        "n": len(labels),
                        "resampled": task.group_name,
                        "draws": protocol.draws,
                    }
                )
    return found


def _open_tasks(
    specs: Sequence[str],
    data: PathLike | None,
    protocols: Sequence[Protocol],
    model: PathLike | Encoder | None = None,
    any_count: bool = False,
) -> list[Task]:
    """Tasks that every protocol can judge, holding images for `model`, or features where there is none."""
    tasks = open_tasks(specs, data, any_count, JUDGED_KINDS)
    names = [task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"two tasks are called {sorted(repeated)[0]}; give each its own name")
    for task in tasks:
        if task.kind not in JUDGED_KINDS:
            raise DataError(f"task {task.name}: no protocol judges {task.kind} yet")
        if model is None and task.features is None:
            raise DataError(f"task {task.name}: {task.source} holds images; give it as --tasks with a model")
        if model is not None and task.images is None:
            raise DataError(f"task {task.name}: {task.source} holds features; use --features for it")
        for protocol in protocols:
            folds_of(task, protocol)
        if shared := task.shared_groups():
            where = f"in train and in {task.reported_split}"
            say(f"task {task.name}: {shared} {task.group_name}s are {where}: a leak")
    return tasks
