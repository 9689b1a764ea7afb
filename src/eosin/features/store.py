"""Features on disk, so that nothing is embedded twice.

One `.npy` file a (model, transform, data), written whole or not at all, opened as a memory map. The file name
is the hash of those three, so a changed model, input size or image is another file and nothing stale is ever
read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.features.encoder import Encoder
from eosin.files import PathLike, atomic_path
from eosin.provenance import hash_of

Features = npt.NDArray[np.float32]


def feature_key(encoder: Encoder, content_hash: str) -> str:
    """Name of the features that `encoder` gives for the data with `content_hash`."""
    return hash_of([encoder.model_hash, encoder.transform, content_hash])


class FeatureStore:
    """A folder of feature arrays float32 [N, D], by key."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the features of `key` lie or would lie."""
        return self.folder / f"{key}.npy"

    def get(self, key: str) -> Features | None:
        """Features of `key`, memory-mapped and read-only; None where there are none (or the file is damaged)."""
        try:
            found: Any = np.load(self.path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def get_or(self, key: str, make: Callable[[], Features]) -> Features:
        """Features of `key`, made by `make` and kept where there are none yet."""
        found = self.get(key)
        if found is not None:
            return found
        features = np.ascontiguousarray(make(), dtype=np.float32)
        with atomic_path(self.path(key)) as temporary, open(temporary, "wb") as handle:
            np.save(handle, features)
        return features
