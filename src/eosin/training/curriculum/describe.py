"""What a curriculum run would be, for `eosin train --dry-run`: stages, steps, tasks, slides, memory and hours."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eosin.slides import Cohort
from eosin.training.curriculum import curriculum_of
from eosin.training.curriculum.cost import SlideSizes, curriculum_flops, curriculum_memory
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.curriculum.run import Curriculum
from eosin.training.curriculum.slides import SlideOrder
from eosin.training.dry_run import ROOM, duration
from eosin.training.estimate import Precision, assumed_mfu
from eosin.training.gpus import Gpu, gpu_called, gpu_here

Line = tuple[str, str]


def curriculum_lines(
    recipe: CurriculumRecipe, cohorts: Sequence[Cohort], gpu: str | None = None, gpus: int = 1
) -> list[Line]:
    """Label and value of each line; without cohorts the recipe alone. Raises what the run would before it begins.

    gpu, gpus: the GPUs to reckon with, by name and number; else this machine's.
    """
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
        lines.append(("step 2", f"{two.passes:g} passes over the labelled slides, {two.slides} a step"))
        return [*lines, *_about_cost(recipe, None, gpu, gpus)]
    method = curriculum_of(recipe, cohorts)
    if method.order is not None:
        size = f"{method.order.a_step} slides, {recipe.run.batch} tiles, {two.regions.count} regions"
        lines.append(("step 2", f"{method.order.steps:,} x ({size})"))
    lines += [("", line) for line in method.told]
    sizes = None if method.order is None else _sizes(method, method.order, recipe.pyramid.side)
    return [*lines, *_about_slides(method, sizes), *_about_cost(recipe, sizes, gpu, gpus)]


def _sizes(method: Curriculum, order: SlideOrder, side: int) -> SlideSizes:
    """Of the slides that step 2 takes."""
    grids = [method.slides.regions(int(number), side) for number in order.numbers]
    tiles, regions = [grid.tiles for grid in grids if grid], [len(grid) for grid in grids if grid]
    return SlideSizes(order.steps, order.visits, sum(tiles) / len(tiles), sum(regions) / len(regions), max(tiles))


def _about_slides(method: Curriculum, sizes: SlideSizes | None) -> list[Line]:
    held = int((~method.learned).sum())
    lines = [("slides", f"{int(method.learned.sum())} to learn from, {held} held out")]
    if sizes is None:
        return lines
    mean = f"{sizes.tiles:,.0f} tiles in {sizes.regions:,.1f} regions on average, {sizes.largest:,} on the largest"
    return [*lines, ("", f"{mean}; {sizes.visits:,} visits")]


def _about_cost(recipe: CurriculumRecipe, sizes: SlideSizes | None, name: str | None, gpus: int) -> list[Line]:
    here = None if name else gpu_here()
    gpu = gpu_called(name) if name else here[1] if here else None
    fast: Precision = "bf16" if name or here else "fp32"
    precision = fast if recipe.run.precision == "auto" else recipe.run.precision
    largest = sizes.largest if sizes else 0
    memory = curriculum_memory(recipe, gpus, recipe.parallel.accumulate, precision, largest)
    parts = f"states {memory.states / 1e9:.1f}, then DINO's batch {memory.dino_batch / 1e9:.1f}"
    parts += f" or a chunk of a slide {memory.slide_chunk / 1e9:.1f}"
    parts += f"; vectors of the largest slide {memory.vectors / 1e9:.2f}" if sizes else ""
    lines = [("memory", f"{memory.total / 1e9:.1f} GB a process, in {precision}"), ("", parts)]
    if gpu is not None and memory.total > ROOM * gpu.memory_gb * 1e9:
        advice = _advice(recipe, gpus, gpu, precision, largest)
        lines.append(("", f"too much for the {gpu.memory_gb:.0f} GB of {gpu.name}: {advice}"))
    if recipe.step2.passes and (every := recipe.step2.save_slides):
        when = "after each slide" if every == 1 else f"after {every} slides"
        lines.append(("on disk", f"{memory.saved / 1e9:.1f} GB a process {when}: step2.save_slides"))
    return [*lines, *_about_time(recipe, sizes, gpu, gpus, precision)]


def _advice(recipe: CurriculumRecipe, gpus: int, gpu: Gpu, precision: Precision, largest: int) -> str:
    """What to set so that it fits."""
    room = ROOM * gpu.memory_gb * 1e9
    share = recipe.run.batch // (gpus * recipe.run.group)
    now = curriculum_memory(recipe, gpus, recipe.parallel.accumulate, precision, largest)
    if now.states + now.slide_chunk + now.vectors > room:
        return "whole_slide.tile_chunk and region_chunk take less, and whole_slide.vectors=host"
    for count in (n for n in range(recipe.parallel.accumulate + 1, share + 1) if share % n == 0):
        memory = curriculum_memory(recipe, gpus, count, precision, largest)
        if memory.total <= room:
            return f"--set parallel.accumulate={count} takes {memory.total / 1e9:.1f} GB"
    return "a smaller run.batch and run.group take less"


def _peta(flops: float) -> str:
    if flops >= 1e17:
        return f"{flops / 1e15:,.0f} PFLOP"
    return f"{flops / 1e15:.3g} PFLOP" if flops >= 1e14 else f"{flops / 1e12:.3g} TFLOP"


def _about_time(
    recipe: CurriculumRecipe, sizes: SlideSizes | None, gpu: Gpu | None, gpus: int, precision: str
) -> list[Line]:
    flops = curriculum_flops(recipe, sizes)
    steps = {name: each for name, each in (("step 1", flops.step1), ("step 2", flops.step2)) if each}
    work = ", ".join(f"{name} {_peta(each)}" for name, each in steps.items())
    if gpu is None:
        return [("work", work), ("time", "not guessed here; name a GPU: --gpu H100 --gpus 8")]
    if precision != "bf16":
        return [("work", work), ("time", f"not estimated in {precision}: the peak of {gpu.name} is known for bf16")]
    mfu = assumed_mfu(recipe.encoder)
    rate = gpu.tflops * 1e12 * mfu * gpus * 3600
    told = ", ".join(f"{name} {duration(each / rate)}" for name, each in steps.items())
    assumed = f"assumed, not measured: {mfu:.0%} MFU of {gpu.tflops:g} TFLOP/s (dense bf16), and slides read as fast"
    return [("work", work), ("time", f"{told} on {gpus} x {gpu.name}"), ("", assumed)]
