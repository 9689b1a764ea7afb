"""Our side: eosin's step on given crops, masks and drop-path choices, recorded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from eosin.optim import make_schedules
from eosin.training import Recipe, pretrain
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel, spread
from eosin.training.prepare import make_optimizer

from .inputs import StepInput
from .trace import Trace, copies, gradients_of


def batch_of(given: StepInput, tiles: int, parallel: Parallel) -> list[pretrain.MicroBatch]:
    """The step's input as one micro-batch of distinct tiles."""
    return [pretrain.micro_batch(given.crops, given.masks, given.drops, np.arange(tiles), parallel)]


def run(recipe: Recipe, networks: Networks, inputs: list[StepInput], dtype: torch.dtype) -> Trace:
    """The steps of `inputs` from `networks`, which are changed."""
    precision = "fp64" if dtype == torch.float64 else "fp32"
    parallel = spread(networks, recipe, torch.device("cpu"), precision)
    optimizer = make_optimizer(recipe, networks)
    schedules = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch)
    trace = Trace(copies(networks.state_dict()))
    student = list(networks.student.named_parameters())
    clip = pretrain.clip_gradients

    def recorded(*args: Any) -> torch.Tensor:
        trace.gradients.append(gradients_of(student))
        norm = clip(*args)
        trace.clipped.append(gradients_of(student))
        return norm

    with patch.object(pretrain, "clip_gradients", recorded):
        for step, given in enumerate(inputs):
            batch = batch_of(given, recipe.run.batch, parallel)
            losses = pretrain.pretrain_step(networks, optimizer, recipe, batch, schedules.at(step), parallel)
            trace.losses.append({name: value.item() for name, value in losses.items() if name.startswith("loss")})
            trace.students.append(copies(dict(_used(networks.student, recipe))))
            trace.teachers.append(copies(dict(_used(networks.teacher, recipe))))
    trace.centers = {"dino": networks.dino_center.clone(), "ibot": networks.ibot_center.clone()}
    return trace


def _used(branch: nn.Module, recipe: Recipe) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the recipe uses: DINO v1 has no mask token."""
    for name, parameter in branch.named_parameters():
        if recipe.objective.ibot_weight > 0 or not name.endswith("mask_token"):
            yield name, parameter
