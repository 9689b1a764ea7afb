"""Rotary positions of tokens that stand anywhere on a grid without an end: regions of a slide.

Axial form of Su et al. 2021 (RoFormer): the d channels of a head are d / 2 pairs, channel j with channel j + d / 2; the
first half of the pairs turns with the row, the second with the column, pair m of an axis by row · base^(-4 m / d)
radians. Unlike `positions.rotation`, which scales a crop to [-1, 1], a step on the grid turns by the same angle on any
slide, so what attention sees of two regions is how far they lie apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.models.positions import Rotation


def grid_rotation(row: Tensor, column: Tensor, head_dim: int, base: float) -> Rotation:
    """The rotation of tokens at (row, column), integers [..., T]: float32 [..., T, head_dim / 2].

    head_dim: a multiple of 4. base: above 1; the slowest pair turns once in about 2 π · base steps.
    """
    speed = base ** (-torch.arange(head_dim // 4, dtype=torch.float64, device=row.device) * 4 / head_dim)
    angles = torch.cat([place.double()[..., None] * speed for place in (row, column)], dim=-1)  # [..., T, d / 2]
    return Rotation(angles.cos().float(), angles.sin().float())
