"""Checkpoints: everything a run needs to go on exactly, on any number of processes; read without running any pickle.

A checkpoint is a folder: safetensors files written by torch.distributed.checkpoint, each process its part, and
state.json (step, identity, files), which is written last. Files are written while training goes on, into a folder that
gets its name only when it is complete. Knows nothing of the step.
"""

from __future__ import annotations

import os
import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from eosin.distributed import World, checkpoint_group
from eosin.errors import OutputError, ResumeError, TrainingStopped
from eosin.files import write_json
from eosin.runs import RunFolder
from eosin.training.checkpoint_files import (
    OpenCheckpoint,
    one_line,
    open_checkpoint,
    prune_checkpoints,
    remove_torn_checkpoints,
)
from eosin.training.checkpoint_shards import ShardFile, ShardWriter
from eosin.training.networks import Networks

__all__ = [
    "CheckpointWriter",
    "average_encoder_state",
    "load_checkpoint",
    "load_encoder_state",
    "load_networks",
    "remove_torn_checkpoints",
    "training_state",
]

NETWORKS, OPTIMIZER = "networks.", "optimizer."
STEPS = f"{OPTIMIZER}steps"

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is no mistake


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in the background. All processes call it at the same steps."""

    def __init__(self, run: RunFolder, networks: Networks, optimizer: torch.optim.Optimizer) -> None:
        self._run, self._networks, self._optimizer = run, networks, optimizer
        self._world = World.here()
        self._writing: Future[Any] | None = None
        self._folder = self._temporary = run.checkpoints

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """A run that stops itself completes what it began to write; all processes stop alike then."""
        if isinstance(error, TrainingStopped):
            self.finish()

    def start(self, step: int, state: dict[str, Any], keep_last: int, keep_every: int | None) -> None:
        """Copy the state after `step` steps and begin to write it; older checkpoints go when it is complete.

        Waits for the checkpoint before it. Raises OutputError (disk full …), on all processes; earlier checkpoints
        stay.
        """
        self.finish()
        self._folder = folder = self._run.checkpoint(step)
        self._temporary = temporary = folder.with_name(f".{folder.name}.tmp")
        self._world.from_first(lambda: _make_empty(temporary))

        def complete(files: list[ShardFile]) -> None:
            told = {"step": step, **state, "files": {file.name: file.told() for file in files}}
            write_json(temporary / "state.json", told)
            _replace(temporary, folder)
            prune_checkpoints(self._run, keep_last, keep_every)

        with one_line(OutputError, f"cannot write {folder}"):
            self._writing = dcp.async_save(
                training_state(self._networks, self._optimizer),
                storage_writer=ShardWriter(temporary, complete),
                process_group=checkpoint_group(),
                no_dist=self._world.size == 1,
            )

    def poll(self) -> None:
        """Raise what went wrong with the checkpoint that is being written, on all processes at the same step."""
        if self._writing is not None and not self._world.any(not self._writing.done()):
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete. Raises OutputError, on all processes."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            with one_line(OutputError, f"cannot write {self._folder}"):
                writing.result()
        except OutputError:
            shutil.rmtree(self._temporary, ignore_errors=True)  # a full disk is no place for what never was complete
            raise


def training_state(networks: Networks, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Networks, Adam's averages and step counts as one flat state; spread tensors stay spread.

    The averages are made where the optimiser has none yet, so that a state can be loaded into them.
    """
    state = {f"{NETWORKS}{name}": value for name, value in networks.state_dict().items()}
    counts = []
    for name, parameter in _learning(networks):
        held = optimizer.state[parameter]
        if not held:
            held["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            held["exp_avg"], held["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state[f"{OPTIMIZER}{name}.exp_avg"] = held["exp_avg"]
        state[f"{OPTIMIZER}{name}.exp_avg_sq"] = held["exp_avg_sq"]
        counts.append(held["step"].reshape(()))
    state[STEPS] = torch.stack(counts).cpu()
    return state


def _learning(networks: Networks) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in networks.student.named_parameters() if p.requires_grad]


