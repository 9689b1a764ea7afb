"""Runs: exact resume after kill -9, refusal of another recipe or other tiles, alarms, full folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eosin.errors import OutputError, RecipeError, ResumeError, TrainingStopped, WeightsError
from eosin.runs import RunFolder, read_lines
from eosin.training import export_run, load_recipe, open_run, train
from eosin.training.checkpoint import average_encoder_state, load_encoder_state
from eosin.training.pretrain import pretrain_step

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
    return {
        f"{branch}.encoder.{name}": value
        for branch in ("student", "teacher")
        for name, value in load_encoder_state(RunFolder(run), step, branch == "student")[1].items()
    }


def test_kill_9_and_rerun_gives_bit_identical_weights(tiles_folder: Path, tmp_path: Path) -> None:
    more = ("--set", "run.steps=12", "--set", "run.keep_last=20")
    subprocess.run(command(tiles_folder, tmp_path / "whole", *more), env=environment(), check=True, capture_output=True)
    words = command(tiles_folder, tmp_path / "killed", *more)
    disturbed = [
        words[0],
        str(Path(__file__).with_name("disturbed.py")),
        str(int(signal.SIGKILL)),
        "5",
        "0",
        *words[3:],
    ]
    killed = subprocess.run(disturbed, env=environment(), capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    run = RunFolder(tmp_path / "killed")
    reached = run.steps()
    assert reached
    assert reached[-1] <= 4
    subprocess.run(words, env=environment(), check=True, capture_output=True)
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
    before = (run.checkpoint(6) / "state.json").stat().st_mtime_ns
    run_it(tiles_folder, tmp_path / "run")
    assert (run.checkpoint(6) / "state.json").stat().st_mtime_ns == before
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
    (file,) = run.checkpoint(6).glob("*.safetensors")
    file.write_bytes(b"torn")
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


def test_only_what_a_run_wrote_is_ever_removed(tiles_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "recipe.yaml").write_text("# mine\n")
    with pytest.raises(OutputError, match=r"recipe\.yaml is there, but no identity\.json"):
        run_it(tiles_folder, tmp_path / "own")
    for name in ("report.html", "metrics.jsonl"):
        (tmp_path / "own" / name).write_text("mine")
    with pytest.raises(OutputError, match=r"is there, but no identity\.json"):
        run_it(tiles_folder, tmp_path / "own", fresh=True)
    assert (tmp_path / "own" / "recipe.yaml").read_text() == "# mine\n"
    assert sorted(path.name for path in (tmp_path / "own").iterdir() if path.name[0] != ".") == [
        *("metrics.jsonl", "recipe.yaml", "report.html"),
    ]
    run = run_it(tiles_folder, tmp_path / "run")
    with pytest.raises(OutputError, match=r"--fresh would remove .*recipe\.yaml, the recipe that is given"):
        train(str(run.recipe), run.root, tiles=[str(tiles_folder)], mpp=0.5, device="cpu", fresh=True)
    (run.pictures / "mine.jpg").write_bytes(b"x")
    with pytest.raises(WeightsError, match="start"):
        run_it(tiles_folder, tmp_path / "run", "start=typo", fresh=True)
    assert run.steps() == [4, 6]
    run_it(tiles_folder, tmp_path / "run", "run.steps=2", fresh=True)
    assert run.steps() == [2]
    assert (run.pictures / "mine.jpg").exists()


def test_accept_changed_goes_on_and_says_so_in_its_files(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    run_it(tiles_folder, tmp_path / "run", "run.steps=8", accept_changed=True)
    assert run.steps()[-1] == 8
    assert open_run(run.root)[1].run.steps == 8
    run_it(tiles_folder, tmp_path / "run", "run.steps=8")
    before = run.identity.read_bytes(), run.recipe.read_bytes()
    with pytest.raises(ResumeError, match="does not fit this recipe's networks"):
        run_it(tiles_folder, tmp_path / "run", "run.steps=9", "encoder.width=48", accept_changed=True)
    with pytest.raises(ResumeError, match="has done 8 steps, more than the 6 of this recipe"):
        run_it(tiles_folder, tmp_path / "run", accept_changed=True)
    run_it(tiles_folder, tmp_path / "run", "run.steps=8", "optim.base_lr=0.1", accept_changed=True)  # nothing is left
    assert (run.identity.read_bytes(), run.recipe.read_bytes()) == before


@pytest.mark.parametrize("text", ["{", "[1]", '{"model": "other"}'])
def test_an_identity_that_no_run_wrote_is_one_line(text: str, tiles_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(text)
    for fresh in (False, True):
        with pytest.raises(ResumeError, match=r"identity\.json (cannot be read|is not that of a run)"):
            run_it(tiles_folder, tmp_path, fresh=fresh)
    assert (tmp_path / "identity.json").read_text() == text


HOLDER = """
import os, sys
from eosin.runs import RunFolder
with RunFolder(sys.argv[1]).held():
    child = os.fork()  # as a reading process, which outlives its run for some seconds
    if child:
        print("has it", flush=True)
    sys.stdin.read()
    os._exit(0)
