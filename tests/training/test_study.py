"""Studies end to end: table and conclusions, gone on with after a kill or a signal, an arm that fails, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from eosin.errors import DataError, EosinError, Interrupted, ResumeError
from eosin.evaluation import read_results
from eosin.features import embed_images, label_free, load_model
from eosin.runs import RunFolder
from eosin.tiles import FolderSource, TilePlan
from eosin.training import load_recipe, open_run, run_study, train
from eosin.training.checkpoint import load_encoder_state
from eosin.training.monitor import watched_tiles
from eosin.training.pretrain import pretrain_step

from .conftest import TINY
from .study_files import write_study


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """NAME=PATH of 48 images of 12 patients in three classes that differ, not perfectly, in brightness."""
    values = np.random.default_rng(1)
    labels = values.integers(0, 3, 48)
    images = values.integers(0, 120, (48, 32, 32, 3)) + (labels * 20 + values.integers(0, 40, 48))[:, None, None, None]
    path = tmp_path_factory.mktemp("probe") / "cells.npz"
    patients = np.array([f"p{number % 12}" for number in range(48)])
    np.savez(path, images=images.astype(np.uint8), labels=np.array(["a", "b", "c"])[labels], patient=patients)
    return f"cells={path}"


def run_it(file: str, out: Path, tiles: Path, *probes: str, **words: Any) -> dict[str, Any]:
    return run_study(file, out, tiles=[str(tiles)], mpp=0.5, probe=list(probes), device="cpu", **words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiles_folder: Path, probe: str) -> tuple[Path, dict[str, Any]]:
    """A study of two arms and two seeds, run to its end, and what it told."""
    root = tmp_path_factory.mktemp("study")
    return root, run_it(write_study(root), root / "out", tiles_folder, probe)


def written(folder: Path) -> dict[str, int]:
    """When each file below `folder` was last written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_study_runs_to_its_table(
    finished: tuple[Path, dict[str, Any]], tiles_folder: Path, tmp_path: Path, probe: str
) -> None:
    root, told = finished
    out = root / "out"
    assert [(run["arm"], run["seed"], run["status"]) for run in told["runs"]] == [
        (arm, seed, "done") for arm in ("kde", "no term") for seed in (0, 1)
    ]
    assert json.loads((out / "study.json").read_text())["runs"] == told["runs"]
    table = pandas.read_csv(out / "table.csv", keep_default_na=False)
    names = ["rankme", "odcorr", "uniformity", "knn/cells", "logreg/cells"]
    assert list(table) == ["arm", "seed", "status", "error", "objective.uniformity", *names]
    assert table["objective.uniformity"].tolist() == ["", "", "none", "none"]
    assert np.allclose(table[names].to_numpy(float), [[run["metrics"][name] for name in names] for run in told["runs"]])
    folder, recipe, _ = open_run(out / "runs" / "no-term" / "seed_1")
    assert (recipe.objective.uniformity, recipe.run.seed, recipe.run.steps) == ("none", 1, 6)

    alone = train(
        "quickstart",
        tmp_path / "alone",
        tiles=[str(tiles_folder)],
        mpp=0.5,
        set=[*TINY, "objective.uniformity=none", "run.seed=1"],
        device="cpu",
        probe=[probe],
    )
    same, ours = load_encoder_state(alone, 6)[1], load_encoder_state(folder, 6)[1]
    assert all(torch.equal(same[name], ours[name]) for name in same)


def test_all_runs_are_measured_on_the_same_tiles_and_probed(
    finished: tuple[Path, dict[str, Any]], tiles_folder: Path
) -> None:
    root, told = finished
    recipe = load_recipe("quickstart", [*TINY, "objective.uniformity=none", "run.seed=0"])[0]
    tiles = watched_tiles(TilePlan([FolderSource(str(tiles_folder), 0.5, recipe.tiles)], seed=0), recipe).pixels
    for run in told["runs"]:
        encoder = load_model(root / "out" / "models" / run["place"], pooling="cls")
        z = embed_images(encoder, list(tiles))
        assert run["metrics"]["rankme"] == pytest.approx(label_free.rankme(z), rel=1e-6)
        assert run["metrics"]["odcorr"] == pytest.approx(label_free.odcorr(z), rel=1e-6)
        rows = read_results(root / "out" / "results" / run["place"])
        assert {f"{row['protocol']}/{row['task']}": row["mean"] for row in rows}.items() <= run["metrics"].items()
    models = {(row["model"], row["metric"]) for row in told["baselines"]}
    assert models == {(m, f"{p}/cells") for m in ("random start", "colour only") for p in ("knn", "logreg")}


