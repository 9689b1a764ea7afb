"""All tissue tiles of one slide: a grid that begins at the top-left of the tissue box, for embedding.

The pitch of a grid is rarely a whole number of level-0 px (224 px at 0.5 µm/px on a slide of 0.2501 are 447.82).
Every corner is rounded from its exact place, so the error stays below half a level-0 px over the whole slide and
never adds up. Opens no slides (grid_stream.py does).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.errors import PlanError
from eosin.slides import Foreground
from eosin.tiles.filters import foreground_share, integral

MOST_TILES = 20_000_000
_CELLS_AT_ONCE = 1 << 20
_EXACT = 1e-9

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TileGrid:
    """Tissue tiles of a slide, row by row, left to right.

    anchor: top-left of the tissue box, whole level-0 px (x, y). mpp: µm/px of the tiles; size_px and stride_px: their
    side and distance in px of `mpp`. row, column: int64 [N] place in the grid; coords: int64 [N, 2] top-left corners
    (x, y) in level-0 px; share: float32 [N] share of foreground.
    """

    anchor: tuple[int, int]
    mpp: float
    size_px: int
    stride_px: int
    row: Numbers
    column: Numbers
    coords: Numbers
    share: npt.NDArray[np.float32]

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.coords)

    def blocks(self, side: int) -> Iterator[Numbers]:
        """Tile numbers, in blocks of at most `side` × `side` neighbouring grid places; every tile once.

        Neighbours share stored pixels, so one process that reads a block decodes each stored tile about once.
        """
        place = (self.row // side) * (self.column.max(initial=0) // side + 1) + self.column // side
        order = np.argsort(place, kind="stable")
        ends = np.flatnonzero(np.diff(place[order])) + 1
        yield from (block for block in np.split(order, ends) if len(block))


def tissue_grid(
    foreground: Foreground,
    slide_mpp: tuple[float, float],
    slide_size: tuple[int, int],
    *,
    mpp: float,
    size_px: int,
    stride_px: int | None = None,
    min_foreground: float = 0.25,
) -> TileGrid:
    """The tiles of a slide that hold tissue.

    Args:
        foreground: tissue of the slide.
        slide_mpp, slide_size: µm per level-0 px along x and y; width and height in level-0 px.
        mpp, size_px: scale and side of the tiles. stride_px: distance of neighbours, `size_px` without.
        min_foreground: least share of tissue in a tile, [0, 1]; 0 takes every tile that touches tissue. What
            lies outside the slide is no tissue: tiles may overhang the right and lower edge.

    Raises PlanError for an impossible setting, or a grid of more than 20 million tiles.
    """
    stride = size_px if stride_px is None else stride_px
    if min(size_px, stride) < 1 or not (math.isfinite(mpp) and mpp > 0) or not 0 <= min_foreground <= 1:
        raise PlanError(
            f"no grid of {size_px} px tiles, stride {stride} px, {mpp:g} µm/px, {min_foreground} foreground"
        )
    scale = tuple(own / foreground.mpp for own in slide_mpp)  # mask px per level-0 px
    left, top, right, bottom = _tissue_box(foreground, scale, slide_size)
    pitch_x, pitch_y = (stride * mpp / own for own in slide_mpp)
    columns = max(math.ceil((right - left) / pitch_x - _EXACT), 0)
    rows = max(math.ceil((bottom - top) / pitch_y - _EXACT), 0)
    table = integral(foreground.mask)
    side_mask_px = size_px * mpp / foreground.mpp
    x = np.floor(left + np.arange(columns) * pitch_x + 0.5).astype(np.int64)
    y = np.floor(top + np.arange(rows) * pitch_y + 0.5).astype(np.int64)
    found: list[tuple[Numbers, Numbers, npt.NDArray[np.float64]]] = []
    band = max(_CELLS_AT_ONCE // max(columns, 1), 1)
    for first in range(0, rows if columns else 0, band):
        shares = foreground_share(
            table, x[None, :] * scale[0], y[first : first + band, None] * scale[1], side_mask_px, side_mask_px
        )
        above, beside = np.nonzero((shares >= min_foreground - _EXACT) & (shares > 0))
        found.append((above + first, beside, shares[above, beside]))
        if sum(len(part[0]) for part in found) > MOST_TILES:
            raise PlanError(f"more than {MOST_TILES:,} tiles on one slide; take a larger stride or µm/px")
    if not found:
        found.append((np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)))
    row, column, share = (np.concatenate(parts) for parts in zip(*found, strict=True))
    coords = np.stack([x[column], y[row]], axis=1)
    return TileGrid((left, top), mpp, size_px, stride, row, column, coords, share.astype(np.float32))


def _tissue_box(
    foreground: Foreground, scale: tuple[float, ...], slide_size: tuple[int, int]
) -> tuple[int, int, float, float]:
    """Left, top (whole) and right, bottom of all tissue in level-0 px; an empty box where there is none."""
    columns = np.flatnonzero(foreground.mask.any(axis=0))
    rows = np.flatnonzero(foreground.mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0.0, 0.0
    left, top = (
        math.floor(int(edge[0]) / factor + _EXACT) for edge, factor in zip((columns, rows), scale, strict=True)
    )
    right, bottom = (
        min((int(edge[-1]) + 1) / factor, size)
        for edge, factor, size in zip((columns, rows), scale, slide_size, strict=True)
    )
    return left, top, right, bottom
