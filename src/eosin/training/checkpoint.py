"""Checkpoints: everything a run needs to go on exactly, written atomically, read without running any pickle.

A checkpoint is a folder: networks.safetensors (student, teacher, centers), optimizer.pt (tensors and numbers only),
state.json (step, identity). Knows nothing of the step.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eosin.errors import OutputError, ResumeError
from eosin.files import atomic_folder, write_json
from eosin.runs import RunFolder
from eosin.training.networks import Networks


def save_checkpoint(
    run: RunFolder, step: int, networks: Networks, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write the state after `step` optimiser steps. Raises OutputError (disk full …); earlier checkpoints stay."""
    folder = run.checkpoint(step)
    weights = {name: value.contiguous() for name, value in networks.state_dict().items()}
    try:
        with atomic_folder(folder) as temporary:
            save_file(weights, temporary / "networks.safetensors")
            torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
            write_json(temporary / "state.json", {"step": step, **state})
    except (SafetensorError, RuntimeError) as error:  # what the two libraries make of a full disk
        raise OutputError(f"cannot write {folder}: {_line(error)}") from error
    return folder


def load_checkpoint(run: RunFolder, step: int, networks: Networks, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring networks and optimiser to the state after `step` steps; returns state.json. Raises ResumeError."""
    folder = run.checkpoint(step)
    weights = _read_weights(folder)
    expected = {name: value.shape for name, value in networks.state_dict().items()}
    if expected != {name: value.shape for name, value in weights.items()}:
        raise ResumeError(f"{folder} does not fit this recipe's networks; give another -o, or --fresh to start anew")
    networks.load_state_dict(weights)
    try:
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except Exception as error:  # torch raises many kinds; the user needs one line
        raise _unreadable(folder, error) from error
    return state


def _read_weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / "networks.safetensors")
    except (SafetensorError, OSError) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> ResumeError:
    return ResumeError(f"{folder} is damaged ({_line(error)}); move it away to go on from an earlier checkpoint")


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
    prefix = f"{'student' if student else 'teacher'}.encoder."
    state = _read_weights(run.checkpoint(chosen))
    return chosen, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


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
