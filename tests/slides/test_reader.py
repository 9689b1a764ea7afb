"""Regions at a true µm/px, against a slow area average, known edges and real slides."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from eosin.errors import RegionError, SlideError
from eosin.slides import open_slide, resample
from eosin.slides.reader import levels_of, mpp_of_resolution


def slow_area(level: np.ndarray, x: float, y: float, scale: float, size: int) -> np.ndarray:
    """Mean over each output pixel's footprint in one level, loop by loop, white outside."""
    height, width = level.shape[:2]
    result = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            left, top = x + column * scale, y + row * scale
            total, area = np.zeros(3), 0.0
            for j in range(int(np.floor(top)), int(np.ceil(top + scale))):
                for i in range(int(np.floor(left)), int(np.ceil(left + scale))):
                    share = (min(i + 1, left + scale) - max(i, left)) * (min(j + 1, top + scale) - max(j, top))
                    if share > 0:
                        inside = 0 <= i < width and 0 <= j < height
                        total += share * (level[j, i] if inside else 255.0)
                        area += share
            result[row, column] = total / area
    return result


@pytest.mark.parametrize(
    ("x", "y", "mpp", "level", "factor"),
    [
        (100, 60, 0.5, 0, 1),  # whole edges: OpenCV's sums
        (100.37, 60.81, 0.5, 0, 1),
        (33, 21.5, 0.7318, 0, 1),
        (402.3, 101, 1.9, 1, 4),
        (-20.6, 640, 0.61, 0, 1),  # over two edges
        (-11, -9, 3.1, 1, 4),
        (10, 3, 8.3, 2, 16),
    ],
)
def test_region_is_the_area_average(tmp_path, write_aperio, noise_levels, x, y, mpp, level, factor) -> None:
    path = write_aperio(tmp_path / "a.svs", noise_levels)
    with open_slide(path) as slide:
        found = slide.region(x, y, 24, mpp)
    wanted = slow_area(noise_levels[level], x / factor, y / factor, mpp / (0.25 * factor), 24)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 0.51


def test_a_large_region_is_averaged_in_parts(tmp_path, write_aperio, noise_levels, monkeypatch) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", noise_levels)) as slide:
        for mpp in (0.37, 0.25 * 0.96):
            whole = slide.region(20.3, 31.7, (300, 200), mpp, max_upsample=1.05)
            with monkeypatch.context() as patch:
                patch.setattr(resample, "_PART_VALUES", 20_000)
                patch.setattr(resample, "_KEPT_PIXELS", 0)
                parts = slide.region(20.3, 31.7, (300, 200), mpp, max_upsample=1.05)
            assert np.array_equal(parts, whole)


