"""Dice: the loss that decoders learn by, and the scores that they are judged by.

Dice of a class is 2 |A and B| / (|A| + |B|) for predicted pixels A and true ones B (Dice 1945; as a loss on
probabilities: Milletari et al., 3DV 2016). How it is averaged is half of its meaning, so each way has a name here.
Pixels of the class IGNORE count nowhere, unless eva's ways are asked for.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.evaluation.tasks.masks import IGNORE

Ignored = Literal["out", "eva"]
"""What pixels of the class IGNORE do. out: nothing. eva: in the loss they have equal logits and are true background;
in scores what is predicted there is wrong.
"""
SegmentationLoss = Literal["dice", "dice+ce"]

_SMOOTH = 1e-5

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.uint8]


def segmentation_loss(
    logits: Tensor, masks: Tensor, loss: SegmentationLoss = "dice", ignored: Ignored = "out"
) -> Tensor:
    """Loss [G] of each head: 1 - Dice of the softmax, sums over the whole batch, mean over all classes, the background
    among them; with `ce` the mean cross-entropy is added.

    logits [B, G, C, H, W]; masks uint8 [B, H, W], or [B, G, H, W] where heads have their own pictures.
    """
    known = (masks != IGNORE) if masks.ndim == 4 else (masks != IGNORE).unsqueeze(1)  # [B, 1 or G, H, W]
    labels = masks.long() if masks.ndim == 4 else masks.long().unsqueeze(1)
    labels = torch.where(known, labels, 0)
    classes = torch.arange(logits.shape[2], device=logits.device)[:, None, None]
    truth = (labels.unsqueeze(2) == classes).to(logits.dtype)  # [B, 1 or G, C, H, W]
    if not bool(known.all()):
        inside = known.unsqueeze(2).to(logits.dtype)
        if ignored == "eva":
            logits = logits * inside
        else:
            truth = truth * inside
    else:
        inside = None
    logs = torch.log_softmax(logits, 2)
    chances = logs.exp()
    if inside is not None and ignored == "out":
        chances = chances * inside
    over = (0, 3, 4)
    overlap = (chances * truth).sum(over)  # [G, C]
    total = truth.sum(over) + chances.sum(over)
    value = (1.0 - (2.0 * overlap + _SMOOTH) / (total + _SMOOTH)).mean(1)
    if loss == "dice+ce":
        value = value - (logs * truth).sum((0, 2, 3, 4)) / truth.sum((0, 2, 3, 4)).clamp(min=1.0)
    return value


def confusion(predicted: Labels, mask: Labels, classes: int, ignored: Ignored = "out") -> Counts:
    """Pixels of a label map against its mask, int64 [C + 1, C]: rows are true classes, columns predicted ones.

    The last row is for pixels of the class IGNORE: empty, or under eva's ways what is predicted there.
    """
    known = mask != IGNORE
    truth = np.where(known, mask, classes).astype(np.int64)
    table = np.bincount((truth * classes + predicted).ravel(), minlength=(classes + 1) * classes)
    table = table.reshape(classes + 1, classes)
    if ignored == "out":
        table[classes] = 0
    return table


def counts_of(tables: Counts) -> Counts:
    """Pixels of each class [..., 3, C], rightly predicted, predicted, true, of confusions [..., C + 1, C]."""
    right = np.diagonal(tables[..., :-1, :], axis1=-2, axis2=-1)
    return np.stack([right, tables.sum(-2), tables[..., :-1, :].sum(-1)], axis=-2)


def class_dice(counts: npt.NDArray[np.int64] | Floats) -> Floats:
    """Dice [..., C] of counts [..., 3, C] (right, predicted, true); NaN for a class that is neither there nor
    predicted.
    """
    right, predicted, true = np.moveaxis(np.asarray(counts, dtype=np.float64), -2, 0)
    total = predicted + true
    return np.where(total > 0, 2.0 * right / np.where(total > 0, total, 1.0), np.nan)


def class_iou(counts: npt.NDArray[np.int64] | Floats) -> Floats:
    """Intersection over union [..., C] of counts [..., 3, C]; NaN as in `class_dice`."""
    right, predicted, true = np.moveaxis(np.asarray(counts, dtype=np.float64), -2, 0)
    union = predicted + true - right
    return np.where(union > 0, right / np.where(union > 0, union, 1.0), np.nan)


def picture_dice(counts: npt.NDArray[np.int64]) -> Floats:
    """Mean Dice [...] of pictures [..., 3, C] over the classes without background that are truly in it; NaN for a
    picture that has none. (MONAI's DiceMetric with ignore_empty, which eva reports.)
    """
    there = counts[..., 2, 1:] > 0
    values = np.where(there, np.nan_to_num(class_dice(counts)[..., 1:]), 0.0)
    number = there.sum(-1)
    return np.where(number > 0, values.sum(-1) / np.maximum(number, 1), np.nan)


def pooled(values: Floats) -> Floats:
    """Mean [...] of `class_dice` or `class_iou` [..., C] over the classes that have one, without background."""
    foreground = values[..., 1:]
    there = ~np.isnan(foreground)
    number = there.sum(-1)
    return np.where(number > 0, np.where(there, foreground, 0.0).sum(-1) / np.maximum(number, 1), np.nan)
