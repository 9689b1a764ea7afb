"""Values of tiles, the raster they are painted on, and the files of a heatmap, against slow plain references."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openslide
import pytest
import tifffile

from eosin.errors import DataError
from eosin.report.heatmap import HeatmapOptions
from eosin.report.heatmap_features import check_model, feature_file, open_scaled, tiles_of
from eosin.report.heatmap_files import write_csv, write_geojson, write_ome
from eosin.report.heatmap_paint import Tiles, colours, most_and_least, overlay, paint, read_tiles
from eosin.report.heatmap_values import concentration, percentiles, values_of
from eosin.slides import Cohort, open_slide
from eosin.slides.synthetic import write_slides


class Planted:
    """Heads of two classes that read the first feature: attention and scores are known."""

    info: ClassVar[dict[str, Any]] = {"head": "planted", "model": "m", "model_hash": "right"}

    def attention(self, features: Any) -> dict[str, np.ndarray]:
        up = np.exp(np.asarray(features)[:, 0])
        return {"t: no": (1 / up) / (1 / up).sum(), "t: yes": up / up.sum()}

    def scores(self, features: Any) -> dict[str, dict[str, float]]:
        return {"t": {"no": 0.2, "yes": 0.8}}

    def tile_scores(self, features: Any) -> dict[str, np.ndarray]:
        share = 1 / (1 + np.exp(-np.asarray(features)[:, 0]))
        return {"t: no": 1 - share, "t: yes": share}


class Blind(Planted):
    """Heads without attention."""

    def attention(self, features: Any) -> dict[str, np.ndarray]:
        return {}


def _slow(tiles: Tiles, values: np.ndarray, pitch: tuple[float, float], shape: tuple[int, int]) -> np.ndarray:
    total, count = np.zeros(shape), np.zeros(shape)
    for (x, y), value in zip(tiles.coords, values, strict=True):
        left, top = round(x / pitch[0]), round(y / pitch[1])
        right = max(left + 1, round((x + np.ceil(tiles.side[0])) / pitch[0]))
        bottom = max(top + 1, round((y + np.ceil(tiles.side[1])) / pitch[1]))
        for row in range(max(top, 0), min(bottom, shape[0])):
            for column in range(max(left, 0), min(right, shape[1])):
                total[row, column] += value
                count[row, column] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@pytest.mark.parametrize("stride", [64, 32, 27])
def test_paint_equals_a_loop_and_bands_equal_the_whole(stride: int) -> None:
    rng = np.random.default_rng(stride)
    coords = np.array([(x, y) for y in range(0, 300, stride) for x in range(0, 400, stride)])
    tiles = Tiles(coords[rng.random(len(coords)) < 0.7], (64.0, 60.5), 64, 0.5)
    values = rng.random(len(tiles)).astype(np.float32)
    pitch, shape = (7.3, 6.1), (58, 62)
    whole = paint(tiles, values, pitch, shape)
    np.testing.assert_allclose(whole, _slow(tiles, values, pitch, shape), atol=1e-6)
    bands = [paint(tiles, values, pitch, (min(13, 58 - top), 62), top) for top in range(0, 58, 13)]
    np.testing.assert_array_equal(np.concatenate(bands), whole)
    assert tiles.overlap == (stride < 64)


def test_tiles_with_a_fractional_side_leave_no_slit() -> None:
    step = 447.82
    coords = np.rint(np.arange(50)[:, None] * [step, 0]).astype(np.int64)
    drawn = paint(Tiles(coords, (step, step), 224, 0.5), np.ones(50, np.float32), (8.0, 8.0), (50, 2790))
    assert np.isfinite(drawn).all()


def test_a_hundred_thousand_tiles_take_seconds(tmp_path: Path) -> None:
    x, y = np.meshgrid(np.arange(400) * 256, np.arange(250) * 256)
    tiles = Tiles(np.stack([x.ravel(), y.ravel()], 1), (256.0, 256.0), 256, 0.5)
    features = np.random.default_rng(0).normal(size=(100_000, 1))
    start = time.process_time()
    values = values_of(Planted(), features)
    paint(tiles, values.shade, (64.0, 64.0), (1000, 1600))
    assert write_geojson(tmp_path / "a.geojson", tiles, values, "s.svs") == 100_000
    assert len(most_and_least(tiles, values.raw, 16)[0]) == 16
    assert time.process_time() - start < 20


def test_values_and_their_refusals() -> None:
    features = np.array([[0.0], [1.0], [3.0], [1.0]])
    shown = values_of(Planted(), features)
    assert (shown.name, shown.scale) == ("t: yes", "percentile")  # the class with the higher slide score
    assert shown.raw.mean() == pytest.approx(1)
    assert shown.shade.tolist() == [0, 0.5, 1, 0.5]
    score = values_of(Planted(), features, "score", branch="no")
    assert (score.name, score.scale, score.low, score.high) == ("t: no", "raw", 0.0, 1.0)
    np.testing.assert_allclose(score.shade, score.raw)
    for words, line in (
        ({"branch": "maybe"}, "'t: no', 't: yes'"),
        ({"task": "u"}, "they have t"),
        ({"what": "saliency"}, "attention or score"),
        ({"scale": "log"}, "percentile or raw"),
    ):
        with pytest.raises(DataError, match=line):
            values_of(Planted(), features, **words)
    with pytest.raises(DataError, match="use --what score"):
        values_of(Blind(), features)
    assert values_of(Blind(), features, "score").name == "t: yes"
    with pytest.raises(DataError, match="not finite"):
        values_of(Planted(), np.array([[np.nan], [1.0]]), "score")


def test_percentiles_and_concentration() -> None:
    assert percentiles(np.full(5, 0.2, np.float32)).tolist() == [0.5] * 5
    assert percentiles(np.float32([7])).tolist() == [0.5]
    even = concentration(np.full(200, 0.005, np.float32))
    assert (even["effective"], even["largest"], even["top_share"]) == pytest.approx((200, 1, 0.01), rel=1e-5)
    single = np.zeros(200, np.float32)
    single[3] = 1
    told = concentration(single)
    assert (told["effective"], told["largest"], told["top_share"]) == pytest.approx((1, 200, 1))


def test_most_and_least_do_not_overlap() -> None:
    coords = np.array([(x, y) for y in range(0, 200, 20) for x in range(0, 200, 20)])
    tiles = Tiles(coords, (40.0, 40.0), 40, 1.0)
    raw = -np.hypot(*(coords - 100).T).astype(np.float32)
    most, least = most_and_least(tiles, raw, 5)
    chosen = coords[most + least]
    assert len(chosen) == 10
    for n, one in enumerate(chosen):
        gap = np.abs(chosen[n + 1 :] - one)
        assert ((gap >= 40).any(axis=1)).all()
    assert raw[most].min() > raw[least].max()


def test_overlay_leaves_glass_without_tiles_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    shade = np.full((4, 6), np.nan, np.float32)
    shade[:2] = 1.0
    drawn = overlay(pixels, shade)
    np.testing.assert_array_equal(drawn[2:], pixels[2:])
    white = overlay(np.full((4, 6, 3), 255, np.uint8), shade, opacity=1.0)
    np.testing.assert_array_equal(white[:2], colours(shade[:2]))


@pytest.fixture
def region(shared_data: Path) -> Path:
    """A real slide of 2,220 x 2,967 px at 0.499 µm/px."""
    return shared_data / "slides" / "CMU-1-Small-Region.svs"


def _tiles(path: Path) -> tuple[Tiles, np.ndarray]:
    with open_slide(path) as slide:
        side = 128 * 1.0 / slide.mpp_x
        coords = np.rint([(x * side, y * side) for y in range(10) for x in range(7)]).astype(np.int64)
        return tiles_of(coords, {"patch_size": 128, "mpp": 1.0}, slide, "f.h5"), np.arange(70.0)[:, None] / 20


def test_ome_tiff_opens_everywhere_at_its_scale(region: Path, tmp_path: Path) -> None:
    tiles, features = _tiles(region)
    values = values_of(Planted(), features)
    path = tmp_path / "heatmap.ome.tif"
    with open_slide(region) as slide:
        write_ome(path, slide, tiles, values, 1.0)
        write_ome(tmp_path / "score.ome.tif", slide, tiles, values, 2.0, "score")
        tissue = slide.whole(1.0)
        shade = paint(tiles, values.shade, (1 / slide.mpp_x, 1 / slide.mpp_y), tissue.shape[:2])
        raw = paint(tiles, values.raw, (2 / slide.mpp_x, 2 / slide.mpp_y), (741, 554))
    drawn = overlay(tissue, shade)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert 'PhysicalSizeX="1.0"' in file.ome_metadata
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(1481, 1108, 3), (741, 554, 3), (371, 277, 3)]
        assert file.pages[0].is_tiled
        difference = np.abs(levels[0].asarray().astype(int) - drawn)
        assert difference.mean() < 6  # JPEG
    with open_slide(path) as back:
        assert (back.width, back.height) == (1108, 1481)
        assert (back.mpp_x, back.mpp_y) == pytest.approx((1.0, 1.0))
    with openslide.OpenSlide(path) as other:
        pixels = np.asarray(other.read_region((300, 500), 0, (64, 64)))[..., :3]
        assert np.abs(pixels.astype(int) - drawn[500:564, 300:364]).mean() < 8
    found = tifffile.imread(tmp_path / "score.ome.tif")
    np.testing.assert_array_equal(found, raw)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["heatmap.ome.tif", "score.ome.tif"]


def test_tiles_are_read_as_the_encoder_saw_them(region: Path) -> None:
    tiles, _ = _tiles(region)
    with open_slide(region) as slide:
        (pixels,) = read_tiles(slide, tiles, [24])
        x, y = map(float, tiles.coords[24])
        np.testing.assert_array_equal(pixels, slide.region(x, y, 128, 1.0))


def test_geojson_is_what_qupath_reads(tmp_path: Path) -> None:
    coords = np.array([(0, 0), (256, 0), (0, 256), (256, 256)])
    tiles = Tiles(coords, (256.0, 256.5), 256, 0.5)
    values = values_of(Planted(), np.array([[0.0], [1.0], [2.0], [3.0]]))
    path = tmp_path / "heatmap.geojson"
    assert write_geojson(path, tiles, values, "s.svs") == 4
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["type"] == "FeatureCollection"
    assert set(told) == {"type", "features"}
    for feature, (x, y) in zip(told["features"], coords, strict=True):
        assert feature["type"] == "Feature"
        (ring,) = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Polygon"
        assert len(ring) == 5
        assert ring[0] == ring[-1] == [x, y]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2
        assert area == pytest.approx(256 * 256.5)  # positive: counter-clockwise, as RFC 7946 asks
        properties = feature["properties"]
        assert properties["objectType"] == "detection"
        assert len(properties["classification"]["color"]) == 3
        assert all(isinstance(value, float) for value in properties["measurements"].values())
    measured = [feature["properties"]["measurements"]["attention, t: yes, percentile"] for feature in told["features"]]
    assert measured == pytest.approx([0, 100 / 3, 200 / 3, 100], abs=1e-3)
    again = [feature["id"] for feature in told["features"]]
    assert len(set(again)) == 4
    assert write_geojson(path, tiles, values, "s.svs", "annotation", share=0.5) == 2
    kept = json.loads(path.read_text(encoding="utf-8"))["features"]
    assert [feature["id"] for feature in kept] == again[2:]
    assert kept[0]["properties"]["objectType"] == "annotation"
    with pytest.raises(DataError, match="detection or annotation"):
        write_geojson(path, tiles, values, "s.svs", "cell")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="share"):
        write_geojson(path, tiles, values, "s.svs", share=0.0)
    write_csv(tmp_path / "heatmap.csv", tiles, values)
    assert (tmp_path / "heatmap.csv").read_text(encoding="utf-8").startswith("x,y,width,height,")


def test_features_of_another_slide_or_model_are_refused(region: Path, tmp_path: Path) -> None:
    with open_slide(region) as slide:
        with pytest.raises(DataError, match="1 of 2 tiles lie outside CMU-1"):
            tiles_of(np.array([(0, 0), (2220, 0)]), {"patch_size_level0": 256}, slide, "f.h5")
        with pytest.raises(DataError, match="of a slide of 9x9 px"):
            tiles_of(np.array([(0, 0)]), {"level0_width": 9, "level0_height": 9}, slide, "f.h5")
        with pytest.raises(DataError, match="no coordinates"):
            tiles_of(None, {}, slide, "f.pt")
        clam = tiles_of(np.array([(0, 0), (300, 0), (0, 300)]), {}, slide, "f.h5")
        assert clam.side == pytest.approx((300, 300))
    with pytest.raises(DataError, match="the heads were trained on m \\(right\\)"):
        check_model(Planted(), {"model": "n", "model_hash": "wrong"}, "f.h5")
    check_model(Planted(), {}, "f.h5")


def test_slides_of_one_name_get_their_own_features(tmp_path: Path) -> None:
    paths = write_slides(tmp_path / "a", count=1, size_px=1024, workers=1)
    (tmp_path / "b").mkdir()
    paths.append(shutil.copy(paths[0], tmp_path / "b"))
    cohort = Cohort.index(paths, tmp_path / "cohort.parquet", workers=0)
    features = tmp_path / "features"
    features.mkdir()
    for name in ("synthetic-01", "synthetic-01-2"):
        (features / f"{name}.h5").touch()
    (features / "embedding.json").write_text(json.dumps({"cohort": str(cohort.path)}))
    assert [feature_file(features, path).stem for path in paths] == ["synthetic-01", "synthetic-01-2"]
    with pytest.raises(DataError, match="several slides named synthetic-01; give --features"):
        feature_file(features, tmp_path / "moved" / "synthetic-01.svs")


def test_a_slide_is_read_by_the_reader_that_its_features_came_through(tmp_path: Path) -> None:
    (path,) = write_slides(tmp_path, count=1, size_px=1024, workers=1)
    cohort = Cohort.index([path], tmp_path / "cohort.parquet", workers=0, reader="openslide")
    (tmp_path / "embedding.json").write_text(json.dumps({"cohort": str(cohort.path)}))
    for features, reader in ((tmp_path / "synthetic-01.h5", "openslide"), (tmp_path / "other" / "a.h5", "tiff")):
        with open_scaled(path, None, {}, features) as slide:
            assert slide.reader == reader


@pytest.mark.parametrize("words", [{"opacity": 2.0}, {"share": 0.0}, {"objects": "cell"}, {"ome": "foo"}])
def test_bad_options_are_told_before_anything_is_written(words: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        HeatmapOptions(**words)
