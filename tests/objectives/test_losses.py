"""Losses against sums written out by hand."""

from __future__ import annotations

import torch

from eosin.objectives.dino import cross_entropy, view_pairs
from eosin.objectives.ibot import masked_patches


def distributions(*shape: int) -> torch.Tensor:
    return torch.softmax(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_cross_entropy_equals_torch() -> None:
    student, target = torch.randn(4, 7, dtype=torch.float64), distributions(4, 7)
    expected = torch.nn.functional.cross_entropy(student / 0.1, target, reduction="none")
    assert torch.allclose(cross_entropy(student, target, 0.1), expected)


def test_view_pairs_equals_every_pair_by_itself() -> None:
    torch.manual_seed(0)
    student, target = torch.randn(3, 5, 7, dtype=torch.float64), distributions(2, 5, 7)
    every = sum(cross_entropy(s, t).mean() for s in student for t in target)
    assert torch.allclose(view_pairs(student, target), every)
    crossed = sum(cross_entropy(student[i], target[j]).mean() for i in range(3) for j in range(2) if i != j)
    assert torch.allclose(view_pairs(student, target, skip_same_view=True), crossed)


def test_masked_patches_weighs_crops_alike() -> None:
    torch.manual_seed(0)
    counts = [3, 1, 5]  # masked patches of the masked crops; 8 crops in all
    student, target = torch.randn(9, 6, dtype=torch.float64), distributions(9, 6)
    weight = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in counts])
    per_crop = [cross_entropy(s, t).mean() for s, t in zip(student.split(counts), target.split(counts), strict=True)]
    assert torch.allclose(masked_patches(student, target, weight, 8), sum(per_crop) / 8)
