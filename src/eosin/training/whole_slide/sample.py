"""What a whole-slide step needs of a slide, and what it may be asked to learn from regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from torch import Tensor

from eosin.models.mil.head import Targets
from eosin.models.pyramid_pixels import Pixels, ReadRegion
from eosin.slides import Slide
from eosin.tiles.grid import TileGrid
from eosin.tiles.grid_stream import read_tiles, with_retries
from eosin.tiles.pyramid_grid import REGION_SIDE, RegionGrid, region_grid

TileLoss: TypeAlias = Callable[[], Tensor]
"""This process's part of the loss of a batch of tiles (DINO on stage 1), 0-d with a graph, weight included. Summed over
processes it is the term. Must not wait for the other processes."""


@dataclass(frozen=True)
class SlideSample:
    """A slide to learn from.

    slide: its id, which keys its randomness. grid: its tiles. read: region number -> uint8 [n, S, S, 3], the region's
    tiles in the grid's order; the same pixels each time, from any thread. targets: task -> label, for one slide, as
    `objectives.task_losses` takes it: int64 [1] (-1 missing), float [1] or [1, 2] (NaN missing).
    """

    slide: str
    grid: RegionGrid
    read: ReadRegion
    targets: Targets = field(default_factory=dict)


class RegionLoss(Protocol):
    """A loss of single regions, for example DINO on stage 2, which is a sum over regions.

    Processes ask for different numbers of regions, so nothing here may wait for the others.
    """

    def wants(self, slide: str, region: int) -> bool:
        """Whether this region of the slide is one of those in the step's region batch."""

    def see(self, slide: str, grid: RegionGrid, region: int, pixels: Pixels) -> None:
        """The pixels of a wanted region, uint8 [n, S, S, 3], once, before its loss is asked for: for the teacher."""

    def loss(self, slide: str, grid: RegionGrid, region: int, vectors: Tensor) -> Tensor:
        """This region's term, 0-d with a graph, weight included; vectors [n, d1]: stage 1's, in the grid's order.

        Runs the student's stage 2 on views of `vectors`. Is asked for once a step (called in autograd mode, outside
        autocast); whether its gradient goes on into stage 1 is for `region_grad` to say.
        """


def slide_sample(
    slide: Slide, name: str, grid: TileGrid, targets: Mapping[str, Tensor] | None = None, side: int = REGION_SIDE
) -> SlideSample:
    """The sample of an open slide with its tissue tiles (`tissue_grid`, neighbours one tile apart)."""
    regions = region_grid(grid.row, grid.column, side)
    return SlideSample(name, regions, slide_reader(slide, grid, regions), dict(targets or {}))


def slide_reader(slide: Slide, grid: TileGrid, regions: RegionGrid) -> ReadRegion:
    """Reads the tiles of a region from an open slide, which threads may share; tries again where reading fails."""

    def read(region: int) -> Pixels:
        coords = grid.coords[regions.order[regions.span(region)]]
        pixels = np.empty((len(coords), grid.size_px, grid.size_px, 3), np.uint8)
        with_retries(lambda: read_tiles(slide, coords, grid.size_px, grid.mpp, pixels))
        return pixels

    return read
