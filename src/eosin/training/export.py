"""From a run folder to an exported encoder, with everything it can be traced back to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from eosin.errors import ResumeError
from eosin.features import export_model
from eosin.models import ViT
from eosin.training.checkpoint import average_encoder_state, load_encoder_state
from eosin.training.lineage import joined, told_before
from eosin.training.prepare import open_run
from eosin.training.recipe import is_curriculum


def export_run(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    student: bool = False,
    average: int = 1,
    pooling: str = "cls+mean",
    scores: list[dict[str, Any]] | None = None,
) -> Path:
    """Write the teacher's encoder of a checkpoint (the newest without `step`) into the folder `out`.

    average: mean of the weights over that many newest checkpoints (Izmailov et al. 2018), in place of `step`.
    Raises ResumeError where the run has no such checkpoint, WeightsError or OutputError from the export.
    """
    folder, recipe, identity = open_run(run)
    if is_curriculum(recipe):
        from eosin.training.curriculum.export import export_pyramid

        if average > 1:
            raise ResumeError(f"{folder.root} is the run of a curriculum: no average of its checkpoints is taken")
        return export_pyramid(run, out, step=step, student=student)
    if average > 1:
        if step is not None:
            raise ResumeError("a step and an average of the newest checkpoints exclude each other; give one")
        steps, state = average_encoder_state(folder, average, student)
    else:
        taken, state = load_encoder_state(folder, step, student)
        steps = [taken]
    vit = ViT(recipe.encoder)
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        raise ResumeError(f"the checkpoints of {folder.root} do not fit its recipe.yaml; has that changed?") from error
    scales, slides = recipe.tiles.mpp, identity.get("slides") or []
    before = told_before(identity, recipe.start)
    training = joined(before, {"patients": identity["patients"], "slides": slides})
    info: dict[str, Any] = {
        "name": recipe.name,
        "recipe": recipe.name,
        "recipe_hash": identity["recipe_hash"],
        "cohort_hash": " ".join(identity["cohort_hash"]),
        "data": "; ".join(identity["data"]),
        "training": {name: training[name] for name in ("tasks", "patients", "slides")},
        "mpp": scales if isinstance(scales, list) else [scales.low, scales.high],
        "steps": steps[-1],
        "tiles": steps[-1] * recipe.run.batch,
        "distinct_tiles": recipe.tiles.distinct_tiles,
        "patients": len(identity["patients"]),
        "start": recipe.start,
    }
    if slides:  # of tiles that others cut nobody knows the slides
        info["slides"] = len(slides)
    if average > 1:
        info["averaged_steps"] = steps
    if recipe.start == "random":
        info["start_licence"] = "none needed: trained from random weights"
    elif "licence" in before:
        info["start_licence"] = before["licence"]
    if scores:
        info["scores"] = scores
    return export_model(
        vit,
        out,
        input_size=recipe.views.global_px,
        mean=recipe.views.mean,
        std=recipe.views.std,
        pooling=pooling,
        info=info,
    )
