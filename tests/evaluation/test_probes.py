"""Probes against scikit-learn and against plain loops, on real texture features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from eosin.errors import DataError
from eosin.evaluation.probes import PROBES, Examples, knn_accuracy, knn_scores, logreg, simpleshot
from eosin.evaluation.probes.logreg import choose_c
from eosin.evaluation.probes.simpleshot import draw_shots
from eosin.evaluation.protocols import PROTOCOLS
from eosin.randomness import Words

CLASSES = 8


@pytest.fixture(scope="module")
def kather(shared_data: Path) -> tuple[Examples, Examples, Examples]:
    """Train, inner validation and test of real texture features, columns scaled."""
    with np.load(shared_data / "kather2016_texture_features" / "features.npz") as archive:
        x, y = archive["features"], archive["labels"]
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    rows = np.random.default_rng(0).permutation(len(x))
    parts = rows[:600], rows[600:800], rows[800:1100]
    train, val, test = (Examples(x[part], y[part]) for part in parts)
    return train, val, test


def test_softmax_vote_is_scikit_learns(kather: tuple[Examples, ...]) -> None:
    train, _, test = kather
    for k in (1, 20, 5000):
        theirs = KNeighborsClassifier(
            min(k, len(train.y)), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
        ).fit(train.x, train.y)
        found = knn_scores(train.x, train.y, test.x, CLASSES, k=k, chunk=77)
        np.testing.assert_allclose(found, theirs.predict_proba(test.x), atol=1e-4)
        predicted = theirs.predict(test.x)
        assert knn_accuracy(train.x, train.y, test.x, test.y, k) == pytest.approx(
            balanced_accuracy_score(test.y, predicted), abs=1e-9
        )


def test_majority_vote_and_its_ties(kather: tuple[Examples, ...]) -> None:
    train, _, test = kather
    theirs = KNeighborsClassifier(20, metric="cosine").fit(train.x, train.y)
    votes = theirs.predict_proba(test.x)
    found = knn_scores(train.x, train.y, test.x, CLASSES, vote="majority")
    np.testing.assert_allclose(found, votes, atol=1e-3)
    assert (np.take_along_axis(votes, found.argmax(1)[:, None], 1)[:, 0] == votes.max(1)).all()
    bank = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert knn_scores(bank, np.array([0, 1]), np.array([[0.4, 0.6]]), 2, k=2, vote="majority").argmax() == 1


def test_knn_refuses_what_does_not_fit(kather: tuple[Examples, ...]) -> None:
    train, _, test = kather
    with pytest.raises(DataError, match="shapes"):
        knn_scores(train.x[:, :3], train.y, test.x, CLASSES)
    with pytest.raises(DataError, match="vote"):
        knn_scores(train.x, train.y, test.x, CLASSES, vote="loud")  # type: ignore[arg-type]


@pytest.mark.parametrize("shots", [1, 4])
def test_simpleshot_is_a_plain_loop(kather: tuple[Examples, ...], shots: int) -> None:
    train, _, test = kather
    centre = train.x.mean(0)
    unit = [(x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True) for x in (train.x, test.x)]
    picks = draw_shots(train.y, CLASSES, shots, 12, Words(3, "simpleshot", shots, 1))
    found = simpleshot(train, test.x, CLASSES, seed=3, fold=1, shots=shots, runs=12)
    for run in range(12):
        centroids = [unit[0][picks[run, label]].mean(0) for label in range(CLASSES)]
        distance = np.array([[np.linalg.norm(t - c) for c in centroids] for t in unit[1]])
        assert (found.runs[run] == distance.argmin(1)).mean() > 0.995
        assert (train.y[picks[run]] == np.arange(CLASSES)[:, None]).all()
    share = [(found.runs == label).mean(0) for label in range(CLASSES)]
    np.testing.assert_allclose(found.scores, np.transpose(share))


def test_shots_are_different_samples_drawn_uniformly() -> None:
    labels = np.array([0] * 5 + [1] * 7)
    picks = draw_shots(labels, 2, 4, 6000, Words(0, "shots"))
    assert (np.diff(np.sort(picks, axis=2), axis=2) > 0).all()
    for label, size in ((0, 5), (1, 7)):
        share = np.bincount(picks[:, label].ravel(), minlength=12)[labels == label] / 6000
        np.testing.assert_allclose(share, 4 / size, atol=0.03)
    with pytest.raises(DataError, match="class 0 has 5"):
        draw_shots(labels, 2, 6, 1, Words(0))


def test_more_shots_are_better_and_vary_less(kather: tuple[Examples, ...]) -> None:
    train, _, test = kather
    scores = {}
    for shots in (1, 16):
        hits = simpleshot(train, test.x, CLASSES, shots=shots, runs=200).runs == test.y
        scores[shots] = hits.mean(1)
    assert scores[16].mean() > scores[1].mean() + 0.05
    assert scores[16].std() < scores[1].std()


def plain_logreg(c: float, part: Examples) -> Pipeline:
    """scikit-learn's classifier, fitted until nothing moves."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, solver="newton-cg", max_iter=1000, tol=1e-9))
    return model.fit(part.x.astype(np.float64), part.y)


