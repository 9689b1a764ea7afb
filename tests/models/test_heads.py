"""The projection head against its formula and torch's weight norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from eosin.models import ProjectionHead


def test_prototypes_are_weight_normed() -> None:
    head = ProjectionHead(24, 50, hidden=32, bottleneck=16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.last_layer.weight_g += torch.rand(50, 1)
    twin = weight_norm(nn.Linear(16, 50, bias=False), dim=0)
    twin.parametrizations.weight.original0.data.copy_(head.last_layer.weight_g)
    twin.parametrizations.weight.original1.data.copy_(head.last_layer.weight_v)
    x, y = (torch.randn(7, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    a, b = x @ head.last_layer().T, twin(y)
    torch.testing.assert_close(a, b)
    a.pow(2).sum().backward()
    b.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(head.last_layer.weight_g.grad, twin.parametrizations.weight.original0.grad)
    torch.testing.assert_close(
        head.last_layer.weight_v.grad, twin.parametrizations.weight.original1.grad, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_head_equals_its_formula(layers: int) -> None:
    head = ProjectionHead(24, 50, hidden=32, bottleneck=16, layers=layers)
    x = torch.randn(7, 24)
    y = x
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    assert len(linears) == layers
    for n, linear in enumerate(linears):
        y = y @ linear.weight.T + linear.bias
        y = F.gelu(y) if n < layers - 1 else y
    v = head.last_layer.weight_v
    wanted = (y / y.norm(dim=1, keepdim=True)) @ (v / v.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(head(x).logits(), wanted, atol=1e-6, rtol=1e-5)


def test_logits_are_cosines_at_the_start() -> None:
    head = ProjectionHead(24, 500, hidden=32, bottleneck=8)
    logits = head(100 * torch.randn(64, 24)).logits()
    assert logits.abs().max() <= 1 + 1e-5
    assert logits.max() > 0.7


@pytest.mark.parametrize("train_gain", [True, False])
def test_gain_is_learned_or_stays_one(train_gain: bool) -> None:
    head = ProjectionHead(24, 50, hidden=32, bottleneck=16, train_gain=train_gain)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=0.1)
    before = head.last_layer.weight_v.detach().clone()
    head(torch.randn(7, 24)).logits().logsumexp(-1).sum().backward()
    optimizer.step()
    moved = (head.last_layer.weight_g != 1).any().item()
    assert moved == train_gain
    assert (head.last_layer.weight_v != before).any()


def test_start_values() -> None:
    head = ProjectionHead(192, 300, generator=torch.Generator().manual_seed(3))
    again = ProjectionHead(192, 300, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.mlp[4].out_features == 256
    assert not any(module.bias.any() for module in head.mlp if isinstance(module, nn.Linear))
    assert torch.equal(head.last_layer.weight_g, torch.ones(300, 1))


def test_bf16_autocast_normalises_in_fp32() -> None:
    head = ProjectionHead(24, 50, hidden=32, bottleneck=16)
    x = torch.randn(7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head(x)
    assert rough.points.dtype == rough.prototypes.dtype == torch.bfloat16
    assert (rough.points.float().norm(dim=1) - 1).abs().max() < 0.005
    assert (rough.logits().float() - head(x).logits()).abs().max() < 0.02
