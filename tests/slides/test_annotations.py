"""GeoJSON in and out: areas as drawn, exact round trips, and files that are not what they should be."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer.testing

from eosin.cli.main import app
from eosin.errors import CohortError, SlideError
from eosin.slides import Cohort, Foreground, open_slide
from eosin.slides.annotations import annotated_foreground, foreground_geojson
from eosin.slides.annotations_shapes import outlines, shade
from eosin.slides.annotations_stream import features_of


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(*rings: list[list[float]], name: str | None = None, kind: str = "annotation") -> dict:
    properties: dict = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name, "color": [1, 2, 3]}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": list(rings)}, "properties": properties}


def collection(*features: dict) -> str:
    return json.dumps({"type": "FeatureCollection", "features": list(features)})


def drawn(path: Path, text: str, slide: Path, classes: tuple[str, ...] = (), mpp: float = 8.0) -> Foreground:
    """The foreground of the GeoJSON `text` on a slide of 1,024 px at 1 µm/px, all of which the rule takes."""
    path.write_text(text)
    with open_slide(slide) as opened:
        return annotated_foreground(path, opened, mpp, classes, lambda: Foreground(np.ones((128, 128), bool), 8.0))


def box(*parts: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((128, 128), bool)
    for left, top, right, bottom in parts:
        mask[top:bottom, left:right] = True
    return mask


def test_polygons_with_holes_and_several_pieces(pink_slide, tmp_path) -> None:
    holed = feature(square(80, 160, 400), square(160, 240, 80))
    two = feature()
    two["geometry"] = {"type": "MultiPolygon", "coordinates": [[square(640, 640, 80)], [square(800, 800, 80)]]}
    found = drawn(tmp_path / "a.geojson", collection(holed, two), pink_slide)
    wanted = box((10, 20, 60, 70), (80, 80, 90, 90), (100, 100, 110, 110)) & ~box((20, 30, 30, 40))
    assert (found.mask == wanted).all()
    assert found.mpp == 8.0


@pytest.mark.parametrize("wrap", ["list", "feature", "geometry", "late members"])
def test_other_layouts(pink_slide, tmp_path, wrap) -> None:
    one = feature(square(80, 80, 80))
    text = {
        "list": json.dumps([one]),
        "feature": "\ufeff" + json.dumps(one, indent=2),
        "geometry": json.dumps(one["geometry"]),
        "late members": json.dumps({"type": "FeatureCollection", "features": [one], "name": "x", "crs": None}),
    }[wrap]
    assert (drawn(tmp_path / "a.json", text, pink_slide).mask == box((10, 10, 20, 20))).all()


def test_shading_is_even_odd_at_pixel_centres() -> None:
    """Against the definition, pixel by pixel, on ragged outlines that reach beyond the mask."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rings = [rng.uniform(-4, 44, (count, 2)) for count in (9, 4)]
        mask = np.zeros((37, 41), bool)
        shade(mask, rings, True)
        y, x = np.mgrid[0.5:37, 0.5:41]
        inside = np.zeros(mask.shape, bool)
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                spans = (y0 <= y) != (y1 <= y)
                inside ^= spans & (x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x)
        assert (mask == inside).all()


def test_outlines_of_any_mask_come_back_exactly() -> None:
    """Also pieces and holes that touch at corners; no ring passes a point twice, holes go the other way round."""
    rng = np.random.default_rng(0)
    masks = [rng.random((23, 31)) < share for share in (0.0, 0.2, 0.5, 0.8, 1.0)]
    blobs = cv2.GaussianBlur(rng.normal(0, 1, (200, 300)), (0, 0), 4) > 0
    for mask in [*masks, blobs]:
        back = np.zeros_like(mask)
        count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
        polygons = outlines(mask)
        assert len(polygons) == count - 1
        for polygon in polygons:
            for number, ring in enumerate(polygon):
                assert len(np.unique(ring, axis=0)) == len(ring)
                x, y = ring.T
                assert ((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0) == (number == 0)
            shade(back, [ring.astype(float) for ring in polygon], True)
        assert (back == mask).all()


@pytest.mark.parametrize("mpp", [(0.2513, 0.2513), (0.5, 0.4)])
def test_a_foreground_comes_back_through_geojson(tmp_path, write_aperio, mpp) -> None:
    """On a slide whose size is no multiple of a foreground pixel, and on one that is not square per pixel."""
    slide = write_aperio(tmp_path / "a.svs", [np.full((700, 900, 3), 240, np.uint8)], mpp=mpp[0])
    with open_slide(slide) as opened:
        opened.mpp_x, opened.mpp_y = mpp
        shape = opened.whole(4.0).shape[:2]
        mask = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, shape), (0, 0), 2) > 0
        text = foreground_geojson(Foreground(mask, 4.0), (900, 700), mpp)
        (tmp_path / "a.geojson").write_text(text)
        back = annotated_foreground(tmp_path / "a.geojson", opened, 4.0, (), lambda: Foreground(mask, 4.0))
    assert (back.mask == mask).all()
    points = np.concatenate([ring for part in json.loads(text)["features"] for ring in part["geometry"]["coordinates"]])
    assert (points >= 0).all()
    assert (points <= (900, 700)).all()


