"""However a run is spread, it learns the same: processes, DDP, FSDP2, micro-batches; resumed on fewer processes too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from eosin.errors import RecipeError
from eosin.runs import RunFolder
from eosin.training import Recipe, load_recipe
from eosin.training.checkpoint_files import tensors_in
from eosin.training.networks import Networks
from eosin.training.parallel import check_split, spread

from .conftest import TINY

WAYS = ["1-accumulate", "2-ddp", "2-fsdp-accumulate", "4-ddp", "4-ddp-accumulate", "4-fsdp", "4-fsdp-accumulate"]
RESUMED = ["resumed-2-fsdp", "resumed-1"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps in fp64, spread in every way, on up to four gloo processes."""
    out = tmp_path_factory.mktemp("spread")
    script = Path(__file__).with_name("many_processes.py")
    words = [sys.executable, str(script), str(tiles_folder), str(out)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def everything(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: networks, centers, Adam's averages."""
    import torch.distributed.checkpoint as dcp

    at = RunFolder(folder).checkpoint(step)
    state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in tensors_in(at).items()}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(at)), no_dist=True)
    return state


def curve(folder: Path) -> list[dict[str, float]]:
    quiet = ("img_s", "data_wait", "knn")
    return [{k: v for k, v in row.items() if k not in quiet} for row in RunFolder(folder).read_metrics()]


def assert_equal_runs(one: Path, other: Path) -> None:
    for step in (10, 20):
        a, b = everything(one, step), everything(other, step)
        assert a.keys() == b.keys()
        for name in a:
            scale = max(a[name].abs().max().item(), 1e-6)
            assert (a[name] - b[name]).abs().max().item() <= 1e-9 * scale, (step, name)
    first, second = curve(one), curve(other)
    assert len(first) == len(second)
    for row, twin in zip(first, second, strict=True):
        for key in row:
            # The monitor's features are fp32; losses and the gradient's norm are fp64.
            loose = 1e-9 if key.startswith("loss") or key == "grad_norm" else 1e-4
            assert twin[key] == pytest.approx(row[key], rel=loose, abs=1e-12), key


@pytest.mark.parametrize("way", WAYS)
def test_losses_gradients_and_weights_do_not_depend_on_how_a_run_is_spread(runs: Path, way: str) -> None:
    assert_equal_runs(runs / "1", runs / way)


@pytest.mark.parametrize("way", ["centering-4-ddp", "centering-4-fsdp-accumulate"])
def test_nor_with_centering_koleo_and_a_shared_head(runs: Path, way: str) -> None:
    assert_equal_runs(runs / "centering-1", runs / way)


@pytest.mark.parametrize("way", RESUMED)
def test_saved_on_four_resumed_on_fewer(runs: Path, way: str) -> None:
    assert_equal_runs(runs / "1", runs / way)


def test_each_process_writes_its_part(runs: Path) -> None:
    files = list(RunFolder(runs / "4-fsdp").checkpoint(20).glob("*.safetensors"))
    assert len(files) == 4
    whole = sum(value.numel() * value.element_size() for value in everything(runs / "4-fsdp", 20).values())
    assert sum(file.stat().st_size for file in files) < 1.5 * whole


def command(tiles: Path, out: Path, *disturb: str) -> list[str]:
    """Two processes of torchrun; `disturb`: the first words of disturbed.py."""
    changes = [word for change in (*TINY, "run.steps=16", "run.keep_last=99") for word in ("--set", change)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    what = [str(Path(__file__).with_name("disturbed.py")), *disturb] if disturb else ["-m", "eosin"]
    verb = ["train", "quickstart", "--tiles", str(tiles), "--mpp", "0.5", "-o", str(out)]
    return [*launch, *what, *verb, *changes]


@pytest.fixture(scope="module")
def undisturbed(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    subprocess.run(command(tiles_folder, out), env=environment(), check=True, capture_output=True, timeout=300)
    return out


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "another process of this run has died"), (-signal.SIGTERM, "stopped by a signal at step")],
)
def test_a_lost_process_or_a_signal_is_one_line_and_the_run_goes_on_exactly(
    number: int, said: str, undisturbed: Path, tiles_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    words = command(tiles_folder, run.root, str(int(number)), "6", "1")
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode != 0
    assert said in ended.stderr
    reached = run.steps()
    assert 2 <= reached[-1] < 16
    if number < 0:  # saved where it was, not where a checkpoint was due
        assert f"at step {reached[-1]}" in ended.stderr
    words = command(tiles_folder, run.root)
    subprocess.run(words, env=environment(), check=True, capture_output=True, timeout=300)
    a, b = everything(undisturbed, 16), everything(run.root, 16)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    recipe = load_recipe("quickstart", [*TINY, "parallel.accumulate=2"])[0]
    check_split(recipe, 1)
    with pytest.raises(RecipeError, match="does not divide into groups of 4 tiles x 2 processes x 2 micro-batches"):
        check_split(recipe, 2)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(recipe: Recipe) -> None:
    ends = []
    for compiled in (False, True):
        chosen = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"compile": compiled})})
        networks = Networks(chosen)
        parallel = spread(networks, chosen, torch.device("cpu"), "fp32")
        seen = parallel.student([torch.ones(8, 3, 32, 32), torch.ones(8, 3, 16, 16)], None, None)
        seen.cls.square().sum().backward()
        ends.append((seen.cls.detach(), networks.student.encoder.blocks[0].attn.qkv.weight.grad))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-4)
