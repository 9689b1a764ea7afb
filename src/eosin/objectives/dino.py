"""Self-distillation of the CLS token between crops of one tile (DINO, Caron et al. 2021; DINOv2, Oquab et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.objectives.precision import at_least_fp32


def cross_entropy(student: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """-Σ_k target · log softmax(student / temperature), per row.

    student: logits [..., K]; target: distributions [..., K] whose rows sum to 1. Returns [...].
    """
    log_student = torch.log_softmax(at_least_fp32(student) / temperature, dim=-1)
    return -(target * log_student).sum(dim=-1)


def view_pairs(student: Tensor, target: Tensor, temperature: float = 0.1, skip_same_view: bool = False) -> Tensor:
    """Sum over (student view, teacher view) pairs of the mean cross-entropy over tiles.

    student: logits [S, B, K] of S views; target: distributions [T, B, K] of T views. With `skip_same_view` pairs of
    equal view number are left out (a global crop against itself). Returns a scalar. Cross-entropy is linear in the
    target, so the T targets are summed first and each student view is read once.
    """
    log_student = torch.log_softmax(at_least_fp32(student) / temperature, dim=-1)  # [S, B, K]
    total = target.sum(dim=0)  # [B, K]
    tiles = student.shape[1]
    loss = log_student.new_zeros(())
    for view in range(student.shape[0]):
        wanted = total - target[view] if skip_same_view and view < target.shape[0] else total
        loss = loss - (wanted * log_student[view]).sum() / tiles
    return loss
