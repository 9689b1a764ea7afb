"""Training the heads of a linear probe: for a fixed number of steps, or to each head's best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eosin.evaluation.probes.decisions import Cut, Monitor, Scorer
from eosin.evaluation.probes.order import even_batches, shuffled_epochs
from eosin.evaluation.probes.probe import Examples, Floats, Labels
from eosin.evaluation.probes.schedules import Per, Schedule, lr_factors
from eosin.evaluation.probes.stacked import Loss, Optimizer, StackedLinear
from eosin.evaluation.probes.watch import Watch
from eosin.randomness import Words

Key = tuple[int | str, ...]
Grid = Sequence[tuple[float, float]]
"""(learning rate, weight decay) of each setting."""


@dataclass(frozen=True)
class LinearSettings:
    """How heads are trained. `lr`, `weight_decay`: the grid, every pair of them. `loss` auto: binary cross-entropy of
    one logit for two classes, else cross-entropy.

    `schedule` is stepped `per` step or epoch. `standardise`: features by mean and sd of the training part. `init`:
    first weights, torch.nn.Linear's uniform ones or zero; `shared_start`: the same for all runs. `monitor`:
    what settings or checkpoints are chosen by; `binary_monitor`: the same for two classes. `cut`: how one logit becomes
    a class. Of checkpoint "best" only: a look at the watched samples every `check_every` epochs; patience in looks, as
    a number, or as a share of the epochs there can be (rounded up); neither: no early stopping. `shots_of`: who draws
    the samples of a task that trains on few.
    """

    lr: Sequence[float] = (3e-4,)
    weight_decay: Sequence[float] = (0.01,)
    batch: int = 256
    steps: int = 12_500
    runs: int = 5
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    schedule: Schedule = "constant"
    per: Per = "step"
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    standardise: bool = False
    init: Literal["uniform", "zero"] = "uniform"
    shared_start: bool = False
    checkpoint: Literal["best", "last"] = "last"
    monitor: Monitor = "balanced_accuracy"
    binary_monitor: Monitor | None = None
    cut: Cut = "zero"
    patience: int | None = None
    patience_share: float | None = None
    min_delta: float = 0.0
    check_every: int = 1
    shots_of: Literal["words", "eva"] = "words"

    def loss_for(self, classes: int) -> Loss:
        """The loss for so many classes."""
        return ("bce" if classes == 2 else "cross_entropy") if self.loss == "auto" else self.loss

    def monitor_for(self, classes: int) -> Monitor:
        """The score for so many classes."""
        return self.binary_monitor if classes == 2 and self.binary_monitor is not None else self.monitor

    def patience_for(self, count: int) -> int | None:
        """Patience in looks where `count` samples are trained on; None: no early stopping."""
        if self.patience is not None or self.patience_share is None:
            return self.patience
        return math.ceil(self.patience_share * self.steps / math.ceil(count / self.batch))


def new_heads(
    parts: Sequence[Examples], classes: int, how: LinearSettings, grid: Grid, key: Key, device: str
) -> StackedLinear:
    """Untrained heads, a stream for each part, alike along the grid: zero, or U(-1/sqrt(D), 1/sqrt(D)) as
    torch.nn.Linear.
    """
    loss = how.loss_for(classes)
    outputs, width = (1 if loss == "bce" else classes), parts[0].x.shape[1]
    edge = 1.0 / math.sqrt(width) if how.init == "uniform" else 0.0
    streams = [0 if how.shared_start else n for n in range(len(parts))]
    drawn = np.stack([Words(*_seeded(key), "init", n).between(-edge, edge, outputs, width + 1) for n in streams])
    initial = torch.from_numpy(drawn.astype(np.float32))[:, None].repeat(1, len(grid), 1, 1).to(device)
    xs: dict[int, Tensor] = {}
    targets: dict[int, Tensor] = {}
    for part in parts:
        if id(part.x) not in xs:
            xs[id(part.x)] = as_tensor(part.x, device)
            targets[id(part.x)] = _target(part.y, classes, loss).to(device)
    return StackedLinear(
        [xs[id(part.x)] for part in parts],
        [targets[id(part.x)] for part in parts],
        initial[..., :-1],
        initial[..., -1],
        lr=[lr for lr, _ in grid],
        weight_decay=[decay for _, decay in grid],
        loss=loss,
        optimizer=how.optimizer,
        momentum=how.momentum,
    )


def train_fixed(
    parts: Sequence[Examples], classes: int, how: LinearSettings, grid: Grid, key: Key, device: str
) -> StackedLinear:
    """Heads [len(parts), len(grid)] after all steps. Batches are full; parts may differ in size."""
    heads = new_heads(parts, classes, how, grid, key, device)
    counts = [len(part.y) for part in parts]
    batch = min(how.batch, *counts)
    factors = lr_factors(how.schedule, how.per, how.steps, math.ceil(max(counts) / batch))
    batches = even_batches(counts, _orders(key, len(parts)), batch)
    for factor, rows in zip(factors.tolist(), islice(batches, how.steps), strict=True):
        heads.step(rows.to(device), factor)
    return heads


def train_watched(
    parts: Sequence[Examples], watched: Examples, classes: int, how: LinearSettings, grid: Grid, key: Key, device: str
) -> Watch:
    """Best checkpoints of heads [len(parts), len(grid)]. Parts are alike in size; the last batch of an epoch is what
    is left over, and an epoch that the budget of steps cuts short is not looked at.
    """
    heads = new_heads(parts, classes, how, grid, key, device)
    count = len(parts[0].y)
    per_epoch = math.ceil(count / how.batch)
    factors = lr_factors(how.schedule, how.per, how.steps, per_epoch).tolist()
    scorer = Scorer(torch.from_numpy(watched.y).to(device), classes, how.monitor_for(classes))
    x = as_tensor(watched.x, device)
    watch = Watch(heads, x, scorer, how.cut, how.patience_for(count), how.min_delta)
    orders = shuffled_epochs([count] * len(parts), _orders(key, len(parts)))
    for epoch, order in enumerate(islice(orders, math.ceil(how.steps / per_epoch)), 1):
        rows = order[watch.alive].to(device)
        for batch in rows.split(how.batch, dim=1)[: how.steps - heads.steps]:
            heads.step(batch, factors[heads.steps])
        if epoch * per_epoch <= how.steps and epoch % how.check_every == 0 and not watch.look(heads):
            break
    watch.settle(heads)
    return watch


def as_tensor(x: Floats, device: str) -> Tensor:
    """Features as a tensor, copied only where they are read-only (a memory map), which torch does not take."""
    return torch.from_numpy(np.require(x, np.float32, ["C", "W"])).to(device)


def _orders(key: Key, streams: int) -> list[Words]:
    return [Words(*_seeded(key), "order", number) for number in range(streams)]


def _seeded(key: Key) -> tuple[int, *tuple[int | str, ...]]:
    seed, *rest = key
    return int(seed), *rest


def _target(labels: Labels, classes: int, loss: Loss) -> Tensor:
    """What the gradient is taken against: one-hot [N, C], or class 1 as [N, 1]."""
    known = torch.from_numpy(labels)
    return known.float()[:, None] if loss == "bce" else torch.nn.functional.one_hot(known, classes).float()
