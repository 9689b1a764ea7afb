"""Pixels of a slide's regions, read ahead in threads while the device works, and cut into chunks of equal size.

What is in memory depends on how far is read ahead, never on the slide. Knows no network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.errors import DataError
from eosin.tiles.pyramid_grid import RegionGrid

Pixels: TypeAlias = npt.NDArray[np.uint8]
ReadRegion: TypeAlias = Callable[[int], Pixels]
"""Region number -> uint8 [n, S, S, 3], its tiles in the order of the `RegionGrid`. Called from other threads."""


class TileChunk(NamedTuple):
    """Tiles first..last-1 of the grid: uint8 [last - first, S, S, 3]."""

    first: int
    last: int
    pixels: Tensor


def read_ahead(read: ReadRegion, regions: Sequence[int], ahead: int, threads: int = 1) -> Iterator[Pixels]:
    """Pixels of `regions`, in this order; up to `ahead` of them are read before they are asked for.

    What `read` raises is raised here, at the region that it met.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="regions")
    waiting: deque[Future[Pixels]] = deque()
    try:
        for number in regions:
            waiting.append(pool.submit(read, number))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def tile_chunks(
    grid: RegionGrid, regions: Iterator[Pixels], size: int, seen: Callable[[int, Pixels], None] | None = None
) -> Iterator[TileChunk]:
    """All tiles of `grid` in chunks of `size`, across regions; only the last one may be smaller.

    regions: pixels of the grid's regions in order, as `read_ahead` gives them. seen: called with each region's place in
    `grid` and its pixels before they are cut. Raises DataError where a region has another number of tiles.
    """
    first, held = 0, 0
    parts: list[Pixels] = []
    for region in range(len(grid)):
        pixels = next(regions)
        if len(pixels) != grid.counts[region] or pixels.dtype != np.uint8:
            raise DataError(f"a region of {grid.counts[region]} tiles was read as {pixels.dtype} {pixels.shape}")
        if seen is not None:
            seen(region, pixels)
        while len(pixels):
            taken, pixels = pixels[: size - held], pixels[size - held :]
            parts.append(taken)
            held += len(taken)
            if held == size:
                yield _chunk(first, parts)
                first, held, parts = first + held, 0, []
    if parts:
        yield _chunk(first, parts)


def _chunk(first: int, parts: list[Pixels]) -> TileChunk:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    # torch shares memory with arrays and warns about those that nobody may write to.
    return TileChunk(first, first + len(whole), torch.from_numpy(whole if whole.flags.writeable else whole.copy()))
