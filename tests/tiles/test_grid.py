"""The grid of all tissue tiles: which cells, where exactly, and their pixels through reading processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import PlanError
from eosin.slides import Cohort, Foreground, open_slide
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import GridSlide, ReaderDied, read_grids


def slow_grid(
    mask: np.ndarray, mask_mpp: float, slide_mpp: float, slide_px: int, mpp: float, size: int, stride: int, least: float
) -> list[tuple[int, int]]:
    """Every cell of the grid by the definition: supersampled share of tissue in the tile that is really read."""
    rows, columns = np.nonzero(mask)
    left, top = (int(edge.min() * mask_mpp / slide_mpp + 1e-9) for edge in (columns, rows))
    found = []
    y, row = top, 0
    while y < min((rows.max() + 1) * mask_mpp / slide_mpp, slide_px):
        x, column = left, 0
        while x < min((columns.max() + 1) * mask_mpp / slide_mpp, slide_px):
            corner_x, corner_y = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
            steps = (np.arange(400) + 0.5) / 400 * size * mpp / mask_mpp
            mx = (corner_x * slide_mpp / mask_mpp + steps).astype(int)
            my = (corner_y * slide_mpp / mask_mpp + steps).astype(int)
            padded = np.pad(mask, ((0, 4000), (0, 4000)))
            share = padded[np.ix_(my, mx)].mean()
            if share >= least and share > 0:
                found.append((corner_x, corner_y))
            column += 1
            x = left + column * stride * mpp / slide_mpp
        row += 1
        y = top + row * stride * mpp / slide_mpp
    return found


@pytest.mark.parametrize(
    ("size", "stride", "mpp", "least"), [(224, 224, 0.5, 0.251), (256, 100, 0.7, 0.6), (96, 128, 1.0, 0.02)]
)
def test_grid_is_every_cell_with_enough_tissue(size: int, stride: int, mpp: float, least: float) -> None:
    mask = np.zeros((70, 70), bool)
    mask[13:31, 22:40] = True
    mask[45:61, 5:12] = True
    grid = tissue_grid(
        Foreground(mask, 8.0), (0.2501, 0.2501), (2200, 2200), mpp=mpp, size_px=size, stride_px=stride,
        min_foreground=least,
    )  # fmt: skip
    wanted = slow_grid(mask, 8.0, 0.2501, 2200, mpp, size, stride, least)
    assert grid.coords.tolist() == [list(place) for place in wanted]
    assert grid.anchor == (int(5 * 8 / 0.2501), int(13 * 8 / 0.2501))


def test_no_drift_over_a_large_slide() -> None:
    mask = np.ones((800, 3000), bool)
    own, size = 0.2503, 224
    grid = tissue_grid(Foreground(mask, 8.0), (own, own), (95_000, 25_500), mpp=0.5, size_px=size)
    exact = np.stack([grid.column, grid.row], axis=1) * (size * 0.5 / own)
    assert len(grid) > 10_000
    assert np.abs(grid.coords - exact).max() <= 0.5 + 1e-9
    # What a pitch in whole px would do instead: more than half a tile at the far edge.
    assert np.abs(grid.column * round(size * 0.5 / own) - exact[:, 0]).max() > 50
    gaps = np.diff(grid.coords[grid.row == 3][:, 0])
    assert set(gaps.tolist()) == {447, 448}


def test_grid_moves_with_the_tissue() -> None:
    small = np.zeros((60, 60), bool)
    small[20:40, 15:50] = np.random.default_rng(0).random((20, 35)) > 0.3
    small[20, 15] = True
    words = {"mpp": 0.5, "size_px": 32, "min_foreground": 0.5}
    here = tissue_grid(Foreground(small, 8.0), (0.5, 0.5), (960, 960), **words)
    large = np.zeros((100, 100), bool)
    large[37:97, 31:91] = small
    there = tissue_grid(Foreground(large, 8.0), (0.5, 0.5), (1600, 1600), **words)
    assert (there.coords - here.coords == (31 * 16, 37 * 16)).all()


def test_blocks_are_every_tile_once_and_near_each_other() -> None:
    mask = np.random.default_rng(1).random((90, 110)) > 0.6
    grid = tissue_grid(Foreground(mask, 8.0), (0.5, 0.5), (1760, 1440), mpp=0.5, size_px=24)
    blocks = list(grid.blocks(8))
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(grid)))
    for block in blocks:
        assert len(block) <= 64
        assert np.ptp(grid.row[block]) < 8
        assert np.ptp(grid.column[block]) < 8


def test_no_tissue_and_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Foreground(np.zeros((30, 30), bool), 8.0)
    grid = tissue_grid(empty, (0.5, 0.5), (480, 480), mpp=0.5, size_px=64)
    assert len(grid) == 0
    assert list(grid.blocks(4)) == []
    full = Foreground(np.ones((300, 300), bool), 8.0)
    for words in ({"mpp": 0.0}, {"size_px": 0}, {"stride_px": 0}, {"min_foreground": 1.1}):
        with pytest.raises(PlanError, match="no grid of"):
            tissue_grid(full, (0.5, 0.5), (4800, 4800), **({"mpp": 0.5, "size_px": 64} | words))
    monkeypatch.setattr("eosin.tiles.grid.MOST_TILES", 1000)
    with pytest.raises(PlanError, match="larger stride"):
        tissue_grid(full, (0.5, 0.5), (4800, 4800), mpp=0.5, size_px=64, stride_px=32)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_read_what_region_reads(cohort: Cohort, workers: int) -> None:
    slides = [grid_slide(cohort, number, mpp=0.83, size_px=40) for number in range(3)]
    found: dict[int, dict[int, np.ndarray]] = {}
    order = []
    for part in read_grids(slides, workers):
        assert part.error is None
        order.append(part.number)
        found.setdefault(part.number, {}).update(zip(part.rows.tolist(), part.pixels, strict=True))
    assert order == sorted(order)
    for slide in slides:
        assert sorted(found[slide.number]) == list(range(len(slide.grid)))
        with open_slide(slide.path) as opened:
            for row in (0, len(slide.grid) // 2, len(slide.grid) - 1):
                x, y = slide.grid.coords[row].tolist()
                np.testing.assert_array_equal(found[slide.number][row], opened.region(x, y, 40, 0.83))


def test_errors_come_as_parts_and_a_killed_reader_is_told(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = grid_slide(cohort, 0, mpp=1.0, size_px=64)
    cut = tmp_path / "cut.svs"
    shutil.copy(slide.path, cut)
    os.truncate(cut, 2000)
    gone = GridSlide(5, str(cut), slide.mpp, slide.size, slide.grid)
    other = GridSlide(6, slide.path, slide.mpp, (slide.size[0] + 1, slide.size[1]), slide.grid)
    parts = {part.number: part for part in read_grids([gone, other, slide], 0)}
    assert "cut.svs" in str(parts[5].error)
    assert parts[slide.number].error is None
    assert "is not the file that was indexed" in str(parts[6].error)
    monkeypatch.setattr("eosin.tiles.grid_stream.open_slide", lambda *_, **__: os.kill(os.getpid(), 9))
    with pytest.raises(ReaderDied, match="lower --workers"):
        list(read_grids([slide], 1))


def grid_slide(cohort: Cohort, number: int, mpp: float, size_px: int) -> GridSlide:
    """A usable slide of a cohort with its grid."""
    row = cohort.usable.iloc[number]
    grid: TileGrid = tissue_grid(
        Foreground(cohort.foreground(number), cohort.foreground_mpp(number)),
        (row["mpp_x"], row["mpp_y"]),
        (int(row["width"]), int(row["height"])),
        mpp=mpp,
        size_px=size_px,
    )
    assert len(grid) > 3
    return GridSlide(number, row["path"], (row["mpp_x"], row["mpp_y"]), (int(row["width"]), int(row["height"])), grid)
