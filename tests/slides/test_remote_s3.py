"""Slides in a bucket of a real S3-compatible server: the same cohort, tiles and features as of local files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import CohortError, StoreDown
from eosin.features.embed import embed_slides
from eosin.features.h5 import read_features
from eosin.slides import Cohort, open_slide, remote, tiff_cache
from eosin.slides.remote_errors import StoreUnreachable
from eosin.slides.synthetic import write_slides
from eosin.tiles import SlideSource, TilePlan, TilesConfig, TileStream

from .stores import s3_server

pytest.importorskip("obstore", reason="pip install 'eosin[s3]'")
pytest.importorskip("moto.server", reason="pip install 'eosin[test]'")

CONFIG = TilesConfig(size_px=48, mpp=[0.5, 1.0])


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_slides(tmp_path_factory.mktemp("slides"), count=2, size_px=1024, workers=1)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's, which the environment names from then on."""
    with s3_server() as url, pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        told = {"AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        told |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word"}
        for name, value in (told | {"EOSIN_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}).items():
            environment.setenv(name, value)
        remote._store.cache_clear()
        yield url
        remote._store.cache_clear()
        remote._process = None  # later tests of this process fork: their children read files


@pytest.fixture(scope="module")
def bucket(endpoint: str, slides: list[Path]) -> str:
    """Folder of a bucket with the slides, one that was cut off, and what is none; two more in another folder."""
    request = urllib.request.Request(f"{endpoint}/archive", b"", method="PUT")
    with urllib.request.urlopen(request, timeout=60):
        pass
    for path in slides:
        put(f"study/{path.name}", path.read_bytes())
        put(f"other/deep er/{path.name}", path.read_bytes())
    put("study/broken.svs", slides[0].read_bytes()[:50_000])
    put("study/notes.txt", b"no slide")
    put("study/.hidden.svs", b"no slide")
    return "s3://archive/study/"


def put(key: str, data: bytes) -> None:
    import obstore
    from obstore.store import S3Store

    obstore.put(S3Store("archive"), key, data, use_multipart=False)


@pytest.fixture(scope="module")
def local(slides: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.index(slides, tmp_path_factory.mktemp("local") / "cohort.parquet", workers=0)


@pytest.fixture(scope="module")
def far(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return Cohort.index(bucket, tmp_path_factory.mktemp("far") / "cohort.parquet", workers=0)


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Key, first byte and length of every range that is asked for."""
    asked, real = [], remote.read_range
    monkeypatch.setattr(
        remote, "read_range", lambda uri, *words: asked.append((uri.key, *words[:2])) or real(uri, *words)
    )
    return asked


def plan_of(cohort: Cohort, config: TilesConfig = CONFIG) -> TilePlan:
    return TilePlan([SlideSource(cohort, config, 0)], 0)


def test_a_cohort_of_a_bucket_is_that_of_the_files(far: Cohort, local: Cohort, slides: list[Path]) -> None:
    assert far.hash == local.hash  # sizes, scales, readers, tissue
    assert far.usable["path"].tolist() == [f"s3://archive/study/{path.name}" for path in slides]
    for number in range(len(local)):
        assert np.array_equal(far.thumbnail(number), local.thumbnail(number))
    [failed] = far.table[far.table["status"] == "error"].to_dict("records")
    assert failed["path"] == "s3://archive/study/broken.svs"
    assert failed["error"].startswith("s3://archive/study/broken.svs: ")
    assert "\n" not in failed["error"]
    assert len(far.table) == 3


def test_indexing_again_reads_what_has_changed(bucket, far: Cohort, slides, tmp_path, ranges) -> None:
    out, names = tmp_path / "cohort.parquet", [f"{bucket}{path.name}" for path in slides]
    put(f"study/{slides[0].name}", slides[0].read_bytes())
    first = Cohort.index(names, out, workers=0)
    ranges.clear()
    assert Cohort.index(bucket.replace("study/", "study/*0*"), out, workers=0).hash
    assert not ranges
    put(f"study/{slides[0].name}", slides[0].read_bytes() + b"\0")
    again = Cohort.index(names, out, workers=0)
    assert {key for key, start, length in ranges if length > 1} == {f"study/{slides[0].name}"}
    assert again.hash == first.hash
    put(f"study/{slides[0].name}", slides[0].read_bytes())


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("s3://archive/", 5),
        ("s3://archive/other/", 2),
        ("s3://archive/other/*/*.svs", 2),
        ("s3://archive/other/*.svs", 0),
        ("s3://archive/**/*.svs", 6),
        ("s3://archive/study/*.txt", 1),
        ("s3://archive/none/", 0),
        ("s3://archive/study/none.svs", 0),
        ("s3://nothing-there/", 0),
    ],
)
def test_what_a_uri_stands_for(bucket: str, path: str, count: int) -> None:
    from eosin.slides.listing import find_slides

    identities: dict = {}
    if count == 0:
        with pytest.raises(CohortError, match=r"no slides there|no such object|no such bucket") as refused:
            find_slides([path], (), set(), identities)
        assert "\n" not in str(refused.value)
        return
    found = find_slides([path], (), set(), identities)
    assert len(found) == count
    assert set(identities) == set(found)


def test_regions_by_threads(bucket: str, slides: list[Path], ranges) -> None:
    boxes = [(x, y, mpp) for x in range(0, 900, 290) for y in range(0, 900, 310) for mpp in (0.5, 0.7, 2.0)]
    with open_slide(f"{bucket}{slides[1].name}") as there, open_slide(slides[1], reader="tiff") as here:
        tiff_cache.shared.clear()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda box: there.region(box[0], box[1], 100, box[2]), boxes))
        for (x, y, mpp), pixels in zip(boxes, together, strict=True):
            assert np.array_equal(pixels, here.region(x, y, 100, mpp))
    assert max(length for _, _, length in ranges) < 2**20


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("workers", "per_visit"), [(0, 1), (0, 4), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_a_training_stream_from_a_bucket_is_that_of_the_files(far, local, workers: int, per_visit: int) -> None:
    config = CONFIG.model_copy(update={"tiles_per_visit": per_visit})
    wanted = list(TileStream(plan_of(local, config), 6, steps=3))
    tiff_cache.shared.clear()
    found = list(TileStream(plan_of(far, config), 6, steps=3, workers=workers))
    for there, here in zip(found, wanted, strict=True):
        assert np.array_equal(there.pixels, here.pixels)
        assert np.array_equal(there.address, here.address)
        assert there.names == here.names
        assert there.errors == here.errors == []


def test_a_store_that_goes_away_stops_the_stream(far: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of a slide: no other tile takes the place of one that could not be fetched."""
    plan = plan_of(far)
    plan.tile(0)

    def gone(uri: remote.Uri, *words: object) -> None:
        raise StoreUnreachable(f"{uri}: the store answers with status 503")

    tiff_cache.shared.clear()
    monkeypatch.setattr(remote, "read_range", gone)
    with pytest.raises(StoreDown, match="status 503"):
        next(iter(TileStream(plan, 4)))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_features_from_a_bucket_are_those_of_the_files(bucket, slides, tmp_path, ranges) -> None:
    for name, path in (("far", f"{bucket}{slides[0].name}"), ("near", slides[0])):
        embed_slides("colour", [path], tmp_path / name, mpp=1.0, size=64, workers=0)
    there, here = (read_features(tmp_path / name / f"{slides[0].stem}.h5") for name in ("far", "near"))
    assert np.array_equal(there.features, here.features)
    assert np.array_equal(there.coords, here.coords)
    assert len(ranges) < len(here.features)


@pytest.mark.slow
def test_the_whole_way_from_a_bucket(bucket: str, slides: list[Path], tmp_path: Path) -> None:
    """Index, train with forked workers, embed: the same losses and features as from the files."""

    def eosin(*words: object) -> None:
        told = [sys.executable, "-m", "eosin", *map(str, words)]
        done = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    losses = []
    for name, path in (("far", f"{bucket}*0*.svs"), ("near", slides[0].parent)):
        eosin("index", path, "-o", f"{name}.parquet", "--workers", 1)
        short = ["run.steps=2", "run.workers=2", "run.batch=8", "run.group=8"]
        words = [word for change in short for word in ("--set", change)]
        eosin("train", "quickstart", "--cohort", f"{name}.parquet", "-o", name, *words)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        eosin("embed", "colour", f"{name}.parquet", "-o", f"{name}-features", "--mpp", 1, "--size", 64, "--workers", 1)
    assert losses[0] == losses[1] != []
    for path in slides:
        there, here = (read_features(tmp_path / f"{name}-features" / f"{path.stem}.h5") for name in ("far", "near"))
        assert np.array_equal(there.features, here.features)
