"""Losses and their gradients against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from eosin.models import Scores
from eosin.objectives import precision
from eosin.objectives.cross_entropy import cross_entropy
from eosin.objectives.dino import view_losses
from eosin.objectives.ibot import masked_patches


def distributions(*shape: int) -> torch.Tensor:
    return torch.softmax(torch.randn(*shape, dtype=torch.float64), dim=-1)


def scores(rows: int, prototypes: int, width: int = 5) -> Scores:
    draw = [torch.randn(count, width, dtype=torch.float64, requires_grad=True) for count in (rows, prototypes)]
    return Scores(*draw)


def plain(student: torch.Tensor, target: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    return -(target * torch.log_softmax(student / temperature, dim=-1)).sum(dim=-1)


@pytest.mark.parametrize("chunk_rows", [16, 1000])
def test_cross_entropy_and_its_gradients_equal_the_whole_product(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(precision._CHUNK_BYTES, "cpu", 4 * 11 * chunk_rows)
    student, weight = scores(53, 11), torch.rand(53, dtype=torch.float64)
    target = distributions(53, 11) + distributions(53, 11)  # rows that sum to 2
    expected = (plain(student.logits(), target) * weight).sum()
    wanted = torch.autograd.grad(3.0 * expected, student)
    asked = []

    def rows(first: int, last: int) -> torch.Tensor:
        asked.append((first, last))
        return target[first:last]

    loss = cross_entropy(student, rows, weight, 0.1)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    assert len(asked) == (4 if chunk_rows == 16 else 1)
    for got, want in zip(torch.autograd.grad(3.0 * loss, student), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)


def test_cross_entropy_keeps_no_matrix_of_rows_by_prototypes_for_backward() -> None:
    student, target = scores(64, 128), distributions(64, 128)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
        cross_entropy(student, lambda a, b: target[a:b], torch.ones(64), 0.1)
    assert max(sizes) < 64 * 128


def test_cross_entropy_in_bf16_is_close() -> None:
    torch.manual_seed(1)
    student, target = scores(40, 30), distributions(40, 30)
    unit = [torch.nn.functional.normalize(x.detach(), dim=-1) for x in student]
    expected = plain(unit[0] @ unit[1].T, target).mean()
    rough = Scores(*(x.bfloat16().requires_grad_() for x in unit))
    loss = cross_entropy(rough, lambda a, b: target[a:b].float(), torch.full((40,), 1 / 40), 0.1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    loss.backward()
    assert rough.points.grad.dtype == torch.bfloat16


def test_view_losses_equal_every_pair_by_itself() -> None:
    torch.manual_seed(0)
    tiles, views = 4, 5
    student, target = scores(views * tiles, 7), distributions(2, tiles, 7)
    logits = student.logits().unflatten(0, (views, tiles))
    pairs = 2 * 3 + 2
    crossed = (plain(logits[0], target[1]).mean() + plain(logits[1], target[0]).mean()) / pairs
    small = sum(plain(view, t).mean() for view in logits[2:] for t in target) / pairs
    losses = view_losses(student, target)
    torch.testing.assert_close(losses[0], crossed)
    torch.testing.assert_close(losses[1], small)
    for got, want in zip(
        torch.autograd.grad(sum(losses), student), torch.autograd.grad(crossed + small, student), strict=True
    ):
        torch.testing.assert_close(got, want)


def test_without_local_crops_there_is_no_local_term() -> None:
    student, target = scores(2 * 4, 7), distributions(2, 4, 7)
    logits = student.logits().unflatten(0, (2, 4))
    crossed, small = view_losses(student, target)
    assert small.item() == 0.0
    torch.testing.assert_close(crossed, (plain(logits[0], target[1]) + plain(logits[1], target[0])).mean() / 2)


def test_masked_patches_weighs_crops_alike() -> None:
    torch.manual_seed(0)
    counts = [3, 1, 5]  # masked patches of the masked crops; 8 crops in all
    student, target = scores(9, 6), distributions(9, 6)
    weight = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in counts])
    logits = student.logits().split(counts)
    per_crop = [plain(s, t).mean() for s, t in zip(logits, target.split(counts), strict=True)]
    torch.testing.assert_close(masked_patches(student, lambda a, b: target[a:b], weight, 8), sum(per_crop) / 8)
