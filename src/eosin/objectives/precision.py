"""Losses and targets run in at least fp32, whatever autocast is on; fp64 stays fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()
