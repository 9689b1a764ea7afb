"""Whole slides as samples of a task: which files, and how a task reads tiles from them.

Only says which and how; `eosin embed` and the MIL probes read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eosin.provenance import file_identity, hash_file, hash_of


@dataclass(frozen=True)
class SlideFiles(Sequence[Path]):
    """Slide files; a bag is up to `tiles` tissue tiles of `size_px` at `mpp` µm/px."""

    paths: list[Path]
    mpp: float
    tiles: int
    size_px: int = 224

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.paths[index]

    def content_hash(self, hashed: Callable[[Path], str] = hash_file) -> str:
        """Hash over name, size and modification time of each file and over how tiles are read: slides
        are too large to be read for a hash.
        """
        return hash_of([[file_identity(path) for path in self.paths], self.mpp, self.tiles, self.size_px])
