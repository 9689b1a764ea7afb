"""Gradients of all processes added up, once, at the end of a step.

Processes may have had any number of slides, chunks and backward passes, none at all included: nothing waits for anybody
before this point, so uneven shares cannot hang.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from eosin.distributed import World


@torch.no_grad()
def reduce_gradients(parameters: Iterable[nn.Parameter], world: World | None = None) -> None:
    """Replace each gradient by its sum over processes, in one collective for each precision.

    parameters: the same list on every process; those that are not trained are left out. A weight to which no process
    has a gradient keeps none.
    """
    world = world or World.here()
    if world.size == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        some = [parameter for parameter in trained if parameter.dtype == dtype]
        has = torch.tensor([float(parameter.grad is not None) for parameter in some], dtype=dtype)
        parts = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in some]
        flat = world.sum_(torch.cat([has.to(some[0].device), *parts]))
        known = flat[: len(some)].cpu() > 0
        for parameter, total, any_has in zip(
            some, flat[len(some) :].split([p.numel() for p in some]), known.tolist(), strict=True
        ):
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))
            elif any_has:
                parameter.grad = total.view_as(parameter).clone()
