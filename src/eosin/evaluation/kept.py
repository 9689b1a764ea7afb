"""What an evaluation left behind, opened again: its tasks and the features of its models, for pages that show them.

tasks.json beside results.json has the words that open each task, cache/features the features by key.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.tasks import Task, open_task
from eosin.features import FeatureStore


def kept_task(folder: Path, name: str) -> Task:
    """The task `name` of the results in `folder`, opened as it was. Raises DataError where it cannot be."""
    return _opened(folder, name, (folder / "tasks.json").stat().st_mtime if (folder / "tasks.json").is_file() else 0.0)


def kept_features(folder: Path, row: dict[str, Any], count: int) -> npt.NDArray[np.float32] | None:
    """Features float32 [N, D] of a row of results, in task order; None where they are not kept, or not of `count`
    samples.
    """
    key = row.get("features_key")
    found = FeatureStore(folder / "cache" / "features").get(key) if isinstance(key, str) and key else None
    return found if found is not None and found.ndim == 2 and len(found) == count else None


@lru_cache(maxsize=32)
def _opened(folder: Path, name: str, written: float) -> Task:
    try:
        told = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))[name]
        spec, data, any_count = str(told["spec"]), told.get("data"), bool(told.get("any_count"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} does not say how to open task {name}") from error
    return open_task(spec, data, any_count)
