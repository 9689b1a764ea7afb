"""Targets against slow loops in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from eosin.objectives import precision
from eosin.objectives.targets import centering, sinkhorn, sinkhorn_offset, target, update_center


def sinkhorn_by_loops(logits: torch.Tensor, temperature: float, iterations: int) -> torch.Tensor:
    """Sinkhorn-Knopp as written down: divide columns by their sums, then rows, on plain Python floats."""
    rows, columns = logits.shape
    q = [[math.exp(float(logits[i, k]) / temperature) for k in range(columns)] for i in range(rows)]
    for _ in range(iterations):
        for k in range(columns):
            total = sum(q[i][k] for i in range(rows))
            for i in range(rows):
                q[i][k] /= total
        for i in range(rows):
            total = sum(q[i])
            q[i] = [value / total for value in q[i]]
    return torch.tensor(q, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "iterations"), [(0.04, 3), (0.07, 3), (0.5, 1)])
def test_sinkhorn_equals_a_loop(temperature: float, iterations: int) -> None:
    logits = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sinkhorn_by_loops(logits, temperature, iterations)
    assert torch.allclose(sinkhorn(logits, temperature, iterations), expected, atol=1e-12, rtol=0)
    assert (sinkhorn(logits.float(), temperature, iterations).double() - expected).abs().max() < 1e-5


def test_sinkhorn_of_several_matrices_some_rows_at_a_time_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(70, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sinkhorn(logits, 0.07)
    monkeypatch.setitem(precision._CHUNK_BYTES, "cpu", 1)  # 16 rows at a time
    parts = [logits[:33], logits[33:40], logits[40:40], logits[40:]]
    offset = sinkhorn_offset(parts, 0.07)
    torch.testing.assert_close(torch.cat([target(part, offset, 0.07) for part in parts]), expected)


def test_sinkhorn_takes_logits_that_overflow_an_exponential() -> None:
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1)) * 20
    q = sinkhorn(logits, 0.04)
    assert torch.isfinite(q).all()
    assert torch.allclose(q.sum(dim=1), torch.ones(6), atol=1e-5)


def test_sinkhorn_evens_the_prototypes_out() -> None:
    logits = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.1
    logits[:, 0] += 1.0  # every sample prefers prototype 0
    plain = torch.softmax(logits / 0.5, dim=1).sum(dim=0)
    even = sinkhorn(logits, 0.5, 20).sum(dim=0)
    assert plain.max() / plain.min() > 4
    assert even.max() / even.min() < 1.01


def test_sinkhorn_of_bf16_logits_runs_in_fp32_and_of_none_is_none() -> None:
    assert sinkhorn(torch.randn(3, 4).bfloat16(), 0.07).dtype == torch.float32
    assert sinkhorn(torch.zeros(0, 4), 0.07).shape == (0, 4)


def test_centering_and_its_moving_mean() -> None:
    logits = torch.randn(5, 6, dtype=torch.float64)
    center = torch.randn(1, 6, dtype=torch.float64)
    expected = torch.stack([torch.softmax((row - center[0]) / 0.04, dim=0) for row in logits])
    assert torch.allclose(centering(logits, center, 0.04), expected)
    moved = update_center(center, [logits[:2], logits[2:]], 0.9)
    assert torch.allclose(moved, 0.9 * center + 0.1 * logits.mean(dim=0))
