"""`eosin study` as a command: list, dry run, one-line refusals, exit 2 where a run failed, the same words as train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from .command import eosin

SMALL = {
    "encoder.width": 24,
    "encoder.depth": 1,
    "encoder.heads": 2,
    "encoder.patch": 8,
    "encoder.grid": 4,
    "tiles.size_px": 40,
    "tiles.mpp": [0.5],
    "views.global_px": 32,
    "views.local_px": 16,
    "views.local_count": 2,
    "views.blur_kernel_px": 3,
    "objective.dino_prototypes": 8,
    "objective.ibot_prototypes": 8,
    "objective.head_hidden": 8,
    "objective.dino_bottleneck": 4,
    "objective.ibot_bottleneck": 4,
    "run.batch": 4,
    "run.group": 2,
    "run.precision": "fp32",
    "run.workers": 0,
    "run.monitor_tiles": 8,
    "run.log_every": 1,
    "run.monitor_every": 3,
}


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """A study of one arm that learns and one that diverges, and the tiles that it learns from."""
    import cv2

    values = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for number in range(4):
        cv2.imwrite(str(tmp_path / "tiles" / f"{number}.png"), values.integers(60, 255, (64, 64, 3), dtype=np.uint8))
    arms = {"wild": {"optim.base_lr": 1e30, "optim.warmup_steps": 0}, "tame": {}}
    study = {"name": "two", "base": "quickstart", "set": SMALL, "arms": arms, "seeds": [3], "budget_steps": 3}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return ["study", tmp_path / "two.yaml", "--tiles", tmp_path / "tiles", "--mpp", 0.5, "--device", "cpu"]


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a refusal."""
    capfd.readouterr()
    assert eosin(*words) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("eosin:")]
    assert len(told) == 1
    return told[0]


def test_shipped_studies_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert eosin("study", "list") == 0
    told = capfd.readouterr().out
    assert "slide-share" in told
    assert "1, 10, 30 or 100 % of the slides" in told


def test_refusals(words: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = ("-o", tmp_path / "out")
    assert "there are dino-dinov2, distinct-tiles" in refused(capfd, "study", "uniformty", *out)
    assert "give the study's folder with -o" in refused(capfd, *words)
    assert "give slides with --cohort" in refused(capfd, *words[:2], *out)
    assert "arm wild: recipe quickstart: unknown key run.bacth" in refused(capfd, *words, *out, "--set", "run.bacth=1")
    assert "NAME=PATH" in refused(capfd, *words, *out, "--probe", "cells.npz")
    assert "no device 'tpu0'" in refused(capfd, *words[:-1], "tpu0", *out)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    words: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert eosin(*words, "-o", tmp_path / "out", "--dry-run", "--set", "tiles.distinct_tiles=5") == 0
    told = capfd.readouterr().out
    for fact in (
        "2 arms x 1 seeds = 2, compared with arm wild",
        "tame: 3 steps of 4 = 12 tiles, 5 of them distinct",
        "4 tiles of 0.5 µm/px",
        "optim.base_lr=1.0e+30",
        "wild/seed_3",
    ):
        assert fact in told
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_run_is_exit_2_after_the_others_are_done(
    words: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = refused(capfd, *words, "-o", tmp_path / "out")
    assert "1 of 2 runs failed, first wild, seed 3: the loss or its gradient is not finite" in line
    assert line.endswith(f"the others are in {tmp_path / 'out' / 'report.html'}")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 of 2 runs finished, 1 failed" in page
    assert "failed: the loss or its gradient" in page
    capfd.readouterr()
    assert eosin("report", tmp_path / "out", "-o", tmp_path / "again.html") == 0
    assert capfd.readouterr().out.strip() == str(tmp_path / "again.html")
    table = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in table] == ["status", "failed", "done"]