@pytest.mark.parametrize("c", [1e-4, 0.1, 10.0])
def test_logreg_has_the_optimum_of_scikit_learn(kather: tuple[Examples, ...], c: float) -> None:
    train, _, test = kather
    wanted = plain_logreg(c, train).predict_proba(test.x)
    found = logreg(train, test.x, CLASSES, inner=[], grid=[c], tol=1e-7)
    assert found.choices == {"C": c, "converged": True}
    np.testing.assert_allclose(found.scores, wanted, atol=2e-4)
    quick = logreg(train, test.x, CLASSES, inner=[], grid=[c])
    assert (quick.scores.argmax(1) == wanted.argmax(1)).mean() > 0.99


def test_logreg_with_more_columns_than_samples(kather: tuple[Examples, ...]) -> None:
    train, _, test = kather
    mix = np.random.default_rng(0).normal(size=(49, 90))
    few, test_x = Examples((train.x[:70] @ mix).astype(np.float32), train.y[:70]), (test.x @ mix).astype(np.float32)
    found = logreg(few, test_x, CLASSES, inner=[], grid=[0.1], tol=1e-7)
    np.testing.assert_allclose(found.scores, plain_logreg(0.1, few).predict_proba(test_x), atol=1e-4)


def test_c_is_the_best_of_the_grid_on_the_inner_parts(kather: tuple[Examples, ...]) -> None:
    train, val, test = kather
    grid = [1e-4, 1e-2, 1.0, 100.0]
    score = {c: balanced_accuracy_score(val.y, plain_logreg(c, train).predict(val.x)) for c in grid}
    best = max(grid, key=lambda c: score[c])
    assert choose_c([(train, val)], CLASSES, grid, 1000, 1e-5) == best
    halves = [Examples(val.x[part], val.y[part]) for part in (slice(0, 90), slice(90, None))]
    assert choose_c([(train, half) for half in halves], CLASSES, grid, 1000, 1e-5) == best
    assert logreg(train, test.x, CLASSES, inner=[(train, val)], grid=grid).choices["C"] == best


def test_classes_that_training_lacks_and_constant_columns(kather: tuple[Examples, ...]) -> None:
    train, val, test = kather
    some = Examples(np.pad(train.x[train.y > 1], ((0, 0), (0, 2)), constant_values=7.3), train.y[train.y > 1])
    inner = [(some, Examples(np.pad(val.x, ((0, 0), (0, 2)), constant_values=7.3), val.y))]
    test_x = np.pad(test.x, ((0, 0), (0, 2)), constant_values=7.3)
    found = logreg(some, test_x, CLASSES, inner=inner, grid=[0.1])
    assert np.isfinite(found.scores).all()
    assert (found.scores[:, :2] == 0).all()
    np.testing.assert_allclose(found.scores.sum(1), 1.0)


@pytest.mark.parametrize("name", ["knn", "simpleshot-4", "logreg"])
def test_the_same_arguments_give_the_same_prediction(kather: tuple[Examples, ...], name: str) -> None:
    train, val, test = kather
    protocol = PROTOCOLS[name]
    settings = {**protocol.settings, **({"runs": 20} if name.startswith("simpleshot") else {})}
    twice = [
        PROBES[protocol.probe](train, test.x, CLASSES, inner=[(train, val)], seed=1, fold=0, **settings)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(twice[0].scores, twice[1].scores)
    np.testing.assert_array_equal(twice[0].runs, twice[1].runs)
