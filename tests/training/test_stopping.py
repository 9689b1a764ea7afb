"""A run that is asked to stop saves first: signals, Ctrl-C, tiles that do not come, reading processes that die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eosin.cli.train import train as command
from eosin.errors import Interrupted, TrainingStopped
from eosin.runs import RunFolder
from eosin.tiles import TileBatch
from eosin.training import train
from eosin.training.loop import _tiles
from eosin.training.pretrain import pretrain_step
from eosin.training.stopping import StoppedWhenComplete

from .conftest import TINY


@pytest.fixture(autouse=True)
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C as at a terminal: where tests run in the background it may be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Do something during the step of a number, counted from 1."""

    def install(number: int, act: Callable[[], object]) -> None:
        steps = []

        def step(*arguments: Any) -> Any:
            steps.append(1)
            if len(steps) == number:
                act()
            return pretrain_step(*arguments)

        monkeypatch.setattr("eosin.training.method.pretrain_step", step)

    return install


RARE = ("run.checkpoint_every=6", "run.monitor_every=6")


def run_it(tiles: Path, out: Path, *changes: str) -> RunFolder:
    return train("quickstart", out, tiles=[str(tiles)], mpp=0.5, set=[*TINY, *RARE, *changes], device="cpu")


def send(*signals: int, pause: float = 0.0) -> None:
    for number in signals:
        os.kill(os.getpid(), number)
        time.sleep(pause)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step(
    number: int, tiles_folder: Path, tmp_path: Path, during: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    during(3, lambda: send(number))
    with pytest.raises(Interrupted, match=r"stopped by a signal at step 3; the same command goes on from step 3"):
        run_it(tiles_folder, tmp_path / "run")
    assert RunFolder(tmp_path / "run").steps() == [3]
    assert ("Ctrl-C again stops it at once" in capfd.readouterr().err) == (number == signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_again_stops_at_once(tiles_folder: Path, tmp_path: Path, during: Any) -> None:
    during(3, lambda: send(signal.SIGINT, signal.SIGINT, pause=0.6))
    with pytest.raises(Interrupted, match=r"stopped; the same command goes on from the start"):
        run_it(tiles_folder, tmp_path / "run")
    assert RunFolder(tmp_path / "run").steps() == []


def test_a_signal_ends_the_wait_for_tiles(tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eosin.training.loop._tiles", late_tiles(2, lambda: send(signal.SIGTERM)))
    began = time.monotonic()
    with pytest.raises(Interrupted, match="goes on from step 2"):
        run_it(tiles_folder, tmp_path / "run")
    assert time.monotonic() - began < 25


def test_a_stall_that_is_set_to_stop_saves_first(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.training.loop._tiles", late_tiles(3))
    with pytest.raises(TrainingStopped, match=r"no tiles for 0 seconds.*data_stall=warn it goes on from step 3$"):
        run_it(tiles_folder, tmp_path / "run", "watch.data_stall=stop", "watch.no_tiles_seconds=0.4")
    assert RunFolder(tmp_path / "run").steps() == [3]


def late_tiles(step: int, act: Callable[[], object] = lambda: None) -> Callable[..., Iterator[TileBatch]]:
    """The tiles of a run, those of `step` half a minute late."""

    def tiles(*arguments: Any) -> Iterator[TileBatch]:
        for batch in _tiles(*arguments):
            if batch.step == step:
                act()
                time.sleep(30)
            yield batch

    return tiles


def test_watching_waits_until_the_run_goes_on(tiles_folder: Path, tmp_path: Path, during: Any) -> None:
    during(3, lambda: send(signal.SIGTERM))
    with pytest.raises(Interrupted, match="goes on from step 3"):
        run_it(tiles_folder, tmp_path / "run", "run.monitor_every=3")
    run = RunFolder(tmp_path / "run")
    assert watched(run) == [0]
    run_it(tiles_folder, tmp_path / "run", "run.monitor_every=3")
    assert watched(run) == [0, 3, 6]
    assert [row["step"] for row in run.read_metrics() if "loss" in row] == [1, 2, 3, 4, 5, 6]


def watched(run: RunFolder) -> list[int]:
    return [row["step"] for row in run.read_metrics() if "rankme" in row]


def test_a_signal_in_the_last_step_finds_a_complete_run(
    tiles_folder: Path, tmp_path: Path, during: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    during(6, lambda: send(signal.SIGTERM))
    with pytest.raises(StoppedWhenComplete, match="is complete: 6 steps"):  # a study must not start its next run
        run_it(tiles_folder, tmp_path / "run")
    assert RunFolder(tmp_path / "run").steps() == [6]
    during(2, lambda: send(signal.SIGTERM))
    command(
        "quickstart",
        tmp_path / "two",
        tiles=[str(tiles_folder)],
        mpp=0.5,
        changes=[*TINY, "run.steps=2"],
        device="cpu",
    )
    assert capsys.readouterr().out == f"written: {tmp_path / 'two'}\n"


def readers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


def kill(number: int, *processes: int) -> None:
    """From a process that is not the readers' parent, as a launcher does it."""
    subprocess.run(["kill", f"-{number}", *map(str, processes)], check=True)
    time.sleep(0.3)


def test_a_reading_process_that_is_killed_is_one_line(tiles_folder: Path, tmp_path: Path, during: Any) -> None:
    during(4, lambda: kill(signal.SIGKILL, *readers()))
    with pytest.raises(TrainingStopped, match=r"a reading process died.*goes on from"):
        run_it(tiles_folder, tmp_path / "run", "run.workers=1", "run.steps=30", "run.checkpoint_every=2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_a_run_saves(
    number: int, tiles_folder: Path, tmp_path: Path, during: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    during(4, lambda: kill(number, os.getpid(), *readers()))
    with pytest.raises(Interrupted, match="goes on from step 4"):
        run_it(tiles_folder, tmp_path / "run", "run.workers=1", "run.steps=30", "run.checkpoint_every=30")
    assert "Traceback" not in capfd.readouterr().err
