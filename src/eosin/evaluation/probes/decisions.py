"""From logits to classes and scores, for many heads at once, by our rules or by eva's.

eva 0.4.5 hands logits to torchmetrics, a batch at a time. For two classes that takes a batch whose logits all lie in
[0, 1] for probabilities and cuts it at .5 instead of 0. Its macro accuracy counts a class without samples as wrong as
soon as anything is predicted as it. Both are choices here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from eosin.errors import DataError

Cut = Literal["zero", "eva-batches"]
Monitor = Literal["balanced_accuracy", "eva_accuracy", "accuracy"]

# Logits of one class each are cut in batches of eva's loader.
_EVA_BATCH = 256


def decide(logits: Tensor, cut: Cut = "zero", batch: int = _EVA_BATCH) -> Tensor:
    """Class [..., M] int64 from logits [..., M, K]; K = 1: class 1 above the cut, else class 0.

    `cut` "eva-batches": see above, samples in order in batches of `batch`.
    """
    if logits.shape[-1] > 1:
        return logits.argmax(dim=-1)
    values = logits[..., 0]
    # float32 as torchmetrics has it: a logit of 1e-9 has probability .5 and is not above it.
    above = values.float().sigmoid() > 0.5
    if cut == "zero":
        return above.long()
    parts = [
        torch.where(((part >= 0) & (part <= 1)).all(dim=-1, keepdim=True), part > 0.5, over)
        for part, over in zip(values.split(batch, dim=-1), above.split(batch, dim=-1), strict=True)
    ]
    return torch.cat(parts, dim=-1).long()


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities float64 [..., M, max(K, 2)] from logits [..., M, K]."""
    wide = logits.double()
    if wide.shape[-1] > 1:
        return wide.softmax(dim=-1)
    return torch.cat([(-wide).sigmoid(), wide.sigmoid()], dim=-1)


class Scorer:
    """Scores of predictions for one set of labels int64 [M] in 0..classes-1.

    balanced_accuracy: mean recall of the classes that have samples, as scikit-learn. accuracy: share of right ones.
    eva_accuracy: torchmetrics' MulticlassAccuracy(average="macro"), in its float32: also a class without samples
    counts, as 0, once something is predicted as it; for two classes equal to BinaryBalancedAccuracy where both occur.
    """

    def __init__(self, labels: Tensor, classes: int, monitor: Monitor = "balanced_accuracy") -> None:
        if monitor not in ("balanced_accuracy", "eva_accuracy", "accuracy"):
            raise DataError(f"unknown score {monitor!r}: balanced_accuracy, eva_accuracy, accuracy")
        self.labels, self.monitor = labels, monitor
        self.truth = torch.nn.functional.one_hot(labels, classes).float()  # [M, C]
        # Sums of up to 2**24 ones are exact in float32, so equal predictions have equal scores.
        self.counts = self.truth.sum(dim=0)  # [C]
        self.present = self.counts > 0
        self.absent = torch.nonzero(~self.present)[:, 0].tolist()

    def __call__(self, predicted: Tensor) -> Tensor:
        """Scores float64 [...] of predictions int64 [..., M]."""
        hits = (predicted == self.labels).float()
        if self.monitor == "accuracy":
            return hits.double().mean(dim=-1)
        right = hits @ self.truth  # [..., C]
        if self.monitor == "balanced_accuracy":
            return (right.double() / self.counts.double().clamp(min=1))[..., self.present].mean(dim=-1)
        counted = self.present.float().expand(right.shape).clone()
        for label in self.absent:
            counted[..., label] = (predicted == label).any(dim=-1).float()
        recall = right / self.counts.clamp(min=1)
        return (counted * recall / counted.sum(dim=-1, keepdim=True)).sum(dim=-1).double()
