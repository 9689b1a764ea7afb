"""Tiles put into regions: every tile once, in its place, wherever the tissue lies on the glass."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from eosin.errors import PlanError
from eosin.randomness import Words
from eosin.tiles.pyramid_grid import RegionGrid, region_grid


def some_places(key: int, count: int = 90, extent: int = 21) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    chosen = Words(0, key).permutations(extent * extent)[:count]
    return chosen // extent, chosen % extent


def as_lists(grid: RegionGrid) -> list[object]:
    return [
        grid.side, grid.shape, *(x.tolist() for x in (grid.order, grid.row, grid.column, grid.start)),
        grid.region_row.tolist(), grid.region_column.tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("side", [1, 4, 16, 50])
def test_every_tile_is_once_in_its_region_and_place(side: int) -> None:
    row, column = some_places(side)
    grid = region_grid(row + 1000, column - 7, side)
    top, left = row.min(), column.min()
    wanted: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for number, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True)):
        (region_row, inside_row), (region_column, inside_column) = divmod(r - top, side), divmod(c - left, side)
        wanted.setdefault((region_row, region_column), []).append((inside_row, inside_column, number))
    assert grid.shape == ((row.max() - top) // side + 1, (column.max() - left) // side + 1)
    assert list(zip(grid.region_row.tolist(), grid.region_column.tolist(), strict=True)) == sorted(wanted)
    for region, place in enumerate(sorted(wanted)):
        rows = grid.span(region)
        found = zip(grid.row[rows].tolist(), grid.column[rows].tolist(), grid.order[rows].tolist(), strict=True)
        assert list(found) == sorted(wanted[place])
        assert grid.regions_of(np.arange(rows.start, rows.stop)).tolist() == [region] * grid.counts[region]
    assert grid.tiles == len(row) == grid.counts.sum()


def test_it_does_not_depend_on_where_the_tissue_lies() -> None:
    row, column = some_places(3)
    assert as_lists(region_grid(row, column, 4)) == as_lists(region_grid(row - 131, column + 5_000, 4))


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 60])
def test_shares_are_neighbouring_regions_with_about_equal_tiles(parts: int) -> None:
    grid = region_grid(*some_places(5, count=200), side=4)
    shares = grid.shares(parts)
    assert len(shares) == parts
    assert [r for first, last in shares for r in range(first, last)] == list(range(len(grid)))
    for first, last in shares:
        assert abs(grid.start[last] - grid.start[first] - grid.tiles / parts) <= grid.counts.max()


def test_one_region_leaves_other_processes_without_any() -> None:
    shares = region_grid([0, 0, 1], [0, 1, 0]).shares(3)
    assert sorted(last - first for first, last in shares) == [0, 0, 1]


def test_picked_regions_keep_their_places() -> None:
    grid = region_grid(*some_places(8), side=4)
    some = grid.pick([7, 2])
    assert some.shape == grid.shape
    for place, region in enumerate([2, 7]):
        for name in ("order", "row", "column"):
            assert (getattr(some, name)[some.span(place)] == getattr(grid, name)[grid.span(region)]).all()
        assert some.region_row[place] == grid.region_row[region]
        assert some.region_column[place] == grid.region_column[region]
    for wrong in ([], [1, 1], [len(grid)], [-1]):
        with pytest.raises(PlanError, match="cannot pick regions"):
            grid.pick(wrong)


@pytest.mark.parametrize(
    ("row", "column", "side", "said"),
    [
        ([], [], 16, "at least one tile"),
        ([1, 2], [1], 16, "at least one tile"),
        ([1], [1], 0, "at least one tile along its side"),
        ([4, 1, 4], [2, 0, 2], 16, "two tiles stand at one place"),
    ],
)
def test_what_is_no_grid_is_refused(row: list[int], column: list[int], side: int, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        region_grid(row, column, side)
