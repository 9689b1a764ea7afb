"""Runs: exact resume after kill -9, refusal of another recipe or other tiles, alarms, full folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eosin.errors import OutputError, ResumeError, TrainingStopped
from eosin.runs import RunFolder
from eosin.training import export_run, load_recipe, open_run, train

from .conftest import TINY


def command(tiles: Path, out: Path, *more: str) -> list[str]:
    changes = [word for change in TINY for word in ("--set", change)]
    words = [
        sys.executable,
        "-m",
        "eosin",
        "train",
        "quickstart",
        "--tiles",
        str(tiles),
        "--mpp",
        "0.5",
        "-o",
        str(out),
    ]
    return [*words, *changes, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run).checkpoint(step) / "networks.safetensors")


def test_kill_9_and_rerun_gives_bit_identical_weights(tiles_folder: Path, tmp_path: Path) -> None:
    more = ("--set", "run.steps=12", "--set", "run.keep_last=20")
    subprocess.run(command(tiles_folder, tmp_path / "whole", *more), env=environment(), check=True, capture_output=True)
    killed = subprocess.Popen(
        command(tiles_folder, tmp_path / "killed", *more),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = RunFolder(tmp_path / "killed")
    deadline = time.time() + 120
    while len(run.steps()) < 2 and killed.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    reached = run.steps()
    assert reached, "killed before the first checkpoint"
    assert reached[-1] < 12, "the run ended before it was killed"
    subprocess.run(
        command(tiles_folder, tmp_path / "killed", *more), env=environment(), check=True, capture_output=True
    )
    whole, resumed = weights(tmp_path / "whole", 12), weights(tmp_path / "killed", 12)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def curve(folder: Path) -> list[tuple[int, float]]:
        return [(row["step"], row["loss"]) for row in RunFolder(folder).read_metrics() if "loss" in row]

    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")


def run_it(tiles: Path, out: Path, *changes: str, **options: object) -> RunFolder:
    return train("quickstart", out, tiles=[str(tiles)], mpp=0.5, set=[*TINY, *changes], device="cpu", **options)


def test_a_run_folder_holds_what_interfaces_promise(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    assert run.steps() == [4, 6]
    rows = run.read_metrics()
    named = {
        "loss",
        "loss/dino_local",
        "loss/dino_global",
        "loss/ibot",
        "loss/uniformity",
        "grad_norm",
        "img_s",
        "lr",
    }
    assert named <= set(next(row for row in rows if row["step"] == 6))
    assert [row["step"] for row in rows if "rankme" in row] == [0, 3, 6]
    assert {"odcorr", "uniformity"} <= set(rows[0])
    assert list(run.tensorboard.glob("events*"))
    folder, recipe, identity = open_run(run.root)
    assert (recipe.hash, folder.root) == (load_recipe("quickstart", TINY)[0].hash, run.root)
    assert identity["recipe_hash"] == recipe.hash
    exported = export_run(run.root, tmp_path / "model")
    assert {"model.safetensors", "config.json", "README.md"} <= {path.name for path in exported.iterdir()}


def test_a_complete_run_is_left_alone_and_a_changed_one_refused(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    before = (run.checkpoint(6) / "networks.safetensors").stat().st_mtime_ns
    run_it(tiles_folder, tmp_path / "run")
    assert (run.checkpoint(6) / "networks.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ResumeError, match="belongs to another recipe"):
        run_it(tiles_folder, tmp_path / "run", "optim.base_lr=0.1")
    with pytest.raises(ResumeError, match=r"belongs to another recipe|other tiles"):
        run_it(tiles_folder, tmp_path / "run", "tiles.min_foreground=0.3")
    run_it(tiles_folder, tmp_path / "run", "optim.base_lr=0.1", fresh=True)
    assert open_run(tmp_path / "run")[1].optim.base_lr == 0.1


def test_a_non_finite_loss_stops_and_names_its_tiles(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="not finite at step"):
        run_it(tiles_folder, tmp_path / "run", "optim.base_lr=1e30", "optim.warmup_steps=0", "run.steps=30")
    told = json.loads((tmp_path / "run" / "non_finite_step.json").read_text())
    assert len(told["tiles"]) == 8
    assert told["tiles"][0]["i"] == told["step"] * 8
    assert told["tiles"][0]["name"].endswith(".png")
    for step in RunFolder(tmp_path / "run").steps():
        assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run", step).values())


def test_a_torn_checkpoint_is_one_line(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    (run.checkpoint(6) / "networks.safetensors").write_bytes(b"torn")
    with pytest.raises(ResumeError, match="is damaged"):
        run_it(tiles_folder, tmp_path / "run", "run.log_every=2")
    assert run.steps() == [4, 6]


def test_folders_that_are_no_place_for_a_run(tiles_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run_it(tiles_folder, tmp_path / "file")
    with pytest.raises(ResumeError, match="is not a run folder"):
        export_run(tmp_path, tmp_path / "model")


def test_minutes_shorten_a_run_once_and_for_all(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run", "run.steps=100000", "run.minutes=0.02", "run.checkpoint_every=50%")
    steps = json.loads(run.identity.read_text())["steps"]
    assert 1 <= steps < 5000
    assert run.steps()[-1] == steps
