"""Words: stable, independent of each other, and of the laws they name."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eosin.randomness import Words

GOLDEN = [0.4741052016931837, 0.633366037220227, 0.2980937977719801]


def test_the_stream_never_changes() -> None:
    assert Words(7, "tile", 3).uniform(3).tolist() == pytest.approx(GOLDEN, abs=0)


def test_streams_of_other_keys_are_other_streams() -> None:
    first = Words(1, "a", 2).uniform(1000)
    for other in (Words(1, "a", 3), Words(2, "a", 2), Words(1, "b", 2)):
        assert abs(np.corrcoef(first, other.uniform(1000))[0, 1]) < 0.15


def test_laws() -> None:
    words = Words(0, "laws")
    assert stats.kstest(words.uniform(20_000), "uniform").pvalue > 0.001
    assert stats.kstest(words.normal(20_000), "norm").pvalue > 0.001
    assert stats.kstest(words.between(2, 5, 20_000), "uniform", args=(2, 3)).pvalue > 0.001
    assert stats.chisquare(np.bincount(words.integers(7, 20_000), minlength=7)).pvalue > 0.001
    assert abs(words.chance(0.3, 20_000).mean() - 0.3) < 0.015
    orders = words.permutations(3, 12_000)
    assert stats.chisquare(np.bincount(orders @ [9, 3, 1])[np.bincount(orders @ [9, 3, 1]) > 0]).pvalue > 0.001
    picks = np.bincount([Words(5, i).choice([1.0, 0.0, 3.0]) for i in range(4000)], minlength=3)
    assert picks[1] == 0
    assert abs(picks[2] / 4000 - 0.75) < 0.03
