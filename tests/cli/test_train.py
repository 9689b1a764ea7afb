"""`eosin train`, `recipes`, `export` as commands: bad input is one line and exit 2, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from eosin import __version__
from eosin.training import shipped_recipes

from .command import eosin


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """One all-white slide of 1 µm/px: indexed, but without tissue."""
    cv2.imwrite(str(tmp_path / "white.png"), np.full((600, 600, 3), 255, np.uint8))
    (tmp_path / "mpp.csv").write_text("slide,mpp\nwhite.png,1.0\n")
    out = tmp_path / "cohort.parquet"
    assert eosin("index", tmp_path / "white.png", "-o", out, "--mpp-csv", tmp_path / "mpp.csv", "--workers", 0) == 0
    return out


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a refusal."""
    capfd.readouterr()
    assert eosin(*words) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("eosin:")]
    assert len(told) == 1
    return told[0]


def test_refusals(cohort: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train = ("train", "quickstart", "-o", run)
    assert "none of 1 usable slides has foreground" in refused(capfd, *train, "--cohort", cohort)
    assert "give slides with --cohort" in refused(capfd, *train)
    assert "no such cohort file" in refused(capfd, *train, "--cohort", tmp_path / "none.parquet")
    assert "--tiles needs --mpp" in refused(capfd, *train, "--tiles", tmp_path)
    assert "unknown key run.bacth" in refused(capfd, *train, "--cohort", cohort, "--set", "run.bacth=8")
    assert "no recipe called quikstart" in refused(capfd, "train", "quikstart", "-o", run, "--cohort", cohort)
    assert "no usable slide" in refused(capfd, *train, "--cohort", cohort, "--where", "mpp_x > 5")
    assert "where 'nothing > 5'" in refused(capfd, *train, "--cohort", cohort, "--where", "nothing > 5")
    (tmp_path / "text.parquet").write_text("no cohort")
    assert "text.parquet" in refused(capfd, *train, "--cohort", tmp_path / "text.parquet")
    assert not run.exists()


def test_refusals_of_a_folder_of_tiles(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiles").mkdir()
    cv2.imwrite(str(tmp_path / "tiles" / "a.png"), np.full((300, 300, 3), 200, np.uint8))
    train = ("train", "quickstart", "--tiles", tmp_path / "tiles", "--mpp", 0.5)
    (tmp_path / "file").write_text("")
    assert "cannot make folder" in refused(capfd, *train, "-o", tmp_path / "file" / "run")
    assert "--probe" in refused(capfd, *train, "-o", tmp_path / "run", "--probe", "no-path")
    assert "found nothing there" in refused(capfd, *train, "-o", tmp_path / "run", "--probe", f"a={tmp_path}/none")
    assert not (tmp_path / "run" / "identity.json").exists()
    start = ("--set", f"start={tmp_path}/tiles/a.png")
    assert "a.png" in refused(capfd, *train, "-o", tmp_path / "run", *start)


def test_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((600, 600, 3), 200, np.uint8))
    words = ("--tiles", tmp_path, "--mpp", 0.5, "-o", tmp_path / "run", "--dry-run")
    assert eosin("train", "quickstart", *words) == 0
    told = capfd.readouterr().out
    for fact in ("encoder 5.5 M", "300 of 32 tiles", "1 images of 0.5 µm/px", "µm/px         0.5, 1, 2", "first tile"):
        assert fact in told
    assert "not checked" not in told
    assert not (tmp_path / "run").exists()


def test_dry_run_needs_no_slides(capfd: pytest.CaptureFixture[str]) -> None:
    assert eosin("train", "midnight-12k", "--dry-run", "--gpu", "H100", "--gpus", 32) == 0
    told = capfd.readouterr().out
    for fact in ("FLOPs a tile  7,554 GF", "on 32 x H100", "assumed, not measured", "tiles not checked"):
        assert fact in told
    assert "--gpu A99: not known" in refused(capfd, "train", "quickstart", "--dry-run", "--gpu", "A99")
    assert "processes" in refused(capfd, "train", "quickstart", "--dry-run", "--gpus", 3)
    assert "are for --dry-run" in refused(capfd, "train", "quickstart", "-o", "nowhere", "--gpus", 2)
    assert "give slides with --cohort" in refused(capfd, "train", "quickstart", "--dry-run", "--mpp", 0.5)


def test_recipes_are_listed_and_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert eosin("recipes", "list") == 0
    head, *rows = capfd.readouterr().out.splitlines()
    assert head.split()[:2] == ["name", "encoder"]
    assert len(rows) == len(shipped_recipes())
    line = next(row for row in rows if row.startswith("midnight-8gpu "))
    assert "  ViT-g/14 reg4  384 x 137,500" in line
    at = head.index("start")
    assert all(row[at - 1] == " " != row[at] for row in rows), "columns stand under each other"
    assert eosin("recipes", "show", "midnight-12k", "--set", "run.batch=96") == 0
    text = capfd.readouterr().out
    assert "batch: !U 96" in text
    assert "hsv_share: !S 0.6" in text
    (tmp_path / "own.yaml").write_text(text)
    assert eosin("recipes", "show", tmp_path / "own.yaml") == 0
    assert capfd.readouterr().out == text
    assert eosin("recipes", "show", "midnight-12k", "--plain") == 0
    plain = capfd.readouterr().out
    assert "!" not in plain
    assert yaml.safe_load(plain)["tiles"]["mpp"] == [0.25, 0.5, 1.0, 2.0]


def test_version_and_export(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert eosin("--version") == 0
    assert capfd.readouterr().out.strip() == __version__
    assert "is not a run folder" in refused(capfd, "export", tmp_path, "-o", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_wrong_calls_are_one_line_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "No such command 'foo'" in refused(capfd, "foo")
    assert "Missing" in refused(capfd, "train")
    assert "--nope" in refused(capfd, "index", tmp_path, "--nope")
    assert "'--mpp'" in refused(capfd, "train", "quickstart", "--mpp", "many")
