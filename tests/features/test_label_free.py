"""Label-free measures against slow loops and against spaces whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eosin.errors import DataError
from eosin.features.label_free import alignment, odcorr, rankme, uniformity


@pytest.fixture
def z() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)) + 0.3


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rankme_of_equal_singular_values_is_the_rank(rank: int) -> None:
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(50, rank)))
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))
    assert rankme(basis @ turn[:rank]) == pytest.approx(rank, abs=1e-3)


def test_rankme_is_the_published_formula(z: np.ndarray) -> None:
    s = np.linalg.svd(z, compute_uv=False)
    p = s / s.sum() + 1e-7
    assert rankme(z) == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)), rel=1e-12)
    assert rankme(torch.from_numpy(z).float()) == pytest.approx(rankme(z), rel=1e-5)
    assert rankme(np.zeros((4, 3))) == 0.0


def test_odcorr_variants_against_a_loop(z: np.ndarray) -> None:
    k = z.shape[1]
    entries = [np.corrcoef(z[:, i], z[:, j])[0, 1] for i in range(k) for j in range(k) if i != j]
    assert odcorr(z) == pytest.approx(np.mean(np.abs(entries)), rel=1e-10)
    assert odcorr(z, "mean-square") == pytest.approx(np.mean(np.square(entries)), rel=1e-10)
    assert odcorr(z, "frobenius") == pytest.approx(math.sqrt(np.sum(np.square(entries))) / k, rel=1e-10)


def test_odcorr_knows_orthogonal_repeated_and_dead_dimensions() -> None:
    orthogonal = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=float)
    assert odcorr(orthogonal) == pytest.approx(0.0, abs=1e-12)
    one = np.random.default_rng(0).normal(size=(20, 1))
    assert odcorr(np.hstack([one, 2 * one, -one])) == pytest.approx(1.0)
    with_dead = np.hstack([orthogonal[:, :1], orthogonal[:, :1], np.full((4, 2), 0.1)])
    assert odcorr(with_dead) == pytest.approx(1.0)
    assert math.isnan(odcorr(np.full((5, 4), 0.1, dtype=np.float32)))
    with pytest.raises(DataError, match="variant"):
        odcorr(orthogonal, "median")  # type: ignore[arg-type]


def test_uniformity_against_a_loop_and_for_any_chunk(z: np.ndarray) -> None:
    x = z / np.linalg.norm(z, axis=1, keepdims=True)
    pairs = [np.exp(-2 * np.sum((x[i] - x[j]) ** 2)) for i in range(len(x)) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(np.mean(pairs)), rel=1e-10)
    assert uniformity(z, chunk=7) == pytest.approx(uniformity(z), rel=1e-12)


def test_uniformity_of_collapsed_opposite_and_spread() -> None:
    assert uniformity(np.ones((6, 3))) == pytest.approx(0.0, abs=1e-9)
    assert uniformity(np.array([[1.0, 0.0], [-5.0, 0.0]])) == pytest.approx(-8.0)
    spread = np.random.default_rng(0).normal(size=(200, 16))
    assert uniformity(spread) < uniformity(spread + 3.0)
    assert math.isnan(uniformity(np.ones((1, 3))))


def test_alignment(z: np.ndarray) -> None:
    assert alignment(z, 3 * z) == pytest.approx(0.0, abs=1e-12)
    assert alignment(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])) == pytest.approx(2.0)
    with pytest.raises(DataError, match="pairs"):
        alignment(z, z[:5])


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])])
def test_bad_embeddings_are_refused(bad: np.ndarray) -> None:
    for measure in (rankme, odcorr, uniformity):
        with pytest.raises(DataError):
            measure(bad)
