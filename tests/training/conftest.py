"""A recipe small enough for tests, and tiles for it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eosin.tiles import FolderSource, TilePlan
from eosin.training import Recipe, load_recipe

TINY = [
    "encoder.width=24",
    "encoder.depth=2",
    "encoder.heads=2",
    "encoder.patch=8",
    "encoder.grid=4",
    "encoder.drop_path=0.2",
    "tiles.size_px=40",
    "tiles.mpp=[0.5]",
    "views.global_px=32",
    "views.local_px=16",
    "views.local_count=2",
    "views.blur_kernel_px=3",
    "objective.dino_prototypes=16",
    "objective.ibot_prototypes=12",
    "objective.head_hidden=16",
    "objective.dino_bottleneck=8",
    "objective.ibot_bottleneck=8",
    "run.batch=8",
    "run.group=4",
    "run.steps=6",
    "run.minutes=null",
    "run.precision=fp32",
    "run.workers=0",
    "run.log_every=1",
    "run.monitor_every=3",
    "run.monitor_tiles=16",
    "run.checkpoint_every=2",
]


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 64 px, smooth colour noise."""
    folder = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    for number in range(12):
        small = generator.integers(60, 255, (8, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC))
    return folder


@pytest.fixture
def recipe() -> Recipe:
    """`quickstart`, shrunk."""
    return load_recipe("quickstart", TINY)[0]


@pytest.fixture
def plan(recipe: Recipe, tiles_folder: Path) -> TilePlan:
    """Tiles of the folder."""
    return TilePlan([FolderSource(str(tiles_folder), 0.5, recipe.tiles)], seed=0)
