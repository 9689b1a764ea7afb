"""What the stacked heads see in a step: bags of each run, padded to one block, with their targets.

Also the order in which a run visits its bags, keyed by (seed, fold, epoch), and what is taken from its training bags
alone: feature scale, class weights, scale of regression targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.evaluation.mil.bags import Bags, Features
from eosin.evaluation.mil.config import TrainSettings
from eosin.evaluation.mil.splits import Rows, Run
from eosin.models.slide_task import SlideTask, hazard_cuts
from eosin.randomness import Words

Pool = Literal["", "mean", "max"]
Scale = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Problem:
    """Bags and the tasks that one head learns from them. `targets`: task -> [B] or [B, 2] as in `objectives`.

    `pool`: the head reads the mean or maximum of a bag alone, so this is taken once, not at every visit.
    """

    name: str
    bags: Bags
    tasks: tuple[SlideTask, ...]
    targets: dict[str, npt.NDArray[Any]]
    weights: dict[str, float]
    pool: Pool = ""
    _pooled: dict[int, Features] = field(default_factory=dict)
    _moments: dict[int, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Most tiles that `read` gives."""
        return 1 if self.pool else int(self.bags.tiles.max())

    def read(self, number: int) -> Features:
        """Tiles of a bag as the head reads them: float32 [N, D], or [1, D] where they are pooled first."""
        if not self.pool:
            return self.bags.read(number)
        if number not in self._pooled:
            tiles = self.bags.read(number)
            pooled = tiles.mean(axis=0, dtype=np.float64) if self.pool == "mean" else tiles.max(axis=0)
            self._pooled[number] = pooled[None].astype(np.float32)
        return self._pooled[number]

    def moments(self, number: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and mean square [D] of the tiles of a bag."""
        if number not in self._moments:
            tiles = self.bags.read(number).astype(np.float64)
            self._moments[number] = tiles.mean(axis=0), (tiles**2).mean(axis=0)
        return self._moments[number]


class Fixed(NamedTuple):
    """What a run takes from its training bags before it starts.

    scale: mean and sd [D] of the features, every bag counting once (None: as they are). values: task -> mean, sd of
    regression targets. classes: task -> weight of each class. cuts: task -> inner edges of survival's time bins.
    """

    scale: Scale | None
    values: dict[str, tuple[float, float]]
    classes: dict[str, npt.NDArray[np.float32]]
    cuts: dict[str, tuple[float, ...]]


def fixed_of(problem: Problem, run: Run, settings: TrainSettings) -> Fixed:
    """See Fixed; from the training bags of `run` only."""
    scale = None
    if settings.standardise:
        moments = [problem.moments(int(row)) for row in run.train]
        mean = np.mean([first for first, _ in moments], axis=0)
        square = np.mean([second for _, second in moments], axis=0)
        sd = np.sqrt(np.maximum(square - mean**2, 0))
        scale = mean.astype(np.float32), np.where(sd > 1e-8, sd, 1).astype(np.float32)
    values, classes, cuts = {}, {}, {}
    for task in problem.tasks:
        target = problem.targets[task.name][run.train]
        if task.kind == "regression":
            sd = float(np.nanstd(target))
            values[task.name] = float(np.nanmean(target)), sd if sd > 0 else 1.0
        elif task.has_classes and settings.class_weights:
            counts = np.bincount(target[target >= 0], minlength=task.outputs)
            classes[task.name] = (counts.sum() / np.maximum(counts, 1) / len(counts)).astype(np.float32)
        elif task.loss == "hazard":
            cuts[task.name] = cuts_of(target, len(task.cuts) + 1)
    return Fixed(scale, values, classes, cuts)


def cuts_of(labels: npt.NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Inner edges of at most `bins` time bins with equally many events of labels [n, 2]; none for a single event."""
    events = np.unique(labels[labels[:, 1] == 1, 0])
    return hazard_cuts(labels[:, 0], labels[:, 1], min(bins, len(events))) if len(events) > 1 else ()


def order_of(problem: Problem, run: Run, epoch: int, settings: TrainSettings) -> Rows:
    """Training bags of a run in the order of an epoch; drawn by class with replacement where `balanced`."""
    words = Words(run.seed, "mil", "order", problem.name, run.fold, epoch)
    if not settings.balanced:
        return run.train[words.permutations(len(run.train))]
    weight = np.zeros(len(run.train))
    for task in problem.tasks:
        if task.has_classes:
            target = problem.targets[task.name][run.train]
            counts = np.maximum(np.bincount(target[target >= 0], minlength=task.outputs), 1)
            weight += np.where(target >= 0, 1 / counts[np.maximum(target, 0)], 0)
    if not weight.any():
        weight[:] = 1
    edges = np.cumsum(weight)
    drawn = np.searchsorted(edges, words.uniform(len(run.train)) * edges[-1], side="right")
    return run.train[np.minimum(drawn, len(run.train) - 1)]


def chosen_tiles(tiles: Features, limit: int | None, words: Words) -> Features:
    """The bag, or `limit` tiles drawn from a larger one, in their order."""
    if limit is None or len(tiles) <= limit:
        return tiles
    return tiles[np.sort(words.permutations(len(tiles))[:limit])]


def pad(
    bags: Sequence[Sequence[Features]], slots: int, width: int, scales: Sequence[Scale | None]
) -> tuple[Tensor, Tensor]:
    """Bags of S runs in one block: tiles float32 [S, slots, N, D] and present bool [S, slots, N].

    N is the longest bag. A slot without a bag holds one tile of zeros, whose labels are missing.
    """
    longest = max((len(tiles) for own in bags for tiles in own), default=1)
    block = np.zeros((len(bags), slots, longest, width), dtype=np.float32)
    present = np.zeros(block.shape[:3], dtype=bool)
    present[:, :, 0] = True
    for run, (own, scale) in enumerate(zip(bags, scales, strict=True)):
        for slot, tiles in enumerate(own):
            block[run, slot, : len(tiles)] = tiles if scale is None else (tiles - scale[0]) / scale[1]
            present[run, slot, : len(tiles)] = True
    return torch.from_numpy(block), torch.from_numpy(present)


def targets_of(problem: Problem, rows: Sequence[Rows], slots: int, fixed: Sequence[Fixed]) -> dict[str, Tensor]:
    """Targets of S runs' bags, missing where a slot has none: task -> [S, slots] or [S, slots, 2]."""
    found: dict[str, Tensor] = {}
    for task in problem.tasks:
        values = problem.targets[task.name]
        missing = -1 if task.has_classes else np.nan
        block = np.full((len(rows), slots, *values.shape[1:]), missing, dtype=values.dtype)
        for run, own in enumerate(rows):
            block[run, : len(own)] = values[own]
            if task.kind == "regression":
                mean, sd = fixed[run].values[task.name]
                block[run] = (block[run] - mean) / sd
            elif task.loss == "hazard":
                # Losses know the task's edges: a time in the same one of its bins stands for the run's own bin.
                times = block[run, :, 0]
                inside = np.array([-np.inf, *task.cuts])[np.searchsorted(fixed[run].cuts[task.name], times, "right")]
                block[run, :, 0] = np.where(np.isnan(times), np.nan, inside)
        found[task.name] = torch.from_numpy(block if task.has_classes else block.astype(np.float32))
    return found


def class_weight(
    targets: Mapping[str, Tensor], fixed: Sequence[Fixed], task: str, device: torch.device
) -> Tensor | float:
    """Weight of each bag's loss [S, slots] by the class it has in its run; 1 where classes are not weighted."""
    if task not in fixed[0].classes:
        return 1.0
    table = torch.from_numpy(np.stack([own.classes[task] for own in fixed]))  # [S, C]
    return table.gather(1, targets[task].clamp(min=0)).to(device)
