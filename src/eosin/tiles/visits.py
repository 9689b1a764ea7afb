"""Which tiles are cut from one place, and when they come: tile number <-> (visit, slot).

A place that is decoded once gives `per_visit` tiles, its slots, of about the same tissue. They must not meet in a
batch, so they are spread over steps: the same row of the batch, at least half a round and at most one and a half rounds
apart. A round is as many steps as keep `KEPT_TILES` tiles waiting, decoded and not yet used. One row is always one
process's, whatever their number, so no place is decoded by two of them.

The mapping is a bijection without state: rows of the global batch, in groups of `per_visit`, go through their places
("columns") in an order of their own every round, drawn from keyed words; a row's place gives slot 0, 1, … in successive
rounds, and the rows of a group stand at different slots. So every step begins one visit a group, and what waits is
always the same number of tiles. Visits of the first round begin in the middle: their early slots are never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.randomness import Words

KEPT_TILES = 4096  # of all processes together: 0.8 GB at 256 px
LEAST_STEPS = 4  # of a round, however large the batch

Order = npt.NDArray[np.int64]


class Place(NamedTuple):
    """A tile's visit and its slot there, 0 … per_visit - 1."""

    visit: int
    slot: int


@dataclass(frozen=True)
class Spread:
    """The mapping for one seed, number of slots (2 or more) and size of the global batch."""

    seed: int
    per_visit: int
    batch: int
    round_steps: int

    @staticmethod
    def of(seed: int, per_visit: int, batch: int) -> Spread:
        """The shortest round that keeps `KEPT_TILES` tiles waiting."""
        return Spread(seed, per_visit, batch, max(LEAST_STEPS, -(-2 * KEPT_TILES // ((per_visit - 1) * batch))))

    def most_kept(self, first: int, last: int) -> int:
        """Tiles that wait at most between two steps, for a process with rows `first` … `last` - 1 of the batch."""
        kept, each = 0, self.per_visit
        for group in range(first // each, -(-last // each)):
            rows = min(last, (group + 1) * each) - max(first, group * each)
            kept += sum(range(each - rows, each))  # at most: all at different slots, the earliest ones
        return kept * self.round_steps

    def place(self, index: int) -> Place:
        """Where tile `index` comes from."""
        step, row = divmod(index, self.batch)
        turn, at = divmod(step, self.round_steps)
        column = int(self._order(turn)[0][row // self.per_visit, at])
        nth, slot = divmod(turn + (row + column) % self.per_visit, self.per_visit)
        return Place((nth * self.round_steps + column) * self.batch + row, slot)

    def tiles(self, visit: int) -> list[int]:
        """The tiles of a visit in the order of their slots, which is that of their numbers."""
        left, row = divmod(visit, self.batch)
        nth, column = divmod(left, self.round_steps)
        first = nth * self.per_visit - (row + column) % self.per_visit
        group = row // self.per_visit
        return [
            (turn * self.round_steps + int(self._order(turn)[1][group, column])) * self.batch + row
            for turn in range(max(first, 0), first + self.per_visit)
        ]

    def _order(self, turn: int) -> tuple[Order, Order]:
        return _order(self.seed, self.round_steps, -(-self.batch // self.per_visit), turn)


@lru_cache(maxsize=128)
def _order(seed: int, steps: int, groups: int, turn: int) -> tuple[Order, Order]:
    """Columns by step and steps by column of one round, int64 [groups, steps]; each half of the round keeps its own."""
    words, half = Words(seed, "visits", turn), steps // 2
    order = np.concatenate([words.permutations(half, groups), words.permutations(steps - half, groups) + half], axis=1)
    return order, np.argsort(order, axis=1)
