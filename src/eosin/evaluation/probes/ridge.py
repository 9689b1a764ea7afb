"""Ridge regression on principal components: features to many numbers at once, as HEST-bench does it.

Features are standardised, reduced to their first principal components on the training part, and regressed on with the
penalty 100 / (components x targets) (Jaume et al., NeurIPS 2024). That benchmark leaves the intercept out; here it is
there, which changes no correlation, since components have mean 0 in training, and makes R² mean something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from eosin.errors import DataError

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class RidgeSettings:
    """`components`: at most so many; fewer where features or samples are fewer. `alpha`: the penalty, or None for
    100 / (components x targets).

    `pca`: exact, or scikit-learn's choice by size (randomised, seed 1, for wide features) as HEST-bench has it.
    `solver`: exact, or LSQR in float32 until its tolerance of 1e-4, as HEST-bench has it.
    """

    components: int = 256
    alpha: float | None = None
    pca: Literal["exact", "hest"] = "exact"
    solver: Literal["exact", "hest"] = "exact"


class RidgePrediction:
    """`values` float64 [M, K]: the predicted numbers. `choices`: what came of the settings."""

    def __init__(self, values: npt.NDArray[np.float64], choices: dict[str, Any]) -> None:
        self.values, self.choices = values, choices


def ridge(train_x: Array, train_y: Array, test_x: Array, **settings: Any) -> RidgePrediction:
    """Predictions for `test_x` [M, D] after training on [N, D] and targets [N, K]. `settings`: of RidgeSettings.

    Deterministic. Raises DataError for values that are not finite and for fewer than 2 training samples.
    """
    how = RidgeSettings(**settings)
    if not all(np.isfinite(part).all() for part in (train_x, train_y, test_x)):
        raise DataError("the ridge probe was given numbers that are not finite (NaN or infinite)")
    if len(train_x) < 2:
        raise DataError(f"the ridge probe needs at least 2 training samples, it was given {len(train_x)}")
    exact = how.pca == "exact"
    train, test = (np.asarray(part, dtype=np.float64 if exact else np.float32) for part in (train_x, test_x))
    scaler = StandardScaler()
    train, test = scaler.fit_transform(train), scaler.transform(test)
    middle = np.asarray(train_y, dtype=np.float64).mean(axis=0)
    if not train.any():  # nothing varies in training, so there is nothing to go by
        return RidgePrediction(np.tile(middle, (len(test), 1)), {"alpha": None, "components": 0})
    components = min(how.components, train.shape[1], len(train))
    # Of a matrix with few rows the covariance is the larger problem.
    plain = "covariance_eigh" if train.shape[1] <= len(train) else "full"
    reduce = PCA(components, svd_solver=plain if exact else "auto", random_state=1)
    train, test = reduce.fit_transform(train), reduce.transform(test)
    alpha = how.alpha if how.alpha is not None else 100.0 / (components * train_y.shape[1])
    if how.solver == "exact":
        model = Ridge(alpha, fit_intercept=False, solver="cholesky")
        train, test = train.astype(np.float64), test.astype(np.float64)
    else:
        model = Ridge(alpha, fit_intercept=False, solver="lsqr", max_iter=1000)
        train, test = train.astype(np.float32), test.astype(np.float32)
    targets = np.asarray(train_y, dtype=train.dtype)
    model.fit(train, targets)
    found = np.asarray(model.predict(test), dtype=np.float64).reshape(len(test), -1)
    return RidgePrediction(found + middle, {"alpha": alpha, "components": components})
