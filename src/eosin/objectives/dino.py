"""Self-distillation of the CLS token between crops of one tile (DINO, Caron et al. 2021; DINOv2, Oquab et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.models import Scores
from eosin.objectives.cross_entropy import cross_entropy


def view_losses(student: Scores, target: Tensor, temperature: float = 0.1) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over tiles of every student view against every other teacher view, over the number of pairs.

    student: of the G global and L local crops of B tiles, view-major [(G+L)·B rows]; target: distributions [G, B, K].
    Returns (global term, local term), each divided by all G·(G-1) + L·G pairs, as DINOv2 does; their sum is DINO's
    loss. A global crop is not compared with itself. Cross-entropy is linear in the target, so the teacher's views are
    summed first and each student view is read once.
    """
    g, b, _ = target.shape
    views = len(student.points) // b
    pairs = g * (g - 1) + g * (views - g)
    total = target.sum(dim=0)  # [B, K]
    weight = torch.full((len(student.points),), 1.0 / (b * pairs), device=target.device, dtype=target.dtype)

    def of_globals(first: int, last: int) -> Tensor:
        view, tile = _view_and_tile(first, last, b, target.device)
        return total[tile] - target[view, tile]

    def of_locals(first: int, last: int) -> Tensor:
        return total[_view_and_tile(first, last, b, target.device)[1]]

    crossed = cross_entropy(student.rows(0, g * b), of_globals, weight[: g * b], temperature)
    if views == g:
        return crossed, torch.zeros_like(crossed)
    return crossed, cross_entropy(student.rows(g * b, views * b), of_locals, weight[g * b :], temperature)


def _view_and_tile(first: int, last: int, tiles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    rows = torch.arange(first, last, device=device)
    return torch.div(rows, tiles, rounding_mode="floor"), rows % tiles
