"""Losses of every recipe family at tiny size, as they were when its step was shown equal to Meta's code.

fp64, on crops and start weights made of `Words`, so that neither a decoder nor a resampling kernel plays a part, nor
torch's own draws, which differ between its versions. After a wanted change: `python tests/training/test_golden.py`
writes golden.json anew; say in the commit why.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.optim import make_schedules
from eosin.randomness import Words
from eosin.training import load_recipe
from eosin.training.networks import Networks
from eosin.training.parallel import spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import draw_step, micro_batch, pretrain_step

GOLDEN = Path(__file__).with_name("golden.json")
FAMILIES = [
    *("kaiko-vits16", "kaiko-vits8", "kaiko-vitl14", "midnight-12k", "midnight-92k", "midnight-392"),
    *("midnight-8gpu", "midnight-1gpu", "vits14-1h", "quickstart"),
]
STEPS = 4


def shrunk(name: str) -> list[str]:
    """Small sizes; what a recipe is about (objective, targets, drop path, schedules, factors) stays its own."""
    patch = load_recipe(name)[0].encoder.patch
    return [
        *("encoder.width=24", "encoder.depth=3", "encoder.heads=2", f"encoder.grid={32 // 4}"),
        *(f"views.global_px={4 * patch}", f"views.local_px={2 * patch}", "views.local_count=3"),
        *("objective.dino_prototypes=24", "objective.ibot_prototypes=20", "objective.head_hidden=16"),
        *("objective.dino_bottleneck=8", "objective.ibot_bottleneck=6"),
        *("run.batch=8", "run.group=4", "run.steps=40", "run.precision=fp64"),
        "parallel.accumulate=1",
        *("optim.warmup_steps=2", "optim.teacher_temperature_steps=10", "optim.freeze_last_layer_steps=1"),
    ]


def start(networks: Networks) -> None:
    """Start weights that are the same under any torch: what is drawn becomes N(0, 0.1²), what is constant (biases,
    norms, LayerScale) is moved by as much. The teacher starts as the student.
    """
    with torch.no_grad():
        for name, parameter in networks.student.named_parameters():
            if parameter.requires_grad:  # gains that a recipe fixes stay 1
                first = parameter.flatten()[0]
                middle = float(first) if bool((parameter == first).all()) else 0.0
                parameter.copy_(torch.from_numpy(middle + 0.1 * Words(0, "start", name).normal(*parameter.shape)))
    networks.teacher.load_state_dict(networks.student.state_dict())


def losses_of(name: str) -> list[dict[str, float]]:
    """Loss terms and gradient norm of the first steps."""
    recipe, _ = load_recipe(name, shrunk(name))
    networks = Networks(recipe)
    parallel = spread(networks, recipe, torch.device("cpu"), "fp64")
    start(networks)
    optimizer = make_optimizer(recipe, networks)
    schedules = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch)
    views, b, rows = recipe.views, recipe.run.batch, []
    for step in range(STEPS):
        draws = draw_step(recipe, step)
        sizes = [(views.global_count, views.global_px), (views.local_count, views.local_px)]
        crops = [torch.from_numpy(Words(step, "crops", px).normal(count * b, 3, px, px)) for count, px in sizes]
        batch = [micro_batch(crops, draws.masks, draws.drops, np.arange(b, dtype=np.int64), parallel)]
        values = {**schedules.at(step), "lr": 1e-3, "encoder_lr": 1e-3}
        losses = pretrain_step(networks, optimizer, recipe, batch, values, parallel)
        rows.append({key: float(value) for key, value in losses.items()})
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_those_of_the_golden_run(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())[name]
    for row, expected in zip(losses_of(name), golden, strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=1e-7, abs=1e-10), key


def test_families_differ_where_their_papers_do() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert "loss/ibot" not in golden["kaiko-vits16"][0]
    assert "loss/uniformity" not in golden["kaiko-vits16"][0]
    assert golden["kaiko-vitl14"][0]["loss/uniformity"] != golden["midnight-12k"][0]["loss/uniformity"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: losses_of(name) for name in FAMILIES}, indent=1) + "\n")
    sys.exit(0)
