"""What is watched, against plain loops; the same numbers from one process and from two."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eosin.features import label_free
from eosin.runs import RunFolder
from eosin.tiles import TilePlan
from eosin.training import Recipe, load_recipe
from eosin.training.monitor import Monitor, Use, keep_sample, watched_tiles
from eosin.training.networks import Networks
from eosin.training.probes import open_probes

from .conftest import TINY
from .watched_by_two import look


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """Eleven labelled images of two classes."""
    generator = np.random.default_rng(1)
    for number in range(11):
        folder = tmp_path / "probe" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        low = 120 * (number % 2)
        cv2.imwrite(str(folder / f"{number}.png"), generator.integers(low, low + 130, (40, 40, 3), dtype=np.uint8))
    return tmp_path / "probe"


def teacher_apart(recipe: Recipe) -> Networks:
    """Networks whose teacher is not the student's start."""
    networks = Networks(recipe)
    with torch.no_grad():
        for parameter in networks.teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return networks


def plain_use(logits: list[torch.Tensor], temperature: float) -> tuple[float, float]:
    """Mean entropy and share of prototypes in use, token by token and prototype by prototype."""
    entropies, first = [], set()
    for row in logits:
        scaled = [float(x) / temperature for x in row]
        top = max(scaled)
        weights = [math.exp(x - top) for x in scaled]
        p = [w / sum(weights) for w in weights]
        entropies.append(-sum(x * math.log(x) for x in p if x > 0))
        first.add(scaled.index(top))
    return sum(entropies) / len(entropies), len(first) / min(len(logits), len(logits[0]))


@pytest.mark.parametrize("shared", [False, True])
def test_numbers_are_those_of_a_plain_loop(recipe: Recipe, shared: bool) -> None:
    if shared:
        recipe = load_recipe("quickstart", [*TINY, "objective.shared_head=true", "objective.ibot_prototypes=16"])[0]
    networks = teacher_apart(recipe)
    tiles = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)  # more than one batch
    found = Monitor(recipe, tiles).measure(networks, 0.05)
    teacher = networks.teacher
    cls, dino, ibot = [], [], []
    with torch.no_grad():
        for number, tile in enumerate(tiles):
            image = (torch.from_numpy(tile).permute(2, 0, 1) / 255 - 0.5) / 0.5
            tokens = teacher.encoder([image[None]])[0]
            cls.append(tokens.cls[0])
            dino.append(teacher.dino(tokens.cls).logits()[0])
            head = teacher.dino if shared else teacher.ibot
            ibot.append(head(tokens.patches[:, number % tokens.patches.shape[1]]).logits()[0])
    z = torch.stack(cls)
    assert found.keys() == {
        *("rankme", "odcorr", "uniformity", "teacher_entropy", "prototypes_used"),
        *("teacher_entropy/ibot", "prototypes_used/ibot"),
    }
    for name in ("rankme", "odcorr", "uniformity"):
        assert found[name] == pytest.approx(getattr(label_free, name)(z), rel=1e-4)
    for logits, part in ((dino, ""), (ibot, "/ibot")):
        entropy, share = plain_use(logits, 0.05)
        assert found[f"teacher_entropy{part}"] == pytest.approx(entropy, rel=1e-4)
        assert found[f"prototypes_used{part}"] == pytest.approx(share)
    assert 0 < found["teacher_entropy"] < math.log(16)


def test_a_recipe_without_masked_patches_has_one_head(recipe: Recipe) -> None:
    recipe = load_recipe("quickstart", [*TINY, "objective.ibot_weight=0"])[0]
    tiles = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    found = Monitor(recipe, tiles).measure(Networks(recipe), 0.05)
    assert not any(name.endswith("/ibot") for name in found)
    assert found["prototypes_used"] == 1 / 4  # equal tiles, one prototype


def test_shares_are_of_what_could_be_used() -> None:
    few, many = torch.arange(3), torch.tensor([0, 1, 1, 0, 1])
    assert Use(torch.zeros(3), few, 100).share == 1.0
    assert Use(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), many, 4).share == 0.5
    assert Use(torch.tensor([1.0, 2.0]), few, 4).mean_entropy == 1.5


def test_two_processes_measure_what_one_does(probe: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    look(str(probe), one, [*TINY, "run.group=1"])
    script = Path(__file__).with_name("watched_by_two.py")
    words = [sys.executable, str(script), str(probe), str(two)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, together = (json.loads((out / "numbers.json").read_text()) for out in (one, two))
    assert alone.keys() == together.keys()
    assert {"knn", "knn_low", "knn_high", "logreg"} <= alone.keys()
    for name, value in alone.items():
        assert together[name] == pytest.approx(value, rel=1e-5), name
    with np.load(one / "pictures/attention_first.npz") as a, np.load(two / "pictures/attention_first.npz") as b:
        assert np.abs(a["maps"].astype(int) - b["maps"]).max() <= 1
        assert a["maps"].shape == (8, 3, 4, 4)


def test_several_probes_have_their_names(recipe: Recipe, probe: Path) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    probes = open_probes([f"{name}={probe}" for name in ("x", "y")], None, "knn", 200)
    found = Monitor(recipe, tiles, probes).measure(Networks(recipe), 0.05)
    assert found["knn/x"] == found["knn/y"]
    assert 0 <= found["knn/x"] <= 1


def test_watched_tiles_are_the_same_for_every_run_of_a_plan(recipe: Recipe, plan: TilePlan, tmp_path: Path) -> None:
    first, again = watched_tiles(plan, recipe), watched_tiles(plan, recipe)
    assert np.array_equal(first.pixels, again.pixels)
    assert len(first.pixels) == 16
    run = RunFolder(tmp_path)
    keep_sample(first, recipe, run)
    with np.load(run.pictures / "sample.npz") as sample:
        assert np.array_equal(sample["tiles"], first.pixels)
        assert sample["globals"].shape == (8, 2, 32, 32, 3)
        assert sample["locals"].shape == (8, 2, 16, 16, 3)
