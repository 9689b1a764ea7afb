"""What `eosin doctor` finds, against counts made the slow way, the readers themselves, and slides with known faults."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from eosin.randomness import Words
from eosin.report.doctor import Diagnosis, diagnose
from eosin.report.doctor_cohort import grouped_errors, sampled_rows
from eosin.report.doctor_json import as_values
from eosin.report.doctor_page import write_doctor_page
from eosin.report.doctor_problems import ORDER
from eosin.slides import Cohort, open_slide
from eosin.slides.anatomy import NEAR_MISS, anatomy, chroma_of_jpeg, serving
from eosin.slides.tiff import TiffSlide
from eosin.slides.tiff_index import TiffIndex
from eosin.slides.tiff_source import FileBytes
from eosin.tiles import SlideSource, TilesConfig, hsv_share
from eosin.tiles.decoding import stored_under
from eosin.tiles.source import Address
from eosin.tiles.speed import measure_scale
from eosin.training.dry_run import describe
from eosin.training.gpus import gpu_called
from eosin.training.prepare import reading_processes
from eosin.training.recipe import load_recipe
from eosin.training.starvation import SPARE, default_workers, mixed_rate, need_of, predict, scales_of

MPP = 0.5


def tissue(side: int, seed: int = 0, glass: int = 0) -> np.ndarray:
    """Pink textured tissue, uint8 [side, side, 3], with a margin of `glass` px."""
    rng = np.random.default_rng(seed)
    pixels = np.array([240, 239, 241]) + rng.normal(0, 1, (side, side, 3))
    inside = slice(glass, side - glass)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 1)), (0, 0), 8)[..., None] * 400
    pixels[inside, inside] = (np.array([200, 120, 170]) + texture)[inside, inside]
    return pixels.clip(0, 255).astype(np.uint8)


def write(path: Path, full: np.ndarray, factors=(1, 4), mpp: float | None = MPP, power: int = 20) -> Path:
    """An Aperio SVS in JPEG tiles of 128 px, with levels at `factors` and a magenta label behind them."""
    height, width = full.shape[:2]
    with tifffile.TiffWriter(path) as file:
        for factor in factors:
            level = cv2.resize(full, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
            text = f"Aperio Image Library v11.2.1 \r\n{width}x{height}|AppMag = {power}"
            text += "" if mpp is None else f"|MPP = {mpp}"
            words = {"compression": "jpeg", "compressionargs": {"level": 90}, "subsampling": (2, 2)}
            file.write(level, tile=(128, 128), photometric="rgb", description=text, metadata=None, **words)
        label = np.full((64, 64, 3), (255, 0, 255), np.uint8)
        file.write(label, photometric="rgb", description="Aperio\r\nlabel 64x64", subfiletype=1, metadata=None)
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("slide") / "pink.svs", tissue(1536, glass=256))


@pytest.fixture(scope="module")
def told(slide: Path) -> Diagnosis:
    return diagnose(str(slide), recipe="kaiko-vits16", gpu="H100", seconds=0.1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    """Two slides, a copy of one, one of glass, one all tissue; an empty file, one without a scale, two of text."""
    folder = tmp_path_factory.mktemp("cohort")
    for name, seed in (("a", 1), ("b", 2)):
        write(folder / f"{name}.svs", tissue(1024, seed, glass=128))
    (folder / "copy.svs").write_bytes((folder / "a.svs").read_bytes())
    write(folder / "glass.svs", tissue(1024, 3, glass=512))
    write(folder / "full.svs", tissue(1024, 4), mpp=0.25, power=40)
    write(folder / "noscale.svs", tissue(512), mpp=None)
    (folder / "empty.svs").write_bytes(b"")
    for name in ("text1.svs", "text2.svs"):
        (folder / name).write_text("no slide")
    (folder / "meta.csv").write_text("slide,patient,site\na.svs,P1,X\nb.svs,P1,\nfull.svs,P2,Y\n")
    return Cohort.index([folder], folder / "c.parquet", metadata=folder / "meta.csv", workers=0)


@pytest.fixture(scope="module")
def found(cohort: Cohort) -> Diagnosis:
    return diagnose(str(cohort.path), seconds=0.2)


@pytest.mark.parametrize(("sampling", "words"), [(0x111111, "4:4:4"), (0x211111, "4:2:2"), (0x221111, "4:2:0")])
def test_subsampling_by_the_frame_header(sampling: int, words: str) -> None:
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    assert chroma_of_jpeg(cv2.imencode(".jpg", tissue(64), options)[1].tobytes()) == words
    assert chroma_of_jpeg(b"\xff\xd8") == chroma_of_jpeg(b"") == ""


def test_what_the_file_says(told: Diagnosis) -> None:
    part = told.slides[0].anatomy
    assert (part.vendor, part.reader, part.power, part.doubts) == ("aperio", "tiff", 20.0, ())
    assert [(level.width, level.tile) for level in part.levels] == [(1536, (128, 128)), (384, (128, 128))]
    assert {(level.compression, level.subsampling) for level in part.levels} == {("JPEG YCbCr", "4:2:0")}
    assert "MPP" in part.mpp_source


def test_a_scale_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path / "s.svs", tissue(1024), mpp=2.0, power=40)
    with open_slide(path) as odd:
        assert "objective is 40x" in " ".join(anatomy(odd).doubts)
    with open_slide(path, mpp=0.25) as stated:
        assert any("--mpp-csv says 0.25" in doubt for doubt in anatomy(stated, 0.25).doubts)


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0, 1.9, 2.0, 3.0])
def test_serving_is_what_the_reader_does(slide: Path, mpp: float) -> None:
    """The level is the reader's, and the stored tiles of all places of a tile average to `touched`."""
    with open_slide(slide) as opened:
        how = serving(opened, mpp, 256)
        assert how.level == opened.level_for(mpp, 1.0)
        level, side = (*opened.levels, *opened.halved_levels)[how.level], opened.tile_size(how.level)[0]
        span = 256 * mpp / (opened.mpp * level.downsample_x)
        counts = [math.ceil((start + span) / side) - start // side for start in range(side)]
        assert how.touched == pytest.approx(np.mean(counts) ** 2, rel=0.03)


def test_cost_is_one_where_nothing_is_missing(slide: Path) -> None:
    with open_slide(slide) as opened:
        assert serving(opened, 0.5, 256).cost == pytest.approx(1.0)
        assert serving(opened, 2.0, 256).cost == pytest.approx(1.0)
        assert 1.2 < serving(opened, 1.0, 256).cost < 2.0  # decoded at half size
        assert serving(opened, 0.25, 256).level is None
        near = serving(opened, 2.0 / (1 + (NEAR_MISS - 1) / 2), 256)  # the level is 3 % too coarse
        assert near.near_miss == pytest.approx(2.0)


class Recorded(FileBytes):
    """A file that keeps what was read from it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.spans: list[tuple[int, int]] = []

    def read(self, spans):
        self.spans += spans
        return super().read(spans)


@pytest.mark.parametrize(("mpp", "places"), [(0.5, [(0, 0)]), (0.5, [(300, 500), (420, 700)]), (1.0, [(77, 130)])])
def test_the_stored_tiles_counted_are_those_read(slide: Path, mpp: float, places) -> None:
    source = Recorded(slide)
    with TiffSlide(slide, source=source) as opened:
        offsets = TiffIndex.unpack(opened.packed_index()).levels[0].offsets.tolist()  # both scales come from level 0
        how = serving(opened, mpp, 256)
        source.spans.clear()
        opened.regions(places, 256, mpp)
        read = {offsets.index(offset) for offset, _ in source.spans}
        addresses = [Address(0, 0, "s", x, y, mpp, 256) for x, y in places]
        assert {tile.number for tile in stored_under(opened, how.level, addresses)} == read


def kept_slowly(cohort: Cohort, config: TilesConfig, visits: int) -> int:
    """Tiles of the first visits that pass the HSV rule, read one by one as a source of training reads them."""
    source, kept = SlideSource(cohort, config, 0), 0
    for visit in range(1, visits + 1):
        place = source.draw(0, 0, visit, 0)
        several = config.tiles_per_visit > 1
        for address in source.around(place, Words(0, "slots", visit)) if several else [place]:
            kept += hsv_share(source.read([address])[0]) >= config.hsv_share
    return kept


@pytest.mark.parametrize("per_visit", [1, 4])
def test_speed_is_of_tiles_that_were_read(slide: Path, tmp_path: Path, per_visit: int) -> None:
    alone = Cohort.index(slide, tmp_path / "c.parquet", workers=0)
    config = TilesConfig.model_validate({"mpp": [0.5], "hsv_share": None})
    fast = measure_scale(alone, config, 0.5, lambda: open_slide(slide), 0.1, per_visit)
    assert fast.tiles >= per_visit
    assert fast.tiles % per_visit == 0
    assert fast.kept == fast.tiles
    assert fast.kept_per_core == fast.per_core > 0
    assert 0 < fast.decode_share <= 1
    strict = config.model_copy(update={"hsv_share": 1.0, "tiles_per_visit": per_visit})
    some = measure_scale(alone, strict, 0.5, lambda: open_slide(slide), 0.05, per_visit)
    assert some.kept == kept_slowly(alone, strict, some.tiles // per_visit)
    too_fine = measure_scale(alone, config, 0.25, lambda: open_slide(slide), 0.05, per_visit)
    assert (too_fine.tiles, too_fine.why) == (0, "too coarse for 0.25 µm/px")


def test_the_mix_of_scales_by_counting_seconds() -> None:
    shares, rates = {0.5: 0.75, 1.0: 0.25}, {0.5: 300.0, 1.0: 100.0}
    seconds = sum(1000 * share / rates[mpp] for mpp, share in shares.items())
    assert mixed_rate(shares, rates) == pytest.approx(1000 / seconds)
    assert mixed_rate(shares, {0.5: 300.0, 1.0: math.nan}) == pytest.approx(300.0)
    assert math.isnan(mixed_rate(shares, {0.5: 0.0}))


def test_the_need_is_that_of_the_dry_run() -> None:
    recipe, _ = load_recipe("midnight-12k")
    need = need_of(recipe, gpu_called("H100"), 8)
    assert f"at {need.tiles_s:,.0f} tiles/s" in describe("midnight-12k", gpu="H100", gpus=8)
    assert "not measured" in need.basis
    assert need_of(load_recipe("exaone-path-2")[0], gpu_called("H100"), 1).why
    assert need_of(load_recipe("midnight-12k", ["run.precision=fp32"])[0], gpu_called("H100"), 1).why


@pytest.mark.parametrize("cores", [1, 2, 7, 16, 200])
def test_processes_are_those_a_run_starts(cores: int, monkeypatch) -> None:
    recipe, _ = load_recipe("midnight-12k")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers(recipe, cores, 1) == reading_processes(recipe)
    assert default_workers(load_recipe("midnight-12k", ["run.workers=3"])[0], cores, 2) == 6


def test_verdicts() -> None:
    recipe, _ = load_recipe("kaiko-vits16")
    card = gpu_called("H100")
    need = need_of(recipe, card, 1).tiles_s
    fed = predict(recipe, card, 1, SPARE * need, math.nan, 4, [1.0], 2)
    assert (fed.verdict, fed.busy, fed.cores_needed, fed.advice) == ("fed", 1.0, 1, ())
    assert predict(recipe, card, 1, need * 1.01, math.nan, 4, [1.0], 2).verdict == "tight"
    starved = predict(recipe, card, 1, need / 10, need / 3, 4, [1.0, 3.0], 8)
    assert starved.verdict == "starved"
    assert starved.busy == pytest.approx(starved.workers / 10)
    assert starved.cores_needed == 12
    text = " ".join(starved.advice)
    assert "run.workers=7" in text
    assert "tiles.tiles_per_visit=4 gives 3.3 times" in text
    assert "every factor of 2" in text
    assert "13 in all" in text
    assert predict(recipe, None, 1, 100.0, math.nan, 4, [], 8).verdict is None


def test_scales_of_a_range_are_the_usual_ones_in_it() -> None:
    config = TilesConfig.model_validate({"mpp": {"low": 0.3, "high": 1.5}})
    assert scales_of(config)[0] == (0.3, 0.5, 1.0, 1.5)
    assert sum(scales_of(config)[1]) == pytest.approx(1)


def test_a_cohort_with_known_faults(found: Diagnosis, cohort: Cohort) -> None:
    facts = found.cohort
    assert facts is not None
    assert facts.status == {"ok": 5, "error": 4}
    assert facts.duplicates == (("a", "copy"),)
    assert facts.without_tissue == ("glass",)
    assert facts.all_tissue == ("full",)
    assert facts.missing == ()
    assert (facts.patients, facts.without_patient, facts.most_of_one_patient) == (2, 2, 2)
    assert (facts.sites, facts.without_site) == ({"X": 1, "Y": 1}, 3)
    assert [(offer.mpp, offer.slides) for offer in facts.offers] == [(0.25, 1), (0.5, 4), (1.0, 4), (2.0, 3)]
    assert sum(part.slides for part in facts.mpp) == 5
    assert {group.words: group.number for group in facts.errors} == {
        "are of no format that is read, or damaged": 2,
        "are empty files": 1,
        "do not say their µm/px": 1,
    }
    assert {one.name for one in found.slides} == {"a", "b", "copy", "full"}
    assert sampled_rows(cohort, 2) == sampled_rows(cohort, 4)[:2]
    text = "\n".join(problem.what for problem in found.problems)
    assert "2 slides are of no format that is read, or damaged: text1, text2." in text
    assert "1 slide is an empty file: empty." in text
    assert "1 slide does not say its µm/px: noscale." in text
    assert "1 slide seems to be in the cohort twice, first a = copy." in text
    weights = [ORDER.index(problem.weight) for problem in found.problems]
    assert weights == sorted(weights)


def test_a_slide_that_moved_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.svs", tissue(1024, glass=128))
    write(tmp_path / "b.svs", tissue(1024, 1, glass=128))
    made = Cohort.index([tmp_path], tmp_path / "c.parquet", workers=0)
    path.unlink()
    lines = [problem.what for problem in diagnose(str(made.path), seconds=0.1).problems]
    assert any(f"1 slide of 2 are not where they were indexed, first {path}" in line for line in lines)


def test_errors_that_nobody_foresaw_are_grouped_without_their_numbers() -> None:
    rows = [{"slide_id": str(n), "path": f"/x/{n}.svs", "error": f"/x/{n}.svs: odd thing {n}"} for n in range(7)]
    (group,) = grouped_errors(rows)
    assert (group.words, group.number) == ("fail: odd thing #", 7)


def test_values_are_json_and_hold_no_picture(told: Diagnosis, found: Diagnosis) -> None:
    for one in (told, found):
        values = json.loads(json.dumps(as_values(one), allow_nan=False))
        assert {"slides", "problems", "machine", "starvation"} <= set(values)
        assert "picture" not in values["slides"][0]
        assert set(values["problems"][0]) == {"weight", "what", "remedy"}
        assert "per_core" in values["slides"][0]["scales"][0]["one"]


def test_pages_stand_alone(told: Diagnosis, found: Diagnosis, tmp_path: Path) -> None:
    for one in (told, found):
        write_doctor_page(one, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        for word in ("<script", "http://", "https://", 'src="/', "nan"):
            assert word not in text.replace("http-equiv", "").replace("resonan", "")
        for problem in one.problems:
            assert problem.what.split(":")[0].replace("µ", "µ").split(" --")[0][:40].replace("'", "&#x27;") in text
    assert text.count("data:image/jpeg") == len(found.slides)


def test_the_label_is_nowhere_in_the_picture(told: Diagnosis) -> None:
    red, green, blue = (told.slides[0].picture[..., channel].astype(int) for channel in range(3))
    assert not ((red > 240) & (green < 40) & (blue > 240)).any()


def test_the_outline_is_around_the_tissue(told: Diagnosis) -> None:
    one = told.slides[0]
    assert one.tissue_share == pytest.approx((1024 / 1536) ** 2, rel=0.1)
    red, green, blue = (one.picture[..., channel].astype(int) for channel in range(3))
    rows, columns = np.nonzero((green > red + 40) & (green > blue + 20))
    scale = 1536 / one.picture.shape[0]
    for found in (rows, columns):
        assert found.min() * scale == pytest.approx(256, abs=60)
        assert found.max() * scale == pytest.approx(1280, abs=60)
