"""What all parts of the proof share: where things lie, what is asked for, and a toy size for machines without a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

TINY = [
    "encoder.width=32",
    "encoder.depth=2",
    "encoder.heads=2",
    "encoder.grid=4",
    "encoder.drop_path=0.2",
    "tiles.size_px=56",
    "views.global_px=56",
    "views.local_px=28",
    "views.local_count=2",
    "objective.dino_prototypes=64",
    "objective.ibot_prototypes=64",
    "objective.head_hidden=32",
    "objective.dino_bottleneck=16",
    "objective.ibot_bottleneck=16",
    "run.precision=fp32",
]
"""Recipe changes that make any recipe of patch 14 small enough for a test."""

VARIANTS = {
    "plain": [],
    "recompute": ["parallel.recompute=selective"],
    "compile": ["parallel.compile=true"],
}
"""Ways to run the same step; `compile` comes last since it may take long or fail."""


@dataclass(frozen=True)
class Settings:
    """One call of the proof."""

    data: Path | None
    """Folder with colon5_tiles, crc_cells_27px, consep_patches_train; without it those parts are left out."""
    out: Path
    start: str
    """`random` or a weights file."""
    device: str
    tiny: bool
    variants: tuple[str, ...]

    def changes(self, *more: str) -> list[str]:
        """Recipe changes, at toy size where that is asked for."""
        return [*(TINY if self.tiny else []), *more]
