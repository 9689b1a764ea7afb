"""Slide-level losses: a loop over slides gives the same, missing labels leave no trace, Cox and hazards written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eosin.errors import DataError
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import (
    balanced_weights,
    hazard_nll,
    hazard_risk,
    task_losses,
    time_bins,
    total_loss,
)

NAN = float("nan")
TASKS = (
    SlideTask("msi", "binary"),
    SlideTask("subtype", "classification", ("a", "b", "c")),
    SlideTask("age", "regression"),
    SlideTask("os", "survival", cuts=(1.0, 2.0, 3.0)),
)
CLASS_WEIGHTS = {"subtype": (0.5, 2.0, 3.0)}


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits and labels of six slides; every task misses some, the last slide has none."""
    generator = torch.Generator().manual_seed(0)
    logits = {
        task.name: torch.randn(6, task.outputs, generator=generator, dtype=torch.float64).requires_grad_()
        for task in TASKS
    }
    targets = {
        "msi": torch.tensor([0, 1, -1, -1, 1, -1]),
        "subtype": torch.tensor([-1, 0, 2, 1, -1, -1]),
        "age": torch.tensor([NAN, 0.3, -1.0, NAN, 2.0, NAN]).double(),
        "os": torch.tensor([[0.5, 1.0], [NAN, 1.0], [3.0, 1.0], [2.5, 0.0], [9.0, 0.0], [NAN, NAN]]).double(),
    }
    return logits, targets


def plain_loss(task: SlideTask, logits: Tensor, target: Tensor) -> Tensor | None:
    """The loss of one labelled slide, written out; none without a label."""
    if task.has_classes:
        if int(target) < 0:
            return None
        weight = CLASS_WEIGHTS.get(task.name, (1.0,) * task.outputs)[int(target)]
        return -weight * torch.log(torch.exp(logits[int(target)]) / torch.exp(logits).sum())
    if bool(torch.isnan(target).any()):
        return None
    if task.kind == "regression":
        return (logits[0] - target) ** 2
    hazard = 1 / (1 + torch.exp(-logits))
    here = sum(cut <= float(target[0]) for cut in task.cuts)
    survived = math.prod((1 - hazard[t] for t in range(here)), start=torch.ones((), dtype=logits.dtype))
    return -torch.log(survived * (hazard[here] if float(target[1]) == 1 else 1 - hazard[here]))


def test_losses_and_gradients_with_missing_labels_equal_a_loop_over_slides() -> None:
    logits, targets = batch()
    losses = task_losses(logits, targets, TASKS, CLASS_WEIGHTS)
    sum(losses.values()).backward()
    found = {name: values.grad.clone() for name, values in logits.items()}
    for task in TASKS:
        mine = logits[task.name].detach().requires_grad_()
        each = [plain_loss(task, mine[n], targets[task.name][n]) for n in range(6)]
        known = [loss for loss in each if loss is not None]
        expected = torch.stack(known).mean()
        torch.testing.assert_close(losses[task.name], expected)
        (gradient,) = torch.autograd.grad(expected, mine)
        torch.testing.assert_close(found[task.name], gradient)
        for number, loss in enumerate(each):
            if loss is None:
                assert bool((found[task.name][number] == 0).all())


def test_the_total_is_the_mean_of_slides_one_by_one() -> None:
    logits, targets = batch()
    auxiliary = torch.rand(6, dtype=torch.float64)
    weights = {"msi": 2.0, "os": 0.1}

    def total(some: slice) -> Tensor:
        parts = task_losses(
            {name: values[some] for name, values in logits.items()},
            {name: values[some] for name, values in targets.items()},
            TASKS,
            CLASS_WEIGHTS,
            reduction="none",
        )
        return total_loss(parts, auxiliary[some], 0.7, weights)

    whole = total(slice(0, 6))
    alone = torch.stack([total(slice(n, n + 1)) for n in range(6)]).mean()
    torch.testing.assert_close(whole, alone)
    first = torch.autograd.grad(whole, list(logits.values()))
    second = torch.autograd.grad(alone, list(logits.values()))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b)


def test_stacked_heads_are_the_same_call() -> None:
    logits, targets = batch()
    stacked = {name: torch.stack([values, values.flip(0)]) for name, values in logits.items()}
    labels = {name: torch.stack([values, values.flip(0)]) for name, values in targets.items()}
    found = task_losses(stacked, labels, TASKS)
    for name, loss in task_losses(logits, targets, TASKS).items():
        torch.testing.assert_close(found[name], loss.expand(2))


