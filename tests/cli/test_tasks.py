"""`eosin tasks` and public tasks in `eosin eval`: what is said, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from eosin.cli.eval import eval_
from eosin.cli.tasks import tasks
from eosin.errors import DataError

EVAL = typer.Typer()
EVAL.command("eval")(eval_)
WIDE = {"COLUMNS": "200", "TERM": "dumb"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ROOT/MHIST with 24 images, dark ones and bright ones."""
    (tmp_path / "MHIST" / "images").mkdir(parents=True)
    lines = ["Image Name,Majority Vote Label,Partition"]
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 99, (8, 8, 3), dtype=np.uint8) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "MHIST" / "images" / f"{number}.png")
        lines.append(f"{number}.png,{('SSA', 'HP')[number % 2]},{'train' if number < 14 else 'test'}")
    (tmp_path / "MHIST" / "annotations.csv").write_text("\n".join(lines))
    return tmp_path


def told(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(tasks, [str(word) for word in words], env=WIDE)
    assert result.exit_code == code, result.output
    return " ".join(result.stdout.split())


def test_list_says_what_is_there(root: Path) -> None:
    assert "bach" in told("list")
    text = told("list", "--data", root)
    assert f"2,175 train + 977 test {root / 'MHIST'}" in text


def test_show_says_how_to_get_it(root: Path) -> None:
    text = told("show", "pcam", "mhist", "--data", root)
    for said in ("zenodo.org/records/2546921", "gunzip", "CC0", "eva.test_is_val", f"here {root / 'MHIST'}"):
        assert said in text
    assert f"not below {root}" in text
    result = CliRunner().invoke(tasks, ["show", "pcan"])
    assert isinstance(result.exception, DataError)
    assert "is pcam or panda meant" in str(result.exception)


def test_check_ends_with_two_where_something_is_broken(root: Path) -> None:
    assert "14 train samples, expected 2175" in told("check", "mhist", "--data", root, code=2)
    assert "14 train + 10 test ok" in told("check", "--data", root, "--any-count", "--full")
    assert "broken" in told("check", "bach", "mhist", "--data", root, "--any-count", code=2)
    (root / "MHIST" / "images" / "3.png").write_bytes(b"no image")
    assert "cannot read image" in told("check", "--data", root, "--any-count", code=2)
    (root / "MHIST" / "images" / "3.png").unlink()
    assert "1 of 24 files" in told("check", "--data", root, "--any-count", code=2)


def test_what_is_half_there_is_said(root: Path) -> None:
    (root / "crc" / "NCT-CRC-HE-100K").mkdir(parents=True)
    assert "crc classification 100,000 train + 7,180 val incomplete" in told("list", "--data", root)
    assert "lacks CRC-VAL-HE-7K" in told("check", "--data", root, "--any-count", code=2)


def test_check_of_own_tasks(shared_data: Path, tmp_path: Path) -> None:
    assert "1,600 train + 500 val ok" in told("check", f"colon5={shared_data / 'colon5_tiles'}")
    assert "found nothing there" in told("check", f"a={tmp_path / 'none'}", code=2)


def test_eval_takes_public_tasks(root: Path, tmp_path: Path) -> None:
    words = ["colour", "--data", str(root), "--tasks", "all", "--protocol", "knn", "-o", str(tmp_path / "out")]
    refused = CliRunner().invoke(EVAL, words)
    assert isinstance(refused.exception, DataError)
    assert "--any-count" in str(refused.exception)
    result = CliRunner().invoke(EVAL, [*words, "--any-count"])
    assert result.exception is None, result.output
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (row["task"], row["split"], row["mean"], row["complete"]) == ("mhist", "test", 1.0, False)
