"""Losses of slide-level tasks with missing labels: cross-entropy, squared error, hazards in time bins, Cox.

Every function takes and gives leading dimensions as they come, so S stacked heads [S, B] and one head [B] are the
same call. A slide without a label adds nothing to a task's loss or gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.errors import DataError
from eosin.models.mil.head import Targets
from eosin.models.slide_task import SlideTask

ClassWeights = Mapping[str, Sequence[float] | Tensor]
COX_BAGS = 32
"""Fewest labelled bags that Cox's partial likelihood compares: below it a bag has almost nobody to be compared with."""


def task_losses(
    outputs: Mapping[str, Tensor],
    targets: Targets,
    tasks: Sequence[SlideTask],
    class_weights: ClassWeights | None = None,
    reduction: Literal["mean", "none"] = "mean",
) -> dict[str, Tensor]:
    """The loss of each task: mean over its labelled bags, 0 if none is labelled.

    outputs: task -> logits [..., B, task.outputs]. targets: task -> int64 class numbers [..., B] (-1 missing), float
    [..., B] (regression, NaN missing) or float [..., B, 2] (survival: time and event, NaN missing). class_weights:
    task -> one weight a class; each bag's loss is multiplied by its class's weight, and the mean divides by the number
    of bags, so weights also act on batches of one. Returns task -> [...]; with reduction "none" task -> [..., B], 0
    where the label is missing (Cox's term of a bag is scaled so that its mean over labelled bags is the mean over
    events). Raises DataError on a missing task, on targets of another shape, on a class number that does not exist,
    and on Cox with fewer than 32 labelled bags.
    """
    found = {}
    for task in tasks:
        logits, target, known = matched(outputs, targets, task)
        weights = (class_weights or {}).get(task.name)
        losses = bag_losses(task, logits, target, known, weights)  # [..., B]
        found[task.name] = losses if reduction == "none" else losses.sum(dim=-1) / known.sum(dim=-1).clamp(min=1)
    return found