def test_coarsest_level_that_is_fine_enough_is_read(tmp_path, write_aperio) -> None:
    colours = [np.full((600 // f, 800 // f, 3), value, np.uint8) for f, value in ((1, 10), (4, 100), (16, 200))]
    with open_slide(write_aperio(tmp_path / "a.svs", colours)) as slide:
        assert slide.reader == "tiff"
        assert [level.downsample_x for level in slide.levels] == [1, 4, 16]
        for mpp, value in ((0.25, 10), (0.99, 10), (1.0, 100), (3.9, 100), (4.0, 200), (5.0, 200)):
            assert np.unique(slide.region(16, 16, 8, mpp)) == [value], mpp


def test_a_level_a_little_too_coarse_is_read_where_the_caller_lets_it(tmp_path, write_aperio) -> None:
    flat = [np.full((side, side, 3), grey, np.uint8) for side, grey in ((512, 200), (128, 100))]
    with open_slide(write_aperio(tmp_path / "a.svs", flat, mpp=0.2525)) as slide:  # its level 1 has 1.01 µm/px
        assert (slide.level_for(1.0), slide.level_for(1.0, 1.05), slide.level_for(1.0, 1.005)) == (0, 1, 0)
        assert slide.level_for(1.01 / 1.03, 1.05) == 0  # 3 % would show
        assert slide.region(0, 0, 64, 1.0).min() > 190
        assert slide.region(0, 0, 64, 1.0, 1.05).max() < 110


def test_level_of_a_fractional_downsample_serves_its_scale(tmp_path, write_aperio) -> None:
    """Aperio's 10249 rows over 2562: OpenSlide says 4.0004, the level is the one for four times the scale."""
    levels = [np.full((403, 599, 3), 10, np.uint8), np.full((100, 149, 3), 90, np.uint8)]
    path = write_aperio(tmp_path / "a.svs", levels)
    assert openslide.OpenSlide(path).level_downsamples[1] != 4.0
    with open_slide(path) as slide:
        assert slide.levels[1].downsample_x == slide.levels[1].downsample_y == 4.0
        assert np.unique(slide.region(40, 40, 20, 1.0)) == [90]


def test_levels_keep_a_ratio_that_is_not_whole() -> None:
    assert levels_of([(1000, 800), (400, 320)])[1].downsample_x == 2.5
    assert levels_of([(11952, 10249), (2988, 2562)])[1][2:] == (4.0, 4.0)


def test_stored_pixels_come_unchanged_at_their_own_scale(tmp_path, write_aperio, noise_levels) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", noise_levels)) as slide:
        assert np.array_equal(slide.region(40, 80, 50, 1.0), noise_levels[1][20:70, 10:60])
        # 42 / 4 = 10.5 and 83 / 4 = 20.75: the nearest whole pixel, never a mixture
        assert np.array_equal(slide.region(42, 83, 50, 1.0), noise_levels[1][21:71, 11:61])


@pytest.mark.parametrize("mpp", [0.25, 0.31, 0.5, 0.777, 1.0, 1.37, 2.0, 4.9])
def test_edges_lie_where_their_um_say(tmp_path, write_aperio, mpp) -> None:
    """A bright bar from 60 to 130 µm, read from several origins at any scale."""
    full = np.zeros((640, 640, 3), np.uint8)
    full[:, 240:520] = 200
    shrunk = [cv2.resize(full, (640 // f, 640 // f), interpolation=cv2.INTER_AREA) for f in (4, 16)]
    with open_slide(write_aperio(tmp_path / "a.svs", [full, *shrunk])) as slide:
        for x in (0.0, 13.0, 101.6):
            size = int((640 - x) * 0.25 / mpp)
            line = slide.region(x, 100, (size, 4), mpp)[0, :, 0].astype(float)
            # the bar's edges are where its brightness begins and ends to add up
            width = line.sum() / 200
            centre = (line * (np.arange(size) + 0.5)).sum() / line.sum()
            assert abs(width - 70 / mpp) < 0.5
            assert abs(centre - (95 - x * 0.25) / mpp) < 0.51


def test_anisotropic_pixels_come_square(tmp_path, write_tiff) -> None:
    """0.25 x 0.5 µm per px, said by the resolution tags of a generic tiled TIFF."""
    pixels = np.full((400, 800, 3), 240, np.uint8)
    pixels[100:200, 100:500] = 40  # 100 µm wide from 25 µm, 50 µm high from 50 µm
    path = write_tiff(tmp_path / "a.tif", pixels, tile=(64, 64), resolution=(40000, 20000), resolutionunit=3)
    with open_slide(path) as slide:
        assert (slide.reader, slide.vendor) == ("tiff", "generic-tiff")
        assert (slide.mpp_x, slide.mpp_y, slide.mpp) == (0.25, 0.5, 0.5)
        dark = slide.region(0, 0, (200, 200), 1.0)[..., 0] < 140
        assert np.array_equal(np.flatnonzero(dark.any(axis=0))[[0, -1]], [25, 124])
        assert np.array_equal(np.flatnonzero(dark.any(axis=1))[[0, -1]], [50, 99])
        with pytest.raises(RegionError, match="finest"):
            slide.region(0, 0, 10, 0.4)


def test_outside_is_white(tmp_path, write_aperio) -> None:
    path = write_aperio(tmp_path / "a.svs", [np.full((100, 100, 3), 7, np.uint8)], tile=32)
    with open_slide(path) as slide:
        assert np.all(slide.region(500, 500, 10, 0.25) == 255)
        corner = slide.region(90, 90, 20, 0.25)
        assert np.all(corner[:10, :10] == 7)
        assert np.all(corner[10:] == 255)
        assert np.all(corner[:, 10:] == 255)


def test_a_missing_tile_is_white(tmp_path, write_aperio) -> None:
    path = write_aperio(tmp_path / "a.svs", [np.full((128, 128, 3), 7, np.uint8)], tile=64)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("TileByteCounts", "TileOffsets"):
            tag = file.pages.first.tags[name]
            tag.overwrite([0, *tag.value[1:]])
    with open_slide(path) as slide:
        assert np.all(slide.region(0, 0, 64, 0.25) == 255)
        assert np.all(slide.region(64, 0, 64, 0.25) == 7)


def test_finer_than_the_slide_is_refused_unless_allowed(tmp_path, write_aperio, noise_levels) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", noise_levels)) as slide:
        with pytest.raises(RegionError, match=r"0\.2 µm/px wanted, the slide has 0\.25"):
            slide.region(0, 0, 10, 0.2)
        with pytest.raises(RegionError):
            slide.region(0, 0, 10, 0.125, max_upsample=1.9)
        doubled = slide.region(100, 100, 64, 0.125, max_upsample=2.0)
        around = cv2.resize(noise_levels[0][90:150, 90:150], None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        assert np.abs(doubled.astype(int) - around[20:84, 20:84]).max() <= 1
        assert slide.region(0, 0, 10, 0.25 / 1.0005).shape == (10, 10, 3)


@pytest.mark.parametrize(
    "words", [(0, 0, 0, 1.0), (0, 0, 10, 0.0), (0, 0, 10, float("nan")), (float("nan"), 0, 10, 1.0)]
)
def test_impossible_regions_are_refused(tmp_path, write_aperio, noise_levels, words) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", noise_levels)) as slide, pytest.raises(RegionError):
        slide.region(*words)


def test_whole_in_bands_is_whole_at_once(tmp_path, write_aperio, noise_levels, monkeypatch) -> None:
    with open_slide(write_aperio(tmp_path / "a.svs", noise_levels)) as slide:
        at_once = slide.whole(0.9)
        monkeypatch.setattr("eosin.slides.reader._BAND_PIXELS", 50_000)
        assert np.array_equal(slide.whole(0.9), at_once)
        assert at_once.shape == (195, 250, 3)
        picture, mpp = slide.overview(100)
        assert picture.shape == (78, 100, 3)
        assert mpp == 2.25


def test_bad_files_are_one_line_each(tmp_path, write_aperio, noise_levels) -> None:
    good = write_aperio(tmp_path / "good.svs", noise_levels).read_bytes()
    files = {
        "empty.svs": b"",
        "text.svs": b"this is no slide\n" * 100,
        "truncated.svs": good[: len(good) // 2],
        "head.svs": good[:100],
        "noise.tif": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in [*files, "absent.svs", "."]:
        with pytest.raises(SlideError) as refused:
            open_slide(tmp_path / name, mpp=0.5).whole(8.0)
        assert "\n" not in str(refused.value)
        assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize("stated", [None, "0.0", "nan", "25", "0.01"])
def test_no_believable_scale_names_file_and_option(tmp_path, write_aperio, noise_levels, stated) -> None:
    path = write_aperio(tmp_path / "scale.svs", noise_levels, mpp=stated)
    with pytest.raises(SlideError, match=r"scale\.svs.*µm/px.*--mpp-csv"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.mpp_x, slide.mpp_y) == (0.5, 0.5)
    with pytest.raises(SlideError, match="believable"):
        open_slide(path, mpp=100.0)


def test_print_resolutions_are_no_scale() -> None:
    assert mpp_of_resolution(20000, "centimeter") == 0.5
    assert mpp_of_resolution(25400 / 0.25, "inch") == pytest.approx(0.25)
    for pixels, unit in (
        (72, "inch"),
        (300, "inch"),
        (2400, "inch"),
        (118.11, "centimeter"),
        (20000, ""),
        (0, "inch"),
    ):
        assert mpp_of_resolution(pixels, unit) is None


def test_real_slide_at_its_own_scale_is_openslide_s_pixels(shared_data: Path) -> None:
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    direct = np.asarray(openslide.OpenSlide(path).read_region((700, 900), 0, (300, 200)))[..., :3]
    with open_slide(path) as slide:
        assert (slide.width, slide.height, slide.mpp) == (2220, 2967, 0.499)
        assert np.array_equal(slide.region(700, 900, (300, 200), 0.499), direct)


@pytest.mark.parametrize(
    ("name", "mpp", "factor", "places"),
    [
        ("1065626.svs", None, 4, [(4800, 6200), (7900, 7100), (2800, 1700)]),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 2, [(400, 1600), (2000, 600), (3500, 2000)]),
    ],
)
def test_levels_of_real_pyramids_show_the_same_place(shared_data: Path, name, mpp, factor, places) -> None:
    """Level 1 of scanners with downsamples 4.0002 and 2.0005, against the area average of level 0."""
    path = shared_data / "slides" / name
    with open_slide(path, mpp) as slide, open_slide(path, mpp) as fine:
        fine.levels = fine.levels[:1]
        for x, y in places:
            stored = slide.region(x, y, 200, slide.mpp * factor).mean(axis=2)
            averaged = fine.region(x, y, 200, slide.mpp * factor).mean(axis=2)
            shift, peak = cv2.phaseCorrelate(averaged, stored)
            assert peak > 0.9
            assert np.hypot(*shift) < 0.3


def test_label_and_macro_are_never_read(shared_data: Path, monkeypatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("associated images were touched")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        slide.overview(64)
        slide.region(0, 0, 16, 1.0)


def test_scale_missing_in_a_real_slide(shared_data: Path) -> None:
    path = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    with pytest.raises(SlideError, match="does not say its µm/px"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert [level.downsample_x for level in slide.levels] == [1.0, 2.0]
