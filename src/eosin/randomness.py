"""Stateless randomness: a stream of words is a function of its key, on any machine and with any numpy.

Words come from the Philox counter generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
through `random_raw`, whose stream numpy keeps stable, and are mapped to numbers here: numpy's Generator methods are
not stable across versions. A stream is named by a key, so nothing has to be saved or replayed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Words:
    """Numbers drawn in order from the stream named by `seed` and `key` (ints and strings).

    >>> float(Words(1, "views", 7).uniform()) == float(Words(1, "views", 7).uniform())
    True
    """

    def __init__(self, seed: int, *key: int | str) -> None:
        name = "/".join([str(int(seed)), *(str(part) for part in key)]).encode()
        digest = hashlib.blake2b(name, digest_size=16).digest()
        self._bits = np.random.Philox(key=np.frombuffer(digest, dtype=np.uint64))

    def uniform(self, *shape: int) -> FloatArray:
        """Uniform numbers in [0, 1), 53 bits each; float64 of `shape` (a 0-d array without one)."""
        count = int(np.prod(shape)) if shape else 1
        words = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)

    def between(self, low: float, high: float, *shape: int) -> FloatArray:
        """Uniform numbers in [low, high)."""
        return low + (high - low) * self.uniform(*shape)

    def integers(self, count: int, *shape: int) -> IntArray:
        """Uniform integers in [0, count). Bias is below count / 2**53."""
        return np.minimum((self.uniform(*shape) * count).astype(np.int64), count - 1)

    def chance(self, probability: float, *shape: int) -> npt.NDArray[np.bool_]:
        """True with `probability`."""
        return self.uniform(*shape) < probability

    def normal(self, *shape: int) -> FloatArray:
        """Standard normal numbers (Box-Muller)."""
        radius = np.sqrt(-2.0 * np.log(1.0 - self.uniform(*shape)))
        return radius * np.cos(2.0 * np.pi * self.uniform(*shape))

    def permutations(self, count: int, *shape: int) -> IntArray:
        """Uniform permutations of 0..count-1 along the last axis: int64 of shape + (count,)."""
        return np.argsort(self.uniform(*shape, count), axis=-1, kind="stable").astype(np.int64)

    def choice(self, weights: npt.ArrayLike) -> int:
        """An index drawn with probability proportional to `weights` (non-negative, sum above 0)."""
        edges = np.cumsum(np.asarray(weights, dtype=np.float64))
        return int(np.searchsorted(edges, float(self.uniform()) * edges[-1], side="right"))
