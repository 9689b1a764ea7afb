"""A pyramid run over one slide, stage by stage and chunk by chunk: tile, region and slide vectors.

Regions are read one at a time; what grows with the slide is the tile vectors alone. The same passes serve training
(`training/whole_slide`), which hands in its draws and decides what keeps a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_pixels import Pixels, ReadRegion, read_ahead, tile_chunks
from eosin.models.pyramid_stage import GridVectors
from eosin.tiles.pyramid_grid import RegionGrid
from eosin.views.transfer import tensor_to


class SlideForward(BaseModel):
    """How a slide is run through a pyramid. None of it changes the result, precision aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile_chunk: int = Field(default=128, ge=1, description="tiles that stage 1 sees at once")
    region_chunk: int = Field(default=8, ge=1, description="regions that stage 2 sees at once")
    ahead: int = Field(default=2, ge=0, description="regions that are read before they are needed")
    readers: int = Field(default=1, ge=1, description="threads that read")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the computation; fp32: that of the weights"
    )

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context of one chunk; a new one each, since what it caches of the weights has no graph in some passes."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def regions(self, read: ReadRegion, grid: RegionGrid) -> Iterator[Pixels]:
        """All regions of `grid`, read ahead."""
        return read_ahead(read, range(len(grid)), self.ahead, self.readers)


class SlideVectors(NamedTuple):
    """What a pyramid makes of a slide, in the precision of its weights."""

    tiles: Tensor  # [N, d1], in the order of the list of tiles from which the grid was made
    regions: Tensor  # [R, d2]
    slide: Tensor  # [d3]
    outputs: dict[str, Tensor]  # task -> logits [1, task.outputs]
    tile_attention: Tensor  # [N], sums to 1: the tile's share in its region times the region's share in the slide
    region_attention: Tensor  # [R], sums to 1


class VectorChunk(NamedTuple):
    """Vectors of tiles first..last-1 of a grid, [last - first, d1]."""

    first: int
    last: int
    vectors: Tensor


def tile_vectors(
    pyramid: Pyramid,
    grid: RegionGrid,
    read: ReadRegion,
    settings: SlideForward,
    draws: SlideDraws | None = None,
    seen: Callable[[int, Pixels], None] | None = None,
) -> Iterator[VectorChunk]:
    """Stage 1 over all tiles of `grid`; with a graph where the caller has gradients on.

    read: by place in `grid`. seen: see `tile_chunks`.
    """
    device = pyramid.device
    for chunk in tile_chunks(grid, settings.regions(read, grid), settings.tile_chunk, seen):
        factors = draws.tiles(pyramid.tile.rates, grid, chunk.first, chunk.last) if draws is not None else None
        pixels = tensor_to(chunk.pixels, device)
        with settings.autocast(device):
            vectors = pyramid.tile(pixels, factors)
        yield VectorChunk(chunk.first, chunk.last, vectors)


def region_spans(grid: RegionGrid, chunk: int) -> Iterator[tuple[int, int]]:
    """First and last + 1 region of each chunk of stage 2."""
    for first in range(0, len(grid), chunk):
        yield first, min(first + chunk, len(grid))


def regions_of(
    pyramid: Pyramid,
    vectors: Tensor,
    grid: RegionGrid,
    span: tuple[int, int],
    settings: SlideForward,
    draws: SlideDraws | None = None,
    look: bool = False,
) -> GridVectors:
    """Stage 2 of the regions of one span; vectors: of their tiles, [n, d1]."""
    factors = draws.regions(pyramid.region.rates, grid, *span) if draws is not None else None
    with settings.autocast(pyramid.device):
        found = pyramid.encode_regions(vectors, grid, *span, factors, look)
    return found._replace(grids=found.grids.to(vectors.dtype))


def slide_of(
    pyramid: Pyramid, vectors: Tensor, grid: RegionGrid, settings: SlideForward, draws: SlideDraws | None = None
) -> tuple[GridVectors, dict[str, Tensor]]:
    """Stage 3 and the heads; vectors: of all regions, [R, d2]. Logits in the precision of `vectors`."""
    factors = draws.slide(pyramid.slide.rates) if draws is not None else None
    with settings.autocast(pyramid.device):
        found = pyramid.encode_slide(vectors, grid, factors, look=True)
        outputs = pyramid.predict(found.grids)
    return found, {name: logits.to(vectors.dtype) for name, logits in outputs.items()}


@torch.no_grad()
def encode_slide(
    pyramid: Pyramid, grid: RegionGrid, read: ReadRegion, settings: SlideForward | None = None
) -> SlideVectors:
    """Vectors of all three stages and the heads' logits, nothing dropped, on the pyramid's device.

    read: region number -> uint8 [n, S, S, 3], its tiles in the grid's order; called from other threads.
    """
    settings = settings or SlideForward()
    tiles = torch.empty(grid.tiles, pyramid.tile.width, dtype=pyramid.tile.mean.dtype, device=pyramid.device)
    for chunk in tile_vectors(pyramid, grid, read, settings):
        tiles[chunk.first : chunk.last] = chunk.vectors
    parts, within = [], []
    for span in region_spans(grid, settings.region_chunk):
        rows = slice(int(grid.start[span[0]]), int(grid.start[span[1]]))
        found = regions_of(pyramid, tiles[rows], grid, span, settings, look=True)
        assert found.attention is not None
        parts.append(found.grids)
        within.append(found.attention)
    regions = torch.cat(parts)
    top, outputs = slide_of(pyramid, regions, grid, settings)
    assert top.attention is not None
    shares = tile_shares(top.attention, torch.cat(within), grid)
    back = torch.from_numpy(np.argsort(grid.order)).to(pyramid.device)
    return SlideVectors(tiles[back], regions, top.grids[0].to(tiles.dtype), outputs, shares[back], top.attention)


def tile_shares(of_regions: Tensor, within: Tensor, grid: RegionGrid) -> Tensor:
    """A region's share in the slide [R] times each tile's share in its region [N] -> [N], in the grid's order."""
    return within * of_regions.repeat_interleave(torch.from_numpy(grid.counts).to(within.device))
