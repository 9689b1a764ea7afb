"""TileStream: the global batch of step t is tiles t·B … t·B+B-1, whatever the number of processes or workers.

So resume is exact and free, and a run can move to another number of GPUs. Worker processes read; batches arrive in
order as uint8. Knows nothing of views or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from eosin.errors import EosinError, PlanError
from eosin.tiles.plan import TilePlan


@dataclass
class TileBatch:
    """One process's share of a step: pixels uint8 [b, S, S, 3] and where each tile comes from."""

    step: int
    pixels: npt.NDArray[np.uint8]
    index: npt.NDArray[np.int64]  # [b] tile numbers
    address: npt.NDArray[np.int64]  # [b] equal exactly for equal tiles
    mpp: npt.NDArray[np.float64]  # [b] µm/px
    names: list[str]  # slide or image names
    rejected: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


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
        self._share = (rank * batch // world, (rank + 1) * batch // world)
        self._known = dict(known_errors or {})

    def __iter__(self) -> Iterator[TileBatch]:
        loader = DataLoader(
            _PlanReader(self.plan, self.batch, self._share, self._known),
            sampler=_Steps(self.first_step, self.steps),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_share if self.workers else None,
            prefetch_factor=2 if self.workers else None,
            worker_init_fn=_quiet_worker if self.workers else None,
        )
        batches = iter(loader)
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
                item = replace(item.batch, pixels=item.pixels.numpy())
            self.accepted.update(item.names)
            self.rejections.update(item.rejected)
            yield item


class _Steps:
    """The step numbers a loader asks for."""

    def __init__(self, first: int, count: int | None) -> None:
        self.first, self.count = first, count

    def __iter__(self) -> Iterator[int]:
        step = self.first
        while self.count is None or step < self.first + self.count:
            yield step
            step += 1


class _PlanReader(Dataset[Any]):
    """step -> TileBatch. Runs inside the workers; a refusal travels back as a value, so it stays one line."""

    def __init__(
        self, plan: TilePlan, batch: int, share: tuple[int, int], known: Mapping[tuple[int, int], int]
    ) -> None:
        self.plan, self.batch, self.share, self.known = plan, batch, share, known

    def __getitem__(self, step: int) -> TileBatch | EosinError:
        try:
            tiles = [self.plan.tile(step * self.batch + row, self.known) for row in range(*self.share)]
        except EosinError as error:
            return error
        return TileBatch(
            step=step,
            pixels=np.stack([tile.pixels for tile in tiles]),
            index=np.array([tile.index for tile in tiles], dtype=np.int64),
            address=np.array([tile.address.number for tile in tiles], dtype=np.int64),
            mpp=np.array([tile.address.mpp for tile in tiles]),
            names=[tile.address.name for tile in tiles],
            rejected=[name for tile in tiles for name in tile.rejected if name],
            errors=[error for tile in tiles for error in tile.errors],
        )


class _Shared(NamedTuple):
    """A batch on its way from a worker, its pixels in memory that both processes see."""

    batch: TileBatch  # without pixels
    pixels: Tensor


def _share(item: TileBatch | EosinError) -> TileBatch | EosinError | _Shared:
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
