"""Where one process of a run fares otherwise than the others, all are told the same, at once, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eosin.distributed import own_device
from eosin.errors import DataError
from eosin.runs import RunFolder


@pytest.fixture(scope="module")
def told(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parting")
    script = Path(__file__).with_name("parting_processes.py")
    words = [sys.executable, str(script), str(tiles_folder), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def lines(told: Path, case: str) -> tuple[str, str]:
    one, two = ((told / f"{case}.{rank}").read_text().splitlines()[0] for rank in (0, 1))
    return one, two


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("apart", "OutputError: process 1: the run folder {told}/apart/1 has to be shared by all machines: "),
        ("probe", "DataError: process 1: --probe x=/nowhere: task x: looked for /nowhere, found nothing there"),
        ("late", "TrainingStopped: watch.data_stall stopped the run at step 3: process 1: no tiles for 0 seconds"),
        ("none", "PlanError: no tile passes after 800 tries; the same command goes on from step 3"),
        ("signal", "Interrupted: stopped by a signal at step 3; the same command goes on from step 3"),
        ("watch", "Interrupted: stopped by a signal at step 3; the same command goes on from step 3"),
    ],
)
def test_all_are_told_what_one_has_met(told: Path, case: str, line: str) -> None:
    one, two = lines(told, case)
    assert one == two
    assert one.startswith(line.format(told=told)), one
    seconds = float((told / f"{case}.0").read_text().splitlines()[1])
    assert seconds < 25  # nobody waits for one that has left, or for the tiles that are half a minute late


@pytest.mark.parametrize("case", ["late", "none", "signal", "watch"])
def test_what_was_learned_is_saved(told: Path, case: str) -> None:
    run = RunFolder(told / case / "run")
    assert run.steps() == [3]
    assert [row["step"] for row in run.read_metrics() if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in run.read_metrics() if "rankme" in row] == [0]


def test_waiting_too_long_is_not_called_a_death(told: Path) -> None:
    one, _ = lines(told, "slow")
    assert one.startswith(
        "TrainingStopped: a process of this run has waited 30 minutes for another one, which hangs"
    ), one
    assert one.endswith("; the same command goes on from the start, as no checkpoint was saved yet")


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(name: str, gpus: int = 2) -> torch.device:
        return own_device(torch.device(name), gpus)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert own("cpu") == torch.device("cpu")
    assert own("cuda") == own("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DataError, match="under torchrun each process takes the GPU of its number: leave cuda:0 out"):
        own("cuda:0")
    with pytest.raises(DataError, match="2 processes on a machine with 1 GPUs: give torchrun --nproc-per-node 1"):
        own("cuda", 1)
