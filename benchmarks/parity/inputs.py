"""What both sides get: weights, crops, masks, drop-path choices. All drawn by our code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.models import DropPath
from eosin.training import Recipe
from eosin.training.networks import Networks
from eosin.training.pretrain import draw_step


@dataclass(frozen=True)
class StepInput:
    """One step's crops ([G·B, 3, H, W], [L·B, 3, h, w], view-major), masks ([G·B, N] or None) and drop path."""

    crops: list[Tensor]
    masks: npt.NDArray[np.bool_] | None
    drops: DropPath


def step_inputs(recipe: Recipe, steps: int) -> list[StepInput]:
    """Inputs of steps 0, 1, …: normal noise in fp64 for crops, the recipe's own draws for the rest."""
    views, batch = recipe.views, recipe.run.batch
    generator = torch.Generator().manual_seed(1)
    sizes = [(views.global_count, views.global_px), (views.local_count, views.local_px)]
    inputs = []
    for step in range(steps):
        crops = [torch.randn(v * batch, 3, px, px, generator=generator, dtype=torch.float64) for v, px in sizes]
        draws = draw_step(recipe, step)
        inputs.append(StepInput(crops, draws.masks, draws.drops))
    return inputs


@torch.no_grad()
def networks_of(recipe: Recipe) -> Networks:
    """Networks in fp64 in which every parameter matters, and whose teacher is not the student: LayerScale about 1,
    learned gains about 1, everything else its start value plus normal numbers of sd .05.
    """
    networks = Networks(recipe).double()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in networks.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith("gamma"):
            parameter.copy_(1.0 + 0.3 * noise)
        elif name.endswith("weight_g"):
            parameter.copy_(1.0 + 0.1 * noise * recipe.objective.train_gain)
        elif "mask_token" not in name or recipe.objective.ibot_weight > 0:
            parameter.add_(0.05 * noise)
    return networks