def test_ten_distinct_tiles_are_not_what_a_run_is_measured_on(tiles_folder: Path) -> None:
    recipe = load_recipe("quickstart", TINY)[0]
    few = load_recipe("quickstart", [*TINY, "tiles.distinct_tiles=2"])[0]
    seen = [
        watched_tiles(TilePlan([FolderSource(str(tiles_folder), 0.5, one.tiles)], seed=0), one).pixels
        for one in (recipe, few)
    ]
    assert np.array_equal(*seen)
    assert len(np.unique(seen[1].reshape(16, -1), axis=0)) > 2


def test_the_conclusions_are_those_of_the_runs(finished: tuple[Path, dict[str, Any]]) -> None:
    _, told = finished
    values = {(run["arm"], run["seed"]): run["metrics"] for run in told["runs"]}
    for row in told["summary"]:
        x = [values[row["arm"], seed][row["metric"]] for seed in (0, 1)]
        assert (row["mean"], row["sd"]) == (pytest.approx(np.mean(x)), pytest.approx(np.std(x, ddof=1)))
    found = {(row["metric"], row["over"]): row for row in told["differences"]}
    assert {unit for _, unit in found} == {"seeds", "patient"}
    for probe in ("knn/cells", "logreg/cells"):
        expected = np.mean([values["kde", seed][probe] - values["no term", seed][probe] for seed in (0, 1)])
        for over, n in (("seeds", 2), ("patient", 12)):
            row = found[probe, over]
            assert (row["arm"], row["against"], row["n"]) == ("kde", "no term", n)
            assert row["difference"] == pytest.approx(expected, abs=1e-12)


def test_a_finished_study_is_left_alone_and_a_lost_run_made_again(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tiles_folder: Path, probe: str
) -> None:
    root, told = finished
    out = tmp_path / "out"
    shutil.copytree(root / "out", out)
    before = written(out / "runs") | written(out / "models")
    assert run_it(write_study(tmp_path), out, tiles_folder, probe)["runs"] == told["runs"]
    assert written(out / "runs") | written(out / "models") == before

    shutil.rmtree(out / "runs" / "kde" / "seed_1")
    kept = {part: written(out / part / "no-term") for part in ("runs", "models", "results")}
    again = run_it(write_study(tmp_path), out, tiles_folder, probe)
    assert again == told
    assert {part: written(out / part / "no-term") for part in kept} == kept
    assert RunFolder(out / "runs" / "kde" / "seed_1").steps()[-1] == 6


