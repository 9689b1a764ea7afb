"""Bootstrap statistics against a plain loop with the same draws, and in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation import statistics
from eosin.evaluation.outcome import Measure
from eosin.evaluation.statistics import (
    balanced_accuracy,
    bootstrap,
    bootstrap_p,
    describe,
    difference_of,
    interval,
    interval_of,
    paired_difference,
)
from eosin.randomness import Words

DRAWS = 300


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions, groups of uneven sizes; class 2 lies in two groups only, so some draws miss it."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 9, 120)
    labels = rng.integers(0, 2, 120)
    labels[(groups < 2) & (rng.random(120) < 0.5)] = 2
    predicted = np.where(rng.random(120) < 0.6, labels, rng.integers(0, 3, 120))
    return labels, predicted, groups


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@pytest.mark.parametrize("by_group", [False, True])
def test_bootstrap_is_a_plain_loop(sample: tuple[np.ndarray, ...], by_group: bool) -> None:
    labels, predicted, ids = sample
    groups = ids if by_group else np.arange(len(labels))
    names = np.unique(groups)
    wanted = []
    for picks in Words(7, "bootstrap").integers(len(names), DRAWS, len(names)):
        rows = np.concatenate([np.flatnonzero(groups == names[pick]) for pick in picks])
        wanted.append(metrics.balanced_accuracy_score(labels[rows], predicted[rows]))
    found = bootstrap(predicted == labels, labels, ids if by_group else None, DRAWS, seed=7)
    np.testing.assert_allclose(found[0], wanted, atol=1e-12)
    ends = interval(predicted == labels, labels, ids if by_group else None, DRAWS, seed=7)
    assert ends.value == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert (ends.low, ends.high) == pytest.approx(tuple(np.percentile(wanted, [2.5, 97.5])))


def test_draws_do_not_depend_on_the_chunk(sample: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predicted, groups = sample
    whole = bootstrap(predicted == labels, labels, groups, DRAWS)
    monkeypatch.setattr(statistics, "_CHUNK_WORDS", 50)
    np.testing.assert_array_equal(bootstrap(predicted == labels, labels, groups, DRAWS), whole)


def test_a_mean_over_runs_is_the_mean_of_the_runs() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 80)
    hits = rng.random((5, 80)) < 0.5
    each = bootstrap(hits, labels, None, DRAWS)
    np.testing.assert_allclose(bootstrap(hits.mean(0), labels, None, DRAWS)[0], each.mean(0), atol=1e-12)


def test_repeated_samples_of_a_patient_add_no_certainty() -> None:
    rng = np.random.default_rng(2)
    labels, correct = rng.integers(0, 2, 40), rng.random(40) < 0.7
    patients = np.arange(40)
    single = interval(correct, labels)
    copied = [np.repeat(column, 25) for column in (correct, labels, patients)]
    by_patient, by_sample = interval(*copied), interval(*copied[:2])
    assert by_patient == pytest.approx(single)
    assert by_patient.high - by_patient.low > 4 * (by_sample.high - by_sample.low)


def test_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(100):
        labels = rng.integers(0, 2, 150)
        ends = interval(rng.random(150) < 0.7, labels, draws=200)
        inside += ends.low <= 0.7 <= ends.high
    assert 88 <= inside <= 99


def test_one_group_alone_has_no_interval() -> None:
    ends = interval(np.array([1, 0, 1]), np.array([0, 1, 1]), np.zeros(3, dtype=int))
    assert ends.value == 0.75
    assert np.isnan([ends.low, ends.high]).all()
    assert np.isnan(interval(np.ones(1), np.zeros(1, dtype=int))[1:]).all()  # nor has a sample alone


def test_equal_predictions_differ_by_exactly_nothing(sample: tuple[np.ndarray, ...]) -> None:
    labels, predicted, groups = sample
    for ids in (None, groups):
        assert paired_difference(predicted == labels, predicted == labels, labels, ids) == (
            0.0,
            0.0,
            0.0,
            1.0,
        )


def test_paired_difference_is_taken_draw_by_draw(sample: tuple[np.ndarray, ...]) -> None:
    labels, predicted, groups = sample
    better = np.where(np.arange(120) % 3 == 0, labels, predicted)
    first = bootstrap(better == labels, labels, groups, DRAWS)[0]
    second = bootstrap(predicted == labels, labels, groups, DRAWS)[0]
    found = paired_difference(better == labels, predicted == labels, labels, groups, DRAWS)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(first - second, [2.5, 97.5])))
    assert found.value == pytest.approx(
        metrics.balanced_accuracy_score(labels, better) - metrics.balanced_accuracy_score(labels, predicted)
    )
    assert found.low > 0
    assert found.p == pytest.approx(2 / (DRAWS + 1))
    turned = paired_difference(predicted == labels, better == labels, labels, groups, DRAWS)
    assert (turned.value, turned.p) == pytest.approx((-found.value, found.p))


@pytest.mark.parametrize(("groups", "floor"), [(2, 0.5), (3, 0.25), (6, 1 / 32), (40, 2 / 2001)])
def test_few_groups_show_no_more_than_coins_would(groups: int, floor: float) -> None:
    """One model is right and the other wrong in every group: sign flips of G groups give 2 / 2^G at the least."""
    labels = np.tile([0, 1], 2 * groups)
    members = np.repeat(np.arange(groups), 4)
    found = paired_difference(np.ones(4 * groups), np.zeros(4 * groups), labels, members)
    assert (found.low, found.high) == (1.0, 1.0)
    assert found.p == pytest.approx(floor)
    assert bootstrap_p(np.ones(2000), groups) == pytest.approx(floor)
    alone = paired_difference(np.ones(groups), np.zeros(groups), np.zeros(groups, dtype=int))
    assert alone.p == pytest.approx(floor)  # without groups each sample is one


def test_differences_that_are_nowhere_defined_have_no_p() -> None:
    """No sample has a class: a Dice of nothing is no score, and nothing is claimed of it."""
    empty = Measure("dice_per_image", np.nan, np.array([np.nan]), np.zeros((1, 4, 2)))
    assert np.isnan(interval_of(empty, 50)[1:]).all()
    assert np.isnan(difference_of(empty, empty, 50)[1:]).all()


def test_further_metrics_are_scikit_learns(sample: tuple[np.ndarray, ...]) -> None:
    labels, predicted, _ = sample
    scores = np.random.default_rng(4).random((120, 3))
    scores /= scores.sum(1, keepdims=True)
    found = describe(labels, predicted, scores, ("a", "b", "c"))
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores, multi_class="ovr"))
    assert list(found["per_class"].values()) == pytest.approx(metrics.recall_score(labels, predicted, average=None))
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted).tolist()
    assert balanced_accuracy(labels == predicted, labels) == pytest.approx(np.mean(list(found["per_class"].values())))
    without = describe(labels[labels < 2], predicted[labels < 2], scores[labels < 2], ("a", "b", "c"))
    assert without["auroc"] is None
    assert without["per_class"]["c"] is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    for correct, labels in ((np.ones(3), np.zeros(2, dtype=int)), (np.ones(0), np.zeros(0, dtype=int))):
        with pytest.raises(DataError):
            bootstrap(correct, labels)


def test_any_measure_is_resampled_as_a_plain_loop_does() -> None:
    """Two runs of a ratio with groups: weights of each draw, sums, score, mean over runs."""
    drawn = np.random.default_rng(0)
    statistics = drawn.uniform(size=(2, 40, 2))
    groups = drawn.integers(0, 9, 40)
    measure = Measure("dice_per_image", 0.5, np.array([0.4, 0.6]), statistics, None, groups)
    found = interval_of(measure, 500, seed=3)
    names = np.unique(groups)
    picks = Words(3, "bootstrap").integers(len(names), 500, len(names))
    scores = []
    for pick in picks:
        rows = np.concatenate([np.flatnonzero(groups == names[place]) for place in pick])
        scores.append(np.mean([run[rows, 0].sum() / run[rows, 1].sum() for run in statistics]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])))
    assert found.value == 0.5


def test_differences_need_the_same_samples() -> None:
    labels, other = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    statistics = np.ones((1, 5, 2))

    def measure(part: np.ndarray, metric: str = "balanced_accuracy", count: int = 5) -> Measure:
        return Measure(metric, 1.0, np.ones(1), statistics[:, :count], part[:count])

    assert difference_of(measure(labels), measure(labels), 50).value == 0.0
    for wrong in (measure(other), measure(labels, "dice_per_image"), measure(labels, count=4)):
        with pytest.raises(DataError, match="not of the same samples"):
            difference_of(measure(labels), wrong, 50)
    with pytest.raises(DataError, match="one part and group a sample"):
        interval_of(measure(labels[:3]), 50)


def test_a_resample_without_samples_that_count_says_nothing() -> None:
    """Three images, one of which has the class: half of the resamples miss it."""
    statistics = np.array([[[0.8, 1.0], [0.0, 0.0], [0.0, 0.0]]])
    found = interval_of(Measure("dice_per_image", 0.8, np.array([0.8]), statistics), 400)
    assert (found.low, found.high) == pytest.approx((0.8, 0.8))
