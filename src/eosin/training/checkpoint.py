"""Checkpoints: everything a run needs to go on exactly, on any number of processes; read without running any pickle.

A checkpoint is a folder: safetensors files written by torch.distributed.checkpoint, each process its part, and
state.json (step, identity), which is written last. Files are written while training goes on, into a folder that gets
its name only when it is complete. Knows nothing of the step.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from eosin.distributed import World, checkpoint_group
from eosin.errors import EosinError, OutputError, ResumeError, TrainingStopped
from eosin.files import write_json
from eosin.runs import RunFolder
from eosin.training.networks import Networks

NETWORKS, OPTIMIZER = "networks.", "optimizer."
STEPS = f"{OPTIMIZER}steps"

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is no mistake


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, in the background."""

    def __init__(self, run: RunFolder, networks: Networks, optimizer: torch.optim.Optimizer) -> None:
        self._run, self._networks, self._optimizer = run, networks, optimizer
        self._world = World.here()
        self._writing: Future[Any] | None = None
        self._then: Callable[[], None] = lambda: None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """A run that stops itself completes what it began to write; all processes stop alike then."""
        if isinstance(error, TrainingStopped):
            self.finish()

    def start(self, step: int, state: dict[str, Any], keep_last: int, keep_every: int | None) -> None:
        """Copy the state after `step` steps and begin to write it; older checkpoints go when it is complete.

        Waits for the checkpoint before it. Raises OutputError (disk full …); earlier checkpoints stay.
        """
        self.finish()
        folder = self._run.checkpoint(step)
        temporary = folder.with_name(f".{folder.name}.tmp")
        if self._world.is_first:
            _made_empty(temporary)
        self._world.barrier()

        def complete() -> None:
            if self._world.is_first:
                write_json(temporary / "state.json", {"step": step, **state})
                _replace(temporary, folder)
                prune_checkpoints(self._run, keep_last, keep_every)

        self._then = complete
        with _one_line(folder):
            self._writing = dcp.async_save(
                training_state(self._networks, self._optimizer),
                storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
                process_group=checkpoint_group(),
                no_dist=self._world.size == 1,
            )

    def poll(self) -> None:
        """Complete the checkpoint that is being written, if its files are there."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is complete. Raises OutputError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with _one_line(self._run.checkpoints):
                writing.result()
                self._then()


class _one_line:
    """Turns what torch, safetensors and the disk raise into OutputError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EosinError):
            raise OutputError(f"cannot write {self._path}: {_line(error)}") from error


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
    folder = run.checkpoint(step)
    state = training_state(networks, optimizer)
    _read_into(state, folder)
    for count, (_, parameter) in zip(state[STEPS].unbind(), _learning(networks), strict=True):
        optimizer.state[parameter]["step"].copy_(count)
    try:
        told: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return told


def load_networks(folder: Path, networks: Networks) -> None:
    """Student, teacher and centers of a checkpoint into `networks`; the optimiser starts anew. Raises ResumeError."""
    state = {f"{NETWORKS}{name}": value for name, value in networks.state_dict().items()}
    _read_into(state, folder, part=NETWORKS, advice="start from a run of the same encoder and heads")


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
    folder = run.checkpoint(chosen)
    held = _tensors_in(folder)
    state = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in held.items() if name.startswith(prefix)}
    _read_into(state, folder, part=prefix, alone=True)
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
    folder: Path,
    part: str = "",
    alone: bool = False,
    advice: str = "give another -o or --fresh",
) -> None:
    """Fill the tensors of `state` from those of a checkpoint whose names begin with `part`.

    alone: read in this process only. advice: for the line of ResumeError where names or shapes differ.
    """
    held = {name: shape for name, (shape, _) in _tensors_in(folder).items() if name.startswith(part)}
    if held != {name: tuple(value.shape) for name, value in state.items()}:
        different = sorted(set(held) ^ set(state)) or [n for n in held if held[n] != tuple(state[n].shape)]
        raise ResumeError(f"{folder} does not fit this recipe's networks ({different[0]}); {advice}")
    try:
        dcp.load(
            state,
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=None if alone else checkpoint_group(),
            no_dist=alone or World.here().size == 1,
        )
    except Exception as error:  # torch and safetensors raise many kinds; the user needs one line
        raise _unreadable(folder, error) from error


def _tensors_in(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name → (whole shape, dtype) of what a checkpoint holds, from its files' headers."""
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception as error:  # torch and safetensors raise many kinds; the user needs one line
        raise _unreadable(folder, error) from error
    return {name: (tuple(told.size), told.properties.dtype) for name, told in metadata.state_dict_metadata.items()}


def _unreadable(folder: Path, error: BaseException) -> ResumeError:
    return ResumeError(f"{folder} is damaged ({_line(error)}); move it away to go on from an earlier checkpoint")


def _line(error: BaseException) -> str:
    """The last line that says something: torch wraps what went wrong into pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _made_empty(folder: Path) -> None:
    with _one_line(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Give a complete checkpoint its name."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def prune_checkpoints(run: RunFolder, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and those at multiples of `keep_every`."""
    for step in run.steps()[:-keep_last]:
        if keep_every is None or step % keep_every:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def remove_torn_checkpoints(run: RunFolder) -> None:
    """Remove what a killed save left behind: it never became a checkpoint."""
    for pattern in (".step_*.tmp", ".step_*.old"):
        for folder in run.checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
