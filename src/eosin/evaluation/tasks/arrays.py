"""Task from a NumPy archive: `images` uint8 [N, H, W, 3] or `features` [N, D], and `labels` [N].

Optional keys: split, patient, slide, site [N] and class_names [C] (then integer labels index it).
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageArray
from eosin.evaluation.tasks.table import refuse_misspelt
from eosin.evaluation.tasks.task import Task, make_task
from eosin.progress import say

KEYS = ("images", "features", "labels", "class_names", "split", "patient", "slide", "site")


def read_arrays(name: str, path: Path) -> Task:
    """The task held in the `.npz` file `path`. Raises DataError naming the key that is missing or does not
    fit.
    """
    arrays = _read_npz(name, path)
    refuse_misspelt(name, path, list(arrays), KEYS)
    kinds = [key for key in ("images", "features") if key in arrays]
    if len(kinds) != 1 or "labels" not in arrays:
        wanted = "`labels` and one of `images`, `features`"
        raise DataError(f"task {name}: looked for {wanted} in {path}, found {', '.join(arrays) or 'nothing'}")
    if ignored := [key for key in arrays if key not in KEYS]:
        say(f"task {name}: arrays not used: {', '.join(ignored)}")

    samples = _samples(name, path, kinds[0], arrays[kinds[0]])
    for key in KEYS:
        if key in arrays and key not in (kinds[0], "class_names") and arrays[key].shape != (len(samples),):
            raise DataError(f"task {name}: {key} in {path} has shape {arrays[key].shape}, not ({len(samples)},)")
    labels, classes = _labels(name, path, arrays["labels"], arrays.get("class_names"))
    columns = {key: _words(arrays[key]) if key in arrays else None for key in ("split", "patient", "slide", "site")}
    ids = [str(row) for row in range(len(samples))]
    return make_task(name, path, samples, labels, ids=ids, classes=classes, **columns)


def _samples(name: str, path: Path, key: str, array: npt.NDArray[Any]) -> ImageArray | npt.NDArray[np.float32]:
    if key == "images":
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not len(array):
            raise DataError(
                f"task {name}: images in {path} must be uint8 [N, H, W, 3], found {array.dtype} {array.shape}"
            )
        return ImageArray(array)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or not array.size:
        raise DataError(f"task {name}: features in {path} must be float [N, D], found {array.dtype} {array.shape}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        features = array.astype(np.float32)
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"task {name}: features in {path} hold NaN or infinite values, first in row {row}")
    return features


def _labels(
    name: str, path: Path, labels: npt.NDArray[Any], class_names: npt.NDArray[Any] | None
) -> tuple[list[str], list[str] | None]:
    """Class name of each sample, and all class names where the file gives them."""
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise DataError(f"task {name}: label of row {row} in {path} is {labels[row]}; every sample needs a label")
    if class_names is None or labels.dtype.kind in "US":
        return _words(labels), None if class_names is None else _words(class_names)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(class_names):
        raise DataError(f"task {name}: labels in {path} must index its {len(class_names)} class_names")
    names = _words(class_names)
    return [names[int(label)] for label in labels], names


def _words(array: npt.NDArray[Any]) -> list[str]:
    return [str(value) for value in array.tolist()]


def _read_npz(name: str, path: Path) -> dict[str, npt.NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"task {name}: {path} is no .npz archive, or is cut off")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise DataError(f"task {name}: cannot read {path} as a .npz archive without pickles: {error}") from error
