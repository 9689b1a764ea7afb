"""Scores of slide-level predictions, each for many resamples of patients at once.

A resample is a row of weights: how often each bag was drawn. Every score here takes weights [R, N] and gives [R], so
an interval costs one pass and the plain score is the row of ones. NaN where a resample cannot be scored (one class).

AUROC: probability that a positive scores above a negative, ties half (Mann-Whitney); several classes: one against
rest, mean over classes. C-index: share of comparable pairs that are ordered rightly (Harrell); a pair is comparable
if the earlier time is an event, or if times tie and one of the two is an event; tied risks count half.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Score = Callable[[npt.NDArray[np.generic], Floats, Floats], Floats]
"""(labels [N] or [N, 2], predictions [N, C], weights [R, N]) -> [R]."""

_CHUNK = 2_000_000  # numbers of one block of pairs


def auroc(labels: npt.NDArray[np.generic], predictions: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve. labels int64 [N]; predictions [N, C] class probabilities; weights [R, N] -> [R].

    Two classes: of class 1. More: one against rest, mean over the classes that have bags on both sides.
    """
    if predictions.shape[1] == 2:
        return _area(labels == 1, predictions[:, 1], weights)
    present = [number for number in range(predictions.shape[1]) if 0 < np.sum(labels == number) < len(labels)]
    if not present:
        return np.full(len(weights), np.nan)
    return np.mean([_area(labels == number, predictions[:, number], weights) for number in present], axis=0)


def _area(positive: npt.NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """AUROC of a score [N] for `positive` bool [N], ties half: [R]."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf) > 0)
    if not len(starts):
        return np.full(len(weights), np.nan)
    ordered = weights[:, order]
    ups = np.add.reduceat(np.where(positive[order], ordered, 0.0), starts, axis=1)  # [R, distinct scores]
    downs = np.add.reduceat(np.where(positive[order], 0.0, ordered), starts, axis=1)
    below = np.cumsum(downs, axis=1) - 0.5 * downs
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    return np.where(pairs > 0, (ups * below).sum(axis=1) / np.where(pairs > 0, pairs, 1), np.nan)


def balanced_accuracy(labels: npt.NDArray[np.generic], predictions: Floats, weights: Floats) -> Floats:
    """Mean recall of the classes that a resample holds, the most probable class being predicted: [R]."""
    hits = (predictions.argmax(axis=1) == labels).astype(np.float64)
    kinds = np.unique(labels)
    seen = np.stack([weights @ (labels == kind) for kind in kinds], axis=1)  # [R, C]
    right = np.stack([weights @ (hits * (labels == kind)) for kind in kinds], axis=1)
    recall = right / np.where(seen > 0, seen, 1)
    present = (seen > 0).sum(axis=1)
    return np.where(present > 1, recall.sum(axis=1) / np.maximum(present, 1), np.nan)


def c_index(labels: npt.NDArray[np.generic], predictions: Floats, weights: Floats) -> Floats:
    """Harrell's concordance of a risk [N, 1] (high = early event) with labels [N, 2] = time, event: [R]."""
    time, event = np.asarray(labels[:, 0], dtype=np.float64), np.asarray(labels[:, 1], dtype=np.float64) == 1
    risk = predictions[:, 0]
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    early = np.flatnonzero(event)
    step = max(1, _CHUNK // max(1, len(time)))
    for first in range(0, len(early), step):
        rows = early[first : first + step]
        comparable = (time[rows, None] < time) | ((time[rows, None] == time) & ~event)  # [r, N]
        ordered = (risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk)
        right += ((weights[:, rows] @ (ordered * comparable)) * weights).sum(axis=1)
        pairs += ((weights[:, rows] @ comparable.astype(np.float64)) * weights).sum(axis=1)
    return np.where(pairs > 0, right / np.where(pairs > 0, pairs, 1), np.nan)


def r2(labels: npt.NDArray[np.generic], predictions: Floats, weights: Floats) -> Floats:
    """Coefficient of determination of predictions [N, 1] for labels [N]; 1 perfect, 0 as good as the mean: [R]."""
    truth = np.asarray(labels, dtype=np.float64)
    total = np.maximum(weights.sum(axis=1), 1)
    spread = weights @ truth**2 - (weights @ truth) ** 2 / total
    error = weights @ (truth - predictions[:, 0]) ** 2
    return np.where(spread > 1e-12, 1 - error / np.where(spread > 1e-12, spread, 1), np.nan)


def pearson(labels: npt.NDArray[np.generic], predictions: Floats, weights: Floats) -> Floats:
    """Pearson correlation of predictions [N, 1] with labels [N]; NaN where either does not vary: [R]."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    centred = []
    for values in (np.asarray(labels, dtype=np.float64), predictions[:, 0]):
        mean = (weights @ values)[:, None] / total
        centred.append(values[None, :] - mean)  # [R, N]
    a, b = centred
    scale = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
    return np.where(scale > 1e-12, (weights * a * b).sum(axis=1) / np.where(scale > 1e-12, scale, 1), np.nan)


SCORES: dict[str, dict[str, Score]] = {
    "binary": {"auroc": auroc, "balanced_accuracy": balanced_accuracy},
    "classification": {"auroc": auroc, "balanced_accuracy": balanced_accuracy},
    "regression": {"r2": r2, "pearson": pearson},
    "survival": {"c_index": c_index},
}
"""Scores of each kind of task, the main one first."""
