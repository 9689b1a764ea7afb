"""Multinomial logistic regression (L-BFGS) on standardised features, the optimum that scikit-learn's has.

C is the one of the grid with the best balanced accuracy on the inner folds (ties: the stronger penalty); the
classifier is then fitted afresh on all of train. The reported split takes no part in it.

Features of encoders are strongly correlated, and plain L-BFGS needs thousands of steps on them. Here the weights
are sought in the principal axes of the features, each scaled by its curvature: the same objective and the same
optimum in a tenth to a hundredth of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from eosin.evaluation.probes.probe import Examples, Floats, Labels, Prediction
from eosin.evaluation.statistics import balanced_accuracy

Doubles = npt.NDArray[np.float64]


class Axes(NamedTuple):
    """Standardised training features in their principal axes, and how others get there."""

    mean: Doubles  # [D]
    scale: Doubles  # [D]
    turn: Doubles  # [D, A], orthonormal columns; A = number of axes along which the features vary
    variance: Doubles  # [A]
    train: Doubles  # [N, A]

    def __call__(self, x: Floats) -> Doubles:
        """Features [M, D] in these axes, [M, A]."""
        return ((x - self.mean) / self.scale) @ self.turn


class Classifier(NamedTuple):
    """Weights in the axes [K, A], intercepts [K], the labels [K] that they stand for."""

    weights: Doubles
    bias: Doubles
    labels: Labels
    converged: bool

    def probabilities(self, z: Doubles, classes: int) -> Doubles:
        """Class probabilities [M, classes] of features in the axes; 0 for labels never seen."""
        found = np.zeros((len(z), classes))
        found[:, self.labels] = np.exp(log_softmax(z @ self.weights.T + self.bias, axis=1))
        return found


def logreg(
    train: Examples,
    test_x: Floats,
    classes: int,
    *,
    inner: Sequence[tuple[Examples, Examples]],
    seed: int = 0,
    fold: int = 0,
    grid: Sequence[float],
    max_iter: int = 1000,
    tol: float = 1e-5,
) -> Prediction:
    """Class probabilities of `test_x` [M, D]; `choices` has C and whether the last fit converged.

    A class without training samples has probability 0. C weighs the summed loss against |weights|^2 / 2, as in
    scikit-learn.
    """
    c = grid[0] if len(grid) == 1 else choose_c(inner, classes, grid, max_iter, tol)
    axes = principal_axes(train.x)
    model = fit(axes, train.y, c, max_iter, tol)
    scores = model.probabilities(axes(test_x), classes)
    return Prediction(scores, scores.argmax(axis=1)[None, :], {"C": c, "converged": model.converged})


def choose_c(
    inner: Sequence[tuple[Examples, Examples]], classes: int, grid: Sequence[float], max_iter: int, tol: float
) -> float:
    """The C of `grid` with the best balanced accuracy on the second parts of `inner`, taken together.

    Each part is predicted by a classifier fitted on the first part of its pair.
    """
    spaces = [principal_axes(part.x) for part, _ in inner]
    held_out = [axes(judge.x) for axes, (_, judge) in zip(spaces, inner, strict=True)]
    labels = np.concatenate([judge.y for _, judge in inner])
    starts: list[Classifier | None] = [None] * len(inner)
    best, chosen = -1.0, grid[0]
    for c in sorted(grid):
        predicted = []
        for number, (axes, z, (part, _)) in enumerate(zip(spaces, held_out, inner, strict=True)):
            # Starts where the stronger penalty ended: fewer steps, same optimum.
            starts[number] = model = fit(axes, part.y, c, max_iter, tol, starts[number])
            predicted.append(model.probabilities(z, classes).argmax(axis=1))
        score = balanced_accuracy(np.concatenate(predicted) == labels, labels)
        if score > best:
            best, chosen = score, c
    return float(chosen)


def principal_axes(x: Floats) -> Axes:
    """Standardise `x` [N, D] and turn it into its principal axes; columns and axes without variance are dropped."""
    mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    scale = np.where(sd > 1e-7 * (1.0 + np.abs(mean)), sd, np.inf)
    rows = (x - mean) / scale  # [N, D]
    count, width = rows.shape
    # The smaller of the two products has all the axes.
    values, vectors = np.linalg.eigh((rows.T @ rows if width <= count else rows @ rows.T) / count)
    kept = values > 1e-10 * max(values[-1], 1e-300)
    values, vectors = values[kept], vectors[:, kept]
    turn = vectors if width <= count else rows.T @ vectors / np.sqrt(values * count)
    return Axes(mean, scale, turn, values, rows @ turn)


def fit(axes: Axes, y: Labels, c: float, max_iter: int, tol: float, start: Classifier | None = None) -> Classifier:
    """Minimise mean cross-entropy + |weights|^2 / (2 c N) for labels `y` [N], to a scaled gradient below `tol`."""
    labels, index = np.unique(y, return_inverse=True)
    count, kinds = len(y), len(labels)
    truth = np.eye(kinds)[index]  # [N, K]
    penalty = 1.0 / (c * count)
    # Curvature of the loss along an axis is about variance * p (1 - p), with p = 1 / K before anything is known.
    step = 1.0 / np.sqrt(axes.variance * (1 - 1 / kinds) / kinds + penalty)  # [A]
    z = axes.train * step  # [N, A]

    def objective(flat: Doubles) -> tuple[float, Doubles]:
        u = flat.reshape(kinds, -1)  # [K, A + 1]: scaled weights, intercept
        logp = log_softmax(z @ u[:, :-1].T + u[:, -1], axis=1)  # [N, K]
        pull = penalty * step**2 * u[:, :-1]
        slope = (np.exp(logp) - truth) / count
        loss = -(logp * truth).sum() / count + 0.5 * (pull * u[:, :-1]).sum()
        return float(loss), np.column_stack([slope.T @ z + pull, slope.sum(axis=0)]).ravel()

    first = np.zeros((kinds, z.shape[1] + 1))
    if start is not None:
        first = np.column_stack([start.weights / step, start.bias])
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tol, "ftol": 1e-13}
    found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    u = found.x.reshape(kinds, -1)
    return Classifier(u[:, :-1] * step, u[:, -1], labels, bool(found.success))
