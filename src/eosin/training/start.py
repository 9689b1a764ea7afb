"""Where a run's networks start: random weights, someone's encoder, or the full state of another run."""

from __future__ import annotations

from pathlib import Path

from eosin.errors import RecipeError, ResumeError
from eosin.models import open_start
from eosin.runs import RunFolder
from eosin.training.checkpoint import load_networks
from eosin.training.networks import Networks


def start_networks(networks: Networks, start: str) -> str:
    """Put the weights that a recipe's `start` names into freshly made `networks`; returns a line about them.

    A run folder, or one of its checkpoints, gives encoder, heads, teacher and centers, as high-resolution
    post-training needs them; anything else gives the encoder, to student and teacher alike. Raises WeightsError,
    ResumeError or RecipeError, one line.
    """
    if start == "random":
        return "start: random weights"
    if start == "parent":
        raise RecipeError("this recipe goes on from a trained run: give it with --set start=RUN (its folder)")
    if (folder := _checkpoint_at(Path(start))) is not None:
        load_networks(folder, networks)
        return f"start: full state of {folder}"
    report = open_start(start).load_into(networks.student.encoder)
    networks.teacher.encoder.load_state_dict(networks.student.encoder.state_dict())
    return f"start: {start}: {report}"


def _checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that `path` means: itself, or the newest of a run folder; None for anything else."""
    if (path / "state.json").is_file():
        return path
    if not (path / "identity.json").is_file():
        return None
    run = RunFolder(path)
    if not run.steps():
        raise ResumeError(f"{path} holds no checkpoint yet")
    return run.checkpoint(run.steps()[-1])
