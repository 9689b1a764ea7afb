"""Features of tasks as files: what is written is judged as the images are; slides become bags."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from eosin.cli.features import features
from eosin.errors import DataError, OutputError
from eosin.evaluation import evaluate
from eosin.evaluation.feature_files import write_features
from eosin.evaluation.tasks import open_task
from eosin.slides.synthetic import write_slides


@pytest.fixture
def mhist(tmp_path: Path) -> Path:
    """A small MHIST in its official layout."""
    random = np.random.default_rng(1)
    lines = ["Image Name,Majority Vote Label,Number of Annotators who Selected SSA (Out of 7),Partition"]
    (tmp_path / "MHIST" / "images").mkdir(parents=True)
    for n in range(40):
        image = random.integers(0, 130 + 60 * (n % 2), (20, 20, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "MHIST" / "images" / f"MHIST_{n}.png"), image)
        lines.append(f"MHIST_{n}.png,{('SSA', 'HP')[n % 2]},3,{'train' if n < 28 else 'test'}")
    (tmp_path / "MHIST" / "annotations.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.mark.parametrize("form", ["eva", "npz"])
def test_files_give_the_scores_of_the_images(mhist: Path, tmp_path: Path, form: str) -> None:
    (row,) = evaluate("colour", ["mhist"], "knn", tmp_path / "r", mhist, any_count=True, device="cpu")
    runner, app = CliRunner(), Typer()
    app.command()(features)
    words = ["colour", "--tasks", "mhist", "--data", str(mhist), "--any-count", "--format", form, "--device", "cpu"]
    done = runner.invoke(app, [*words, "-o", str(tmp_path / "f"), "--results", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    path = tmp_path / "f" / ("mhist" if form == "eva" else "mhist.npz")
    assert not (tmp_path / "f" / "cache").exists()  # what the results keep was used
    (again,) = evaluate(None, [], "knn", tmp_path / "again", features=path)
    assert (again["task"], again["mean"], again["split"]) == ("mhist", row["mean"], "test")
    assert again["confusion"] == row["confusion"]
    assert list(again["per_class"]) == ["SSA", "HP"]
    if form == "eva":
        assert "MHIST_0.png" in (path / "manifest.csv").read_text()
        assert ",test" not in (path / "manifest.csv").read_text()  # eva calls it val
    with pytest.raises(OutputError, match="is there already"):
        write_features("colour", ["mhist"], tmp_path / "f", mhist, form=form, any_count=True)


def test_slides_become_bags(tmp_path: Path) -> None:
    root = tmp_path / "panda"
    (root / "train_images").mkdir(parents=True)
    paths = write_slides(tmp_path / "s", count=4, size_px=512, workers=1)
    rows = ["image_id,data_provider,isup_grade,gleason_score,noise_ratio_10"]
    for n, path in enumerate(paths):
        path.rename(root / "train_images" / f"s{n}{path.suffix}")
        rows.append(f"s{n},radboud,{n % 2},0+0,0")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    from dataclasses import replace

    from eosin.evaluation import feature_files
    from eosin.evaluation.tasks.slides import SlideFiles
    from eosin.evaluation.tasks.task import make_task

    files = sorted((root / "train_images").iterdir())
    samples = SlideFiles(files, mpp=1.0, tiles=3, size_px=64)
    ids = [path.stem for path in files]
    task = make_task("mine", root, samples, list("abab"), ids=ids, split=["train"] * 2 + ["test"] * 2, kind="slide")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_files, "open_tasks", lambda *words: [replace(task)])
        (manifest,) = write_features("colour", ["mine"], tmp_path / "f", device="cpu")
        with pytest.raises(DataError, match="write it as eva"):
            write_features("colour", ["mine"], tmp_path / "g", form="npz")
    again = open_task(f"mine={manifest.parent}")
    assert (again.kind, again.ids.tolist(), again.labels.tolist()) == ("slide", ids, [0, 1, 0, 1])
    assert again.bags is not None
    assert [len(again.bags[n]) for n in range(4)] == [3] * 4
    assert again.split is not None
    assert again.split.tolist() == ["train", "train", "test", "test"]


def test_what_cannot_be_written_is_one_line(mhist: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.ones((8, 2), dtype=np.float32), labels=np.arange(8) % 2)
    with pytest.raises(DataError, match="holds features already"):
        write_features("colour", [f"f={tmp_path / 'f.npz'}"], tmp_path / "out")
    with pytest.raises(DataError, match="eva or npz"):
        write_features("colour", ["mhist"], tmp_path / "out", mhist, form="csv", any_count=True)
    (tmp_path / "n.csv").write_text("file,value\nMHIST/images/MHIST_0.png,1\nMHIST/images/MHIST_1.png,2\n")
    with pytest.raises(DataError, match="no class each"):
        write_features("colour", [f"n={tmp_path / 'n.csv'}"], tmp_path / "out")
