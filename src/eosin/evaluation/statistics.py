"""How sure a score is: bootstrap intervals over test samples, by patient where patients are known.

Everything is drawn at once: a resample of groups (patients, or single samples) is a row of weights, and
weights times the statistics of groups, summed within parts, give those of all resamples as one matrix product;
a score is a function of them (scores.py). So this file knows no kind of task. For balanced accuracy the statistics
are (share of runs that were right, 1) and the parts are classes. Percentile intervals (Efron & Tibshirani 1993);
draws come from `randomness.Words`, so an interval is a function of its inputs and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation.outcome import Floats, Ints, Measure
from eosin.evaluation.scores import SCORES, Score
from eosin.randomness import Words

DRAWS = 2000
_CHUNK_WORDS = 4_000_000
_CHUNK_SUMS = 20_000_000


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


def balanced_accuracy(correct: npt.ArrayLike, labels: Ints) -> float:
    """Mean over the classes present in `labels` [N] of the mean of `correct` [N] (0..1); NaN without samples."""
    hits = np.asarray(correct, dtype=np.float64)
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)])) if len(labels) else np.nan


def resample(
    statistics: Floats,
    score: Score,
    part: Ints | None = None,
    groups: Ints | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """Scores of M models (or runs) on `draws` resamples that they share: float64 [M, draws].

    `statistics` [M, N, m] of N samples, `part` [N], `score`: see `outcome.Measure` and scores.py; `groups` [N] = what
    is resampled as a whole (None: each sample). G groups are drawn with replacement out of G. Raises DataError where
    shapes differ or there are no samples.
    """
    count = statistics.shape[1]
    if count == 0 or any(column is not None and column.shape != (count,) for column in (part, groups)):
        raise DataError(f"bootstrap needs one part and group a sample, got statistics {statistics.shape}")
    member = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = int(member.max()) + 1  # G
    kind = np.zeros(count, dtype=np.int64) if part is None else np.unique(part, return_inverse=True)[1]
    parts = int(kind.max()) + 1  # P
    if score.moments is not None:
        statistics = score.moments(statistics, kind)
    models, _, width = statistics.shape
    cell = member * parts + kind
    of_group = np.empty((models, width, total, parts))
    for model in range(models):
        for column in range(width):
            weights = statistics[model, :, column]
            of_group[model, column] = np.bincount(cell, weights, total * parts).reshape(total, parts)

    words = Words(seed, "bootstrap")
    scores = np.empty((models, draws))
    step = max(1, min(_CHUNK_WORDS // total, _CHUNK_SUMS // (models * width * parts)))
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picks = words.integers(total, rows, total) + np.arange(rows)[:, None] * total
        drawn = np.bincount(picks.ravel(), minlength=rows * total).reshape(rows, total).astype(np.float64)
        sums = drawn @ of_group  # [M, m, rows, P]
        scores[:, first : first + rows] = score.of_sums(np.moveaxis(sums, 1, -1))
    return scores


def bootstrap(
    correct: npt.ArrayLike,
    labels: Ints,
    groups: Ints | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Floats:
    """Balanced accuracy of M models on `draws` resamples that they share: float64 [M, draws].

    `correct` [M, N] or [N], in [0, 1]; it may be a mean over runs, which is exact because balanced accuracy is linear
    in it. `labels` [N]; `groups` as in `resample`. A class that a resample misses does not count in it.
    """
    hits = np.atleast_2d(np.asarray(correct, dtype=np.float64))  # [M, N]
    statistics = np.stack([hits, np.ones_like(hits)], axis=2)
    return resample(statistics, SCORES["balanced_accuracy"], labels, groups, draws, seed)


def interval(
    correct: npt.ArrayLike,
    labels: Ints,
    groups: Ints | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Balanced accuracy with its bootstrap interval; arguments as in `bootstrap`, `correct` [N].

    One group alone says nothing about others: its ends are NaN.
    """
    return interval_of(_accuracy(correct, labels, groups), draws, seed, level)


