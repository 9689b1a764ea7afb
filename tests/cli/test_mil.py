"""`eosin mil`: options reach train_mil and predict_mil, the table says score and interval, mistakes stay one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eosin.cli.mil import mil
from eosin.errors import DataError
from eosin.randomness import Words

APP = typer.Typer()
APP.add_typer(mil, name="mil")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Folder with features/ and labels.csv: 30 slides of 15 patients, an easy binary task and its split."""
    lines = ["slide,patient,mut,split"]
    (tmp_path / "features").mkdir()
    for number in range(30):
        label = (number // 2) % 2
        with h5py.File(tmp_path / "features" / f"S{number}.h5", "w") as file:
            tiles = Words(number, "cli").normal(10, 4) + 2 * label
            file["features"], file["coords"] = tiles.astype(np.float32), np.zeros((10, 2), dtype=np.int64)
        lines.append(f"S{number},P{number // 2},{label},{'test' if number >= 18 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def test_train_and_predict(cohort: Path) -> None:
    words = [str(cohort / "features"), str(cohort / "labels.csv"), "--head", "mean-linear", "--protocol", "exaone"]
    words += ["--seeds", "2", "--set", "train.epochs=30", "--set", "train.lr=1e-2", "-o", str(cohort / "out")]
    result = CliRunner().invoke(APP, ["mil", "train", *words], env={"COLUMNS": "150"})
    assert result.exception is None, result.output
    rows = json.loads((cohort / "out" / "results.json").read_text())
    assert [(row["task"], row["metric"]) for row in rows] == [("mut", "auroc"), ("mut", "balanced_accuracy")]
    for row in rows:
        assert f"{row['mean']:.3f}" in result.stdout
        assert f"{row['ci_low']:.3f} to {row['ci_high']:.3f}" in result.stdout
    assert rows[0]["mean"] > 0.95
    assert (cohort / "out" / "report.html").is_file()
    words = [str(cohort / "out"), str(cohort / "features"), "-o", str(cohort / "new")]
    result = CliRunner().invoke(APP, ["mil", "predict", *words])
    assert result.exception is None, result.output
    assert len(list(csv.DictReader((cohort / "new" / "predictions.csv").open()))) == 30


def test_wrong_words(cohort: Path) -> None:
    words = ["mil", "train", "--head", "abmil", "--protocol", "5-fold", "-o", str(cohort / "out")]
    result = CliRunner().invoke(APP, [*words, str(cohort / "labels.csv")])
    assert isinstance(result.exception, DataError)
    assert "FEATURES" in str(result.exception)
    result = CliRunner().invoke(APP, ["mil", "predict", str(cohort), str(cohort / "features"), "-o", str(cohort / "n")])
    assert isinstance(result.exception, DataError)
    assert "holds no trained heads" in str(result.exception)


def test_help_names_what_interfaces_promise() -> None:
    text = CliRunner().invoke(APP, ["mil", "train", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for option in ("--head", "--protocol", "--task", "--slide-features", "--group", "--seeds", "--set", "--against"):
        assert option in text
