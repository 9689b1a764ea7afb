"""Pixels of the grids of many slides, read ahead by worker processes, block by block and slide by slide.

A block is a square of neighbouring tiles, so each stored tile of the file is decoded about once. How much waits in
memory depends on the number of workers, never on the size of a slide. Knows no encoder.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset

from eosin.errors import EosinError, RegionError, SlideError, SlideGone
from eosin.slides import Slide, open_slide
from eosin.slides.remote import worker_start
from eosin.tiles.filters import Pixels
from eosin.tiles.grid import TileGrid

MAX_UPSAMPLE = 1.05  # as in training: a slide of 0.5026 µm/px serves 0.5
BLOCK_PX = 2048  # most px along a block's side, stored or as tiles: 13 MB of pixels, decoded within OpenSlide's cache
READ_TRIES = 3
_AHEAD = 2  # blocks that each worker reads ahead
_OPEN = 2


class ReaderDied(SlideError):
    """A reading process was killed: a damaged file took it down, or the memory ran out."""


@dataclass(frozen=True)
class GridSlide:
    """A slide and its tiles. number: the caller's; mpp: (x, y) µm per level-0 px; size: (width, height) level-0 px;
    reader: as the cohort has it, None: any.
    """

    number: int
    path: str
    mpp: tuple[float, float]
    size: tuple[int, int]
    grid: TileGrid
    reader: str | None = None

    def block_side(self) -> int:
        """Grid places along a block's side."""
        step = self.grid.stride_px * self.grid.mpp / max(self.mpp)  # level-0 px between neighbours
        return max(int(min(BLOCK_PX / step, BLOCK_PX / self.grid.size_px)), 1)  # also where tiles overlap


@dataclass(frozen=True)
class GridPart:
    """Some tiles of slide `number`: rows int64 [n] in its grid, pixels uint8 [n, S, S, 3]; or the error that met it."""

    number: int
    rows: npt.NDArray[np.int64]
    pixels: Pixels
    error: EosinError | None = None


@dataclass(frozen=True)
class _Block:
    """What a worker is asked for."""

    number: int
    path: str
    mpp: tuple[float, float]
    size: tuple[int, int]
    tile_mpp: float
    size_px: int
    rows: npt.NDArray[np.int64]
    coords: npt.NDArray[np.int64]
    reader: str | None


def read_grids(slides: Iterable[GridSlide], workers: int) -> Iterator[GridPart]:
    """Tiles of all `slides`, in their order; the order of tiles within a slide is by blocks.

    slides: taken lazily, a few blocks ahead of what is yielded. workers: processes that read, 0 for this one. An
    error of a block comes as a part; the blocks of that slide that follow may still come. Raises ReaderDied where a
    process died.
    """
    loader = DataLoader(
        _Reader(),
        sampler=_Blocks(slides),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_quiet_worker if workers else None,
        multiprocessing_context=worker_start() if workers else None,
    )
    parts = iter(loader)
    while True:
        try:
            yield next(parts)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ReaderDied(
                "a process that read it died: the file is damaged, or memory ran out (lower --workers)"
            ) from error


class _Blocks:
    """Blocks of all slides, in order; a fresh iteration each time it is asked."""

    def __init__(self, slides: Iterable[GridSlide]) -> None:
        self.slides = slides

    def __iter__(self) -> Iterator[_Block]:
        for slide in self.slides:
            grid = slide.grid
            for rows in grid.blocks(slide.block_side()):
                coords = grid.coords[rows]
                where = slide.number, slide.path, slide.mpp, slide.size
                yield _Block(*where, grid.mpp, grid.size_px, rows, coords, slide.reader)


class _Reader(Dataset[Any]):
    """block -> part. Runs inside the workers; an error travels back as a value, so it stays one line."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Slide] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict()}

    def __getitem__(self, block: _Block) -> GridPart:
        pixels = np.empty((len(block.rows), block.size_px, block.size_px, 3), np.uint8)
        try:
            slide = self._slide(block)
            with_retries(lambda: read_tiles(slide, block.coords, block.size_px, block.tile_mpp, pixels))
        except EosinError as error:
            return GridPart(block.number, block.rows, pixels[:0], error)
        return GridPart(block.number, block.rows, pixels)

    def _slide(self, block: _Block) -> Slide:
        if block.path in self._open:
            return self._open[block.path]
        slide = open_slide(block.path, block.mpp[0] if block.mpp[0] == block.mpp[1] else None, block.reader)
        if (slide.width, slide.height) != block.size:
            slide.close()
            raise SlideGone(f"{block.path}: is not the file that was indexed; run `eosin index` again")
        self._open[block.path] = slide
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return slide


def read_tiles(slide: Slide, coords: npt.NDArray[np.int64], size_px: int, mpp: float, out: Pixels) -> None:
    """Fill `out` uint8 [n, S, S, 3] with the tiles whose corners are `coords` int64 [n, 2] (level-0 px)."""
    slide.expect(coords.tolist(), size_px, mpp, MAX_UPSAMPLE)
    for tile, (x, y) in zip(out, coords.tolist(), strict=True):
        tile[:] = slide.region(x, y, size_px, mpp, MAX_UPSAMPLE, whole_tiles=True)


def with_retries(read: Callable[[], None]) -> None:
    """A network file system may fail once; what fails `READ_TRIES` times is an error."""
    for attempt in range(READ_TRIES):
        try:
            return read()
        except RegionError:
            raise
        except SlideError:
            if attempt + 1 == READ_TRIES:
                raise
    return None


def _quiet_worker(_: int) -> None:
    """Workers run side by side, so each keeps to one thread."""
    import torch

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
