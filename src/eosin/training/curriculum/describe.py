"""What a curriculum run would be, for `eosin train --dry-run`: stages, steps, tasks, the largest slide."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eosin.slides import Cohort
from eosin.training.curriculum import curriculum_of
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.curriculum.run import Curriculum

Line = tuple[str, str]


def curriculum_lines(recipe: CurriculumRecipe, cohorts: Sequence[Cohort]) -> list[Line]:
    """Label and value of each line; without cohorts the recipe alone. Raises what the run would before it begins."""
    with torch.device("meta"):
        student = CurriculumNetworks(recipe, ()).student
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in student.pyramid.stages.items()}
    one, two = recipe.step1, recipe.step2
    lines = [
        ("recipe", f"{recipe.name} ({recipe.hash})"),
        ("start", recipe.start + (f", LoRA of rank {recipe.lora.rank}" if recipe.lora.rank else "")),
        ("parameters", ", ".join(f"{name} {count:,.1f} M" for name, count in millions.items() if name != "heads")),
        ("step 1", f"{recipe.run.steps:,} x ({recipe.run.batch} tiles, {one.regions.count} regions)"),
    ]
    if not cohorts:
        return [*lines, ("step 2", f"{two.passes:g} passes over the labelled slides, {two.slides} a step")]
    method = curriculum_of(recipe, cohorts)
    if method.order is not None:
        size = f"{method.order.a_step} slides, {recipe.run.batch} tiles, {two.regions.count} regions"
        lines.append(("step 2", f"{method.order.steps:,} x ({size})"))
    lines += [("", line) for line in method.told]
    return [*lines, *_about_slides(recipe, method)]


def _about_slides(recipe: CurriculumRecipe, method: Curriculum) -> list[Line]:
    held = int((~method.learned).sum())
    lines = [("slides", f"{int(method.learned.sum())} to learn from, {held} held out")]
    if method.order is None:
        return lines
    tiles, name = max((len(method.slides.grid(int(n))), method.slides.names[int(n)]) for n in method.order.numbers)
    memory = 2 * 4 * recipe.encoder.width * tiles / 1e6
    return [*lines, ("largest slide", f"{name}: {tiles:,} tiles; their vectors and gradients take {memory:,.0f} MB")]
