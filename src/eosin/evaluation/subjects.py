"""Who is judged: encoders by their words, baselines beside them, or features that somebody computed already.

Also what a row of results.json says of a model: hashes, how it saw the pixels, and what of a task it had seen before.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eosin import __version__
from eosin.errors import DataError
from eosin.evaluation.tasks import Task
from eosin.features import Encoder, load_model
from eosin.features.baselines import BASELINES
from eosin.files import PathLike


@dataclass(frozen=True)
class Subject:
    """What is judged: an encoder, or (None) features that came with the task. `model` is its name in results."""

    model: str
    model_hash: str
    encoder: Encoder | None


def subjects_of(
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
    """Random weights in the architecture of `model`, seen the same way; colour only; texture only."""
    if isinstance(model, Encoder) or first.encoder is None:
        raise DataError("baselines need a model by name or folder: its architecture is built again")
    options = {"pooling": first.encoder.pooling, "input_size": first.encoder.input_size}
    return [_subject(model, random_init=True, seed=seed, **options), *(_subject(word) for word in BASELINES)]


def seen_in_training(encoder: Encoder | None, task: Task) -> dict[str, Any]:
    """What of `task` the encoder was trained on, as its export says: the task itself, patients, slides."""
    training = (encoder.info.get("training") if encoder is not None else None) or {}
    found: dict[str, Any] = {"task_in_training": task.name in (training.get("tasks") or [])}
    for column, ids in (("patients", task.patient), ("slides", task.slide)):
        mine = set() if ids is None else set(ids.tolist())
        found[f"{column}_in_training"] = len(mine & {str(name) for name in training.get(column) or []})
    return found


def told_of(seen: dict[str, Any]) -> str:
    """What `seen_in_training` found, in words; "" where it found nothing."""
    found = ["the labels of this task"] if seen["task_in_training"] else []
    for column in ("patients", "slides"):
        if count := seen[f"{column}_in_training"]:
            found.append(f"{count} of its {column}")
    return " and ".join(found)


def identity(subject: Subject, task: Task) -> dict[str, Any]:
    """The part of a row that says which model it was and whether it had seen the task before."""
    info = subject.encoder.info if subject.encoder is not None else {}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "model": subject.model,
        "model_hash": subject.model_hash,
        "recipe_hash": info.get("recipe_hash"),
        "cohort_hash": info.get("cohort_hash"),
        "transform": subject.encoder.transform if subject.encoder is not None else None,
        "complete": task.complete,
        **seen_in_training(subject.encoder, task),
        "peak_mb": round(peak, 1),
        "version": __version__,
    }
