"""Bootstrap statistics against a plain loop with the same draws, and in cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation import statistics
from eosin.evaluation.statistics import balanced_accuracy, bootstrap, describe, interval, paired_difference
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
