"""evaluate: models x tasks x protocols -> rows with intervals, and differences between models on the same
samples.

Everything is checked before the first image is embedded. Features and outcomes are kept by content hash, so a
killed call goes on where it was and a repeated one is instant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eosin import __version__
from eosin.errors import DataError
from eosin.evaluation.file_hashes import file_hashes
from eosin.evaluation.judge import rows_of
from eosin.evaluation.kinds import Asked, kind_of
from eosin.evaluation.outcome import Outcome
from eosin.evaluation.protocols import Protocol, find_protocols
from eosin.evaluation.results import ResultsFolder
from eosin.evaluation.selection import Pair, select, tasks_of
from eosin.evaluation.statistics import difference_of
from eosin.evaluation.subjects import Subject, identity, seen_in_training, subjects_of, told_of
from eosin.features import Encoder, FeatureStore, feature_key
from eosin.features.extract import find_device
from eosin.files import PathLike
from eosin.progress import say
from eosin.provenance import hash_of

Outcomes = dict[tuple[str, str, str], Outcome]
"""By model, task and protocol id."""


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

    `tasks`: "NAME=PATH", public tasks by name, or "all" of those that lie below `data` and that a protocol judges;
    `any_count` takes a public task that has not its known number of samples.

    `against`: further models, judged alike; `model` minus each is in comparisons.json. `baselines` adds three:
    random weights in the same architecture (drawn from `seed`), colour only, texture only. `weights`, `random_init`:
    of `model`; `pooling`, `input_size`: of all. `features`: features with labels in place of model and tasks (an .npz,
    an eva manifest, a folder of slide features with labels.csv). `out`: folder for results.json, comparisons.json,
    predictions.parquet, tasks.json; the same call again resumes, one that would drop results is refused unless
    `fresh`. Raises EosinError, one line, before long work wherever that is possible.
    """
    place = find_device(device)
    protocols = find_protocols(protocol)
    if features is not None:
        if model is not None or tasks or against or baselines:
            raise DataError("features come without a model, tasks and other models; give one or the other")
        pairs = select([f"{Path(features).stem}={features}"], None, protocols, images=False)
        subjects = [Subject("features", pairs[0].task.content_hash(), None)]
    else:
        if model is None or not tasks:
            raise DataError("nothing to judge: give a model and tasks (a name or NAME=PATH), or features")
        pairs = select(tasks, data, protocols, images=True, any_count=any_count)
        pooling = pooling or pooling_of([pair.protocol for pair in pairs])
        subjects = subjects_of(model, against, baselines, pooling, input_size, weights, random_init, seed)
    folder = ResultsFolder(out, fresh)
    folder.refuse_others({(t.name, p.id, s.model, s.model_hash) for t, p, _ in pairs for s in subjects})
    _tell_seen(subjects, pairs)

    outcomes, kept = _judged(folder, subjects, pairs, place, batch, workers)
    entries = [(s, t, p, outcomes[s.model, t.name, p.id]) for s in subjects for t, p, _ in pairs]
    rows = [
        {**row, **identity(s, t), "features_key": kept[s.model, t.name]}
        for s, t, p, outcome in entries
        for row in rows_of(t, p, outcome)
    ]
    said = [(s.model, t, p.id, outcome) for s, t, p, outcome in entries]
    folder.write(rows, _comparisons(subjects, pairs, outcomes), said, {pair.task.name: pair.opened for pair in pairs})
    return rows


def _judged(
    folder: ResultsFolder,
    subjects: Sequence[Subject],
    pairs: Sequence[Pair],
    device: torch.device,
    batch: int,
    workers: int,
) -> tuple[Outcomes, dict[tuple[str, str], str | None]]:
    """Every outcome, and by model and task the name of its features in the store, where they are one array."""
    outcomes: Outcomes = {}
    kept: dict[tuple[str, str], str | None] = {}
    store = FeatureStore(folder.features)
    with file_hashes(folder.root / "cache" / "files.json") as hashed:
        contents = {task.name: task.content_hash(hashed) for task in tasks_of(pairs)}
    for subject in subjects:
        for task, protocol, _ in pairs:
            source = contents[task.name]
            key = source if subject.encoder is None else feature_key(subject.encoder, source)
            asked = Asked(task, protocol, subject.encoder, subject.model, key, store, device, batch, workers)
            outcomes[subject.model, task.name, protocol.id] = _outcome(folder, asked)
            kept[subject.model, task.name] = key if store.path(key).is_file() else None
        if subject.encoder is not None:
            subject.encoder.cpu()
    return outcomes, kept


def pooling_of(protocols: Sequence[Protocol]) -> str | None:
    """The pooling that the protocols ask for, None where none does. DataError where they differ."""
    wanted = {protocol.pooling: protocol.id for protocol in protocols if protocol.pooling is not None}
    if len(wanted) > 1:
        told = " and ".join(f"{name} reads {pooling}" for pooling, name in wanted.items())
        raise DataError(f"{told}: judge by one protocol at a time, or say --pooling")
    return next(iter(wanted), None)


def _outcome(folder: ResultsFolder, asked: Asked) -> Outcome:
    """A kept outcome is read; features are made only where a probe needs them."""
    task, protocol = asked.task, asked.protocol
    # By name: another task may have the same samples.
    own = [protocol.settings_for(task.name), list(task.switches)]
    key = hash_of([asked.key, task.label_hash(), protocol.hash, own, __version__])
    outcome = folder.read_outcome(key)
    if outcome is None:
        kind = kind_of(task)
        outcome = kind.judge(task, kind.inputs(asked), protocol, asked.device)
        folder.keep_outcome(key, outcome)
    return outcome


def _tell_seen(subjects: Sequence[Subject], pairs: Sequence[Pair]) -> None:
    """Say which model was trained on what of which task."""
    for subject in subjects:
        for task in tasks_of(pairs):
            if told := told_of(seen_in_training(subject.encoder, task)):
                say(f"task {task.name}: {subject.model} was trained on {told}: a leak")


def _comparisons(subjects: Sequence[Subject], pairs: Sequence[Pair], outcomes: Outcomes) -> list[dict[str, Any]]:
    """The first subject minus each other one, on the same samples and resamples."""
    found = []
    for task, protocol, _ in pairs:
        first = outcomes[subjects[0].model, task.name, protocol.id]
        for other in subjects[1:]:
            second = outcomes[other.model, task.name, protocol.id]
            for ours, theirs in zip(first.measures, second.measures, strict=True):
                difference = difference_of(ours, theirs, protocol.draws, protocol.seed)
                found.append(
                    {
                        "task": task.name,
                        "protocol": protocol.id,
                        "protocol_hash": protocol.hash,
                        "metric": ours.metric,
                        "model": subjects[0].model,
                        "model_hash": subjects[0].model_hash,
                        "against": other.model,
                        "against_hash": other.model_hash,
                        "difference": difference.value,
                        "ci_low": difference.low,
                        "ci_high": difference.high,
                        "p": difference.p,
                        "n": len(first.rows),
                        "resampled": task.group_name,
                        "draws": protocol.draws,
                    }
                )
    return found
