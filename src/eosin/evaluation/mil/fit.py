"""Train the runs of a problem, seeds and folds together: one batched problem of S heads (`StackedHeads`).

An epoch is one pass of every run over its own training bags, in its own order; a run with fewer bags rests until the
others are through. After each epoch the validation loss decides: the best weights are kept, a run that has not improved
for `patience` epochs (and is past `patience_after`) leaves the stack. What is trained together equals what is trained
alone, to rounding. Survival by Cox watches 1 - C-index, as few bags give no partial likelihood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.errors import DataError, TrainingStopped
from eosin.evaluation.mil.adam import StackedAdam
from eosin.evaluation.mil.batches import Fixed, Problem, chosen_tiles, class_weight, fixed_of, order_of, pad, targets_of
from eosin.evaluation.mil.config import MilConfig
from eosin.evaluation.mil.scores import c_index
from eosin.evaluation.mil.splits import Rows, Run
from eosin.models.mil import StackedHeads, build_head
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import COX_BAGS, task_losses
from eosin.progress import Bar, progress_bar
from eosin.randomness import Words

Outputs = dict[str, npt.NDArray[np.float32]]
"""task -> logits [n, task.outputs]."""


@dataclass
class Fitted:
    """A finished run: best weights, what it took from its training bags, logits of its val and test bags, its curve."""

    run: Run
    state: dict[str, Tensor]
    fixed: Fixed
    val: Outputs
    test: Outputs
    curve: list[dict[str, float]]
    best_epoch: int
    seconds: float
    """Its share of the time that the runs in its stack took together."""


@dataclass
class _Running:
    """One run while it trains."""

    run: Run
    fixed: Fixed
    best: float = math.inf
    best_epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def fit_runs(
    problem: Problem, runs: Sequence[Run], config: MilConfig, device: torch.device, keep: Callable[[Fitted], None]
) -> None:
    """Train `runs`, as many at a time as `stack_gb` allows; `keep` is called with each run when it is finished.

    Raises TrainingStopped where a loss is not finite.
    """
    size = stack_size(problem, config)
    with progress_bar(f"{config.kind}: {problem.name}", len(runs) * config.train.epochs, "epoch") as bar:
        for first in range(0, len(runs), size):
            _fit_stack(problem, runs[first : first + size], config, device, keep, bar)


def check_cox(problem: Problem, runs: Sequence[Run], config: MilConfig) -> None:
    """Raise DataError where Cox's likelihood would have too few bags to compare."""
    if survival := [task for task in problem.tasks if task.loss == "cox"]:
        if config.train.batch < COX_BAGS:
            raise DataError(f"train.survival=cox compares bags: set train.batch to {COX_BAGS} or more, or use hazard")
        for run in runs:
            if len(run.train) < config.train.batch:
                raise DataError(
                    f"train.survival=cox needs {config.train.batch} training bags (train.batch),"
                    f" fold {run.fold + 1} has {len(run.train)}"
                )
            unknown = max(int(np.isnan(problem.targets[task.name][run.train]).any(axis=1).sum()) for task in survival)
            if config.train.batch - unknown < COX_BAGS:
                raise DataError(
                    f"train.survival=cox compares {COX_BAGS} labelled bags, and {unknown} bags of fold {run.fold + 1}"
                    " have no survival label; raise train.batch by as many, or leave --joint"
                )


def stack_size(problem: Problem, config: MilConfig) -> int:
    """How many runs train together: their padded bags and hidden tile vectors within `stack_gb`; at least one."""
    tiles = min(problem.longest, config.train.max_tiles or problem.longest)
    hidden = 0 if problem.pool else 512 * 6  # what a gated attention head keeps of a tile for backward, in numbers
    return max(1, int(config.train.stack_gb * 2**30 / (config.train.batch * tiles * (problem.bags.width + hidden) * 4)))


def new_head_seed(run: Run) -> int:
    """Seed of start weights and dropout of a run."""
    return 1000 * run.seed + run.fold


