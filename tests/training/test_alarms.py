"""Alarms: a collapsed encoder and missing tiles raise them, a healthy run does not; they warn or stop by rule."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eosin.errors import TrainingStopped
from eosin.runs import RunFolder, append_line, read_lines
from eosin.training import Recipe, load_recipe, train
from eosin.training.alarms import Alarms, WatchConfig, stall_advice
from eosin.training.monitor import Monitor
from eosin.training.networks import Networks
from eosin.training.pace import Speed

from .conftest import TINY

CPU = torch.device("cpu")


def alarms(run: RunFolder, first_step: int = 0, steps: int = 1000, **rules: object) -> Alarms:
    run.root.mkdir(exist_ok=True)
    return Alarms(run, WatchConfig(**rules), first_step, steps, workers=1)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def raised(run: RunFolder) -> list[tuple[int, str, str]]:
    return [(row["step"], row["alarm"], row["action"]) for row in read_lines(run.alarms)]


def test_a_collapsed_encoder_raises_the_alarm_and_a_healthy_one_does_not(recipe: Recipe, run: RunFolder) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    monitor, networks, watching = Monitor(recipe, tiles), Networks(recipe), alarms(run)
    norm = networks.teacher.encoder.norm
    with torch.no_grad():
        torch.nn.init.normal_(networks.teacher.encoder.blocks[0].attn.proj.weight, std=0.5)
        for step in (0, 100, 200):  # what training does to a sound encoder
            norm.weight.mul_(1.1)
            watching.check(step, monitor.measure(networks, 0.05))
        assert raised(run) == []
        norm.bias.fill_(50.0)  # every tile gets nearly the same vector
        collapsed = monitor.measure(networks, 0.05)
    watching.check(300, collapsed)
    assert raised(run) == [(300, "collapse", "warn")]
    (row,) = read_lines(run.alarms)
    assert "uniformity" in row["text"]
    assert "at step" in row["text"]


def test_each_of_rankme_and_uniformity_is_judged_against_the_runs_best(run: RunFolder) -> None:
    watching = alarms(run, steps=10)
    watching.check(0, {"rankme": 2.5, "uniformity": -0.06})  # a random start uses few directions: no alarm
    watching.check(1, {"rankme": 100.0, "uniformity": -3.0})
    watching.check(2, {"rankme": 26.0, "uniformity": -0.8})
    watching.check(3, {"rankme": float("nan"), "loss": 5.0})
    assert raised(run) == []
    watching.check(4, {"rankme": 24.0, "uniformity": -3.0})
    watching.check(5, {"rankme": 90.0, "uniformity": -0.7})
    texts = [row["text"] for row in read_lines(run.alarms)]
    assert texts == [
        "the embeddings collapse: RankMe 24 is below 25% of the run's best (100 at step 1)",
        "the embeddings collapse: uniformity -0.7 is nearer to 0 than 25% of the run's best (-3 at step 1)",
    ]


def test_what_a_resumed_run_knows_is_what_it_knew_at_its_checkpoint(run: RunFolder) -> None:
    watching = alarms(run)
    for step, rankme in ((0, 10.0), (100, 80.0), (200, 15.0), (300, 200.0), (400, 40.0)):
        append_line(run.metrics, {"step": step, "rankme": rankme})
        watching.check(step, {"rankme": rankme})
    assert [step for step, *_ in raised(run)] == [200, 400]
    again = alarms(run, first_step=250)
    assert [step for step, *_ in raised(run)] == [200]  # that of step 400 is not past yet
    again.check(280, {"rankme": 19.0})  # below a quarter of 80, and warned of 80 steps ago
    assert [step for step, *_ in raised(run)] == [200]
    again.check(300, {"rankme": 19.0})
    assert [step for step, *_ in raised(run)] == [200, 300]


def test_a_warning_that_holds_is_one_line_now_and_then(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    watching = alarms(run, steps=1000, data_wait_rows=2)
    for step in range(0, 1000, 10):
        watching.check(step, {"data_wait": 0.9})
    assert [step for step, *_ in raised(run)] == list(range(10, 1000, 100))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("warning at step 10: 90% of the time went into waiting for tiles; ")


def test_a_share_is_averaged_over_the_window(run: RunFolder) -> None:
    watching = alarms(run, data_wait=0.5, data_wait_rows=4)
    for step, share in enumerate([1.0, 0.0, 0.4, 0.5, 0.9]):  # the first batch waits for the readers to start
        watching.check(step, {"data_wait": share})
    assert raised(run) == []
    watching.check(5, {"data_wait": 0.3})  # mean of 0.4 0.5 0.9 0.3 is above a half
    assert raised(run) == [(5, "data_stall", "warn")]


def test_the_likely_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert stall_advice(8) == "give more reading processes (run.workers is 8, there are 16 cores) or a faster disk"
    assert stall_advice(16).startswith("there are as many reading processes as cores (16): a faster disk")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert "as cores (4)" in stall_advice(4)


def test_rules_may_be_off_or_stop(run: RunFolder) -> None:
    quiet = alarms(run, collapse="off", data_stall="off", data_wait_rows=1)
    quiet.check(0, {"rankme": 100.0})
    quiet.check(1, {"rankme": 1.0, "data_wait": 1.0})
    assert (raised(run), quiet.stopping) == ([], "")
    strict = alarms(run, collapse="stop", data_stall="stop", data_wait_rows=1)
    strict.check(0, {"rankme": 100.0})
    strict.check(1, {"data_wait": 1.0})  # the run saves first, then stops
    assert "--set watch.data_stall=warn" in strict.stopping
    with pytest.raises(TrainingStopped, match=r"RankMe 1 is below 25% .* --set watch.collapse=warn"):
        strict.check(2, {"rankme": 1.0})
    assert raised(run) == [(1, "data_stall", "stop"), (2, "collapse", "stop")]


def slow(*seconds: float, took: list[float] | None = None) -> Iterator[int]:
    for number, wait in enumerate(seconds):
        began = time.perf_counter()
        time.sleep(wait)
        if took is not None:
            took.append(time.perf_counter() - began)
        yield number


def test_waiting_is_timed_apart_from_working(run: RunFolder) -> None:
    speed, waited = Speed(CPU), []
    time.sleep(0.05)
    speed.restart()
    began = time.perf_counter()
    for _ in speed.waiting(slow(0.03, 0.03, 0.03, took=waited), alarms(run), patience=60):
        time.sleep(0.06)
        speed.tiles += 8
    seconds, found = time.perf_counter() - began, speed.read()
    # Wide enough for a machine that is busy between one clock and the other: all the time would be 1, none 0.
    assert found["data_wait"] == pytest.approx(sum(waited) / seconds, abs=0.15)
    assert 0 < found["data_wait"] < 1
    assert found["img_s"] == pytest.approx(24 / seconds, rel=0.5)
    assert speed.read()["data_wait"] == 0.0
    assert threading.active_count() < 20  # a watchdog goes with its batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_is_still_busy_does_not_wait(run: RunFolder) -> None:
    def waited(cycles: int) -> float:
        speed = Speed(torch.device("cuda"))
        for _ in speed.waiting(slow(0.05, 0.05, 0.05), alarms(run), patience=60):
            if cycles:
                torch.cuda._sleep(cycles)
        return speed.read()["data_wait"]

    assert waited(0) > 0.8
    assert 0 < waited(400_000_000) < 0.4  # about 0.2 s of work a step: only the first wait counts


def test_tiles_that_do_not_come_are_told_while_they_are_waited_for(run: RunFolder) -> None:
    watching, times = alarms(run), []
    for _ in Speed(CPU).waiting(slow(0.01, 0.5), watching, patience=0.1):
        times.append(raised(run))
    assert times == [[], [(0, "no_tiles", "warn")]]
    assert "no tiles for 0 seconds; give more reading processes" in read_lines(run.alarms)[0]["text"]


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_a_stall_that_is_set_to_stop_ends_the_wait(run: RunFolder, ctrl_c: Any) -> None:
    before = signal.signal(signal.SIGINT, ctrl_c)  # a shell's `&` and nohup have it ignored
    began = time.perf_counter()
    try:
        with pytest.raises(TrainingStopped, match="no tiles for"):
            list(Speed(CPU).waiting(slow(0.0, 30.0), alarms(run, data_stall="stop"), patience=0.2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - began < 10
    assert signal.getsignal(signal.SIGURG) in (signal.SIG_DFL, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C stays what it is
        for _ in Speed(CPU).waiting(slow(0.0), alarms(run), patience=60):
            raise KeyboardInterrupt


def run_it(tiles: Path, out: Path, *changes: str) -> RunFolder:
    return train("quickstart", out, tiles=[str(tiles)], mpp=0.5, set=[*TINY, *changes], device="cpu")


def test_a_run_stops_at_a_collapse_before_it_is_saved(tiles_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pulling = ("objective.uniformity=kde-inverted", "objective.uniformity_weight=50", "optim.warmup_steps=0")
    pulling += ("optim.momentum=[0.0, 0.0]", "optim.base_lr=3e-3", "run.steps=12", "run.checkpoint_every=3")
    pulling += ("run.keep_last=9",)
    with pytest.raises(TrainingStopped, match="the embeddings collapse"):
        run_it(tiles_folder, out, *pulling, "watch.collapse=stop")
    run = RunFolder(out)
    ((step, alarm, action),) = raised(run)
    assert (alarm, action) == ("collapse", "stop")
    assert step not in run.steps()
    run_it(tiles_folder, out, *pulling)  # warns, and goes on to the end
    assert run.steps()[-1] == 12
    assert {action for *_, action in raised(run)} == {"warn"}


def test_a_run_saves_before_a_data_stall_stops_it(tiles_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    strict = ("watch.data_wait=1e-9", "watch.data_wait_rows=2", "run.checkpoint_every=6", "run.monitor_every=6")
    with pytest.raises(TrainingStopped, match=r"with --set watch.data_stall=warn it goes on from step 2"):
        run_it(tiles_folder, out, *strict, "watch.data_stall=stop")
    run = RunFolder(out)
    assert run.steps() == [2]
    assert raised(run) == [(2, "data_stall", "stop")]
    run_it(tiles_folder, out)
    rows = [row for row in run.read_metrics() if "data_wait" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= row["data_wait"] <= 1 for row in rows)


def test_a_healthy_run_raises_nothing(tiles_folder: Path, tmp_path: Path) -> None:
    run = run_it(tiles_folder, tmp_path / "run", "watch.data_wait=1.0")
    assert not run.alarms.exists()
    assert {path.name for path in run.pictures.iterdir()} >= {"attention_first.npz", "attention_latest.npz"}


def test_a_loss_that_is_not_finite_is_an_alarm_too(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match="not finite"):
        run_it(tiles_folder, tmp_path / "run", "optim.base_lr=1e30", "optim.warmup_steps=0", "run.steps=30")
    step = json.loads((tmp_path / "run" / "non_finite_step.json").read_text())["step"]
    assert raised(RunFolder(tmp_path / "run")) == [(step, "non_finite", "stop")]


def test_what_is_watched_is_no_part_of_what_is_learned() -> None:
    base = load_recipe("quickstart")[0]
    other = load_recipe("quickstart", ["watch.collapse=stop", "watch.data_wait=0.9", "run.log_to=[]"])[0]
    assert other.hash == base.hash
    assert (other.watch.collapse, other.run.log_to) == ("stop", [])
