"""How sure a slide-level score is: patients are resampled, seeds and folds are averaged, two runs are compared.

The score of a set of runs is the mean over seeds of the mean over folds, each fold scored by itself: pooling folds
would compare scores of different networks. A resample draws as many patients as a fold has, with replacement, within
every fold, the same for all seeds and for both sides of a comparison. `run_sd` is the spread of training alone: over
seeds, or over folds where there is one seed; it is not part of the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.mil.scores import Floats, Score
from eosin.evaluation.statistics import Difference, bootstrap_p
from eosin.randomness import Words


class Predicted(NamedTuple):
    """What one run said of its test bags: ids and patients [n], labels [n] or [n, 2], predictions float64 [n, C]."""

    seed: int
    fold: int
    ids: tuple[str, ...]
    patients: tuple[str, ...]
    labels: npt.NDArray[np.generic]
    predictions: Floats


class Estimate(NamedTuple):
    """A score, its percentile interval over patients, and the spread of training (NaN for a single run)."""

    value: float
    low: float
    high: float
    run_sd: float
    run_scores: tuple[float, ...]
    over: str


def estimate(score: Score, runs: Sequence[Predicted], draws: int, seed: int = 0, level: float = 0.95) -> Estimate:
    """`score` of the runs of one task with its interval; one patient alone has none (NaN)."""
    scored = np.array([float(score(run.labels, run.predictions, np.ones((1, len(run.ids))))[0]) for run in runs])
    seeds = np.array([run.seed for run in runs])
    by_seed = np.array([_mean(scored[seeds == number]) for number in np.unique(seeds)])
    resampled = resamples(score, runs, draws, seed)
    low, high = _ends(resampled, level)
    over = "seeds" if len(by_seed) > 1 else "folds"
    spread = by_seed if over == "seeds" else scored
    run_sd = float(np.std(spread, ddof=1)) if len(spread) > 1 else np.nan
    return Estimate(_mean(by_seed), low, high, run_sd, tuple(map(float, scored)), over)


def resamples(score: Score, runs: Sequence[Predicted], draws: int, seed: int = 0) -> Floats:
    """The score of the runs on `draws` resamples of their patients: float64 [draws]; NaN where none can be scored."""
    weights: dict[int, tuple[tuple[str, ...], Floats]] = {}
    by_seed: dict[int, list[Floats]] = {}
    for run in runs:
        if run.fold not in weights:
            weights[run.fold] = run.ids, _weights(run, draws, seed)
        ids, drawn = weights[run.fold]
        if ids != run.ids:
            raise DataError(f"fold {run.fold} of seed {run.seed} tests other bags than another seed's")
        by_seed.setdefault(run.seed, []).append(score(run.labels, run.predictions, drawn))
    return _means(np.stack([_means(np.stack(folds)) for folds in by_seed.values()]))


def compare(
    score: Score,
    first: Sequence[Predicted],
    second: Sequence[Predicted],
    draws: int,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """First minus second on the same bags and the same resamples; p as in `statistics.bootstrap_p`.

    Raises DataError where the two do not test the same bags with the same labels.
    """
    tested = {run.fold: run for run in first}
    if set(tested) != {run.fold for run in second}:
        raise DataError("the two runs have different folds and cannot be compared bag by bag")
    second = [_in_order_of(tested[run.fold], run) for run in second]
    value = estimate(score, first, 1, seed).value - estimate(score, second, 1, seed).value
    difference = resamples(score, first, draws, seed) - resamples(score, second, draws, seed)
    low, high = _ends(difference, level)
    kept = difference[np.isfinite(difference)]
    if not len(kept) or np.isnan(low):
        return Difference(value, np.nan, np.nan, np.nan)
    patients = {name for run in first for name in run.patients}
    return Difference(value, low, high, bootstrap_p(kept, len(patients)))


def _in_order_of(first: Predicted, other: Predicted) -> Predicted:
    """`other` with its bags in the order of `first`; DataError where they are not the same bags and labels."""
    place = {name: row for row, name in enumerate(other.ids)}
    if set(place) == set(first.ids):
        rows = [place[name] for name in first.ids]
        labels, patients = other.labels[rows], tuple(other.patients[row] for row in rows)
        if np.array_equal(first.labels, labels) and patients == first.patients:
            return other._replace(ids=first.ids, patients=patients, labels=labels, predictions=other.predictions[rows])
    raise DataError("the two runs do not test the same bags with the same labels and cannot be compared")


def _weights(run: Predicted, draws: int, seed: int) -> Floats:
    """How often each bag of the fold is drawn in each resample of its patients: float64 [draws, n]."""
    names, member = np.unique(np.asarray(run.patients), return_inverse=True)
    total = len(names)
    if total < 2:
        return np.full((draws, len(member)), np.nan)
    picks = Words(seed, "mil", "bootstrap", run.fold).integers(total, draws, total)
    flat = (picks + np.arange(draws)[:, None] * total).ravel()
    return np.bincount(flat, minlength=draws * total).reshape(draws, total)[:, member].astype(np.float64)


def _means(values: Floats) -> Floats:
    """Mean over the first axis of what is not NaN, NaN where nothing is left."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _mean(values: Floats) -> float:
    return float(_means(values[:, None])[0])


def _ends(values: Floats, level: float) -> tuple[float, float]:
    kept = values[np.isfinite(values)]
    if not len(kept):
        return np.nan, np.nan
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
