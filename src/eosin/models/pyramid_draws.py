"""Drop path of a slide's forward: a function of (seed, step, slide, stage, grid row, grid column, layer, branch).

Nothing depends on how the slide is cut into chunks or spread over processes, so running a chunk again, in other
company or on another process, gives the same network, and nothing has to be saved and replayed. Always the form of
Huang et al. 2016 (a sample keeps a branch or not): DINOv2's subset form depends on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.randomness import Words
from eosin.tiles.pyramid_grid import RegionGrid

Rates = Sequence[float]
"""Probability of dropping a branch, one a layer."""


class SlideDraws:
    """The draws of one slide in one optimiser step. Factors are 0 or 1 / (1 - rate), float64 on the CPU.

    >>> from eosin.tiles.pyramid_grid import region_grid
    >>> grid = region_grid([0, 0], [0, 1])
    >>> both, second = SlideDraws(0, 7, "A1").tiles([0.5], grid, 0, 2), SlideDraws(0, 7, "A1").tiles([0.5], grid, 1, 2)
    >>> bool((both[..., 1] == second[..., 0]).all())
    True
    """

    def __init__(self, seed: int, step: int, slide: str) -> None:
        self.key = (seed, step, slide)

    def tiles(self, rates: Rates, grid: RegionGrid, first: int, last: int) -> Tensor | None:
        """Factors of tiles first..last-1 of the grid in stage 1: [layers, 2, n]; none where nothing is dropped."""
        if not any(rates):
            return None
        parts = []
        for region in range(int(grid.regions_of(first)), int(grid.regions_of(last - 1)) + 1):
            span = grid.span(region)
            rows = slice(max(span.start, first), min(span.stop, last))
            place = grid.row[rows] * grid.side + grid.column[rows]
            at = int(grid.region_row[region]), int(grid.region_column[region])
            parts.append(_of_region(*self.key, at, grid.side, len(rates))[place])
        return _factors(np.concatenate(parts), rates)

    def regions(self, rates: Rates, grid: RegionGrid, first: int, last: int) -> Tensor | None:
        """Factors of regions first..last-1 in stage 2: [layers, 2, n]."""
        if not any(rates):
            return None
        places = zip(grid.region_row[first:last].tolist(), grid.region_column[first:last].tolist(), strict=True)
        parts = [_words(*self.key, "region", *place).uniform(len(rates), 2) for place in places]
        return _factors(np.stack(parts), rates)

    def slide(self, rates: Rates) -> Tensor | None:
        """Factors of the slide in stage 3: [layers, 2, 1]."""
        if not any(rates):
            return None
        return _factors(_words(*self.key, "slide").uniform(1, len(rates), 2), rates)


def _words(seed: int, step: int, slide: str, *key: int | str) -> Words:
    return Words(seed, "slide drop path", step, slide, *key)


@lru_cache(maxsize=4)
def _of_region(
    seed: int, step: int, slide: str, at: tuple[int, int], side: int, layers: int
) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) of all places of a region, [side², layers, 2]: one stream a region, read by place."""
    return _words(seed, step, slide, "tile", *at).uniform(side * side, layers, 2)


def _factors(numbers: npt.NDArray[np.float64], rates: Rates) -> Tensor:
    """[n, layers, 2] in [0, 1) -> factors [layers, 2, n]."""
    keep = 1.0 - np.asarray(rates, dtype=np.float64)[:, None]  # [layers, 1]
    return torch.from_numpy(np.ascontiguousarray(((numbers < keep) / keep).transpose(1, 2, 0)))
