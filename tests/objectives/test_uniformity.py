"""KDE and KoLeo: value against loops, sign, gradient. Public code has the sign of KDE inverted."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from eosin.objectives.uniformity import kde, koleo


def kde_by_loops(z: torch.Tensor, kappa: float, address: list[int] | None) -> float:
    rows = [row / row.norm() for row in z.double()]
    terms = []
    for i, x in enumerate(rows):
        others = [y for j, y in enumerate(rows) if j != i and (address is None or address[j] != address[i])]
        if others:
            terms.append(math.log(sum(math.exp(kappa * float(x @ y)) for y in others)) - math.log(len(others)))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("address", [None, [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2], [7] * 6])
def test_kde_equals_a_loop(address: list[int] | None) -> None:
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = None if address is None else torch.tensor(address)
    assert float(kde(z, 5.0, given)) == pytest.approx(kde_by_loops(z, 5.0, address), abs=1e-12)


def test_collapse_is_worse_than_spread() -> None:
    spread = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    collapsed = torch.ones(48, 32) + 1e-3 * spread
    for term in (kde, koleo):
        assert term(collapsed) > term(spread)
    assert float(kde(collapsed, 5.0)) == pytest.approx(5.0, abs=1e-3)


def test_one_step_moves_close_embeddings_apart() -> None:
    angle = math.acos(0.99)
    z = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], requires_grad=True)
    kde(z).backward()
    with torch.no_grad():
        moved = normalize(z - 0.1 * z.grad, dim=-1)
    assert float(moved[0] @ moved[1]) < 0.989


def test_rows_without_others_have_no_gradient_and_no_nan() -> None:
    z = torch.randn(4, 8, requires_grad=True)
    loss = kde(z, 5.0, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(z.grad, torch.zeros(4, 8))


def test_kde_runs_in_fp32_under_bf16() -> None:
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    assert kde(z.bfloat16()).dtype == torch.float32
    assert float(kde(z.bfloat16())) == pytest.approx(float(kde(z)), abs=0.02)


def test_koleo_equals_a_loop_and_stays_finite_for_twins() -> None:
    z = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = normalize(z, dim=-1)
    nearest = [min(float((x[i] - x[j]).norm()) for j in range(6) if j != i) for i in range(6)]
    assert float(koleo(z)) == pytest.approx(-sum(map(math.log, nearest)) / 6, abs=1e-6)
    assert torch.isfinite(koleo(torch.ones(3, 4)))
