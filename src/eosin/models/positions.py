"""Where a patch lies: position tables brought to other grids, and rotary positions.

Rotary positions turn queries and keys by angles that follow the place of their patch, in the axial form of DINOv3
(Siméoni et al. 2025) of rotary embeddings (Su et al. 2021). A patch has the coordinates of its centre, each axis
scaled to [-1, 1] by its own length, so that crops of any size span the same range. The d channels of a head are
d / 2 pairs, channel j with channel j + d / 2; the first half of the pairs turns with the row, the second with the
column, pair m of an axis by 2 π · coordinate / base^(4 m / d). CLS and registers are not turned.

DINOv3 was trained with a random rescaling of the coordinates. That is not here: positions draw no random numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["antialias", "offset", "plain"]


class Rotation(NamedTuple):
    """Cosines and sines of the angles of one crop size, float32 [tokens, d / 2]; CLS and registers: angle 0."""

    cos: Tensor
    sin: Tensor


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn [..., tokens, d]; computed in at least float32, returned in the dtype of `x`."""
    first, second = x.chunk(2, dim=-1)  # [..., tokens, d / 2] each
    turned = torch.cat([first * by.cos - second * by.sin, second * by.cos + first * by.sin], dim=-1)
    return turned.to(x.dtype)


@lru_cache(maxsize=128)
def rotation(size: tuple[int, int], prefix: int, head_dim: int, base: float, device: torch.device) -> Rotation:
    """The rotation of a crop of `size` = (rows, columns) patches behind `prefix` tokens that are not turned.

    head_dim: a multiple of 4.
    """
    # A cached tensor that was made in inference mode could never take part in training.
    with torch.inference_mode(False), torch.no_grad():
        centres = [(torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n * 2 - 1 for n in size]
        where = torch.cartesian_prod(*centres)  # [N, 2] in [-1, 1], row-major
        angles = (2 * math.pi * where[..., None] / rotary_periods(head_dim, base)).flatten(1)  # [N, d / 2]
        angles = torch.cat([angles.new_zeros(prefix, head_dim // 2), angles])  # [prefix + N, d / 2]
        return Rotation(angles.cos().float().to(device), angles.sin().float().to(device))


def rotary_periods(head_dim: int, base: float) -> Tensor:
    """Periods of the pairs of an axis, float64 [head_dim / 4], from 1 up to less than `base`."""
    return base ** (torch.arange(head_dim // 4, dtype=torch.float64, device="cpu") * 4 / head_dim)


def resize_positions(table: Tensor, size: tuple[int, int], rule: Interpolation) -> Tensor:
    """Bring a square position table [1, g * g, D] to `size` = (h, w) patches: [1, h * w, D].

    At its own grid it is returned as it is.

    Bicubic resampling is linear and separable, so it is two small matrix products: deterministic on every
    device, and cheap to differentiate. Runs in the table's own precision, autocast or not.
    """
    grid = round(table.shape[1] ** 0.5)
    if size == (grid, grid):
        return table
    with torch.autocast(table.device.type, enabled=False):
        dtype = torch.promote_types(table.dtype, torch.float32)
        down, across = (_resampling(grid, n, rule, dtype, table.device).to(table.dtype) for n in size)
        square = table.view(grid, grid, -1)
        rows = (down @ square.flatten(1)).view(size[0], grid, -1)  # [h, g, D]
        return (across @ rows).flatten(0, 1)[None]  # [1, h * w, D]


@lru_cache(maxsize=128)
def _resampling(grid: int, count: int, rule: Interpolation, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bicubic weights [count, grid] that take `grid` samples to `count`."""
    # A cached tensor that was made in inference mode could never take part in training.
    with torch.inference_mode(False), torch.no_grad():
        unit = torch.eye(grid, dtype=dtype, device="cpu")[None, None]
        if rule == "antialias":
            weights = F.interpolate(unit, size=(count, grid), mode="bicubic", antialias=True)
        elif rule == "plain":
            weights = F.interpolate(unit, size=(count, grid), mode="bicubic")
        else:
            weights = F.interpolate(unit, scale_factor=((count + 0.1) / grid, 1.0), mode="bicubic")
        return weights[0, 0].to(device)
