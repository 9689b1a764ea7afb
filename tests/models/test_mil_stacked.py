"""S heads trained together equal S heads trained one by one: values, dropout, gradients, weights after steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eosin.errors import DataError
from eosin.models.mil import HEADS, MilHead, StackedHeads, build_head, stacked
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import task_losses, total_loss

TASKS = (SlideTask("msi", "binary"), SlideTask("subtype", "classification", ("a", "b", "c")))
WIDTH, HEADS_AT_ONCE, STEPS = 10, 3, 4


def heads(kind: str, **settings: object) -> list[MilHead]:
    """Heads of different seeds in fp64, training."""
    widths = {} if "linear" in kind else {"hidden": 16}
    if kind == "transmil":
        widths |= {"heads": 2, "landmarks": 4}
    given = {**widths, **settings}
    return [build_head(kind, WIDTH, TASKS, seed=seed, **given).double().train() for seed in range(HEADS_AT_ONCE)]


def batches(kind: str) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """One batch of two ragged bags a head for each step, with a missing label now and then."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for step in range(STEPS):
        most = 1 if kind == "linear" else 14
        tiles = torch.randn(HEADS_AT_ONCE, 2, most, WIDTH, generator=generator, dtype=torch.float64)
        sizes = torch.randint(1, most + 1, (HEADS_AT_ONCE, 2), generator=generator)
        present = torch.arange(most) < sizes[..., None]
        targets = {
            "msi": torch.randint(-1, 2, (HEADS_AT_ONCE, 2), generator=generator),
            "subtype": torch.randint(-1 if step else 0, 3, (HEADS_AT_ONCE, 2), generator=generator),
        }
        found.append((tiles, present, targets))
    return found


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("in_turn", [False, True])
def test_training_together_equals_training_one_by_one(
    kind: str, in_turn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_turn:
        monkeypatch.setattr(stacked, "LONG_BAG", 0)
    settings = {"subtyping": True} if kind == "clam-mb" else {}
    alone, stack = heads(kind, **settings), StackedHeads(heads(kind, **settings)).train()
    joint = torch.optim.Adam(stack.parameters(), lr=1e-3, weight_decay=1e-3)
    adams = [torch.optim.Adam(head.parameters(), lr=1e-3, weight_decay=1e-3) for head in alone]
    for tiles, present, targets in batches(kind):
        out = stack(tiles, present, targets)
        losses = task_losses(out.outputs, targets, TASKS, reduction="none")
        joint.zero_grad()
        totals = total_loss(losses, out.auxiliary, stack.bag_weight)
        totals.sum().backward()
        joint.step()
        for number, (head, adam) in enumerate(zip(alone, adams, strict=True)):
            mine = {name: values[number] for name, values in targets.items()}
            one = head(tiles[number], present[number], mine)
            losses = task_losses(one.outputs, mine, TASKS, reduction="none")
            total = total_loss(losses, one.auxiliary, head.bag_weight)
            adam.zero_grad()
            total.backward()
            adam.step()
            torch.testing.assert_close(totals[number], total, rtol=1e-9, atol=1e-9)
            assert (out.attention is None) == (one.attention is None)
            if one.attention is not None:
                torch.testing.assert_close(out.attention[number], one.attention, rtol=1e-9, atol=1e-9)
    for number, head in enumerate(alone):
        state = stack.state_of(number)
        assert state.keys() == head.state_dict().keys()
        for name, value in head.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=1e-6)


def test_a_head_leaves_the_stack_with_its_weights_and_comes_back() -> None:
    stack = StackedHeads(heads("clam-sb"))
    tiles, present, _ = batches("clam-sb")[0]
    stack.eval()
    before = stack(tiles, present).outputs["msi"]
    single = stack.head(2)
    assert single.generator is stack.generators[2]
    torch.testing.assert_close(single(tiles[2], present[2]).outputs["msi"], before[2])
    kept = stack.state_of(1)
    assert all(value.is_contiguous() for value in kept.values())
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.zero_()
    stack.load_state_of(1, kept)
    after = stack(tiles, present).outputs["msi"]
    torch.testing.assert_close(after[1], before[1])
    assert not torch.allclose(after[0], before[0])


def test_heads_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="must agree"):
        StackedHeads([build_head("abmil", WIDTH, TASKS), build_head("abmil", WIDTH, TASKS, dropout=0.5)])
    with pytest.raises(DataError, match="no heads"):
        StackedHeads([])
    stack = StackedHeads(heads("abmil"))
    with pytest.raises(DataError, match="3 stacked heads need tiles"):
        stack(torch.zeros(2, 1, 4, WIDTH), torch.ones(2, 1, 4, dtype=torch.bool))
    with pytest.raises(DataError, match="an empty bag"):
        stack(torch.zeros(3, 1, 4, WIDTH), torch.zeros(3, 1, 4, dtype=torch.bool))
