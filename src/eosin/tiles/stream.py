"""TileStream: the global batch of step t is tiles t·B … t·B+B-1, whatever the number of processes or workers.

So resume is exact and free, and a run can move to another number of GPUs. Worker processes read; batches arrive in
order as uint8. Where several tiles come from one visit (visits.py), the worker whose step needs a visit first reads all
of it that this process will need, and the tiles wait here, in the process that trains, until their step. Who reads what
follows from the step alone, so workers share no state. From an object store, where reading is mostly waiting, a process
reads several visits of a step at a time. Knows nothing of views or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eosin.errors import EosinError, PlanError
from eosin.slides.remote import worker_start
from eosin.tiles.plan import TilePlan
from eosin.tiles.source import Rejection, Tile

AT_ONCE = 16  # visits that a process reads side by side from an object store


@dataclass
class TileBatch:
    """One process's share of a step: pixels uint8 [b, S, S, 3] and where each tile comes from."""

    step: int
    pixels: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int64]  # [b] tile numbers
    address: npt.NDArray[np.int64]  # [b] equal exactly for equal tiles
    mpp: npt.NDArray[np.float64]  # [b] µm/px
    names: list[str]  # slide or image names
    rejected: list[Rejection] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(step: int, tiles: Sequence[Tile]) -> TileBatch:
        """The batch of these tiles."""
        return TileBatch(
            step=step,
            pixels=np.stack([tile.pixels for tile in tiles]),
            index=np.array([tile.index for tile in tiles], dtype=np.int64),
            address=np.array([tile.address.number for tile in tiles], dtype=np.int64),
            mpp=np.array([tile.address.mpp for tile in tiles]),
            names=[tile.address.name for tile in tiles],
            rejected=[rejection for tile in tiles for rejection in tile.rejected],
            errors=[error for tile in tiles for error in tile.errors],
        )


class TileStream:
    """Iterates over `TileBatch`es from `first_step` on, without end unless `steps` is given."""

    def __init__(
        self,
        plan: TilePlan,
        batch: int,
        *,
        first_step: int = 0,
        steps: int | None = None,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        known_errors: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        """batch: tiles of the GLOBAL batch, divisible by `world`; rank r of `world` takes the r-th part of it.

        known_errors: the ledger, see `TilePlan.tile`. Raises PlanError for an impossible split.
        """
        if batch < 1 or batch % world:
            raise PlanError(f"a batch of {batch} tiles cannot be split over {world} processes")
        self.plan, self.batch, self.workers = plan, batch, workers
        self.first_step, self.steps = first_step, steps
        self.accepted: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.visits = 0  # places read so far, of tiles that have arrived
        self._waiting: dict[int, Tile] = {}
        share = rank * batch // world, (rank + 1) * batch // world
        self._task = _Task(plan, batch, share, first_step, steps, dict(known_errors or {}))

    @property
    def waiting_bytes(self) -> int:
        """Memory of the tiles that were read already and wait for their step."""
        return sum(tile.pixels.nbytes for tile in self._waiting.values())

    def __iter__(self) -> Iterator[TileBatch]:
        loader = DataLoader(
            _PlanReader(self._task) if self.plan.spread is None else _VisitReader(self._task),
            sampler=_Steps(self.first_step, self.steps),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_share if self.workers else None,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=_quiet_worker if self.workers else None,
            multiprocessing_context=worker_start() if self.workers else None,
        )
        batches = iter(loader)
        self._waiting.clear()
        while True:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise PlanError("a reading process died (out of memory?); lower run.workers and start again") from error
            if isinstance(item, EosinError):
                raise item
            if isinstance(item, _Shared):
                item = replace(item.item, pixels=item.pixels.numpy())
            batch = self._assembled(item) if isinstance(item, _Reading) else item
            self.accepted.update(batch.names)
            self.rejections.update(rejection.name for rejection in batch.rejected)
            yield batch

    def _assembled(self, reading: _Reading) -> TileBatch:
        """The batch of a step whose reading has come; keeps what later steps need."""
        self.visits += reading.visits
        task, step = self._task, reading.step
        now: dict[int, Tile] = {}
        for number, tile, pixels in zip(reading.numbers, reading.tiles, reading.pixels, strict=True):
            if number // self.batch == step:
                now[number] = replace(tile, pixels=pixels)
            else:  # a copy: what a worker shares is given back as a whole
                self._waiting[number] = replace(tile, pixels=pixels.copy())
        numbers = range(step * self.batch + task.share[0], step * self.batch + task.share[1])
        return TileBatch.of(step, [now.get(number) or self._waiting.pop(number) for number in numbers])


class _Steps:
    """The step numbers a loader asks for."""

    def __init__(self, first: int, count: int | None) -> None:
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[int]:
        step = self.first
        while self.count is None or step < self.first + self.count:
            yield step
            step += 1


class _Task(NamedTuple):
    """What a process reads: its rows `share` of batches of `batch` tiles, from a step on, with the ledger's errors."""

    plan: TilePlan
    batch: int
    share: tuple[int, int]
    first_step: int
    steps: int | None
    known: Mapping[tuple[int, int], int]

    def has(self, number: int) -> bool:
        """Whether tile `number` is one of this process's."""
        step, row = divmod(number, self.batch)
        begun = step >= self.first_step and (self.steps is None or step < self.first_step + self.steps)
        return begun and self.share[0] <= row < self.share[1]


def _read(task: _Task, visits: Sequence[list[int]]) -> list[list[Tile]]:
    """The tiles of each visit, given by their numbers. Raises PlanError, StoreDown."""
    if not task.plan.far:
        return [task.plan.tiles(visit, task.known) for visit in visits]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="eosin-tiles") as threads:
        return list(threads.map(lambda visit: task.plan.tiles(visit, task.known), visits))


