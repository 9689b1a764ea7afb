"""A checkpoint that is not whole is never read; what fails while one is saved is one line, on all processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.errors import OutputError, ResumeError
from eosin.runs import RunFolder
from eosin.training import Recipe, export_run, load_recipe, train
from eosin.training.checkpoint import (
    CheckpointWriter,
    average_encoder_state,
    load_checkpoint,
    load_encoder_state,
    load_networks,
    remove_torn_checkpoints,
    training_state,
)
from eosin.training.checkpoint_files import _is_covered
from eosin.training.networks import Networks
from eosin.training.prepare import make_optimizer
from eosin.training.start import start_networks

from .conftest import TINY


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote and were told; `good` is a run with an FSDP checkpoint of step 2."""
    out = tmp_path_factory.mktemp("two")
    words = [sys.executable, str(Path(__file__).with_name("checkpoints_by_two.py")), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def told(two: Path, case: str) -> tuple[str, str]:
    """What the first and the second process were told; both after as many polls."""
    first, second = (json.loads((two / f"told_{rank}.json").read_text())[case] for rank in (0, 1))
    assert first[1] == second[1]
    return first[0], second[0]


def left(two: Path, case: str) -> list[str]:
    return sorted(path.name for path in (two / case / "checkpoints").iterdir())


def test_two_processes_save_and_load_what_they_had(two: Path) -> None:
    assert told(two, "save") == told(two, "load") == ("", "")
    state = json.loads((two / "good" / "checkpoints" / "step_00000002" / "state.json").read_text())
    files = sorted((two / "good" / "checkpoints" / "step_00000002").glob("*.safetensors"))
    assert len(files) == 2
    assert state["files"] == {
        file.name: {"bytes": file.stat().st_size, "crc32": f"{zlib.crc32(file.read_bytes()):08x}"} for file in files
    }


def test_damage_is_told_alike_and_names_the_file(two: Path) -> None:
    first, second = told(two, "missing")
    assert first == second
    assert "is damaged: shard-00002-model-00001-of-00001.safetensors is missing" in first
    first, second = told(two, "flipped")  # each process adds up a share of the files; both tell
    assert first == second
    assert "the content of shard-00002-model-00001-of-00001.safetensors is not what was written" in first


def test_a_folder_that_one_process_does_not_see_is_no_damage(two: Path) -> None:
    first, second = told(two, "one_blind")
    assert "ResumeError: process 1 does not see" in first
    assert "the run folder has to be shared by all machines" in first
    assert first.replace(str(two / "one_blind"), "") == second.replace(str(two / "nowhere"), "")


def test_a_disk_that_is_full_for_one_process_stops_both_alike(two: Path) -> None:
    first, second = told(two, "full")
    assert first == second
    assert first.startswith("OutputError: cannot write ")
    assert first.endswith("step_00000004: File too large (process 1)")
    assert told(two, "full_again") == ("", "")
    assert left(two, "full") == ["step_00000002", "step_00000004"]


def test_folders_that_are_not_shared_are_refused_and_leave_nothing(two: Path) -> None:
    first, second = told(two, "local_disks")
    assert first == second
    assert "shard-00002-model-00001-of-00001.safetensors of process 1 is not there" in first
    assert "the run folder has to be shared by all machines" in first
    assert left(two, "machine_0") == left(two, "machine_1") == []


@pytest.mark.parametrize(("case", "why"), [("no_place", "File exists"), ("no_name", "Directory not empty (process 0)")])
def test_what_only_the_first_process_meets_is_told_to_both(two: Path, case: str, why: str) -> None:
    first, second = told(two, case)
    assert first == second
    assert first.startswith("OutputError: ")
    assert first.endswith(why)
    assert f"cannot write {two / case}" in first
    assert "step_00000002" in left(two, case)


def remove(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    os.truncate(file, 1000)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def copy_beside(file: Path) -> None:
    shutil.copy(file, file.with_name("shard-00003-model-00001-of-00001.safetensors"))


def forget_state(file: Path) -> None:
    (file.parent / "state.json").unlink()


def tear_state(file: Path) -> None:
    os.truncate(file.parent / "state.json", 100)


def unlist(file: Path) -> None:
    state = json.loads((file.parent / "state.json").read_text())
    del state["files"]
    (file.parent / "state.json").write_text(json.dumps(state))


def hide_a_part(file: Path) -> None:
    """As a writer would that lost a file before it counted them."""
    state = json.loads((file.parent / "state.json").read_text())
    del state["files"][file.name]
    (file.parent / "state.json").write_text(json.dumps(state))
    file.unlink()


@pytest.mark.parametrize(
    ("harm", "number", "why"),
    [
        (remove, 0, "shard-00001-model-00001-of-00001.safetensors is missing"),
        (remove, 1, "shard-00002-model-00001-of-00001.safetensors is missing"),
        (cut, 1, "has 1000 bytes of"),
        (flip, 0, "the content of shard-00001-model-00001-of-00001.safetensors is not what was written"),
        (copy_beside, 0, "shard-00003-model-00001-of-00001.safetensors is no file of it"),
        (forget_state, 0, "state.json is missing"),
        (tear_state, 0, "state.json is torn"),
        (unlist, 0, "does not list its files: another version of eosin wrote it"),
        (hide_a_part, 0, "are missing or there twice"),
    ],
)
def test_nothing_is_read_from_a_checkpoint_that_is_not_whole(
    harm: Callable[[Path], None], number: int, why: str, two: Path, tmp_path: Path
) -> None:
    shutil.copytree(two / "good", tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    shutil.copytree(run.checkpoint(2), run.checkpoint(4))
    harm(sorted(run.checkpoint(4).glob("*.safetensors"))[number])
    recipe = load_recipe("quickstart", TINY)[0]
    networks = Networks(recipe)
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    for read in (
        lambda: load_checkpoint(run, 4, networks, make_optimizer(recipe, networks)),
        lambda: load_networks(run.checkpoint(4), networks),
        lambda: load_encoder_state(run),
        lambda: average_encoder_state(run, 2),
    ):
        with pytest.raises(ResumeError, match=why) as refused:
            read()
        assert harm is unlist or "go on from the one before, step_00000002" in str(refused.value)
    after = networks.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    load_checkpoint(run, 2, networks, make_optimizer(recipe, networks))


def test_a_run_with_a_damaged_checkpoint_is_neither_exported_nor_started_from(
    tiles_folder: Path, tmp_path: Path, recipe: Recipe
) -> None:
    words = {"tiles": [str(tiles_folder)], "mpp": 0.5, "set": [*TINY, "run.steps=4"], "device": "cpu"}
    run = train("quickstart", tmp_path / "run", **words)
    (file,) = run.checkpoint(4).glob("*.safetensors")
    flip(file)
    for read in (
        lambda: train("quickstart", run.root, **words),
        lambda: export_run(run.root, tmp_path / "model"),
        lambda: start_networks(Networks(recipe), str(run.root)),
    ):
        with pytest.raises(ResumeError, match=r"the content of .* is not what was written"):
            read()
    assert not (tmp_path / "model").exists()
    shutil.rmtree(run.checkpoint(4))  # as it was advised
    train("quickstart", run.root, **words)
    assert run.steps() == [2, 4]
    changed = run.recipe.read_text().replace("width: !U 24", "width: !U 48")
    run.recipe.write_text(changed)
    with pytest.raises(ResumeError, match="do not fit its recipe"):
        export_run(run.root, tmp_path / "model")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_one_line_and_earlier_checkpoints_stay(small_disk: Path, recipe: Recipe) -> None:
    run = RunFolder(small_disk / "run")
    networks = Networks(recipe)
    optimizer = make_optimizer(recipe, networks)
    step = 0
    with CheckpointWriter(run, networks, optimizer) as writer:
        with pytest.raises(OutputError, match=r"step_\d+: No space left on device$"):
            for step in range(1, 20):
                writer.start(step, {}, 99, None)
                writer.finish()
        assert run.steps() == list(range(1, step))
        assert step > 2
        assert len(list(run.checkpoints.iterdir())) == step - 1
        shutil.rmtree(run.checkpoint(1))
        writer.start(step, {}, 99, None)
        writer.finish()
    own = training_state(networks, optimizer)
    assert load_checkpoint(run, step, networks, optimizer)["step"] == step
    assert all(torch.equal(value, own[name]) for name, value in training_state(networks, optimizer).items())


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for name in (".step_00000004.tmp", ".step_00000002.old", "step_00000002"):
        (run.checkpoints / name).mkdir(parents=True)
    remove_torn_checkpoints(run)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_00000002"]


def test_cover_is_what_counting_every_element_says() -> None:
    generator = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(3000):
        shape = tuple(int(n) for n in generator.integers(1, 4, generator.integers(0, 4)))
        boxes = []
        for _ in range(generator.integers(1, 5)):
            first = [int(generator.integers(0, n)) for n in shape]
            boxes.append(tuple((a, int(generator.integers(a, n)) + 1) for a, n in zip(first, shape, strict=True)))
        counted = np.zeros(shape, int)
        for box in boxes:
            counted[tuple(slice(*edge) for edge in box)] += 1
        boxes.append(tuple((0, 0) for _ in shape) if shape else boxes.pop())  # a process that holds none of it
        assert _is_covered(shape, boxes) == bool((counted == 1).all()), (shape, boxes)
        seen[bool((counted == 1).all())] += 1
    assert min(seen.values()) > 100
