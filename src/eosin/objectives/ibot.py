"""Masked-patch distillation (iBOT, Zhou et al. 2022): the student predicts the teacher's view of hidden patches."""

from __future__ import annotations

from torch import Tensor

from eosin.models import Scores
from eosin.objectives.cross_entropy import Targets, cross_entropy


def masked_patches(
    student: Scores, targets: Targets, patch_weight: Tensor, crops: int, temperature: float = 0.1
) -> Tensor:
    """Per masked crop the mean over its masked patches, summed over crops, divided by all global crops.

    student: scores of all P masked patches; targets: rows of their distributions [P, K]; patch_weight: [P], 1 / (number
    of masked patches in that patch's crop); crops: number of global crops, masked or not (2B). Returns a scalar, as in
    DINOv2: half the crops are masked, so the effective weight on a masked crop is one half.
    """
    return cross_entropy(student, targets, patch_weight / crops, temperature)
