"""SimpleShot (Wang et al., arXiv 1911.04623): how well a few labelled samples a class are enough.

Features are centred by the mean of the training part and L2-normalised (CL2N); each run draws `shots` samples
a class and assigns every test sample to the nearest class centroid. All runs are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.probes.probe import Examples, Floats, Labels, Prediction
from eosin.randomness import Words

_CHUNK_VALUES = 20_000_000


def simpleshot(
    train: Examples,
    test_x: Floats,
    classes: int,
    *,
    inner: Sequence[tuple[Examples, Examples]] = (),
    seed: int = 0,
    fold: int = 0,
    shots: int,
    runs: int = 1000,
) -> Prediction:
    """Predictions of `runs` draws of `shots` samples a class; scores are the share of runs that chose a
    class.

    Raises DataError where a class has fewer than `shots` training samples.
    """
    x, test = centred_unit(train.x, test_x)
    picks = draw_shots(train.y, classes, shots, runs, Words(seed, "simpleshot", shots, fold))  # [R, C, shots]
    count = len(test)
    chosen = np.empty((runs, count), dtype=np.int64)
    step = max(1, _CHUNK_VALUES // (classes * max(count, shots * x.shape[1])))
    for first in range(0, runs, step):
        centroid = x[picks[first : first + step]].mean(axis=2)  # [r, C, D]
        # |t - c|^2 = |t|^2 - 2 t.c + |c|^2, and |t|^2 does not depend on the class.
        closeness = 2.0 * (centroid.reshape(-1, x.shape[1]) @ test.T).reshape(*centroid.shape[:2], count)  # [r, C, M]
        closeness -= np.square(centroid).sum(axis=2)[:, :, None]
        chosen[first : first + step] = closeness.argmax(axis=1)
    scores = np.stack([(chosen == label).mean(axis=0) for label in range(classes)], axis=1)  # [M, C]
    return Prediction(scores, chosen, {})


def centred_unit(train_x: Floats, test_x: Floats) -> tuple[Floats, Floats]:
    """Both [N, D] and [M, D] minus the mean of the first, each row divided by its length."""
    centre = train_x.mean(axis=0, dtype=np.float64).astype(np.float32)
    parts = [part - centre for part in (train_x, test_x)]
    train, test = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts)
    return train, test


def draw_shots(labels: Labels, classes: int, shots: int, runs: int, words: Words) -> npt.NDArray[np.int64]:
    """Sample numbers [runs, classes, shots]: `shots` different samples of each class, uniformly, a run each."""
    picks = np.empty((runs, classes, shots), dtype=np.int64)
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise DataError(f"simpleshot needs {shots} training samples a class, class {label} has {len(members)}")
        ranks: list[Any] = []
        for taken in range(shots):
            # The n-th of those still free: step over the ones taken, from the smallest up.
            rank = words.integers(len(members) - taken, runs)
            for earlier in np.sort(np.array(ranks), axis=0) if ranks else ():
                rank = rank + (rank >= earlier)
            ranks.append(rank)
        picks[:, label] = members[np.stack(ranks, axis=1)]
    return picks