class _PlanReader(Dataset[Any]):
    """step -> TileBatch. Runs inside the workers; a refusal travels back as a value, so it stays one line."""

    def __init__(self, task: _Task) -> None:
        self.task = task

    def __getitem__(self, step: int) -> TileBatch | EosinError:
        task = self.task
        try:
            read = _read(task, [[step * task.batch + row] for row in range(*task.share)])
        except EosinError as error:
            return error
        return TileBatch.of(step, [tile for [tile] in read])


@dataclass
class _Reading:
    """Tiles of the visits that a step is the first to need: for this step and later ones."""

    step: int
    visits: int
    numbers: list[int]
    tiles: list[Tile]  # without pixels
    pixels: npt.NDArray[np.uint8]  # [n, S, S, 3]


class _VisitReader(Dataset[Any]):
    """step -> _Reading. Runs inside the workers; a refusal travels back as a value, so it stays one line."""

    def __init__(self, task: _Task) -> None:
        self.task = task

    def __getitem__(self, step: int) -> _Reading | EosinError:
        visits = list(self._begun_in(step))
        try:
            tiles = [tile for read in _read(self.task, visits) for tile in read]
        except EosinError as error:
            return error
        numbers = [number for visit in visits for number in visit]
        pixels = np.stack([tile.pixels for tile in tiles]) if tiles else np.empty((0, 1, 1, 3), np.uint8)
        return _Reading(step, len(visits), numbers, [replace(tile, pixels=pixels[:0]) for tile in tiles], pixels)

    def _begun_in(self, step: int) -> Iterator[list[int]]:
        """The numbers of this process's tiles, visit by visit, of every visit that no earlier step has needed."""
        task = self.task
        first = step * task.batch + task.share[0]
        for number in range(first, step * task.batch + task.share[1]):
            mine = [other for other in task.plan.siblings(number) if task.has(other)]
            if mine[0] == number:
                yield mine


class _Shared(NamedTuple):
    """Tiles on their way from a worker, their pixels in memory that both processes see."""

    item: TileBatch | _Reading  # without pixels
    pixels: Tensor


def _share(item: TileBatch | _Reading | EosinError) -> TileBatch | _Reading | EosinError | _Shared:
    """Runs inside the workers. Through a pipe the main process would have to read and copy every pixel, during a step.

    Where there is no room (/dev/shm of a container may have 64 MB) the pipe is what is left.
    """
    if isinstance(item, EosinError):
        return item
    try:
        pixels = torch.from_numpy(item.pixels).share_memory_()
    except RuntimeError:
        return item
    return _Shared(replace(item, pixels=item.pixels[:0]), pixels)


def _quiet_worker(_: int) -> None:
    """Workers run side by side, so each keeps to one thread."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
