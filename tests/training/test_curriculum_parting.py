"""Where one process of a curriculum fails, by a bad tile or by dying, all stop with one line; none waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .curriculum_cases import write_cohort

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parting")
    words = [sys.executable, str(Path(__file__).with_name("curriculum_parting.py"))]
    words += [str(write_cohort(out / "slides")), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # Half of how long a process waits for another one that hangs: to be told within it is not to have waited.
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", ["tiles-refused", "loss-refused"])
def test_a_refusal_of_one_is_told_by_all(case: str, told: Path) -> None:
    lines = {(told / f"{case}.{rank}").read_text() for rank in range(2)}
    assert lines == {"DataError: process 1: this tile has no pixels"}


@pytest.mark.parametrize("case", ["slide-broken", "loss-broken", "loss-killed"])
def test_when_one_dies_the_other_says_so_and_how_to_go_on(case: str, told: Path) -> None:
    line = (told / f"{case}.0").read_text()
    assert line.startswith("TrainingStopped: another process of this run has died; the same command goes on from"), line
    if case != "loss-killed":
        assert (told / f"{case}.1").read_text() == "RuntimeError: out of memory"
