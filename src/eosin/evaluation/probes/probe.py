"""What every probe takes and gives, so that tasks and protocols need not know which one it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Examples(NamedTuple):
    """Features float32 [N, D] and their labels int64 [N]."""

    x: Floats
    y: Labels


class Prediction(NamedTuple):
    """Class scores of the test samples [M, C] (larger = more likely) and, a run of the probe each, labels [R,
    M].

    `choices`: what the probe chose on its inner split.
    """

    scores: npt.NDArray[np.float64]
    runs: Labels
    choices: dict[str, Any]


Probe = Callable[..., Prediction]
"""probe(train, test_x [M, D], classes, *, inner=[(Examples, Examples)], seed, fold, **settings of the
protocol).

Fits on `train`; chooses settings by fitting the first and judging the second of each pair in `inner`;
predicts `test_x`. `fold` names the fold for randomness: the same arguments give the same prediction.
"""
