"""From a curriculum run to a pyramid in a folder: stage 1 as any encoder, stages 2 and 3 and the heads beside it.

Where slide labels were learned, the student is exported: they teach it, and stage 3 and the heads have no teacher. In a
checkpoint of step 1, before that, it is stages 1 and 2 of the teacher, as of every run that learns by DINO alone; stage
3 is as it was drawn. LoRA is merged. The tasks and patients that were learned from go with it, so that an evaluation on
them can be flagged.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from eosin import __version__
from eosin.errors import OutputError, ResumeError, WeightsError
from eosin.features import export_model
from eosin.features.pyramid_file import write_pyramid
from eosin.files import atomic_folder, write_text
from eosin.models.exported import CONFIG_FILE, read_export
from eosin.models.slide_task import SlideTask
from eosin.training.checkpoint import load_networks
from eosin.training.curriculum.lora import merged
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.lineage import joined
from eosin.training.prepare import open_run


def export_pyramid(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, step: int | None = None, student: bool = False
) -> Path:
    """Write the pyramid of a checkpoint (the newest without `step`) into the folder `out`; returns it.

    student: also where no label was learned yet. Raises ResumeError where the run has no such checkpoint or is no
    curriculum, OutputError for a folder that holds something else.
    """
    folder, recipe, identity = open_run(run)
    if not isinstance(recipe, CurriculumRecipe):
        raise ResumeError(f"{folder.root} is no run of a curriculum: it has no pyramid")
    steps = folder.steps()
    if not steps or (step is not None and step not in steps):
        held = f"there are {', '.join(map(str, steps))}" if steps else "it holds none yet"
        raise ResumeError(f"{folder.root} has no checkpoint of step {step if step is not None else 'any'}; {held}")
    taken = steps[-1] if step is None else step
    tasks = [SlideTask.from_dict(task) for task in identity.get("slide_tasks", [])]
    networks = CurriculumNetworks(recipe, tasks)
    load_networks(folder.checkpoint(taken), networks)
    chosen = networks.student if student or learned_labels(recipe, taken) else networks.teacher
    pyramid = networks.student.pyramid
    if chosen is networks.teacher:
        pyramid.region.load_state_dict(chosen.region.state_dict())
    out = Path(out)
    _refuse_foreign(out)
    with atomic_folder(out) as temporary:
        stage1 = temporary / "stage1"
        export_model(
            merged(chosen.encoder),
            stage1,
            input_size=recipe.pyramid.tile_px,
            mean=recipe.views.mean,
            std=recipe.views.std,
            pooling="cls",
            info=_info(recipe, identity, taken),
        )
        for file in stage1.iterdir():
            os.replace(file, temporary / file.name)
        stage1.rmdir()
        values = recipe.pyramid
        write_pyramid(
            temporary,
            pyramid,
            {
                "config": recipe.stages,
                "tasks": [task.to_dict() for task in tasks],
                "centre": identity.get("centre", {}),
                "mpp": values.mpp,
                "size_px": values.size_px,
                "min_foreground": values.min_foreground,
            },
        )
        config = json.loads((temporary / CONFIG_FILE).read_text())
        write_text(temporary / "README.md", _card(out.name, recipe, identity, tasks, config["eosin"], pyramid))
    return out


def learned_labels(recipe: CurriculumRecipe, step: int) -> bool:
    """Whether slide labels had been learned from by optimiser step `step`."""
    return step > recipe.run.steps and recipe.step2.slide_weight > 0


def _info(recipe: CurriculumRecipe, identity: dict[str, Any], step: int) -> dict[str, Any]:
    before = identity.get("start_seen", {})
    licence = "none needed: trained from random weights" if recipe.start == "random" else before.get("licence")
    own_tasks = identity.get("tasks", []) if learned_labels(recipe, step) else []
    own = {"tasks": own_tasks, "patients": identity["patients"], "slides": identity.get("slides") or []}
    seen = joined(before, own)
    info = {
        "name": recipe.name,
        "recipe": recipe.name,
        "recipe_hash": identity["recipe_hash"],
        "cohort_hash": " ".join(identity["cohort_hash"]),
        "data": "; ".join(identity["data"]),
        "training": {name: seen[name] for name in ("tasks", "patients", "slides")},
        "mpp": recipe.pyramid.mpp,
        "steps": step,
        "tiles": step * recipe.run.batch,
        "start": recipe.start,
    }
    return info | ({"start_licence": licence} if licence else {})


def _refuse_foreign(folder: Path) -> None:
    """An export replaces the whole folder, so it must be a new one, an empty one, or an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot export to {folder}: it is a file")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            ours = read_export(folder) is not None
        except WeightsError:
            ours = False
        if not ours:
            raise OutputError(f"cannot export to {folder}: it holds other files; give a new folder")


def _millions(module: torch.nn.Module) -> float:
    """Millions of weights."""
    return sum(weight.numel() for weight in module.parameters()) / 1e6


_CARD = """---
library_name: eosin
tags: [pathology, histology, whole-slide, eosin]
---

# {name}

A pyramid of three encoders for whole H&E slides, trained end to end by eosin {version}: tiles of {tile} px at {mpp:g}
µm/px (stage 1, {m1:.1f} M parameters), regions of {side} x {side} tiles (stage 2, {m2:.1f} M), the slide (stage 3,
{m3:.1f} M).

| | |
|---|---|
| recipe | {recipe} (hash {recipe_hash}), after {steps} optimiser steps, the first {first} of them without labels |
| started from | {start} |
| cohort | {data} |
| learned from labels of | {tasks} |
| patients | {patients}; {held} more were held out |
| pixels | mean {mean}, std {std} |
| model hash | {model_hash} (stage 1) |

## Use

```
eosin embed FOLDER cohort.parquet --stage slide -o slides/     # one vector a slide: slides.parquet
eosin embed FOLDER cohort.parquet --stage tile -o features/    # stage 1 alone, for eosin mil (early exit)
```

`eosin.load_model("FOLDER")` is stage 1; `eosin.features.pyramid_file.load_pyramid("FOLDER")` is all of it.

## Intended use

Research only. Not a medical device; not for diagnosis or any decision about a patient. It has learned from the labels
above: its vectors must not be judged on those labels of those patients, and `eosin mil` says so where they are.
"""


def _card(
    name: str,
    recipe: CurriculumRecipe,
    identity: dict[str, Any],
    tasks: list[SlideTask],
    block: dict[str, Any],
    pyramid: Any,
) -> str:
    told = [f"{task.name} ({task.kind}{': ' + ', '.join(task.classes) if task.classes else ''})" for task in tasks]
    before = [f"{name} (what it started from)" for name in identity.get("start_seen", {}).get("tasks", [])]
    learned = [*(told if learned_labels(recipe, block["steps"]) else []), *before]
    return _CARD.format(
        name=name,
        version=__version__,
        tile=recipe.pyramid.size_px,
        mpp=recipe.pyramid.mpp,
        side=recipe.pyramid.side,
        m1=_millions(pyramid.tile),
        m2=_millions(pyramid.region),
        m3=_millions(pyramid.slide),
        recipe=recipe.name,
        recipe_hash=identity["recipe_hash"],
        steps=block["steps"],
        first=min(recipe.run.steps, block["steps"]),
        start=recipe.start,
        data="; ".join(identity["data"]),
        tasks="; ".join(learned) or "nothing",
        patients=len(block["training"]["patients"]),
        held=len(identity.get("held_out", [])),
        mean=list(recipe.views.mean),
        std=list(recipe.views.std),
        model_hash=block["model_hash"],
    )
