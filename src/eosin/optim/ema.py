"""The teacher: an exponential moving average of the student (Tarvainen & Valpola 2017; DINO, Caron et al. 2021)."""

from __future__ import annotations

import torch
from torch import nn

from eosin.distributed import local_part


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, for all parameters in one fused call.

    Both modules have the same parameters in the same order, spread over processes alike (FSDP) or not at all;
    momentum in [0, 1].
    """
    theirs, ours = ([local_part(p) for p in branch.parameters()] for branch in (teacher, student))
    if theirs:
        torch._foreach_lerp_(theirs, ours, 1.0 - momentum)