"""


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_is_not_in_the_way(
    tiles_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "has it\n"
        with pytest.raises(OutputError, match=f"is in use: process {first.pid} on .* trains there; wait for it"):
            run_it(tiles_folder, tmp_path, "run.steps=1")
        first.kill()
        first.wait()
        assert run.lock.exists()
        assert run_it(tiles_folder, tmp_path, "run.steps=1").steps() == [1]
        assert not run.lock.exists()


def test_storage_without_locks_is_told_and_used(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refused)
    assert run_it(tiles_folder, tmp_path, "run.steps=1").steps() == [1]
    assert capsys.readouterr().err.count("lies on storage without locks (No locks available)") == 1


def test_the_recipe_of_a_folder_is_the_one_it_goes_on_with(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    shutil.rmtree(run.checkpoint(6))
    run_it(tiles_folder, tmp_path / "run", "run.keep_last=5")  # a value that is no part of the identity
    assert open_run(run.root)[1].run.keep_last == 5
    assert run.steps() == [4, 6]


def test_a_bad_tile_that_is_read_again_and_again_is_one_line_in_the_ledger(tiles_folder: Path, tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    shutil.copytree(tiles_folder, tiles)
    for path in list(tiles.iterdir())[:4]:
        path.write_bytes(path.read_bytes()[:200])
    run = run_it(tiles, tmp_path / "run", "tiles.distinct_tiles=8", "run.steps=4")
    entries = [(entry["i"], entry["attempt"]) for entry in read_lines(run.ledger)]
    assert entries
    assert len(set(entries)) == len(entries)


def test_a_torn_line_is_dropped_on_resume(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run")
    for path in (run.metrics, run.ledger):
        with open(path, "a") as handle:
            handle.write('{"step": 6, "lo')
    run_it(tiles_folder, tmp_path / "run", "run.steps=8", accept_changed=True)
    assert run.read_metrics()[-1]["step"] == 8


def test_a_read_error_is_in_the_ledger_and_survives_repair(tiles_folder: Path, tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    for path in tiles_folder.iterdir():
        (tiles / path.name).write_bytes(path.read_bytes())
    whole = (tiles / "03.png").read_bytes()
    (tiles / "03.png").write_bytes(whole[:200] + bytes(len(whole) - 200))  # same length: the folder's hash stays
    run_it(tiles, tmp_path / "a", "run.steps=6")
    run_it(tiles, tmp_path / "b", "run.steps=6", "run.checkpoint_every=2", "run.keep_last=9")
    ledger = RunFolder(tmp_path / "b").ledger
    assert {entry["slide"] for entry in read_lines(ledger)} == {"03.png"}
    for step in (4, 6):  # as if killed after step 2; then the file is repaired
        shutil.rmtree(RunFolder(tmp_path / "b").checkpoint(step))
    (tiles / "03.png").write_bytes(whole)
    run_it(tiles, tmp_path / "b", "run.steps=6", "run.checkpoint_every=2", "run.keep_last=9")
    a, b = weights(tmp_path / "a", 6), weights(tmp_path / "b", 6)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_start_file_is_loaded_and_not_needed_again(tiles_folder: Path, tmp_path: Path) -> None:
    first = run_it(tiles_folder, tmp_path / "first")
    model = export_run(first.root, tmp_path / "model")
    start = f"start={model / 'model.safetensors'}"
    second = run_it(tiles_folder, tmp_path / "second", start, "optim.base_lr=1e-12", "run.steps=1")
    name = "student.encoder.blocks.0.attn.qkv.weight"
    taught = weights(first.root, 6)[name.replace("student", "teacher")]
    assert torch.allclose(weights(second.root, 1)[name], taught, atol=1e-5)
    shutil.rmtree(model)
    run_it(tiles_folder, tmp_path / "second", start, "optim.base_lr=1e-12", "run.steps=1")


def test_a_bad_gradient_is_never_saved(tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(*arguments: object) -> dict[str, torch.Tensor]:
        losses = pretrain_step(*arguments)
        return {**losses, "grad_norm": losses["grad_norm"] * float("nan")}

    monkeypatch.setattr("eosin.training.method.pretrain_step", poisoned)
    with pytest.raises(TrainingStopped, match="not finite at step 0"):
        run_it(tiles_folder, tmp_path / "run", "run.log_every=2")
    assert RunFolder(tmp_path / "run").steps() == []


def test_post_training_goes_on_from_the_full_state_of_a_run_at_another_size(tiles_folder: Path, tmp_path: Path) -> None:
    parent = run_it(tiles_folder, tmp_path / "parent")
    larger = ("tiles.size_px=56", "views.global_px=48", "views.local_px=24", "optim.base_lr=1e-12", "optim.min_lr=0")
    still = (*larger, "optim.momentum=[1.0,1.0]", "run.steps=1")
    child = run_it(tiles_folder, tmp_path / "child", f"start={parent.root}", *still)
    before, after = (tensors(run, step) for run, step in ((parent, 6), (child, 1)))
    for name in before:
        if name.startswith(("networks.student", "networks.teacher")):
            assert torch.allclose(before[name], after[name], atol=1e-6), name
    assert set(after["optimizer.steps"].tolist()) == {1.0}
    earlier = run_it(tiles_folder, tmp_path / "earlier", f"start={parent.checkpoint(4)}", *still)
    assert not torch.equal(
        tensors(earlier, 1)["networks.teacher.encoder.norm.weight"], before["networks.teacher.encoder.norm.weight"]
    )
    with pytest.raises(ResumeError, match="start from a run of the same encoder and heads"):
        run_it(tiles_folder, tmp_path / "other", f"start={parent.root}", "objective.dino_prototypes=32")
    with pytest.raises(RecipeError, match="give it with --set start=RUN"):
        run_it(tiles_folder, tmp_path / "other", "start=parent")


def tensors(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    (file,) = run.checkpoint(step).glob("*.safetensors")
    return load_file(file)


def test_an_export_may_be_the_mean_of_the_newest_checkpoints(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run", "optim.base_lr=1e-2", "optim.warmup_steps=0")
    steps, mean = average_encoder_state(run, 2)
    assert steps == [4, 6]
    parts = [load_encoder_state(run, step)[1] for step in steps]
    for name, value in mean.items():
        assert torch.allclose(value, (parts[0][name] + parts[1][name]) / 2)
    assert not torch.equal(mean["norm.weight"], parts[1]["norm.weight"])
    exported = export_run(run.root, tmp_path / "model", average=2)
    assert json.loads((exported / "config.json").read_text())["eosin"]["averaged_steps"] == [4, 6]
    with pytest.raises(ResumeError, match="holds 2 checkpoints, not 3"):
        export_run(run.root, tmp_path / "model", average=3)