def load_checkpoint(run: RunFolder, step: int, networks: Networks, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring networks and optimiser to the state after `step` steps, from any number of processes to this one.

    Returns state.json. Raises ResumeError, and leaves both as they are where the checkpoint does not fit.
    """
    checkpoint = open_checkpoint(run.checkpoint(step), World.here())
    state = training_state(networks, optimizer)
    _read_into(state, checkpoint, World.here())
    for count, (_, parameter) in zip(state[STEPS].unbind(), _learning(networks), strict=True):
        optimizer.state[parameter]["step"].copy_(count)
    return checkpoint.state


def load_networks(folder: Path, networks: Networks) -> None:
    """Student, teacher and centers of a checkpoint into `networks`; the optimiser starts anew. Raises ResumeError."""
    state = {f"{NETWORKS}{name}": value for name, value in networks.state_dict().items()}
    checkpoint = open_checkpoint(folder, World.here())
    advice = "start from a run of the same encoder and heads"
    _read_into(state, checkpoint, World.here(), part=NETWORKS, advice=advice)


def load_encoder_state(run: RunFolder, step: int | None = None, student: bool = False) -> tuple[int, dict[str, Tensor]]:
    """Weights of the teacher's encoder (the student's on request) from a checkpoint, the newest by default.

    Returns (step, state of the ViT). Raises ResumeError where the run has no such checkpoint.
    """
    steps = run.steps()
    if not steps:
        raise ResumeError(f"{run.root} holds no checkpoint yet")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise ResumeError(f"{run.root} has no checkpoint of step {chosen}; there are {', '.join(map(str, steps))}")
    prefix = f"{NETWORKS}{'student' if student else 'teacher'}.encoder."
    checkpoint = open_checkpoint(run.checkpoint(chosen))
    held = {name: told for name, told in checkpoint.tensors.items() if name.startswith(prefix)}
    state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in held.items()}
    _read_into(state, checkpoint, World(), part=prefix)
    return chosen, {name.removeprefix(prefix): value for name, value in state.items()}


def average_encoder_state(run: RunFolder, count: int, student: bool = False) -> tuple[list[int], dict[str, Tensor]]:
    """Mean of the encoder's weights over the newest `count` checkpoints. Returns (steps, state). Raises ResumeError."""
    steps = run.steps()[-count:]
    if len(steps) < count:
        raise ResumeError(f"{run.root} holds {len(steps)} checkpoints, not {count}; see run.keep_last and keep_every")
    states = [load_encoder_state(run, step, student)[1] for step in steps]
    return steps, {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}


def _read_into(
    state: dict[str, Tensor],
    checkpoint: OpenCheckpoint,
    world: World,
    part: str = "",
    advice: str = "give another -o or --fresh",
) -> None:
    """Fill the tensors of `state` from those of a checkpoint whose names begin with `part`.

    world: the processes that read together. advice: for the line of ResumeError where names or shapes differ.
    """
    held = {name: shape for name, (shape, _) in checkpoint.tensors.items() if name.startswith(part)}
    if held != {name: tuple(value.shape) for name, value in state.items()}:
        different = sorted(set(held) ^ set(state)) or [n for n in held if held[n] != tuple(state[n].shape)]
        raise ResumeError(f"{checkpoint.folder} does not fit this recipe's networks ({different[0]}); {advice}")
    with one_line(ResumeError, f"cannot read {checkpoint.folder}"):
        dcp.load(
            state,
            storage_reader=HuggingFaceStorageReader(str(checkpoint.folder)),
            process_group=checkpoint_group() if world.size > 1 else None,
            no_dist=world.size == 1,
        )


def _make_empty(folder: Path) -> None:
    with one_line(OutputError, f"cannot write {folder}"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Give a complete checkpoint its name."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
