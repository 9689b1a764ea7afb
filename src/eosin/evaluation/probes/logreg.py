"""Multinomial logistic regression (scikit-learn, L-BFGS) on standardised features.

C is the one of the grid, tried from the strongest penalty on, with the best balanced accuracy on the inner
split (ties: the stronger penalty); the search ends when `patience` values in a row are worse than the best,
because weak penalties cost most and are seldom chosen. The classifier is then fitted afresh on all of train.
The reported split takes no part in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from eosin.evaluation.probes.probe import Examples, Floats, Prediction
from eosin.evaluation.statistics import balanced_accuracy


def logreg(
    train: Examples,
    test_x: Floats,
    classes: int,
    *,
    inner: Sequence[tuple[Examples, Examples]],
    seed: int = 0,
    fold: int = 0,
    grid: Sequence[float],
    patience: int = 2,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> Prediction:
    """Class probabilities of `test_x` [M, D]; `choices` has C and whether the last fit converged.

    A class without training samples has probability 0.
    """
    c = choose_c(inner, grid=grid, patience=patience, max_iter=max_iter, tol=tol)
    x, test = standardised(train.x, test_x)
    model, converged = _fit(LogisticRegression(C=c, max_iter=max_iter, tol=tol), x, train.y)
    scores = np.zeros((len(test), classes))
    scores[:, model.classes_] = model.predict_proba(test)
    return Prediction(scores, scores.argmax(axis=1)[None, :], {"C": c, "converged": converged})


def choose_c(
    inner: Sequence[tuple[Examples, Examples]],
    grid: Sequence[float],
    patience: int,
    max_iter: int,
    tol: float,
) -> float:
    """The C of `grid` with the best balanced accuracy on the second parts of `inner`, each predicted by a
    classifier fitted on its first part."""
    parts = [(*standardised(fit.x, judge.x), fit.y, judge.y) for fit, judge in inner]
    labels = np.concatenate([judge.y for _, judge in inner])
    # Each fit starts where the last one, with a stronger penalty, ended: fewer iterations, same optimum.
    models = [LogisticRegression(max_iter=max_iter, tol=tol, warm_start=True) for _ in inner]
    best, chosen, worse = -1.0, grid[0], 0
    for c in sorted(grid):
        correct = []
        for model, (x, test, y, truth) in zip(models, parts, strict=True):
            _fit(model.set_params(C=c), x, y)
            correct.append(model.predict(test) == truth)
        score = balanced_accuracy(np.concatenate(correct), labels)
        # Equal scores do not count as worse: the strongest penalties may all be at chance.
        worse = worse + 1 if score < best else 0
        if score > best:
            best, chosen = score, c
        if worse >= patience:
            break
    return float(chosen)


def standardised(train_x: Floats, test_x: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both minus the mean and divided by the standard deviation of the first; constant columns become 0."""
    mean, sd = train_x.mean(axis=0, dtype=np.float64), train_x.std(axis=0, dtype=np.float64)
    scale = np.where(sd > 1e-7 * (1.0 + np.abs(mean)), sd, np.inf)
    return (train_x - mean) / scale, (test_x - mean) / scale


def _fit(
    model: LogisticRegression, x: npt.NDArray[np.float64], y: npt.NDArray[np.int64]
) -> tuple[LogisticRegression, bool]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    return model, not any(issubclass(item.category, ConvergenceWarning) for item in caught)