def test_a_killed_study_goes_on_where_it_was(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tiles_folder: Path, probe: str
) -> None:
    _, told = finished
    disturbed = [
        str(Path(__file__).with_name("disturbed.py")),
        str(int(signal.SIGKILL)),
        "11",
        "0",
    ]  # in the second run
    words = [*disturbed, "study", write_study(tmp_path), "-o", str(tmp_path / "out"), "--tiles", str(tiles_folder)]
    words = [sys.executable, *words, "--mpp", "0.5", "--device", "cpu", "--probe", probe]
    killed = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert RunFolder(tmp_path / "out" / "runs" / "kde" / "seed_1").steps()
    first = written(tmp_path / "out" / "runs" / "kde" / "seed_0")
    state = json.loads((tmp_path / "out" / "study.json").read_text())
    assert [run["status"] for run in state["runs"]] == ["done", "waiting", "waiting", "waiting"]
    again = run_it(write_study(tmp_path), tmp_path / "out", tiles_folder, probe)
    assert again["runs"] == told["runs"]
    assert written(tmp_path / "out" / "runs" / "kde" / "seed_0") == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_study_and_fails_no_run(
    number: signal.Signals, tmp_path: Path, tiles_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def interrupted(*arguments: Any, **words: Any) -> Any:
        steps.append(1)
        if len(steps) == 9:
            os.kill(os.getpid(), number)
        return pretrain_step(*arguments, **words)

    monkeypatch.setattr("eosin.training.method.pretrain_step", interrupted)
    with pytest.raises(Interrupted, match="the same command goes on"):
        run_it(write_study(tmp_path), tmp_path / "out", tiles_folder)
    runs = json.loads((tmp_path / "out" / "study.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["done", "waiting", "waiting", "waiting"]


def test_an_arm_that_fails_is_a_row_and_the_study_goes_on(tmp_path: Path, tiles_folder: Path) -> None:
    arms = {"wild": {"optim.base_lr": 1e30, "optim.warmup_steps": 0}, "tame": {}}
    file = write_study(tmp_path, arms=arms, seeds=[0], compare=None, budget_steps=4)
    told = run_it(file, tmp_path / "out", tiles_folder)
    wild, tame = told["runs"]
    assert (wild["status"], wild["metrics"], tame["status"]) == ("failed", {}, "done")
    assert "not finite" in wild["error"]
    assert [row["n"] for row in told["summary"] if row["metric"] == "rankme"] == [0, 1]
    assert told["differences"] == []
    assert "not finite" in (tmp_path / "out" / "table.csv").read_text().splitlines()[1]


def test_a_further_probe_is_judged_without_training_again(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, tiles_folder: Path, probe: str
) -> None:
    root, told = finished
    shutil.copytree(root / "out", tmp_path / "out")
    before = written(tmp_path / "out" / "runs")
    shutil.copy(probe.partition("=")[2], tmp_path / "more.npz")
    file = write_study(tmp_path, probes=["more=more.npz"], protocol="knn")  # beside the file
    again = run_it(file, tmp_path / "out", tiles_folder, probe)
    assert written(tmp_path / "out" / "runs") == before
    for run, run_before in zip(again["runs"], told["runs"], strict=True):
        assert run["metrics"]["knn/more"] == run_before["metrics"]["knn/cells"]


def test_refusals_before_any_work(finished: tuple[Path, dict[str, Any]], tmp_path: Path, tiles_folder: Path) -> None:
    root, _ = finished
    shutil.copytree(root / "out", tmp_path / "out")
    before = written(tmp_path / "out")
    with pytest.raises(ResumeError, match=r"kde/seed_0 holds a run of another recipe.*give another -o"):
        run_it(write_study(tmp_path, budget_steps=8), tmp_path / "out", tiles_folder)
    with pytest.raises(ResumeError, match="belongs to the study terms, not to other"):
        run_it(write_study(tmp_path, name="other"), tmp_path / "out", tiles_folder)
    assert written(tmp_path / "out") == before
    with pytest.raises(EosinError, match=r"study terms, arm far: .*no image gives 0\.1 µm/px"):
        run_it(write_study(tmp_path, arms={"far": {"tiles.mpp": [0.1]}}, compare=None), tmp_path / "new", tiles_folder)
    with pytest.raises(DataError, match="found nothing there"):
        run_it(write_study(tmp_path, probes=["a=none.npz"]), tmp_path / "new", tiles_folder)
    tile = next(path for path in tiles_folder.rglob("*") if path.suffix in (".png", ".jpg"))
    (tmp_path / "dots.csv").write_text(
        "file,x,y,size_px,value\n" + "\n".join(f"{tile},{number},8,16,{number}" for number in range(12)) + "\n"
    )
    numbers = [f"dots={tmp_path / 'dots.csv'}"]
    with pytest.raises(DataError, match=r"probe dots: protocol knn does not judge regression .*of the study"):
        run_it(write_study(tmp_path, probes=numbers), tmp_path / "new", tiles_folder)
    with pytest.raises(DataError, match=r"arm kde: probe dots: protocol knn .*run\.probe_protocol"):
        run_it(write_study(tmp_path, probes=numbers, protocol="strict"), tmp_path / "new", tiles_folder)
    assert not (tmp_path / "new").exists()
