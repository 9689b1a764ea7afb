"""Tissue tiles put into regions of side × side tiles, and regions into the slide's grid: bookkeeping of the pyramid.

The grid of regions begins at the box of the tissue tiles, so it does not depend on where the tissue lies on the glass
nor on how much glass was scanned. Only regions that hold a tile exist. Reads no slide and knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from eosin.errors import PlanError

REGION_SIDE = 16
"""Tiles along a region: 16 × 256 px = 4096 px (HIPT, EXAONE Path 2.0)."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RegionGrid:
    """Tiles of a slide, region by region; regions row-major over the slide, tiles row-major inside a region.

    side: tiles along a region. shape: (nh, nw) regions that cover the box of the tissue tiles. order: int64 [N], number
    of each tile in the list from which the grid was made. row, column: int64 [N], a tile's place inside its region,
    0..side-1. start: int64 [R + 1]; tiles start[r]..start[r + 1]-1 are those of region r. region_row, region_column:
    int64 [R], a region's place in the slide's grid.

    >>> grid = region_grid([7, 7, 9], [5, 6, 5], side=2)
    >>> len(grid), grid.shape, grid.start.tolist(), grid.region_row.tolist()
    (2, (2, 1), [0, 2, 3], [0, 1])
    """

    side: int
    shape: tuple[int, int]
    order: Numbers
    row: Numbers
    column: Numbers
    start: Numbers
    region_row: Numbers
    region_column: Numbers

    def __len__(self) -> int:
        """Regions that hold a tile."""
        return len(self.region_row)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.order)

    @property
    def counts(self) -> Numbers:
        """Tiles of each region, int64 [R]."""
        return np.diff(self.start)

    def span(self, region: int) -> slice:
        """The rows of a region's tiles."""
        return slice(int(self.start[region]), int(self.start[region + 1]))

    def regions_of(self, rows: npt.ArrayLike) -> Numbers:
        """The region of each of these rows (tiles in this grid's order)."""
        return np.searchsorted(self.start, np.asarray(rows), side="right") - 1

    def shares(self, parts: int) -> list[tuple[int, int]]:
        """First and last + 1 region of each of `parts` neighbouring groups with about equally many tiles; may be empty.

        A region belongs to the part in which the middle of its tiles falls.
        """
        middle = (self.start[:-1] + self.start[1:]) / 2
        edges = [int(edge) for edge in np.searchsorted(middle, np.arange(parts + 1) * self.tiles / parts)]
        edges[-1] = len(self)
        return list(pairwise(edges))

    def pick(self, regions: Sequence[int]) -> RegionGrid:
        """The grid of some regions alone, in this order of the slide; places and shape stay those of the whole slide.

        `order` still numbers the tiles of the whole list. Raises PlanError for none, for a number given twice or one
        that does not exist.
        """
        chosen = np.asarray(regions, dtype=np.int64)
        if not len(chosen) or len(np.unique(chosen)) < len(chosen) or not 0 <= chosen.min() <= chosen.max() < len(self):
            raise PlanError(f"cannot pick regions {list(regions)} of {len(self)}")
        chosen = np.sort(chosen)
        rows = np.concatenate([np.arange(self.start[r], self.start[r + 1]) for r in chosen])
        start = np.concatenate([[0], np.cumsum(self.counts[chosen])])
        places = (self.order[rows], self.row[rows], self.column[rows])
        return RegionGrid(self.side, self.shape, *places, start, self.region_row[chosen], self.region_column[chosen])


def region_grid(row: npt.ArrayLike, column: npt.ArrayLike, side: int = REGION_SIDE) -> RegionGrid:
    """Regions of tiles that stand at (row, column) of a grid of tiles, in any order.

    row, column: integers [N], also negative: the grid of regions begins at their smallest ones. Raises PlanError where
    there is no tile, where two stand at one place, or where side < 1.
    """
    rows, columns = np.asarray(row, dtype=np.int64), np.asarray(column, dtype=np.int64)
    if rows.ndim != 1 or rows.shape != columns.shape or not len(rows):
        raise PlanError(f"regions need the places of at least one tile, not {rows.shape} and {columns.shape}")
    if side < 1:
        raise PlanError(f"a region has at least one tile along its side, not {side}")
    rows, columns = rows - rows.min(), columns - columns.min()
    shape = (int(rows.max()) // side + 1, int(columns.max()) // side + 1)
    region = (rows // side) * shape[1] + columns // side
    order = np.lexsort((columns, rows, region))
    region, rows, columns = region[order], rows[order], columns[order]
    if np.any((np.diff(rows) == 0) & (np.diff(columns) == 0)):
        raise PlanError("two tiles stand at one place of the grid; regions need tiles that do not overlap")
    found, first = np.unique(region, return_index=True)
    start = np.append(first, len(region))
    return RegionGrid(side, shape, order, rows % side, columns % side, start, found // shape[1], found % shape[1])
