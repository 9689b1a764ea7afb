"""What an export says of the run behind it: slides, patients, tiles, for size charts and leak checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eosin.evaluation.leaderboard_sizes import size_of
from eosin.features import load_model
from eosin.slides import Cohort
from eosin.slides.synthetic import write_slides
from eosin.training import export_run, train

from .conftest import TINY


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small synthetic slides, two of one patient."""
    folder = tmp_path_factory.mktemp("slides")
    paths = write_slides(folder, count=3, size_px=512, workers=1)
    lines = ["slide,patient", *(f"{path.name},P{number // 2}" for number, path in enumerate(paths))]
    (folder / "patients.csv").write_text("\n".join(lines))
    file = folder / "cohort.parquet"
    Cohort.index([str(path) for path in paths], file, metadata=folder / "patients.csv", workers=0)
    return file


def said(model: Path) -> dict[str, object]:
    return dict(json.loads((model / "config.json").read_text())["eosin"])


def test_slides_patients_and_tiles_are_counted(cohort: Path, tmp_path: Path) -> None:
    run = train("quickstart", tmp_path / "run", cohort=[str(cohort)], set=[*TINY, "run.steps=2"], device="cpu")
    model = export_run(run.root, tmp_path / "model")
    told = said(model)
    assert (told["slides"], told["patients"], told["tiles"]) == (3, 2, 16)
    assert told["distinct_tiles"] is None
    table = Cohort.read(cohort).table
    training = load_model(model).info["training"]
    assert training["slides"] == sorted(table["slide_id"])
    assert training["patients"] == ["P0", "P1"]
    size = size_of(str(model))
    assert (size.slides, size.tiles, size.slides_from) == (3, 16, "its model card")
    assert size.parameters is not None
    assert size_of(f"{model} (random init)").slides is None


def test_what_the_start_had_learned_from_is_told(cohort: Path, tiles_folder: Path, tmp_path: Path) -> None:
    changes = [*TINY, "run.steps=1"]
    first = train("quickstart", tmp_path / "first", cohort=[str(cohort)], set=changes, device="cpu")
    model = export_run(first.root, tmp_path / "model")
    told = said(model)["training"]
    for start in (model, first.root):
        again = [*changes, f"start={start}"]
        run = train(
            "quickstart", tmp_path / start.name / "on", tiles=[str(tiles_folder)], mpp=0.5, set=again, device="cpu"
        )
        assert said(export_run(run.root, tmp_path / start.name / "export"))["training"] == told


def test_a_share_of_the_patients_is_a_share_of_the_slides(cohort: Path, tmp_path: Path) -> None:
    changes = [*TINY, "run.steps=1", "tiles.slides=0.5", "tiles.distinct_tiles=5"]
    run = train("quickstart", tmp_path / "run", cohort=[str(cohort)], set=changes, device="cpu")
    told = said(export_run(run.root, tmp_path / "model"))
    assert told["slides"] in (1, 2)
    assert told["distinct_tiles"] == 5


def test_of_tiles_cut_by_others_no_slides_are_known(tiles_folder: Path, tmp_path: Path) -> None:
    changes = [*TINY, "run.steps=1"]
    run = train("quickstart", tmp_path / "run", tiles=[str(tiles_folder)], mpp=0.5, set=changes, device="cpu")
    model = export_run(run.root, tmp_path / "model")
    assert "slides" not in said(model)
    assert (size_of(str(model)).slides, size_of(str(model)).tiles) == (None, 8)
