"""A curriculum by two processes is the curriculum by one, also where they stop between slides and others go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from eosin.runs import RunFolder, read_lines

from .curriculum_cases import write_cohort

SAME = ["2-slides", "2-regions", "1-after-2", "2-after-2", "2-regions-after-2"]
UNLIKE = ("img_s", "data_wait", "mfu")
"""Of a row of metrics: what tells of time."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of each way."""
    out = tmp_path_factory.mktemp("ways")
    cohort = write_cohort(out / "slides")
    script = Path(__file__).with_name("curriculum_by_two.py")
    done = subprocess.run(
        [sys.executable, str(script), str(cohort), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (out / "told").write_text(done.stderr)
    return out


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    folder, found = RunFolder(run), {}
    for file in folder.checkpoint(folder.steps()[-1]).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def numbers(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what tells of time, numbers to a tolerance."""
    return {
        name: pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True) if isinstance(value, float) else value
        for name, value in row.items()
        if name not in UNLIKE and name != "outputs"
    }


@pytest.mark.parametrize("way", SAME)
def test_weights_and_optimiser_are_those_of_one_process(way: str, ways: Path) -> None:
    one, other = tensors(ways / "1"), tensors(ways / way)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(other[name], value, rtol=1e-8, atol=1e-11), name


def test_two_standardise_by_the_same_numbers_as_one(ways: Path) -> None:
    one, two = tensors(ways / "1-standardised"), tensors(ways / "2-standardised")
    assert float(one["networks.student.pyramid.region.sd"].std()) > 0
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-8, atol=1e-11), name


@pytest.mark.parametrize("way", SAME)
def test_what_is_told_is_the_same(way: str, ways: Path) -> None:
    for file, keys in (("metrics.jsonl", ("step",)), ("slides.jsonl", ("step", "number"))):
        one, other = (
            sorted(read_lines(ways / run / file), key=lambda row: [row[key] for key in keys]) for run in ("1", way)
        )
        assert len(one) == len(other) > 0
        for left, right in zip(one, other, strict=True):
            assert {name: value for name, value in right.items() if name not in (*UNLIKE, "outputs")} == numbers(left)


def test_two_went_on_where_two_had_stopped_and_left_nothing_behind(ways: Path) -> None:
    assert len(list((ways / "2-stopped" / "checkpoints").glob("slides-*"))) == 2
    assert not [path for way in ("1", *SAME) for path in (ways / way / "checkpoints").glob("slides-*")]
    # each of the two in `2-after-2`; one process, and two that share out regions, begin the step again
    assert (ways / "told").read_text().count("of optimiser step 1 had been learned from already") in (1, 2)