def interval_of(measure: Measure, draws: int = DRAWS, seed: int = 0, level: float = 0.95) -> Interval:
    """The value of `measure` with its bootstrap interval; NaN ends where there is one group alone."""
    if group_count(measure.groups, len(measure)) < 2:
        return Interval(measure.value, np.nan, np.nan)
    low, high = _ends(_draw([measure], draws, seed)[0], level)
    return Interval(measure.value, low, high)


def paired_difference(
    correct: npt.ArrayLike,
    other: npt.ArrayLike,
    labels: Ints,
    groups: Ints | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Balanced accuracy of one model minus that of another on the same samples, both on the same resamples."""
    first, second = (_accuracy(hits, labels, groups) for hits in (correct, other))
    return difference_of(first, second, draws, seed, level)


def difference_of(
    first: Measure, second: Measure, draws: int = DRAWS, seed: int = 0, level: float = 0.95
) -> Difference:
    """One measure minus another of the same metric on the same samples and resamples; p is `bootstrap_p`."""
    value = first.value - second.value
    groups = group_count(first.groups, len(first))
    if groups < 2:
        return Difference(value, np.nan, np.nan, np.nan)
    ours, theirs = _draw([first, second], draws, seed)
    difference = ours - theirs
    return Difference(value, *_ends(difference, level), bootstrap_p(difference, groups))


def bootstrap_p(differences: Floats, groups: int) -> float:
    """Two-sided p of resampled differences [draws] between two models on `groups` groups, in (0, 1]; NaN where none is
    defined.

    Twice the smaller share of resamples on either side of zero, with one added to count and draws (Davison & Hinkley
    1997), but no less than 2^(1 - G): the least that an exact sign-flip test of G groups can say (Fisher 1935). Where
    all of few groups favour one model, every resample does, and the shares alone would claim what G coins cannot show.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return np.nan
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, max(2.0 * (tail + 1) / (len(known) + 1), 2.0 ** (1 - groups)))


def is_shown(low: float, high: float, p: float | None = None) -> bool:
    """Whether a difference is shown: its 95 % interval leaves out 0, and its p, where it has one, is at most .05.

    The interval alone does not do: over few groups it is too narrow, and p has a floor there (`bootstrap_p`).
    """
    return (low > 0 or high < 0) and not (p is not None and p > 0.05)


def group_count(groups: npt.NDArray[Any] | None, samples: int) -> int:
    """How many units are resampled: groups [n], or each of n samples where there are none."""
    return samples if groups is None else len(np.unique(groups))


def _draw(measures: Sequence[Measure], draws: int, seed: int) -> list[Floats]:
    """Scores of each measure on resamples that they share: [draws] each, means over runs."""
    first = measures[0]
    for other in measures[1:]:
        same = other.metric == first.metric and all(
            np.array_equal(one, two) if one is not None and two is not None else one is two
            for one, two in ((first.part, other.part), (first.groups, other.groups))
        )
        if not same or len(other) != len(first):
            raise DataError(f"{first.metric} and {other.metric} are not of the same samples")
    stacked = np.concatenate([measure.statistics for measure in measures])
    found = resample(stacked, SCORES[first.metric], first.part, first.groups, draws, seed)
    ends = np.cumsum([len(measure.statistics) for measure in measures])[:-1]
    return [part[0] if len(part) == 1 else part.mean(axis=0) for part in np.split(found, ends)]


def _accuracy(correct: npt.ArrayLike, labels: Ints, groups: Ints | None) -> Measure:
    """Balanced accuracy as a measure."""
    hits = np.asarray(correct, dtype=np.float64)
    value = balanced_accuracy(hits, labels)
    statistics = np.stack([hits, np.ones_like(hits)], axis=-1)[None]
    return Measure("balanced_accuracy", value, np.array([value]), statistics, labels, groups)


def describe(labels: Ints, predicted: Ints, scores: Floats, classes: tuple[str, ...]) -> dict[str, Any]:
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


def _auroc(labels: Ints, scores: Floats) -> float:
    areas = [metrics.roc_auc_score(labels == number, scores[:, number]) for number in range(scores.shape[1])]
    return float(np.mean(areas))


def _ends(values: Floats, level: float) -> tuple[float, float]:
    # A resample in which the score is not defined (no sample of it counts) says nothing.
    if np.isnan(values).all():
        return np.nan, np.nan
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
