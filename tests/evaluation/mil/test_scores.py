"""Scores and intervals against plain references, pair by pair and resample by resample."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation.mil.intervals import Predicted, compare, estimate, resamples
from eosin.evaluation.mil.scores import auroc, balanced_accuracy, c_index, pearson, r2
from eosin.randomness import Words

RNG = np.random.default_rng(0)
ONE = np.ones((1, 30))


def repeated(weights: np.ndarray) -> np.ndarray:
    """Row numbers as often as they were drawn."""
    return np.repeat(np.arange(len(weights)), weights.astype(int))


def slow_c_index(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C pair by pair, the rule of lifelines and scikit-survival."""
    right = pairs = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                pairs += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / pairs


@pytest.mark.parametrize("ties", [False, True])
def test_every_score_equals_the_plain_one_on_resampled_rows(ties: bool) -> None:
    labels = RNG.integers(0, 3, 30)
    logits = RNG.normal(size=(30, 3))
    logits = np.round(logits) if ties else logits
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth, guess = RNG.normal(size=30), RNG.normal(size=(30, 1))
    time, event = RNG.integers(1, 8 if ties else 1000, 30), RNG.integers(0, 2, 30)
    risk = np.round(RNG.normal(size=(30, 1)), 0 if ties else 8)
    weights = RNG.integers(0, 4, (20, 30)).astype(float)
    for row in weights:
        take, w = repeated(row), row[None]
        two = probabilities[:, :2] / probabilities[:, :2].sum(axis=1, keepdims=True)
        binary = (labels > 0).astype(np.int64)
        plain = metrics.roc_auc_score(binary[take], two[take, 1])
        assert auroc(binary, two, w)[0] == pytest.approx(plain, abs=1e-12)
        plain = np.mean([metrics.roc_auc_score(labels[take] == k, probabilities[take, k]) for k in range(3)])
        assert auroc(labels, probabilities, w)[0] == pytest.approx(plain, abs=1e-12)
        plain = metrics.balanced_accuracy_score(labels[take], probabilities[take].argmax(axis=1))
        assert balanced_accuracy(labels, probabilities, w)[0] == pytest.approx(plain, abs=1e-12)
        plain = metrics.r2_score(truth[take], guess[take, 0])
        assert r2(truth, guess, w)[0] == pytest.approx(plain, abs=1e-9)
        assert pearson(truth, guess, w)[0] == pytest.approx(pearsonr(truth[take], guess[take, 0])[0], abs=1e-12)
        survival = np.stack([time, event], axis=1).astype(float)
        plain = slow_c_index(time[take], event[take], risk[take, 0])
        assert c_index(survival, risk, w)[0] == pytest.approx(plain, abs=1e-12)


def test_known_values() -> None:
    assert auroc(np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]]), np.ones((1, 4)))[
        0
    ] == pytest.approx(0.75)
    assert np.isnan(auroc(np.zeros(3, dtype=int), np.full((3, 2), 0.5), np.ones((1, 3)))[0])
    # Times tie: the one without an event outlives the other; two events at one time are no pair.
    labels = np.array([[1, 1], [1, 0], [2, 1], [2, 1]], dtype=float)
    assert c_index(labels, np.array([[3.0], [2.0], [1.0], [1.0]]), np.ones((1, 4)))[0] == 1.0
    assert c_index(labels, np.array([[1.0], [2.0], [3.0], [3.0]]), np.ones((1, 4)))[0] == 0.0


def runs_of(shift: float, seeds: int = 2, folds: int = 2) -> list[Predicted]:
    """Runs that test 40 bags of 20 patients in each fold; `shift` is how well classes are told apart."""
    found = []
    for seed in range(seeds):
        for fold in range(folds):
            words = Words(fold, "truth")
            labels = words.integers(2, 40)
            score = shift * labels + Words(seed, "noise", fold).normal(40)
            two = np.stack([-score, score], axis=1)
            ids = tuple(f"{fold}-{n}" for n in range(40))
            found.append(Predicted(seed, fold, ids, tuple(f"{fold}-p{n // 2}" for n in range(40)), labels, two))
    return found


def test_resamples_draw_patients_within_folds_and_average_seeds_and_folds() -> None:
    runs = runs_of(1.0)
    drawn = resamples(auroc, runs, 5, 3)
    for number in range(5):
        by_run = []
        for run in runs:
            names = sorted(set(run.patients))
            picks = Words(3, "mil", "bootstrap", run.fold).integers(len(names), 5, len(names))[number]
            order = np.unique(np.asarray(run.patients))
            rows = [row for pick in picks for row in range(40) if run.patients[row] == order[pick]]
            by_run.append(metrics.roc_auc_score(run.labels[rows], run.predictions[rows, 1]))
        assert drawn[number] == pytest.approx(np.mean(by_run), abs=1e-12)


def test_estimate_keeps_training_spread_apart() -> None:
    found = estimate(auroc, runs_of(1.0), 500)
    scores = np.array(found.run_scores).reshape(2, 2).mean(axis=1)
    assert found.value == pytest.approx(scores.mean())
    assert found.run_sd == pytest.approx(scores.std(ddof=1))
    assert found.over == "seeds"
    assert found.low < found.value < found.high
    alone = estimate(auroc, runs_of(1.0, seeds=1), 100)
    assert alone.over == "folds"
    assert alone.run_sd == pytest.approx(np.std(alone.run_scores, ddof=1))


def test_comparison_sees_a_difference_and_no_difference() -> None:
    same = compare(auroc, runs_of(1.0), runs_of(1.0), 500)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    better = compare(auroc, runs_of(3.0), runs_of(0.0), 500)
    assert better.low > 0.2
    assert better.p < 0.01
    few = [run._replace(patients=tuple(f"p{row % 3}" for row in range(len(run.ids)))) for run in runs_of(50.0)]
    none = [run._replace(patients=few[0].patients) for run in runs_of(0.0)]
    assert compare(auroc, few, none, 500).p >= 0.25  # three patients cannot say more
    with pytest.raises(DataError, match="do not test the same bags"):
        compare(auroc, runs_of(1.0), [run._replace(labels=1 - run.labels) for run in runs_of(1.0)], 10)
    with pytest.raises(DataError, match="different folds"):
        compare(auroc, runs_of(1.0), runs_of(1.0, folds=1), 10)


def test_one_patient_has_no_interval() -> None:
    run = Predicted(0, 0, ("a", "b"), ("p", "p"), np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]))
    found = estimate(auroc, [run], 100)
    assert found.value == 1.0
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_coverage_of_the_interval() -> None:
    """The true AUROC of two unit normals one apart is .760; about 95 of 100 intervals hold it."""
    hits = 0
    for trial in range(100):
        labels = np.arange(80) % 2
        score = labels + Words(trial, "coverage").normal(80)
        names = tuple(map(str, range(80)))
        run = Predicted(0, 0, names, names, labels, np.stack([-score, score], axis=1))
        found = estimate(auroc, [run], 300)
        hits += found.low <= 0.7602 <= found.high
    assert 88 <= hits <= 100
