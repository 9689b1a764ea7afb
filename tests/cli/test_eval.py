"""`eosin eval`: options reach evaluate, tables say score, interval and chance, errors stay one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eosin.cli.eval import eval_, print_results
from eosin.errors import DataError

APP = typer.Typer()
APP.command("eval")(eval_)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Two easy classes: dark and bright noise, four patients."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = rng.integers(0, 120, (80, 8, 8, 3)) + 80 * labels[:, None, None, None]
    np.savez(tmp_path / "cells.npz", images=images.astype(np.uint8), labels=labels, patient=np.arange(80) // 20)
    return tmp_path / "cells.npz"


def test_tables_and_files(cells: Path, tmp_path: Path) -> None:
    words = [
        "colour",
        "--tasks",
        f"a={cells},b={cells}",
        "--protocol",
        "knn,simpleshot-1",
        "--protocol",
        "logreg",
    ]
    result = CliRunner().invoke(APP, [*words, "-o", str(tmp_path / "out")])
    assert result.exception is None
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["task"], row["protocol"]) for row in rows] == [
        (task, protocol) for task in "ab" for protocol in ("knn", "simpleshot-1", "logreg")
    ]
    for row in rows:
        assert f"{row['mean']:.3f}" in result.stdout
    assert "chance" in result.stdout
    assert "0.500" in result.stdout
    assert "intervals over 4 patients" in " ".join(result.stdout.split())
    assert rows[2]["mean"] == 1.0


def test_strict_is_the_default(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "f.npz", features=drawn.normal(size=(40, 3)) + 2.0 * labels[:, None], labels=labels)
    words = ["--features", str(tmp_path / "f.npz"), "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(APP, words).exception is None
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (row["protocol"], row["kind"]) == ("strict", "classification")


def test_metrics_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    base = {"kind": "robustness", "split": "train", "protocol": "strict", "model": "a/model", "n": 60, "n_groups": 7}
    base |= {"resampled": "slide", "chance": None, "run_sd": None, "ci_low": 0.1, "ci_high": 0.3, "task": "centres"}
    rows = [
        {**base, "metric": "robustness_index", "mean": 0.25},
        {**base, "metric": "performance_drop_outside", "mean": -0.125},
        {**base, "kind": "regression", "metric": "pearson", "task": "spots", "mean": 0.5, "chance": 0.0},
    ]
    pair = {"task": "spots", "protocol": "strict", "model": "a/model", "against": "b", "metric": "pearson"}
    pair |= {"difference": 0.2, "ci_low": None, "ci_high": None, "p": None}
    print_results(rows, [pair, {**pair, "metric": "robustness_index"}])
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "centres: robustness index on train, 60 tiles, intervals over 7 slides",
        "centres: average performance drop on other centres",
        "spots: Pearson's r on train",
        "-0.125",
        "robustness index │ b",
    ):
        assert words in told
    assert told.count("chance") == 1


def test_help_names_what_interfaces_promise() -> None:
    text = CliRunner().invoke(APP, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    for option in (
        "--features",
        "--tasks",
        "--data",
        "--protocol",
        "--weights",
        "--random-init",
        "--pooling",
    ):
        assert option in text


def test_options_reach_the_models(cells: Path, tmp_path: Path) -> None:
    words = [
        "vit_tiny_patch16_224",
        "--random-init",
        "--input-size",
        "32",
        "--pooling",
        "mean",
        "--protocol",
        "knn",
    ]
    words += ["--tasks", f"a={cells}", "--against", "colour", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(APP, words)
    assert result.exception is None
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["model"] for row in rows] == ["vit_tiny_patch16_224 (random init)", "colour"]
    assert (rows[0]["transform"]["input_size"], rows[0]["transform"]["pooling"]) == (32, "mean")
    (difference,) = json.loads((tmp_path / "out" / "comparisons.json").read_text())
    assert f"{difference['difference']:+.3f}" in result.stdout


def test_refusals_are_errors_of_one_line(tmp_path: Path) -> None:
    words = ["colour", "--tasks", f"a={tmp_path / 'none'}", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(APP, words)
    assert isinstance(result.exception, DataError)
    assert "found nothing there" in str(result.exception)
