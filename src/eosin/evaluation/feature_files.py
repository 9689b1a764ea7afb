"""Features of tasks as files for other programs: eva's manifests, or one .npz a task.

Of the same store as `eosin eval`, so that what a results folder keeps is not computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from eosin.errors import DataError, OutputError
from eosin.evaluation.eva_export import eva_task
from eosin.evaluation.file_hashes import file_hashes
from eosin.evaluation.kinds.kind import Asked
from eosin.evaluation.kinds.slide_bags import bags_of_slides
from eosin.evaluation.protocols import find_protocols
from eosin.evaluation.tasks import Task, open_tasks
from eosin.evaluation.tasks.manifest import TEST_IS_VAL
from eosin.features import Encoder, FeatureStore, feature_key, kept_embeddings, load_model
from eosin.features.extract import find_device
from eosin.features.manifest import MANIFEST, write_manifest
from eosin.files import PathLike, atomic_path, check_writable

Format = Literal["eva", "npz"]
FORMATS: tuple[Format, ...] = get_args(Format)
_KINDS = ("classification", "robustness", "slide")


def write_features(
    model: PathLike | Encoder,
    tasks: Sequence[str],
    out: PathLike,
    data: PathLike | None = None,
    *,
    form: str = "eva",
    results: PathLike | None = None,
    pooling: str | None = None,
    input_size: int | None = None,
    weights: PathLike | None = None,
    random_init: bool = False,
    batch: int = 64,
    workers: int = 0,
    device: str | None = None,
    seed: int = 0,
    any_count: bool = False,
) -> list[Path]:
    """Write the features that `model` gives for `tasks` into the folder `out`; returns the files.

    `form`: "eva", OUT/TASK/manifest.csv with a `.pt` a sample, under eva's names, or "npz", OUT/TASK.npz. `results`: a
    folder of `eosin eval` whose features are used and added to; without it they are kept in OUT/cache. The other words
    are those of `evaluate`. A killed call goes on. Raises EosinError, one line: a task without classes, a file that is
    there already.
    """
    if form not in FORMATS:
        raise DataError(f"features are written as {' or '.join(FORMATS)}, not {form!r}")
    opened = open_tasks(tasks, data, any_count, _KINDS)
    if not opened:
        raise DataError("no tasks given: a public name or NAME=PATH")
    root = check_writable(out)
    targets = {task.name: _target(task, root, form) for task in opened}
    encoder = (
        model
        if isinstance(model, Encoder)
        else load_model(
            model, pooling=pooling, input_size=input_size, weights=weights, random_init=random_init, seed=seed
        )
    )
    place, kept = find_device(device), (root if results is None else Path(results)) / "cache"
    store = FeatureStore(kept / "features")
    with file_hashes(kept / "files.json") as hashed:
        for task in opened:
            key = feature_key(encoder, task.content_hash(hashed))
            asked = Asked(task, find_protocols("knn")[0], encoder, encoder.name, key, store, place, batch, workers)
            _write(task, _features(asked), targets[task.name])
    return list(targets.values())


def _target(task: Task, root: Path, form: str) -> Path:
    """The file that a task goes into. Raises where it cannot be written, or the task does not fit."""
    if task.kind not in _KINDS:
        raise DataError(f"task {task.name}: features of {task.kind} tasks have no class each, and are not written")
    if task.has_features:
        raise DataError(f"task {task.name}: {task.source} holds features already")
    if form == "npz" and task.slides is not None:
        raise DataError(f"task {task.name}: a bag of tiles a slide has no place in .npz; write it as eva")
    target = root / eva_task(task.name) / MANIFEST if form == "eva" else root / f"{task.name}.npz"
    if target.exists():
        raise OutputError(f"{target} is there already; give another -o")
    return target


def _features(asked: Asked) -> Any:
    """float32 [N, D] of images, or bags [n, D] of slides."""
    task, encoder = asked.task, asked.encoder
    assert encoder is not None
    if task.slides is not None:
        return bags_of_slides(asked, task.slides)
    assert task.images is not None
    words = {"device": asked.device, "batch": asked.batch, "workers": asked.workers, "title": task.name}
    return kept_embeddings(asked.store, asked.key, encoder, task.images, **words)  # type: ignore[arg-type]


def _write(task: Task, features: Any, target: Path) -> None:
    split = None if task.split is None else task.split.tolist()
    columns = {key: getattr(task, key) for key in ("patient", "slide", "site")}
    columns = {key: values for key, values in columns.items() if values is not None}
    if target.name != MANIFEST:
        arrays = {"features": np.asarray(features), "labels": task.labels, "class_names": np.array(task.classes)}
        arrays |= columns | ({} if task.split is None else {"split": task.split})
        with atomic_path(target) as temporary, open(temporary, "wb") as handle:
            np.savez(handle, allow_pickle=False, **arrays)
        return
    if split is not None and task.name in TEST_IS_VAL:
        split = ["val" if word == "test" else word for word in split]
    more = {key: values.tolist() for key, values in columns.items() if key != "slide" or task.slides is None}
    if task.slides is not None:
        more = {"wsi_id": task.ids.tolist(), **more}
    write_manifest(target.parent, features, task.labels.tolist(), split, origin=task.ids.tolist(), more=more)
