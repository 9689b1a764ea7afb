"""CLAM's instance loss: the most attended tiles of a bag are to look like its class, the least attended not.

Lu et al. 2021, "Data-efficient and weakly supervised computational pathology on whole-slide images"; the smooth
top-1 SVM is from Berrada, Zisserman and Kumar 2018, "Smooth loss functions for deep top-k classification", eq. 6.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from eosin.models.mil.settings import ClamSettings

RowLoss = Callable[[Tensor, int], Tensor]
"""(scores [..., C], label) -> loss [...]."""


def smooth_top1_svm(scores: Tensor, label: int | Tensor, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """τ · log Σ_j exp((s_j + α · [j ≠ y]) / τ) - s_y, with margin α and temperature τ: an upper bound of top-1 error.

    scores [..., C]; label: one for all rows, or int64 [...]. Returns [...]. Margin 0, temperature 1 is cross-entropy.
    """
    classes = torch.arange(scores.shape[-1], device=scores.device)
    right = classes == (label[..., None] if isinstance(label, Tensor) else label)
    raised = (scores + margin * ~right) / temperature
    return temperature * torch.logsumexp(raised, dim=-1) - (scores * right).sum(dim=-1)


def row_loss(settings: ClamSettings) -> RowLoss:
    """The loss of one tile that the settings name."""
    if settings.instance_loss == "ce":
        return partial(smooth_top1_svm, margin=0.0, temperature=1.0)
    return partial(smooth_top1_svm, margin=settings.svm_margin, temperature=settings.svm_temperature)


def most_and_least(attention: Tensor, present: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the k most and least attended tiles of each bag.

    attention [B, C, N], softmaxed; present [B, N]. Returns two of int64 [B, C, K] with K = min(k, N), and which of
    the K places are used, bool [B, 1, K]: a bag of fewer than K tiles uses as many places as it has tiles.
    """
    places = min(k, attention.shape[-1])
    absent = ~present[:, None]
    most = attention.masked_fill(absent, -torch.inf).topk(places).indices
    least = (-attention).masked_fill(absent, -torch.inf).topk(places).indices
    used = torch.arange(places, device=present.device) < present.sum(dim=1)[:, None, None]
    return most, least, used


def instance_loss(
    hidden: Tensor,
    attention: Tensor,
    present: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    settings: ClamSettings,
) -> Tensor:
    """The instance loss of each bag for one task of C classes: [B], 0 where the label is missing (-1).

    hidden [B, N, W]; attention [B, C, N], or [B, 1, N] where the classes share it; weight [C, 2, W] and bias [C, 2]
    are the instance classifiers. In the bag's class, the k most attended tiles are positives and the k least attended
    negatives (k at most the bag's tiles), averaged. With `subtyping`, each other class adds its k most attended tiles
    as negatives, and the sum is divided by C.
    """
    loss, classes = row_loss(settings), len(weight)
    most, least, used = most_and_least(attention, present, settings.k)
    most_scores = instance_scores(hidden, most, weight, bias)  # [B, C, K, 2]
    least_scores = instance_scores(hidden, least, weight, bias)
    count = used.sum(dim=-1)  # [B, 1]
    inside = ((loss(most_scores, 1) + loss(least_scores, 0)) * used).sum(dim=-1) / (2 * count)  # [B, C]
    is_class = labels[:, None] == torch.arange(classes, device=labels.device)  # [B, C], none where missing
    if not settings.subtyping:
        return (inside * is_class).sum(dim=-1)
    outside = (loss(most_scores, 0) * used).sum(dim=-1) / count
    return torch.where(is_class, inside, outside).mean(dim=-1) * (labels >= 0)


def instance_scores(hidden: Tensor, tiles: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scores (not of the class, of the class) of chosen tiles.

    hidden [B, N, W]; tiles, their numbers, [B, C or 1, K]; weight [C, 2, W]; bias [C, 2]. Returns [B, C, K, 2].
    """
    numbers = tiles.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
    chosen = hidden.gather(1, numbers).unflatten(1, tiles.shape[1:])  # [B, C or 1, K, W]
    return chosen @ weight.transpose(1, 2) + bias[:, None]
