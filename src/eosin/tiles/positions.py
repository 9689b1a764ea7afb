"""Where on a slide a tile may lie: uniform over all level-0 pixels whose tile has enough foreground.

Several tiles of one visit keep that law. The slide's positions are divided into cells, which follow the grid of its
stored tiles and are about as large as a tile. A visit's first position is drawn by the law, and so its cell is drawn in
proportion to the positions in it; each slot is then uniform over those. So every slot alone is distributed as a tile
without visits is, exactly, and the tiles of a visit touch the same few stored tiles. They are spread over the cell as
the points of a rotated R2 sequence (Cranley and Patterson, SIAM J. Numer. Anal. 13, 1976), which leaves each uniform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.randomness import Words
from eosin.tiles.filters import Table, foreground_share

_TRIES = 64
_ROTATIONS = 16  # tries of each slot before it takes the visit's first position
_R2 = np.array([0.7548776662466927, 0.5698402909980532])  # 1/p and 1/p² of the root p of p³ = p + 1


class Extent(NamedTuple):
    """How far a tile's corner may go, in level-0 px (the last one included), and the side of the tile in them."""

    room_x: int
    room_y: int
    width: float
    height: float


@dataclass(frozen=True)
class Tissue:
    """Integral image of a slide's foreground, its scale in µm per mask pixel, and the slide's µm per level-0 px."""

    table: Table
    mpp: float
    mpp_x: float
    mpp_y: float

    def shares(self, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], side_um: float) -> npt.NDArray[np.float64]:
        """Share of foreground of tiles with these corners in level-0 px."""
        side = side_um / self.mpp
        return foreground_share(self.table, x * (self.mpp_x / self.mpp), y * (self.mpp_y / self.mpp), side, side)

    def position(self, extent: Extent, side_um: float, least: float, words: Words) -> tuple[int, int] | None:
        """A corner whose tile has at least a share `least` of foreground; None where there are none."""
        for _ in range(4):  # rejection keeps the law exact and needs no table of positions
            x = words.integers(extent.room_x + 1, _TRIES)
            y = words.integers(extent.room_y + 1, _TRIES)
            good = self.shares(x, y, side_um) >= least
            if good.any():
                first = int(good.argmax())
                return int(x[first]), int(y[first])
        return self._listed(extent, side_um, least, words)

    def _listed(self, extent: Extent, side_um: float, least: float, words: Words) -> tuple[int, int] | None:
        """For slides with little tissue: list the corners on the mask's own grid that pass and draw one of them."""
        scale_x, scale_y = self.mpp_x / self.mpp, self.mpp_y / self.mpp
        x = np.unique(np.minimum((np.arange(self.table.shape[1] - 1) / scale_x).astype(np.int64), extent.room_x))
        y = np.unique(np.minimum((np.arange(self.table.shape[0] - 1) / scale_y).astype(np.int64), extent.room_y))
        rows, columns = np.nonzero(self.shares(x[None, :], y[:, None], side_um) >= least)
        if len(rows) == 0:
            return None
        pick = int(words.integers(len(rows), 1)[0])
        return int(x[columns[pick]]), int(y[rows[pick]])

    def around(
        self,
        first: tuple[int, int],
        count: int,
        stored: tuple[float, float],
        extent: Extent,
        side_um: float,
        least: float,
        words: Words,
    ) -> list[tuple[int, int]]:
        """`count` corners in the cell of `first`, a position drawn by the law.

        stored: width and height in level-0 px of the slide's stored tiles at this scale.
        """
        left, across = _cell(first[0], extent.width, stored[0], extent.room_x)
        top, down = _cell(first[1], extent.height, stored[1], extent.room_y)
        shares = (words.uniform(_ROTATIONS, 1, 2) + _R2 * np.arange(count)[:, None]) % 1.0  # [tries, slots, 2]
        x = left + np.minimum((shares[..., 0] * across).astype(np.int64), across - 1)
        y = top + np.minimum((shares[..., 1] * down).astype(np.int64), down - 1)
        good = self.shares(x, y, side_um) >= least
        tries = good.argmax(axis=0)
        return [
            (int(x[tries[slot], slot]), int(y[tries[slot], slot])) if good[tries[slot], slot] else first
            for slot in range(count)
        ]


def _cell(position: int, side: float, stored: float, room: int) -> tuple[int, int]:
    """First position and number of positions of the cell that `position` is in, along one axis in level-0 px.

    Cells divide 0 … room. Each is about a `side` long, and whole stored tiles or an equal part of one.
    """
    length = stored * round(side / stored) if side >= stored else stored / round(stored / side)
    length = max(length, 1.0)
    number = math.floor(position / length)
    first, beyond = math.ceil(number * length), math.ceil((number + 1) * length)
    if not first <= position < beyond:  # the division was rounded across an edge
        number += 1 if position >= beyond else -1
        first, beyond = math.ceil(number * length), math.ceil((number + 1) * length)
    return first, min(beyond, room + 1) - first