def _fit_stack(
    problem: Problem,
    runs: Sequence[Run],
    config: MilConfig,
    device: torch.device,
    keep: Callable[[Fitted], None],
    bar: Bar,
) -> None:
    settings = config.train
    running = [_Running(run, fixed_of(problem, run, settings)) for run in runs]
    heads = [
        build_head(config.kind, problem.bags.width, problem.tasks, seed=new_head_seed(run), **config.head)
        for run in runs
    ]
    stack = StackedHeads(heads).to(device)
    adam = StackedAdam(list(stack.parameters()), settings.weight_decay, settings.optimizer == "adamw")
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        losses = _epoch(problem, stack, adam, running, config, epoch, device)
        watched = _watch(problem, stack, running, device)
        for number, one in enumerate(running):
            if not (math.isfinite(losses[number]) and math.isfinite(watched[number])):
                raise TrainingStopped(
                    f"{problem.name}, seed {one.run.seed}, fold {one.run.fold}: no finite loss in epoch {epoch};"
                    " lower train.lr, or set train.standardise=true"
                )
            one.seconds += (time.perf_counter() - started) / len(running)
            one.curve.append({"epoch": epoch, "train": losses[number], "val": watched[number]})
            if watched[number] < one.best:
                one.best, one.best_epoch = watched[number], epoch
                one.state = {name: value.cpu() for name, value in stack.state_of(number).items()}
        bar.advance(len(running))
        over = [epoch == settings.epochs or _stops(one, epoch, settings) for one in running]
        for one in (one for one, done in zip(running, over, strict=True) if done):
            bar.advance(settings.epochs - epoch)
            keep(_finished(problem, one, config, device))
        left = [number for number, done in enumerate(over) if not done]
        if not left:
            return
        if len(left) < len(running):
            stack = StackedHeads([stack.head(number) for number in left])
            adam = adam.keep(list(stack.parameters()), left)
            running = [running[number] for number in left]


def _stops(one: _Running, epoch: int, settings: Any) -> bool:
    waited = epoch - one.best_epoch
    return settings.patience is not None and epoch >= settings.patience_after and waited >= settings.patience


