"""How sure a score is: bootstrap intervals over test samples, by patient where patients are known.

Everything is drawn at once: a resample of groups (patients, or single samples) is a row of weights, and
weights times per-group, per-class counts give the recalls of all resamples as one matrix product. Scores are
balanced accuracies: the mean over classes of the share of correct samples. `correct` may be fractional (a
mean over runs), which is exact because balanced accuracy is linear in it. Percentile intervals (Efron &
Tibshirani 1993); draws come from `randomness.Words`, so an interval is a function of its inputs and the seed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from eosin.errors import DataError
from eosin.randomness import Words

DRAWS = 2000
_CHUNK_WORDS = 4_000_000

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A value in [0, 1] and its two-sided percentile interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """First minus second, in [-1, 1], its two-sided percentile interval and two-sided bootstrap p-value."""

    value: float
    low: float
    high: float
    p: float


def balanced_accuracy(correct: npt.ArrayLike, labels: npt.NDArray[np.int64]) -> float:
    """Mean over the classes present in `labels` [N] of the mean of `correct` [N] (0..1); NaN without samples."""
    hits = np.asarray(correct, dtype=np.float64)
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)])) if len(labels) else np.nan


def bootstrap(
    correct: npt.ArrayLike,
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """Balanced accuracy of M models on `draws` resamples that they share: float64 [M, draws].

    `correct` [M, N] or [N], in [0, 1]; `labels` [N]; `groups` [N] = what is resampled as a whole (None: each
    sample). G groups are drawn with replacement out of G. A class that a resample misses does not count in
    it. Raises DataError where shapes differ or there are no samples.
    """
    hits = np.atleast_2d(np.asarray(correct, dtype=np.float64))  # [M, N]
    models, count = hits.shape
    if count == 0 or labels.shape != (count,) or (groups is not None and groups.shape != (count,)):
        raise DataError(f"bootstrap needs one label and group a sample, got {hits.shape} and {labels.shape}")
    member = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = int(member.max()) + 1  # G
    kind = np.unique(labels, return_inverse=True)[1]
    classes = int(kind.max()) + 1
    cell = member * classes + kind
    seen = np.bincount(cell, minlength=total * classes).reshape(total, classes).astype(np.float64)  # [G, C]
    correct_in = np.stack([np.bincount(cell, row, total * classes).reshape(total, classes) for row in hits])  # [M,G,C]

    words = Words(seed, "bootstrap")
    scores = np.empty((models, draws))
    step = max(1, _CHUNK_WORDS // total)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picks = words.integers(total, rows, total) + np.arange(rows)[:, None] * total
        weights = np.bincount(picks.ravel(), minlength=rows * total).reshape(rows, total).astype(np.float64)
        in_class = weights @ seen  # [rows, C]
        present = in_class > 0
        recall = (weights @ correct_in) / np.where(present, in_class, 1.0)  # [M, rows, C]
        scores[:, first : first + rows] = recall.sum(axis=2) / present.sum(axis=1)
    return scores


def interval(
    correct: npt.ArrayLike,
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Balanced accuracy with its bootstrap interval; arguments as in `bootstrap`, `correct` [N].

    One group alone says nothing about others: its ends are NaN.
    """
    value = balanced_accuracy(correct, labels)
    if _is_single(groups):
        return Interval(value, np.nan, np.nan)
    low, high = _ends(bootstrap(correct, labels, groups, draws, seed)[0], level)
    return Interval(value, low, high)


def paired_difference(
    correct: npt.ArrayLike,
    other: npt.ArrayLike,
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Balanced accuracy of one model minus that of another on the same samples, both on the same resamples.

    p is twice the smaller share of resamples on either side of zero, with one added to count and draws
    (Davison & Hinkley 1997), at most 1.
    """
    value = balanced_accuracy(correct, labels) - balanced_accuracy(other, labels)
    if _is_single(groups):
        return Difference(value, np.nan, np.nan, np.nan)
    first, second = bootstrap(np.stack([np.asarray(correct), np.asarray(other)]), labels, groups, draws, seed)
    difference = first - second
    low, high = _ends(difference, level)
    tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
    return Difference(value, low, high, min(1.0, 2.0 * (tail + 1) / (draws + 1)))


def describe(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], scores: Floats, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Further metrics of one set of predictions, by scikit-learn: accuracy, macro F1, AUROC, recalls,
    confusion.

    `scores` [N, C]; AUROC is one-against-rest, macro, None where a class has no samples. Confusion rows are
    true classes, columns predicted ones.
    """
    numbers = list(range(len(classes)))
    confusion = metrics.confusion_matrix(labels, predicted, labels=numbers)
    present = confusion.sum(axis=1) > 0
    recall = np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "macro_f1": float(metrics.f1_score(labels, predicted, labels=np.flatnonzero(present), average="macro")),
        "auroc": _auroc(labels, scores) if present.all() else None,
        "per_class": {
            name: float(value) if there else None for name, value, there in zip(classes, recall, present, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def _auroc(labels: npt.NDArray[np.int64], scores: Floats) -> float:
    areas = [metrics.roc_auc_score(labels == number, scores[:, number]) for number in range(scores.shape[1])]
    return float(np.mean(areas))


def _ends(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _is_single(groups: npt.NDArray[np.int64] | None) -> bool:
    return groups is not None and len(np.unique(groups)) < 2
