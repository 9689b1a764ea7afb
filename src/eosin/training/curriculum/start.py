"""Where stage 1 of a curriculum starts: random weights, any ViT of the zoo or of timm, a file, our export, an SSL run.

Stages 2 and 3 and all heads start from random weights. `encoder: start` in a recipe takes the encoder's settings, its
mean and its std from there too, so that a lab adapts a published encoder without writing down what it is made of.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eosin.errors import RecipeError, WeightsError
from eosin.models import EncoderConfig, ViT, open_start
from eosin.models.exported import read_export
from eosin.models.weights import load_encoder
from eosin.models.zoo import find_entry
from eosin.runs import RunFolder
from eosin.training.checkpoint import load_encoder_state

DROP_PATH = 0.1
"""Of an encoder that is taken over (`encoder: start`): the sample form, the same rate in all layers."""


def settled(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe with `encoder: start` replaced by settings; others as they are.

    Raises RecipeError where `start` names nothing that tells its settings, and WeightsError from opening it.
    """
    if values.get("encoder") != "start":
        return values
    start = str(values.get("start", "random"))
    try:
        config, pixels = _told_by(start)
    except WeightsError as error:
        if Path(start).expanduser().exists():
            raise
        raise WeightsError(f"{error}; a run that has begun goes on without it: eosin train RUN/recipe.yaml") from error
    if config is None:
        raise RecipeError(f"encoder: start, but {start!r} does not tell its settings; write them out under encoder")
    encoder = {
        **config.model_dump(),
        "drop_path": DROP_PATH,
        "drop_path_form": "sample",
        "drop_path_law": "uniform",
    }
    return {**values, "encoder": encoder, "views": {**values.get("views", {}), **pixels}}


def _told_by(start: str) -> tuple[EncoderConfig | None, dict[str, Any]]:
    """Settings of the encoder that `start` names, and mean and std of its pixels where they are known."""
    path = Path(start).expanduser()
    if (path / "identity.json").is_file():
        from eosin.training.prepare import open_run

        recipe = open_run(path)[1]
        return recipe.encoder, {"mean": recipe.views.mean, "std": recipe.views.std}
    if path.is_dir() and (path / "config.json").is_file() and (block := read_export(path)) is not None:
        return block.encoder, {"mean": block.mean, "std": block.std}
    if not path.exists() and (entry := find_entry(start)) is not None:
        return entry.encoder, {"mean": entry.mean, "std": entry.std}
    if start == "random":
        return None, {}
    return open_start(start).config, {}


def start_stage1(vit: ViT, start: str) -> str:
    """Put the weights that `start` names into stage 1; returns a line about them.

    Raises WeightsError, ResumeError, one line; `vit` is unchanged then.
    """
    path = Path(start).expanduser()
    if (path / "identity.json").is_file():
        step, state = load_encoder_state(RunFolder(path))
        if not state:
            raise WeightsError(f"{start} is a run of a curriculum: `eosin export {start} -o DIR`, and start from DIR")
        report = load_encoder(vit, state, "eosin", f"{start}, step {step}")
        return f"start: stage 1 from the teacher of {start}, step {step}: {report}"
    return f"start: stage 1 from {start}: {open_start(start).load_into(vit)}"