def cox_batch(count: int = 40) -> tuple[Tensor, Tensor]:
    """Risks and (time, event) of slides, with ties, censoring and two missing labels."""
    generator = torch.Generator().manual_seed(5)
    risk = torch.randn(count, 1, generator=generator, dtype=torch.float64).requires_grad_()
    time = torch.randint(1, 12, (count,), generator=generator).double()
    event = (torch.rand(count, generator=generator) < 0.6).double()
    target = torch.stack([time, event], dim=1)
    target[3] = NAN
    target[7, 0] = NAN
    return risk, target


def test_cox_equals_the_partial_likelihood_written_out() -> None:
    task = SlideTask("os", "survival")
    risk, target = cox_batch()
    known = [n for n in range(len(target)) if not bool(torch.isnan(target[n]).any())]
    events = [n for n in known if float(target[n, 1]) == 1]
    terms = []
    for i in events:
        at_risk = [risk[j, 0] for j in known if float(target[j, 0]) >= float(target[i, 0])]
        terms.append(torch.log(sum(torch.exp(r) for r in at_risk)) - risk[i, 0])
    expected = torch.stack(terms).mean()
    found = task_losses({"os": risk}, {"os": target}, [task])["os"]
    torch.testing.assert_close(found, expected)
    first, second = (torch.autograd.grad(loss, risk)[0] for loss in (found, expected))
    torch.testing.assert_close(first, second)
    shifted = task_losses({"os": risk + 5}, {"os": target}, [task])["os"]
    torch.testing.assert_close(shifted, found)


def test_cox_needs_32_labelled_bags_and_bears_a_batch_without_events() -> None:
    task = SlideTask("os", "survival")
    risk, target = cox_batch(33)
    with pytest.raises(DataError, match="at least 32 bags, not 31"):
        task_losses({"os": risk}, {"os": target}, [task])
    risk, target = cox_batch()
    target[:, 1] = torch.where(torch.isnan(target[:, 1]), target[:, 1], 0.0)
    loss = task_losses({"os": risk}, {"os": target}, [task])["os"]
    assert float(loss.detach()) == 0
    assert bool(torch.isfinite(torch.autograd.grad(loss, risk)[0]).all())


def test_hazards_of_all_outcomes_sum_to_one_and_risk_follows_them() -> None:
    logits = torch.randn(1, 4, dtype=torch.float64)
    outcomes = [hazard_nll(logits, torch.tensor([t]), torch.ones(1)) for t in range(4)]
    beyond = hazard_nll(logits, torch.tensor([3]), torch.zeros(1))
    total = sum(torch.exp(-loss) for loss in [*outcomes, beyond])
    torch.testing.assert_close(total, torch.ones(1).double())
    assert time_bins(torch.tensor([0.0, 1.0, 1.5, 3.0, 99.0]), (1.0, 2.0, 3.0)).tolist() == [0, 1, 1, 3, 3]
    low, high = hazard_risk(torch.full((4,), -8.0)), hazard_risk(torch.full((4,), 8.0))
    assert -4 <= float(low) < float(high) <= 0


def test_extreme_logits_stay_finite() -> None:
    task = SlideTask("os", "survival", cuts=(1.0, 2.0))
    logits = torch.tensor([[500.0, -500.0, 500.0], [-500.0, 500.0, 0.0]], requires_grad=True)
    loss = task_losses({"os": logits}, {"os": torch.tensor([[1.5, 0.0], [0.5, 1.0]])}, [task])["os"]
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(logits.grad).all())


def test_balanced_weights_average_one_over_the_labels() -> None:
    labels = torch.tensor([0, 0, 0, 1, -1])
    weights = balanced_weights(labels, 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]).double())
    torch.testing.assert_close(weights[labels[:4]].mean(), torch.tensor(1.0).double())


def test_targets_that_do_not_fit_are_refused_in_one_line() -> None:
    logits = {"msi": torch.zeros(2, 2)}
    task = TASKS[0]
    for target, words in (
        (torch.tensor([0, 2]), "class 2 of 2 does not exist"),
        (torch.tensor([0.0, 1.0]), "int64"),
        (torch.tensor([0, 1, 1]), "do not fit"),
    ):
        with pytest.raises(DataError, match=words):
            task_losses(logits, {"msi": target}, [task])
    with pytest.raises(DataError, match="no targets"):
        task_losses(logits, {}, [task])
    with pytest.raises(DataError, match="3 class weights for 2"):
        task_losses(logits, {"msi": torch.tensor([0, 1])}, [task], {"msi": (1.0, 1.0, 1.0)})
