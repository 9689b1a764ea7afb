"""Scores as functions of sums: from the statistics of samples, summed within parts, to one number.

A resample of samples changes the sums only, so one function gives the score of the data as they are and of thousands of
resamples at once. Metrics by name; a metric that is not here has no interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Score(NamedTuple):
    """`of_sums`: sums [..., P, m] of P parts -> scores [...]. `moments`, where given: what is summed, made of the
    statistics [M, n, m'] and the part [n] of each sample: [M, n, m].
    """

    of_sums: Callable[[Floats], Floats]
    moments: Callable[[Floats, Ints], Floats] | None = None


def mean_recall(sums: Floats) -> Floats:
    """Balanced accuracy: parts are classes, statistics (share of runs that were right, 1). A class that a resample
    misses does not count in it.
    """
    hits, seen = sums[..., 0], sums[..., 1]
    present = seen > 0
    recall = hits / np.where(present, seen, 1.0)
    return recall.sum(axis=-1) / present.sum(axis=-1)


def ratio(sums: Floats) -> Floats:
    """First statistic over the second, all parts together; NaN where the second is 0 (no sample counts)."""
    total = sums.sum(axis=-2)
    there = total[..., 1] > 0
    return np.where(there, total[..., 0] / np.where(there, total[..., 1], 1.0), np.nan)


def pearson_moments(statistics: Floats, part: Ints) -> Floats:
    """Of K targets and their K predictions [M, n, 2 K]: 1, 1 / size of the part, x, y, xx, yy, xy: [M, n, 2 + 5 K]."""
    # A shift changes no correlation, and makes the differences of sums exact enough.
    x, y = np.split(statistics - statistics.mean(axis=1, keepdims=True), 2, axis=2)
    sizes = np.bincount(part)[part].astype(np.float64)
    ones = np.broadcast_to(np.stack([np.ones_like(sizes), 1.0 / sizes], axis=1), (*x.shape[:2], 2))
    return np.concatenate([ones, x, y, x * x, y * y, x * y], axis=2)


def mean_pearson(sums: Floats) -> Floats:
    """Correlation of K targets with their predictions within each part (fold), averaged over targets, then over parts.

    A part counts as often as its samples were drawn. A target that does not vary in a resample is left out of it; a
    prediction that does not vary correlates 0.
    """
    count, weight = sums[..., 0], sums[..., 1]  # [..., P]
    x, y, xx, yy, xy = np.split(sums[..., 2:], 5, axis=-1)  # [..., P, K]
    n = count[..., None]
    spread_x, spread_y = n * xx - x * x, n * yy - y * y
    # What rounding leaves of a constant is not taken for a spread.
    varies_x, varies_y = spread_x > 1e-12 * n * xx, spread_y > 1e-12 * n * yy
    both = varies_x & varies_y
    found = np.where(both, (n * xy - x * y) / np.sqrt(np.where(both, spread_x * spread_y, 1.0)), 0.0)
    targets = varies_x.sum(axis=-1)
    of_part = found.sum(axis=-1) / np.maximum(targets, 1)
    weight = np.where(targets > 0, weight, 0.0)
    total = weight.sum(axis=-1)
    return np.where(total > 0, (weight * of_part).sum(axis=-1) / np.where(total > 0, total, 1.0), np.nan)


def mean_drop(sums: Floats) -> Floats:
    """Average performance drop of a repeat (PathoROB, Kömen et al. 2025): parts are classes, statistics (right ones at
    each of L levels, tested ones). Balanced accuracy at levels 1 to L - 1 over that at level 0, averaged, minus 1.
    """
    right, tested = sums[..., :-1], sums[..., -1:]  # [..., P, L], [..., P, 1]
    present = tested > 0
    recall = right / np.where(present, tested, 1.0)
    accuracy = recall.sum(axis=-2) / np.maximum(present.sum(axis=-2), 1)  # [..., L]
    first = accuracy[..., :1]
    found = (accuracy[..., 1:] / np.where(first > 0, first, 1.0)).mean(axis=-1) - 1.0
    return np.where(first[..., 0] > 0, found, np.nan)


def pooled_dice(sums: Floats) -> Floats:
    """Dice of all pixels of all samples together: statistics are pixels (rightly predicted, predicted, true), a class
    each; the mean over the classes that are there or predicted.
    """
    right, predicted, true = _pixels(sums)
    return _mean_of(2.0 * right, predicted + true)


def pooled_iou(sums: Floats) -> Floats:
    """Intersection over union, statistics and classes as in `pooled_dice`."""
    right, predicted, true = _pixels(sums)
    return _mean_of(right, predicted + true - right)


def _pixels(sums: Floats) -> Floats:
    """[..., P, 3 C] -> [3, ..., C], all parts together."""
    total = sums.sum(axis=-2)
    return np.moveaxis(total.reshape(*total.shape[:-1], 3, -1), -2, 0)


def _mean_of(over: Floats, under: Floats) -> Floats:
    """Mean over the last axis of over / under where that is defined; NaN where it nowhere is."""
    there = under > 0
    count = there.sum(axis=-1)
    values = np.where(there, over / np.where(there, under, 1.0), 0.0).sum(axis=-1)
    return np.where(count > 0, values / np.maximum(count, 1), np.nan)


SCORES: dict[str, Score] = {
    "balanced_accuracy": Score(mean_recall),
    "dice": Score(pooled_dice),
    "iou": Score(pooled_iou),
    "dice_per_image": Score(ratio),
    "dice_per_window": Score(ratio),
    "pearson": Score(mean_pearson, pearson_moments),
    "robustness_index": Score(ratio),
    "performance_drop_inside": Score(mean_drop),
    "performance_drop_outside": Score(mean_drop),
}
"""By the metric's name in results."""
