"""What a run does in a step, and with what: the part of a run that is not the same for all methods.

The loop, resuming, signals, alarms, metrics and checkpoints are the same for all; they ask a `Method`. The first one is
pre-training on tiles; `curriculum/` is another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eosin.optim import Schedules, make_schedules, parameter_groups
from eosin.tiles import TileBatch
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel, check_split, spread
from eosin.training.pretrain import draw_step, micro_batches, pretrain_step
from eosin.training.recipe import Recipe
from eosin.training.start import start_networks

if TYPE_CHECKING:
    from eosin.training.prepare import Run

Stopping = Callable[[], bool]
"""Whether this process was asked to stop."""


class Method:
    """Pre-training on tiles: DINO, DINOv2, Midnight (`pretrain.py`)."""

    def check(self, recipe: Recipe, processes: int) -> None:
        """Raises RecipeError where the recipe cannot be spread over so many processes."""
        check_split(recipe, processes)

    def identity(self, recipe: Recipe) -> dict[str, Any]:
        """What a run is beside recipe and tiles: `labels_hash`, if there is one, must be the same on resume."""
        return {}

    def steps(self, recipe: Recipe) -> int:
        """Optimiser steps, where `run.minutes` does not shorten them."""
        return recipe.run.steps

    def networks(self, recipe: Recipe) -> Networks:
        """Student and teacher with random weights."""
        return Networks(recipe)

    def start(self, networks: Networks, recipe: Recipe) -> str:
        """Put the weights that the recipe starts from into them; returns a line about it."""
        return start_networks(networks, recipe.start)

    def spread(self, networks: Networks, recipe: Recipe, device: torch.device, precision: str) -> Parallel:
        """Move them to `device` and spread them over the processes."""
        return spread(networks, recipe, device, precision)

    def optimizer(self, recipe: Recipe, networks: Networks) -> torch.optim.Optimizer:
        """AdamW over the student's parameter groups, after the networks are spread."""
        return make_optimizer(recipe, networks)

    def schedules(self, recipe: Recipe, steps: int) -> Schedules:
        """One row a step."""
        return make_schedules(recipe.optim, steps, recipe.run.batch)

    def begin(self, run: Run) -> None:
        """Before the first step of this start."""

    def end(self, run: Run) -> None:
        """After the last checkpoint of a run that is complete is written."""

    def step(self, run: Run, tiles: TileBatch, values: dict[str, float], stopping: Stopping) -> dict[str, Tensor]:
        """One optimiser step; raises StoppedWithinStep, in all processes alike, where it stops in the middle.

        values: the row of the schedules. Returns 0-d tensors whose mean over the processes is told, `loss` and
        `grad_norm` among them.
        """
        batch = micro_batches(run.recipe, tiles, draw_step(run.recipe, run.step), run.parallel)
        return pretrain_step(run.networks, run.optimizer, run.recipe, batch, values, run.parallel)

    def saves(self, run: Run) -> bool:
        """Whether a checkpoint is due after `run.step` steps, beside those of `run.checkpoint_every`."""
        return False

    def turns(self, run: Run) -> bool:
        """Whether the next step is of another kind, so that means over steps must not be taken across."""
        return False

    def look(self, run: Run, stopping: Stopping) -> dict[str, float]:
        """Numbers of its own after `run.step` steps, in the first process; none where nothing is due."""
        return {}


def make_optimizer(recipe: Recipe, networks: Networks) -> torch.optim.Optimizer:
    """AdamW for pre-training on tiles."""
    groups = parameter_groups(
        networks.student.encoder,
        networks.student.heads,
        recipe.encoder.depth,
        recipe.optim.layer_decay,
        recipe.optim.patch_embed_factor,
    )
    return torch.optim.AdamW(
        groups, lr=recipe.optim.base_lr, betas=recipe.optim.betas, eps=recipe.optim.eps, fused=True
    )


class StoppedWithinStep(Exception):
    """A step that was asked to stop has saved what it had, and left the weights as they were before it."""