def total_loss(
    losses: Mapping[str, Tensor],
    auxiliary: Tensor | None = None,
    bag_weight: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """bag_weight · Σ weight_t · loss_t + (1 - bag_weight) · auxiliary, averaged over the bags.

    losses: task -> [..., B], from `task_losses(..., reduction="none")`; auxiliary: [..., B], `HeadOutput.auxiliary`;
    weights: of the tasks, 1 if not given. Each bag counts once, however many of its labels are known, so the loss of a
    batch is the mean of the losses of its slides one by one. Returns [...].
    """
    weighted = [(weights or {}).get(name, 1.0) * loss for name, loss in losses.items()]
    total = torch.stack(weighted).sum(dim=0)  # [..., B]
    if auxiliary is not None:
        total = bag_weight * total + (1 - bag_weight) * auxiliary
    return total.mean(dim=-1)


def labelled(task: SlideTask, target: Tensor) -> Tensor:
    """Which bags have a label, bool [..., B]."""
    if task.has_classes:
        return target >= 0
    known = ~torch.isnan(target)
    return known.all(dim=-1) if task.kind == "survival" else known


def matched(outputs: Mapping[str, Tensor], targets: Targets, task: SlideTask) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [..., B, k], targets and which are known, of one task; raises DataError if they do not fit."""
    if task.name not in outputs or task.name not in targets:
        raise DataError(f"task {task.name} has no {'outputs' if task.name not in outputs else 'targets'}")
    logits = outputs[task.name]
    target = targets[task.name].to(logits.device)
    wanted = [*logits.shape[:-1], 2] if task.kind == "survival" else [*logits.shape[:-1]]
    if list(target.shape) != wanted or logits.shape[-1] != task.outputs:
        raise DataError(
            f"task {task.name}: targets {list(target.shape)} do not fit outputs {list(logits.shape)}; "
            f"it takes {wanted} for {task.outputs} outputs"
        )
    if task.has_classes:
        if target.is_floating_point():
            raise DataError(f"task {task.name}: classes are numbers of type int64, not {target.dtype}")
        if target.numel() and not target.is_meta and int(target.max()) >= task.outputs:
            raise DataError(f"task {task.name}: class {int(target.max())} of {task.outputs} does not exist")
    return logits, target, labelled(task, target)


def bag_losses(
    task: SlideTask, logits: Tensor, target: Tensor, known: Tensor, weights: Sequence[float] | Tensor | None = None
) -> Tensor:
    """The loss of each bag [..., B], 0 where it is not known. Computed in at least fp32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if task.has_classes:
        losses = cross_entropy(logits, target.clamp(min=0), task, weights)
    elif task.loss == "mse":
        losses = (logits[..., 0] - torch.where(known, target, 0).to(logits.dtype)) ** 2
    else:
        time, event = torch.where(known[..., None], target, 0).to(logits.dtype).unbind(-1)
        if task.loss == "cox":
            return cox_terms(logits[..., 0], time, event, known, task.name)
        losses = hazard_nll(logits, time_bins(time, task.cuts), event)
    return torch.where(known, losses, 0)


def cross_entropy(logits: Tensor, target: Tensor, task: SlideTask, weights: Sequence[float] | Tensor | None) -> Tensor:
    """-log softmax(logits) of the class, times the class's weight: [..., B]."""
    log_share = F.log_softmax(logits, dim=-1)
    losses = -log_share.gather(-1, target[..., None])[..., 0]
    if weights is None:
        return losses
    weight = torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    if weight.shape != (task.outputs,):
        raise DataError(f"task {task.name}: {weight.numel()} class weights for {task.outputs} classes")
    return losses * weight[target]


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Class weights n / (C · n_c) of labels [n] (-1 left out); they average 1 over the labels. Absent classes get 0."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes).double()
    return torch.where(counts > 0, counts.sum() / (counts > 0).sum() / counts.clamp(min=1), 0.0)


def time_bins(time: Tensor, cuts: Sequence[float]) -> Tensor:
    """Number of the time bin: how many inner edges are at or below the time. int64, the shape of `time`."""
    edges = torch.tensor(tuple(cuts), dtype=time.dtype, device=time.device)
    return torch.bucketize(time.contiguous(), edges, right=True)


def hazard_nll(logits: Tensor, bins: Tensor, event: Tensor) -> Tensor:
    """Negative log-likelihood in discrete time with hazards sigmoid(logits) (Zadeh and Schmid 2020): [..., B].

    logits [..., B, T]; bins int64 [..., B]: that of the event or of censoring; event [..., B], 1 = observed. An event
    in bin t: survived the bins before, happened in t. Censored in bin t: survived t too. It sums over slides, so
    slides can be scored one at a time.
    """
    number = torch.arange(logits.shape[-1], device=logits.device)
    observed = (event == 1)[..., None]
    here = number == bins[..., None]
    survived = (number < bins[..., None]) | (here & ~observed)
    terms = torch.where(survived, F.softplus(logits), 0) + torch.where(here & observed, F.softplus(-logits), 0)
    return terms.sum(dim=-1)


def hazard_risk(logits: Tensor) -> Tensor:
    """Risk of each bag, -Σ_t S(t) with S(t) = Π_{s ≤ t} (1 - hazard_s): logits [..., B, T] -> [..., B] in [-T, 0]."""
    return -torch.exp(torch.cumsum(F.logsigmoid(-logits), dim=-1)).sum(dim=-1)


def cox_terms(risk: Tensor, time: Tensor, event: Tensor, known: Tensor, name: str = "survival") -> Tensor:
    """Terms of the negative log partial likelihood (Cox 1972, ties after Breslow): [..., B].

    risk, time, event, known: [..., B]. The term of an observed event is log Σ_{j at risk} exp(risk_j) - risk_i over
    the bags whose time is not shorter; all are scaled by known / events, so that their mean over known bags is the
    mean over events. Bags without an event give 0. Raises DataError below 32 known bags.
    """
    fewest = int(known.sum(dim=-1).min())
    if fewest < COX_BAGS:
        raise DataError(
            f"task {name}: Cox's likelihood compares at least {COX_BAGS} bags, not {fewest}; "
            "give larger batches, or time cuts for hazards"
        )
    at_risk = (time[..., None, :] >= time[..., :, None]) & known[..., None, :]  # [..., i, j]
    spread = torch.where(at_risk, risk[..., None, :], -torch.inf)
    observed = known & (event == 1)
    # A bag that is not known has nobody at risk; its term is masked, so give it a finite one.
    spread = torch.where(observed[..., None], spread, 0)
    terms = torch.where(observed, torch.logsumexp(spread, dim=-1) - risk, 0)
    events = observed.sum(dim=-1, keepdim=True).clamp(min=1)
    return terms * known.sum(dim=-1, keepdim=True) / events
