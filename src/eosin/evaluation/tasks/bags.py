"""Bags: the tile features of whole slides as samples of a task, read where they lie.

Built by the readers of eva manifests and of folders with one feature file a slide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.provenance import hash_file, hash_of

Floats = npt.NDArray[np.float32]


class BagFiles(Sequence[Floats]):
    """Tile features of slides: item i is float32 [n, D], the rows of its files one after another, n from 1.

    `read` turns a file into float32 [n, D]. Raises DataError naming a file that is damaged, empty or of another width.
    """

    def __init__(self, files: list[list[Path]], read: Callable[[Path], Floats]) -> None:
        self.files, self.read = files, read
        self.width = int(self._read(files[0][0]).shape[1])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        parts = [self._read(file) for file in self.files[index]]
        for file, part in zip(self.files[index], parts, strict=True):
            if part.shape[1] != self.width:
                raise DataError(f"{file} holds features of width {part.shape[1]}, others {self.width}")
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def content_hash(self, hashed: Callable[[Path], str] = hash_file) -> str:
        """Hash over the bytes of all files in order, and over which bag each is of."""
        return hash_of([[hashed(file) for file in own] for own in self.files])

    def _read(self, file: Path) -> Floats:
        found = self.read(file)
        if found.ndim != 2 or not found.size:
            raise DataError(f"{file} holds no tiles")
        if not np.isfinite(found).all():
            raise DataError(f"{file} holds NaN or infinite features")
        return found
