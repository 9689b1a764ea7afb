"""Vectors of slides by an exported pyramid: shared out by parts and by torchrun, the same table as from one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from eosin.errors import DataError, EosinError
from eosin.features.embed import embed_slides
from eosin.features.export import export_model
from eosin.features.pyramid_file import write_pyramid
from eosin.models import EncoderConfig
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_config import PyramidConfig, StageConfig
from eosin.slides import Cohort
from eosin.slides.synthetic import write_slides


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("stage")
    paths = write_slides(folder / "slides", count=3, size_px=512, workers=1)
    return Cohort.index(paths, folder / "cohort.parquet", workers=0, reader="openslide")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pyramid of random weights."""
    tile = EncoderConfig(width=24, depth=1, heads=2, patch=8, grid=2)
    region, slide = (StageConfig(width=16, depth=1, heads=2, positions=kind) for kind in ("table", "rotary"))
    config = PyramidConfig(tile=tile, tile_px=16, region=region, slide=slide, side=4)
    pyramid = Pyramid(config, [], generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("model") / "pyramid"
    export_model(pyramid.tile.vit, folder, input_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    block = {"config": config, "tasks": [], "mpp": 1.0, "size_px": 16, "min_foreground": 0.25}
    write_pyramid(folder, pyramid, block)
    return folder


def test_parts_make_the_table_of_the_whole(cohort: Cohort, model: Path, tmp_path: Path) -> None:
    words = {"stage": "slide", "device": "cpu"}
    embed_slides(model, cohort.path, tmp_path / "whole", **words)
    runs = []
    for part in ("2/2", "2/2", "1/2"):
        assert not (tmp_path / "parts" / "slides.parquet").exists()
        runs.append(embed_slides(model, cohort.path, tmp_path / "parts", part=part, **words))
    assert [(run.slides, run.finished, run.failures) for run in runs] == [(1, 0, {}), (0, 1, {}), (2, 0, {})]
    one, other = (pq.read_table(tmp_path / folder / "slides.parquet") for folder in ("whole", "parts"))
    assert one["slide"].to_pylist() == cohort.usable["slide_id"].tolist()
    assert one.equals(other)
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "failures.csv",
        "slides.json",
        "slides.parquet",
    ]


def test_slides_are_read_as_they_were_indexed(
    cohort: Cohort, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eosin.features import embed_pyramid

    opened, real = [], embed_pyramid.open_slide
    monkeypatch.setattr(embed_pyramid, "open_slide", lambda *words: opened.append(real(*words)) or opened[-1])
    embed_slides(model, cohort.where("slide_id == 'synthetic-01'"), tmp_path, stage="region", device="cpu")
    assert [slide.reader for slide in opened] == ["openslide"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"min_foreground": 0.5}, "as the exported pyramid has them"),
        ({"stride": 8}, "as the exported pyramid has them"),
        ({"ray": "auto"}, "does not run on Ray"),
        ({"part": "3/2"}, "I/N"),
        ({"part": "1/2", "fresh": True}, "--part and --fresh exclude each other"),
        ({"precision": "fp16"}, "unknown precision"),
    ],
)
def test_words_that_clash_are_one_line(cohort: Cohort, tmp_path: Path, words: dict, said: str) -> None:
    with pytest.raises(EosinError, match=said):
        embed_slides("colour", cohort, tmp_path / "out", stage="slide", **words)
    with pytest.raises(DataError, match="unknown stage 'slides': tile, region, slide"):
        embed_slides("colour", cohort, tmp_path / "out", stage="slides")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_processes_of_torchrun_make_the_table_of_one(cohort: Cohort, model: Path, tmp_path: Path) -> None:
    embed_slides(model, cohort, tmp_path / "one", stage="slide", device="cpu")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "eosin"]
    words = ["embed", model, cohort.path, "-o", tmp_path / "two", "--stage", "slide", "--device", "cpu"]
    subprocess.run([*map(str, launch + words)], check=True)
    one, two = (pq.read_table(tmp_path / folder / "slides.parquet") for folder in ("one", "two"))
    assert one.equals(two)
