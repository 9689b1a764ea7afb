"""A small run folder with every part, made as a training run writes it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eosin.marks import write_marked
from eosin.runs import ATTENTION, RunFolder, append_line
from eosin.tiles.acceptance import Acceptance, keep_acceptance

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """12 tiles of 64 px from 3 slides, one with a hostile name; 6 logged steps, a checkpoint, an alarm, counts."""
    folder = RunFolder(tmp_path / "run")
    folder.pictures.mkdir(parents=True)
    folder.checkpoint(50).mkdir(parents=True)
    values = np.random.default_rng(0)
    np.savez_compressed(
        folder.pictures / "sample.npz",
        tiles=values.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8),
        slide=np.array([EVIL, "slide-b", "slide-c"] * 4),
        mpp=np.array([0.5, 1.0, 2.0] * 4),
        globals=values.integers(0, 256, (4, 2, 32, 32, 3), dtype=np.uint8),
        locals=values.integers(0, 256, (4, 8, 16, 16, 3), dtype=np.uint8),
    )
    for step in range(0, 60, 10):
        row = {
            "step": step,
            "tiles": step * 8,
            "seconds": step / 2,
            "loss": 9.0 - step / 20,
            "loss/ibot": 3.0,
        }
        append_line(folder.metrics, {**row, "lr": 1e-4, "img_s": 16.0})
    for name, step in zip(ATTENTION, (0, 50), strict=True):
        maps = values.integers(0, 256, (4, 4, 4, 4), dtype=np.uint8)
        np.savez_compressed(folder.pictures / f"{name}.npz", step=step, maps=maps)
    text = f"RankMe 3 is below 25% of the run's best {EVIL}"
    append_line(folder.alarms, {"step": 50, "alarm": "collapse", "action": "warn", "text": text})
    append_line(folder.metrics, {"step": 50, "rankme": 31.5, "odcorr": 0.2, "uniformity": -2.5, "knn": 0.625})
    counts = Counter({("slide-b", 0.5, "taken"): 9, ("slide-b", 0.5, "hsv"): 3, (EVIL, 2.0, "place"): 4})
    keep_acceptance(folder.acceptance, 50, Acceptance(0, counts))
    recipe = {
        "name": "tiny",
        "description": f"for tests {EVIL}",
        "encoder": {"width": 48, "depth": 1, "heads": 3, "patch": 16},
        "run": {"batch": 8, "steps": 100, "minutes": None},
    }
    marks = {"encoder.width": "A", "encoder.depth": "O", "run.batch": "U", "run.steps": "R"}
    write_marked(folder.recipe, recipe, marks)
    identity = {"recipe_hash": "1111aaaa", "cohort_hash": "2222bbbb", "versions": {"torch": "9.9"}, "seed": 7}
    folder.identity.write_text(json.dumps(identity))
    return folder