def _epoch(
    problem: Problem,
    stack: StackedHeads,
    adam: StackedAdam,
    running: Sequence[_Running],
    config: MilConfig,
    epoch: int,
    device: torch.device,
) -> list[float]:
    """One pass of every run over its training bags; returns the mean training loss of each."""
    settings = config.train
    orders = [order_of(problem, one.run, epoch, settings) for one in running]
    whole = any(task.loss == "cox" for task in problem.tasks)
    ticks = [len(own) // settings.batch if whole else math.ceil(len(own) / settings.batch) for own in orders]
    fixed = [one.fixed for one in running]
    scales = [one.fixed.scale for one in running]
    sums = torch.zeros(len(running), dtype=torch.float64)
    stack.train()
    for tick in range(max(ticks)):
        active = torch.tensor([tick < own for own in ticks])
        rows = [own[tick * settings.batch : (tick + 1) * settings.batch] for own in orders]
        rows = [own if moves else own[:0] for own, moves in zip(rows, active, strict=True)]
        resting = {n: stack.generators[n].get_state() for n, moves in enumerate(active) if not moves}
        bags = [
            [
                chosen_tiles(
                    problem.read(int(row)),
                    settings.max_tiles,
                    Words(one.run.seed, "mil", "tiles", problem.name, one.run.fold, epoch, int(row)),
                )
                for row in own
            ]
            for one, own in zip(running, rows, strict=True)
        ]
        tiles, present = pad(bags, settings.batch, problem.bags.width, scales)
        targets = targets_of(problem, rows, settings.batch, fixed)
        output = stack(
            tiles.to(device), present.to(device), {name: value.to(device) for name, value in targets.items()}
        )
        for number, state in resting.items():
            stack.generators[number].set_state(state)
        per_bag = _bag_losses(problem, output.outputs, targets, fixed, whole, active)  # [S, slots]
        if output.auxiliary is not None:
            per_bag = stack.bag_weight * per_bag + (1 - stack.bag_weight) * output.auxiliary
        count = torch.tensor([max(1, len(own)) for own in rows], device=device)
        filled = (
            torch.arange(settings.batch, device=device)
            < torch.tensor([len(own) for own in rows], device=device)[:, None]
        )
        loss = torch.where(filled, per_bag, 0).sum(dim=1) / count  # [S]
        loss.sum().backward()
        adam.step(_rates(settings, epoch, tick, ticks), active)
        sums += torch.where(active, loss.detach().cpu().double(), 0)
    return (sums / torch.tensor(ticks)).tolist()


def _bag_losses(
    problem: Problem,
    outputs: dict[str, Tensor],
    targets: dict[str, Tensor],
    fixed: Sequence[Fixed],
    whole: bool,
    active: Tensor,
) -> Tensor:
    """Weighted sum over tasks of the loss of each bag: [S, slots]."""
    if whole and not bool(active.all()):
        # Cox refuses blocks without labels, and a run that rests has none.
        moving = active.nonzero()[:, 0]
        some = _bag_losses(
            problem,
            {name: value[moving.to(value.device)] for name, value in outputs.items()},
            {name: value[moving] for name, value in targets.items()},
            [fixed[int(number)] for number in moving],
            whole,
            torch.ones(len(moving), dtype=torch.bool),
        )
        return torch.zeros(len(active), some.shape[1], device=some.device).index_put((moving.to(some.device),), some)
    losses = task_losses(outputs, targets, problem.tasks, reduction="none")
    parts = [
        problem.weights[name] * loss * class_weight(targets, fixed, name, loss.device) for name, loss in losses.items()
    ]
    return torch.stack(parts).sum(dim=0)


def _rates(settings: Any, epoch: int, tick: int, ticks: Sequence[int]) -> Tensor:
    """Learning rate of each run at its own step of the epoch: [S]."""
    if settings.schedule == "constant":
        return torch.full((len(ticks),), settings.lr, dtype=torch.float64)
    done = torch.tensor([(epoch - 1 + min(tick, own) / own) / settings.epochs for own in ticks], dtype=torch.float64)
    return settings.lr * 0.5 * (1 + torch.cos(math.pi * done))


def _watch(problem: Problem, stack: StackedHeads, running: Sequence[_Running], device: torch.device) -> list[float]:
    """What stops and chooses, a number for each run: the loss of its validation bags."""
    rows = [one.run.val for one in running]
    outputs = stacked_outputs(problem, stack, rows, [one.fixed for one in running], device)
    return [_val_loss(problem, own, val, one.fixed) for one, own, val in zip(running, outputs, rows, strict=True)]


def _val_loss(problem: Problem, outputs: Outputs, rows: Rows, fixed: Fixed) -> float:
    total, targets = 0.0, targets_of(problem, [rows], len(rows), [fixed])
    for task in problem.tasks:
        logits = torch.from_numpy(outputs[task.name])
        if task.loss == "cox":
            labels = problem.targets[task.name][rows]
            known = np.isfinite(labels).all(axis=1)
            share = c_index(labels[known], outputs[task.name][known].astype(np.float64), np.ones((1, int(known.sum()))))
            total += problem.weights[task.name] * (1 - float(np.nan_to_num(share[0], nan=0.5)))
            continue
        losses = task_losses({task.name: logits[None]}, targets, (task,))
        total += problem.weights[task.name] * float(losses[task.name][0])
    return total


@torch.no_grad()
def stacked_outputs(
    problem: Problem, stack: StackedHeads, rows: Sequence[Rows], fixed: Sequence[Fixed], device: torch.device
) -> list[Outputs]:
    """Logits of each run's own bags, in evaluation mode; regression still as the head gives it."""
    stack.eval()
    found: list[dict[str, list[npt.NDArray[np.float32]]]] = [{t.name: [] for t in problem.tasks} for _ in rows]
    for number in range(max(len(own) for own in rows)):
        mine = [own[number : number + 1] for own in rows]
        bags = [[problem.read(int(row)) for row in own] for own in mine]
        tiles, present = pad(bags, 1, problem.bags.width, [one.scale for one in fixed])
        outputs = stack(tiles.to(device), present.to(device)).outputs
        for task in problem.tasks:
            logits = outputs[task.name].float().cpu().numpy()  # [S, 1, k]
            for run, own in enumerate(mine):
                if len(own):
                    found[run][task.name].append(logits[run])
    return [{name: np.concatenate(parts) for name, parts in own.items()} for own in found]


def in_units(task: SlideTask, logits: npt.NDArray[np.float32], fixed: Fixed) -> npt.NDArray[np.float32]:
    """Logits as they are; a regression in the units of its labels."""
    if task.kind != "regression":
        return logits
    mean, sd = fixed.values[task.name]
    return (logits * sd + mean).astype(np.float32)


def _finished(problem: Problem, one: _Running, config: MilConfig, device: torch.device) -> Fitted:
    """The run with its best weights and what they say of its val and test bags."""
    head = build_head(config.kind, problem.bags.width, problem.tasks, seed=new_head_seed(one.run), **config.head)
    head.load_state_dict(one.state)
    alone = StackedHeads([head]).to(device)
    val, test = (
        {
            task.name: in_units(task, outputs[task.name], one.fixed)
            for outputs in stacked_outputs(problem, alone, [rows], [one.fixed], device)
            for task in problem.tasks
        }
        for rows in (one.run.val, one.run.test)
    )
    return Fitted(one.run, one.state, one.fixed, val, test, one.curve, one.best_epoch, one.seconds)
