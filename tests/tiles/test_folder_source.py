"""Folders of tiles: true scale, random windows, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from eosin.errors import DataError, PlanError
from eosin.tiles import FolderSource, TilePlan, TilesConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four 100-px images of 1 µm/px: row and column number of each pixel in two channels, image number in the third."""
    (tmp_path / "a").mkdir()
    y, x = np.mgrid[0:100, 0:100].astype(np.uint8)
    for number in range(4):
        image = np.dstack([np.full_like(x, number), y, x])  # OpenCV writes BGR
        cv2.imwrite(str(tmp_path / "a" / f"{number}.png"), image)
    return tmp_path


def test_windows_at_native_scale_are_the_pixels_themselves(folder: Path) -> None:
    plan = TilePlan([FolderSource(str(folder), 1.0, TilesConfig(size_px=40, mpp=[1.0]))], seed=0)
    corners = set()
    for i in range(60):
        tile = plan.tile(i)
        x0, y0 = int(tile.pixels[0, 0, 0]), int(tile.pixels[0, 0, 1])
        corners.add((x0, y0))
        assert np.array_equal(tile.pixels[..., 0], np.tile(np.arange(x0, x0 + 40), (40, 1)))
        assert np.array_equal(tile.pixels[..., 1], np.tile(np.arange(y0, y0 + 40)[:, None], (1, 40)))
        assert tile.pixels[0, 0, 2] == int(Path(tile.address.name).stem)
    assert len(corners) > 50
    assert min(x for x, _ in corners) < 10
    assert max(x for x, _ in corners) > 50


def test_coarser_tiles_cover_more(folder: Path) -> None:
    source = FolderSource(str(folder), 1.0, TilesConfig(size_px=40, mpp=[2.0]))
    tile = TilePlan([source], seed=0).tile(0)
    assert np.diff(tile.pixels[0, :, 0].astype(int)).mean() == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("mpp", [1.1, 1.37, 2.0])
def test_the_scale_is_exact(folder: Path, mpp: float) -> None:
    plan = TilePlan([FolderSource(str(folder), 1.0, TilesConfig(size_px=40, mpp=[mpp]))], seed=0)
    for i in range(5):
        tile = plan.tile(i)
        across = tile.pixels[20, :, 0].astype(float)
        assert np.polyfit(np.arange(40), across, 1)[0] == pytest.approx(mpp, abs=0.015)
        assert across[0] == pytest.approx(tile.address.x + mpp / 2 - 0.5, abs=0.75)


def test_equal_tiles_have_equal_addresses(folder: Path) -> None:
    plan = TilePlan([FolderSource(str(folder), 1.0, TilesConfig(size_px=100, mpp=[1.0]))], seed=0)
    tiles = [plan.tile(i) for i in range(16)]
    assert len({tile.address.number for tile in tiles}) == len({tile.pixels.tobytes() for tile in tiles}) <= 4


def test_refusals(folder: Path) -> None:
    with pytest.raises(PlanError, match=r"no image gives 4 µm/px"):
        FolderSource(str(folder), 1.0, TilesConfig(size_px=40, mpp=[1.0, 4.0]))
    with pytest.raises(DataError, match="no images"):
        FolderSource(str(folder / "none"), 1.0, TilesConfig())
    with pytest.raises(DataError, match="not believable"):
        FolderSource(str(folder), 100.0, TilesConfig())


def test_a_broken_image_is_drawn_again_and_recorded(folder: Path) -> None:
    (folder / "a" / "2.png").write_bytes(b"not an image")
    plan = TilePlan([FolderSource(str(folder), 1.0, TilesConfig(size_px=40, mpp=[1.0]))], seed=0)
    tiles = [plan.tile(i) for i in range(20)]
    assert all(tile.address.name != "a/2.png" for tile in tiles)
    assert any("2.png is not a readable image" in error["error"] for tile in tiles for error in tile.errors)


def test_sources_mix_by_weight(folder: Path, tmp_path: Path) -> None:
    config = TilesConfig(size_px=40, mpp=[1.0])
    plan = TilePlan([FolderSource(str(folder), 1.0, config)] * 2, seed=0, weights=[3, 1])
    numbers = [plan.tile(i).address.source for i in range(400)]
    assert numbers.count(0) / 400 == pytest.approx(0.75, abs=0.07)
