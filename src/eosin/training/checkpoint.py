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
from safetensors.torch import load_file, save_file
from torch import Tensor

from eosin.errors import ResumeError
from eosin.files import atomic_folder, write_json
from eosin.runs import RunFolder
from eosin.training.networks import Networks


def save_checkpoint(
    run: RunFolder, step: int, networks: Networks, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write the state after `step` optimiser steps. Raises OutputError (disk full …); earlier checkpoints stay."""
    folder = run.checkpoint(step)
    with atomic_folder(folder) as temporary:
        save_file(
            {name: value.contiguous() for name, value in networks.state_dict().items()},
            temporary / "networks.safetensors",
        )
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        write_json(temporary / "state.json", {"step": step, **state})
    return folder


def load_checkpoint(run: RunFolder, step: int, networks: Networks, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Bring networks and optimiser to the state after `step` steps; returns state.json. Raises ResumeError."""
    folder = run.checkpoint(step)
    try:
        networks.load_state_dict(load_file(folder / "networks.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    except Exception as error:  # torch and safetensors raise many kinds; the user needs one line
        raise ResumeError(f"{folder} cannot be read ({error}); delete it to resume from an earlier one") from error
    return state


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
    state = load_file(run.checkpoint(chosen) / "networks.safetensors")
    return chosen, {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def prune_checkpoints(run: RunFolder, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and those at multiples of `keep_every`."""
    for step in run.steps()[:-keep_last]:
        if keep_every is None or step % keep_every:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)