def test_classes(pink_slide, tmp_path) -> None:
    parts = [
        feature(square(80, 80, 160), name="Tumor"),
        feature(square(400, 400, 160), name="Stroma"),
        feature(square(80, 80, 80), name="Ignore*"),
        feature(square(800, 80, 80)),
        feature(square(800, 800, 80), name="Tumor", kind="detection"),
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}},
    ]
    tumor, stroma, ignored, plain = (10, 10, 30, 30), (50, 50, 70, 70), (10, 10, 20, 20), (100, 10, 110, 20)
    path = tmp_path / "a.geojson"
    assert (drawn(path, collection(*parts), pink_slide).mask == box(tumor, stroma, plain) & ~box(ignored)).all()
    assert (drawn(path, collection(*parts), pink_slide, ("tumor",)).mask == box(tumor) & ~box(ignored)).all()
    assert (drawn(path, collection(parts[2]), pink_slide).mask == ~box(ignored)).all()  # less than the rule's
    with pytest.raises(SlideError, match=r"no area of class Necrosis; it has areas of: .*Tumor"):
        drawn(path, collection(*parts), pink_slide, ("Necrosis",))


BAD = {
    "empty": ("", "not GeoJSON"),
    "no JSON": ("x,y\n1,2\n", "not GeoJSON"),
    "cut short": (collection(feature(square(0, 0, 500)))[:-30], "cut short"),
    "text after": (collection(feature(square(0, 0, 500))) + "{}", "more text"),
    "nested": ("[" * 100_000, "not GeoJSON"),
    "nested feature": ('{"type":"FeatureCollection","features":[' + '{"a":' * 100_000, "nested"),
    "not a number": (collection(feature([[0, 0], [float("nan"), 0], [9, 9]])), "NaN"),
    "infinite": (collection(feature([[0, 0], [1, 0], [9, 9]])).replace("9, 9", "1e999, 9"), "at least 3 points"),
    "two points": (collection(feature([[0, 0], [9, 9]])), "at least 3 points"),
    "words": (collection(feature([["a", "b"], ["c", "d"], ["e", "f"]])), r"no list of \[x, y\]"),
    "flat": (collection(feature([1, 2, 3, 4])), r"no list of \[x, y\]"),  # type: ignore[arg-type]
    "curve": (json.dumps({"type": "Circle", "coordinates": [1, 2]}), "type Circle"),
    "no geometry": (json.dumps({"type": "FeatureCollection", "features": [5]}), "no object"),
    "nothing drawn": (collection(), "no polygon"),
    "degrees": (
        json.dumps({"crs": {"properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}, "features": []}),
        "degrees",
    ),
    "shares of the side": (collection(feature(square(0.2, 0.2, 0.5))), "cover no pixel"),
    "another slide's": (collection(feature(square(3000, 3000, 500))), "the slide has 1024x1024 px"),
    "far too large": (collection(feature(square(-1e12, -1e12, 2e12))), "the slide has 1024x1024 px"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_give_one_line(pink_slide, tmp_path, case) -> None:
    text, said = BAD[case]
    with pytest.raises(SlideError, match=said) as told:
        drawn(tmp_path / "a.geojson", text, pink_slide)
    assert str(tmp_path / "a.geojson") in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 500


def test_a_file_that_is_not_text(pink_slide, tmp_path) -> None:
    path = tmp_path / "a.geojson"
    path.write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)))
    with pytest.raises(SlideError, match="UTF-8"):
        list(features_of(path))
    with pytest.raises(SlideError, match="cannot be read"):
        list(features_of(tmp_path / "none.geojson"))


def test_memory_follows_the_largest_feature(tmp_path, monkeypatch) -> None:
    """Read in chunks: with a limit of 4,000 characters a value, 20,000 features pass and a long one does not."""
    from eosin.slides import annotations_stream

    monkeypatch.setattr(annotations_stream, "LARGEST_FEATURE", 4000)
    monkeypatch.setattr(annotations_stream, "_CHUNK", 1000)
    small = feature(square(1, 2, 3), name="µm")
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": [' + ",\n".join([json.dumps(small)] * 20_000) + "]}")
    assert sum(found == small for found in features_of(path)) == 20_000
    path.write_text(collection(small, feature(square(1, 2, 3) * 1000)))
    with pytest.raises(SlideError, match="more than 4000 characters"):
        list(features_of(path))


