"""Attention-based MIL on bags of tile features: runs trained side by side, each to its best checkpoint.

The head is that of kaiko's eva (a linear to 128, gated attention, an MLP 128 -> 64 -> classes), as our ABMIL has it;
heads of several runs are one `StackedHeads` with one AdamW. All runs see the same training bags, each in its own
order, an epoch with a smaller last batch. After each epoch the watched bags choose each run's best checkpoint, and a
run whose score has not risen for `patience` epochs leaves the stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.errors import DataError, TrainingStopped
from eosin.evaluation.mil.adam import StackedAdam
from eosin.evaluation.mil.batches import pad
from eosin.evaluation.probes.decisions import Cut, Monitor, Scorer, decide, probabilities
from eosin.evaluation.probes.order import shuffled_epochs
from eosin.evaluation.probes.probe import Labels, Prediction
from eosin.evaluation.probes.schedules import Per, Schedule, lr_factors
from eosin.models.mil import StackedHeads, build_head
from eosin.models.mil.head import MilHead
from eosin.models.slide_task import SlideTask
from eosin.progress import progress_bar
from eosin.randomness import Words

Bags = Sequence[npt.NDArray[np.float32]]
"""Item i is the tiles of bag i, float32 [n_i, D], n_i from 1."""
_TASK = "slide"
_KEPT_OF_A_TILE = 6
"""Vectors of the hidden width that gated attention keeps of a tile for its backward pass."""


@dataclass(frozen=True)
class BagSettings:
    """How heads on bags are trained. `loss` auto: binary cross-entropy of one logit for two classes.

    `hidden`, `attention`, `mlp`: widths of the head. `shared_start`: all runs have the same first weights. `schedule`
    is stepped `per` step or epoch, over at most `steps` steps (None: as many as `epochs` have). `monitor`: what
    checkpoints are chosen by; `cut`: how one logit becomes a class. `patience`: epochs without a rise by more than
    `min_delta`; None: no early stopping. `stack_gb`: padded bags of the runs that train together, GiB.
    """

    hidden: int = 128
    attention: int = 128
    mlp: tuple[int, ...] = (128, 64)
    lr: float = 1e-3
    weight_decay: float = 0.01
    batch: int = 32
    epochs: int = 100
    steps: int | None = None
    runs: int = 20
    shared_start: bool = False
    schedule: Schedule = "constant"
    per: Per = "epoch"
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    monitor: Monitor = "balanced_accuracy"
    cut: Cut = "zero"
    patience: int | None = None
    min_delta: float = 0.0
    stack_gb: float = 2.0

    def outputs_for(self, classes: int) -> int:
        """Logits of a head for so many classes."""
        return 1 if self.loss == "bce" or (self.loss == "auto" and classes == 2) else classes


@dataclass
class FittedBag:
    """A run: weights of its best epoch, the score they had on the watched bags, when that was, when it stopped."""

    state: dict[str, Tensor] = field(default_factory=dict)
    score: float = -math.inf
    best_epoch: int = 0
    last_epoch: int = 0
    bar: float = -math.inf
    waited: int = 0

    def look(self, score: float, epoch: int, patience: int | None, min_delta: float) -> tuple[bool, bool]:
        """Whether this is the best so far (the first of equals stays), and whether the run goes on. The rules are
        Lightning's ModelCheckpoint and EarlyStopping.
        """
        better, self.last_epoch = score > self.score, epoch
        if better:
            self.score, self.best_epoch = score, epoch
        self.waited, self.bar = (0, score) if score - min_delta > self.bar else (self.waited + 1, self.bar)
        return better, patience is None or self.waited < patience


def abmil(
    bags: Bags,
    labels: Labels,
    train: Labels,
    watch: Labels,
    test: Labels,
    classes: int,
    *,
    seed: int = 0,
    fold: int = 0,
    device: str | torch.device = "cpu",
    title: str = "ABMIL",
    **settings: Any,
) -> Prediction:
    """Predictions of `runs` heads for the bags `test`; scores are their mean probabilities. `settings`: of BagSettings.

    `labels` int64 [B] of all bags; `train`, `watch`, `test`: numbers of bags. Deterministic on a CPU. Raises DataError
    for an empty bag or features that are not finite, TrainingStopped where a loss is not finite.
    """
    how = BagSettings(**{**settings, "mlp": tuple(settings.get("mlp", BagSettings.mlp))})
    width, longest = _shape(bags, np.unique(np.concatenate([train, watch, test])))
    size = max(1, int(how.stack_gb * 2**30 / (how.batch * longest * (width + how.hidden * _KEPT_OF_A_TILE) * 4)))
    found: list[FittedBag] = []
    with progress_bar(title, how.runs * how.epochs, "epochs") as bar:
        for first in range(0, how.runs, size):
            runs = range(first, min(first + size, how.runs))
            heads = [new_head(width, classes, how, seed, fold, run) for run in runs]
            orders = shuffled_epochs(
                [len(train)] * len(runs), [Words(seed, "abmil", "order", fold, run) for run in runs]
            )
            found += fit_bags(heads, bags, labels, train, watch, classes, orders, how, device, bar.advance)
    head = new_head(width, classes, how, seed, fold, 0)
    logits = []
    for one in found:
        head.load_state_dict(one.state)
        logits.append(_logits(StackedHeads([head]).to(device), bags, test, how.batch)[0])
    stacked = torch.stack(logits)  # [R, M, K]
    choices = {
        "best_epoch": [one.best_epoch for one in found],
        "last_epoch": [one.last_epoch for one in found],
        "watched_score": [one.score for one in found],
    }
    scores = probabilities(stacked).mean(dim=0).numpy()
    return Prediction(scores, decide(stacked, how.cut, how.batch).numpy(), choices)


def _shape(bags: Bags, rows: Labels) -> tuple[int, int]:
    """Width of the features and tiles of the longest bag; DataError for a bag that cannot be used."""
    width = longest = 0
    for row in rows.tolist():
        bag = bags[row]
        if bag.ndim != 2 or not len(bag) or not np.isfinite(bag).all():
            raise DataError(f"bag {row} is empty or holds features that are not finite (NaN or infinite)")
        if width and bag.shape[1] != width:
            raise DataError(f"bag {row} has features of width {bag.shape[1]}, others {width}")
        width, longest = bag.shape[1], max(longest, len(bag))
    return width, longest


def new_head(width: int, classes: int, how: BagSettings, seed: int, fold: int, run: int) -> MilHead:
    """An untrained head, its linears as torch starts them, drawn from (seed, fold, run)."""
    outputs = how.outputs_for(classes)
    names = tuple(str(number) for number in range(outputs))
    task = SlideTask(_TASK, "classification", names) if outputs > 1 else SlideTask(_TASK, "regression")  # one logit
    start = int(Words(seed, "abmil", "start", fold, 0 if how.shared_start else run).integers(2**31))
    settings = {"hidden": how.hidden, "attention": how.attention, "mlp": how.mlp}
    return build_head("abmil", width, [task], seed=start, activation="none", dropout=0.0, **settings)


def fit_bags(
    heads: Sequence[MilHead],
    bags: Bags,
    labels: Labels,
    train: Labels,
    watch: Labels,
    classes: int,
    orders: Iterator[Tensor],
    how: BagSettings,
    device: str | torch.device,
    tell: Any = None,
) -> list[FittedBag]:
    """Best checkpoints of `heads`; `orders` gives the epochs, int64 [len(heads), len(train)], places in `train`."""
    stack = StackedHeads(heads).to(device)
    adam = StackedAdam(list(stack.parameters()), how.weight_decay, decoupled=True)
    per_epoch = math.ceil(len(train) / how.batch)
    steps = how.epochs * per_epoch if how.steps is None else min(how.steps, how.epochs * per_epoch)
    factors = lr_factors(how.schedule, how.per, how.steps or steps, per_epoch)
    scorer = Scorer(torch.from_numpy(labels[watch]), classes, how.monitor)
    found = [FittedBag() for _ in heads]
    alive, done = list(range(len(heads))), 0
    for epoch in range(1, math.ceil(steps / per_epoch) + 1):
        order = train[next(orders).numpy()[alive]]  # [A, N]
        stack.train()
        for first in range(0, len(train), how.batch):
            if done == steps:
                break
            _step(stack, adam, bags, labels, order[:, first : first + how.batch], how.lr * float(factors[done]))
            done += 1
        said = decide(_logits(stack, bags, watch, how.batch), how.cut, how.batch)
        scores = scorer(said).tolist()
        stays = []
        for place, (run, score) in enumerate(zip(alive, scores, strict=True)):
            better, goes_on = found[run].look(score, epoch, how.patience, how.min_delta)
            if better:
                found[run].state = {name: value.cpu() for name, value in stack.state_of(place).items()}
            stays.append(goes_on)
        if tell is not None:
            tell(len(alive) + sum((how.epochs - epoch) for stay in stays if not stay))
        if not any(stays):
            break
        if not all(stays):
            kept = [place for place, stay in enumerate(stays) if stay]
            stack = StackedHeads([stack.head(place) for place in kept])
            adam = adam.keep(list(stack.parameters()), kept)
            alive = [alive[place] for place in kept]
    return found


def _step(
    stack: StackedHeads, adam: StackedAdam, bags: Bags, labels: Labels, rows: npt.NDArray[np.int64], lr: float
) -> None:
    """One step of all heads, head s on the bags rows[s]; rows int64 [S, B]."""
    device = stack.stacked[0].device
    read = {row: bags[row] for row in np.unique(rows).tolist()}
    width = next(iter(read.values())).shape[1]
    blocks = [[read[row] for row in own] for own in rows.tolist()]
    tiles, present = pad(blocks, rows.shape[1], width, [None] * len(rows))
    logits = stack(tiles.to(device), present.to(device)).outputs[_TASK]  # [S, B, K]
    target = torch.from_numpy(labels[rows]).to(device)
    if logits.shape[-1] == 1:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[..., 0], target.to(logits.dtype), reduction="none"
        )
    else:
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    total = loss.mean(dim=1).sum()  # heads never meet: the sum's gradient is each one's own
    if not bool(torch.isfinite(total)):
        raise TrainingStopped("a head on bags: the loss is not finite; are the features of a sensible size?")
    total.backward()
    adam.step(torch.full((len(rows),), lr, dtype=torch.float64), torch.ones(len(rows), dtype=torch.bool))


@torch.no_grad()
def _logits(stack: StackedHeads, bags: Bags, rows: Labels, batch: int) -> Tensor:
    """Logits [S, M, K] of every head for the bags `rows`, on the CPU."""
    stack.eval()
    device = stack.stacked[0].device
    found = []
    for first in range(0, len(rows), batch):
        some = [bags[row] for row in rows[first : first + batch].tolist()]
        tiles, present = pad([some], len(some), some[0].shape[1], [None])
        block = tiles.to(device).expand(len(stack), -1, -1, -1)
        found.append(stack(block, present.to(device).expand(len(stack), -1, -1)).outputs[_TASK].float().cpu())
    return torch.cat(found, dim=1)