@pytest.fixture
def slides(pink_slide, tmp_path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.svs").write_bytes(pink_slide.read_bytes())
    return folder


def test_indexing_with_annotations(slides, tmp_path, capsys) -> None:
    """Annotated slides get what was drawn, a bad file becomes its slide's error, an edited one is read again."""
    notes, out = tmp_path / "notes", tmp_path / "c.parquet"
    notes.mkdir()
    (notes / "a.svs.geojson").write_text(collection(feature(square(80, 80, 80))))
    (notes / "other.geojson").write_text("{}")
    plain = Cohort.index(slides, tmp_path / "plain.parquet", workers=0)
    cohort = Cohort.index(slides, out, workers=0, annotations=notes)
    said = capsys.readouterr().err
    assert "annotations for 1 of 2 slides" in said
    assert "names match no slide: other" in said
    assert cohort.usable["foreground_rule"].tolist() == ["geojson", "density 3"]
    assert (cohort.foreground(0) == box((10, 10, 20, 20))).all()
    assert (cohort.foreground(1) == plain.foreground(1)).all()
    assert cohort.usable["tissue_mm2"][0] == pytest.approx(0.0064)
    assert cohort.hash != plain.hash

    (notes / "a.svs.geojson").write_text(collection(feature(square(80, 80, 160))))
    assert Cohort.index(slides, out, workers=0, annotations=notes).foreground(0).sum() == 400
    (notes / "a.svs.geojson").write_text("{")
    failed = Cohort.index(slides, out, workers=0, annotations=notes)
    assert len(failed) == 1
    assert "a.svs.geojson: not GeoJSON" in failed.table["error"][0]


def test_foregrounds_written_for_qupath_come_back(slides, tmp_path, capsys) -> None:
    out, folder = tmp_path / "c.parquet", tmp_path / "drawn"
    found = Cohort.index(slides, out, workers=0, geojson=folder)
    first = json.loads((folder / "a.geojson").read_text())["features"][0]
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "Tissue", "color": [0, 150, 60]},
        "isLocked": False,
    }
    assert first["geometry"]["coordinates"][0][0] == first["geometry"]["coordinates"][0][-1]
    back = Cohort.index(slides, tmp_path / "back.parquet", workers=0, annotations=folder)
    for n in range(2):
        assert (back.foreground(n) == found.foreground(n)).all()
    (folder / "a.geojson").write_text(collection(feature(square(80, 80, 80))))
    capsys.readouterr()
    Cohort.index(slides, out, workers=0, geojson=folder)
    assert "1 files were there, differ and were kept, first a.geojson" in capsys.readouterr().err
    with pytest.raises(CohortError, match="write foregrounds to another folder"):
        Cohort.index(slides, out, workers=0, annotations=folder, geojson=folder)


def test_rules_are_pinned(slides, tmp_path) -> None:
    out = tmp_path / "c.parquet"
    cohorts = {name: Cohort.index(slides, out, workers=0, foreground=name) for name in ("density", "clam", "otsu")}
    assert [cohort.table["foreground_rule"][0] for cohort in cohorts.values()] == ["density 3", "clam 1", "otsu 1"]
    assert len({cohort.hash for cohort in cohorts.values()}) == 3


def test_the_command_line(slides, tmp_path) -> None:
    run = typer.testing.CliRunner().invoke
    out, notes = str(tmp_path / "c.parquet"), tmp_path / "notes"
    words = ["index", str(slides), "-o", out, "--workers", "0"]
    notes.mkdir()
    assert isinstance(run(app, [*words, "--foreground", "best"]).exception, CohortError)
    assert isinstance(run(app, [*words, "--annotations", str(notes)]).exception, CohortError)
    assert isinstance(run(app, [*words, "--annotation-class", "Tumor"]).exception, CohortError)
    tumor = feature(square(80, 80, 80), name="Tumor")
    (notes / "a.geojson").write_text(collection(tumor, feature(square(0, 0, 500), name="Other")))
    chosen = ["--annotations", str(notes), "--annotation-class", "Tumor", "--foreground", "clam"]
    done = run(app, [*words, *chosen, "--geojson", str(tmp_path / "out")])
    assert done.exit_code == 0, done.exception
    assert Cohort.read(out).table["foreground_rule"].tolist() == ["geojson", "clam 1"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.geojson", "b.geojson"]
    (notes / "a.json").write_text("{}")
    with pytest.raises(CohortError, match="for one slide; keep one"):
        Cohort.index(slides, out, workers=0, annotations=notes)
