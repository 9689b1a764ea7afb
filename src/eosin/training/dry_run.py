"""`eosin train --dry-run`: everything a run would check, and what it would do and cost, without writing anything."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.errors import RecipeError
from eosin.optim import make_schedules
from eosin.tiles import FolderSource, SlideSource, TilePlan
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.estimate import (
    Flops,
    Memory,
    Precision,
    assumed_mfu,
    encoder_name,
    flops_of,
    hours,
    memory_of,
    parameters_of,
)
from eosin.training.gpus import Gpu, gpu_called, gpu_here
from eosin.training.parallel import BYTES_A_PARAMETER, SHARD_BYTES_SHARE, check_split
from eosin.training.recipe import Recipe, load_recipe
from eosin.training.train import read_cohorts, tile_plan

ROOM = 0.9
"""Share of a GPU's memory that a step may be estimated to take; the rest is the kernels' and the allocator's."""


def describe(
    recipe: str,
    cohort: Sequence[str] = (),
    tiles: Sequence[str] = (),
    mpp: float | None = None,
    where: str | None = None,
    changes: Sequence[str] = (),
    gpu: str | None = None,
    gpus: int = 1,
) -> str:
    """What the run would be, aligned lines of label and value.

    gpu, gpus: the GPUs to reckon with, by name (`gpus.GPUS`) and number; else this machine's. Without cohort and tiles
    the recipe alone is described. Raises what the run itself would raise before its first step.
    """
    chosen, _ = load_recipe(recipe, list(changes))
    if gpus < 1:
        raise RecipeError(f"--gpus {gpus}: give 1 or more")
    check_split(chosen, gpus)
    if isinstance(chosen, CurriculumRecipe):
        from eosin.training.curriculum.describe import curriculum_lines

        lines = curriculum_lines(chosen, [loaded for loaded, _ in read_cohorts(cohort, where)], gpu, gpus)
    else:
        lines = [*_about_recipe(chosen), *_about_cost(chosen, gpu, gpus)]
    if cohort or tiles or mpp is not None or where:
        lines += _about_tiles(tile_plan(chosen, cohort, tiles, mpp, where))
    else:
        lines.append(("slides", "none given: tiles not checked"))
    return "\n".join(f"{label:13s} {value}" for label, value in lines)


def _about_recipe(recipe: Recipe) -> list[tuple[str, str]]:
    run, views, parameters = recipe.run, recipe.views, parameters_of(recipe)
    schedules = make_schedules(recipe.optim, run.steps, run.batch)
    start = "a trained run, not given yet: --set start=RUN" if recipe.start == "parent" else recipe.start
    crops = f"{views.global_count} x {views.global_px} px"
    if views.local_count:
        crops += f" and {views.local_count} x {views.local_px} px"
    counts = f"encoder {parameters.encoder / 1e6:,.1f} M, heads {parameters.heads / 1e6:,.1f} M"
    limit = f", or what fits into {run.minutes:g} minutes" if run.minutes else ""
    return [
        ("recipe", f"{recipe.name} ({recipe.hash})"),
        ("start", start),
        ("network", f"{encoder_name(recipe.encoder)}, crops {crops}"),
        ("parameters", f"{counts}; with the teacher {2 * parameters.student / 1e6:,.1f} M"),
        ("steps", f"{run.steps:,} of {run.batch:,} tiles = {_count(run.steps * run.batch)} tiles{limit}"),
        ("learning rate", f"{schedules.lr.max():.3g} at its peak"),
    ]


def _count(tiles: int) -> str:
    return f"{tiles:,}" if tiles < 1e6 else f"{tiles / 1e6:.3g} million"


def _about_cost(recipe: Recipe, name: str | None, gpus: int) -> list[tuple[str, str]]:
    parallel = recipe.parallel
    here = None if name else gpu_here()
    gpu = gpu_called(name) if name else here[1] if here else None
    flops = flops_of(recipe, parallel.accumulate, parallel.recompute)
    again = f", {_giga(flops.repeated)} done again" if flops.repeated else ""
    work = f"{_giga(flops.total)}, {_giga(flops.executed)} of it executed after drop path{again}"
    fast: Precision = "bf16" if name or here else "fp32"
    precision = fast if recipe.run.precision == "auto" else recipe.run.precision
    memory = _memory(recipe, gpus, parallel.accumulate, gpu, precision)
    lines = [("FLOPs a tile", work), *_about_memory(recipe, memory, gpus, precision)]
    if gpu is None:
        why = f"{here[0]} is not in eosin's table" if here else "not guessed on a CPU"
        return [*lines, ("time", f"{why}; name a GPU: --gpu H100 --gpus 8")]
    if memory.total > ROOM * gpu.memory_gb * 1e9:
        lines.append(
            ("", f"too much for the {gpu.memory_gb:.0f} GB of {gpu.name}: {_advice(recipe, gpus, gpu, precision)}")
        )
    return [*lines, *_about_time(recipe, flops, gpu, gpus, precision)]


def _memory(recipe: Recipe, gpus: int, accumulate: int, gpu: Gpu | None, precision: Precision) -> Memory:
    kind, sharded = recipe.parallel.strategy, False
    if gpus > 1:
        states = BYTES_A_PARAMETER * parameters_of(recipe).student
        sharded = kind == "fsdp" or (
            kind == "auto" and gpu is not None and states > SHARD_BYTES_SHARE * gpu.memory_gb * 1e9
        )
    return memory_of(recipe, gpus, accumulate, recipe.parallel.recompute, sharded, precision)


def _about_memory(recipe: Recipe, memory: Memory, gpus: int, precision: str) -> list[tuple[str, str]]:
    parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in vars(memory).items())
    tiles = recipe.run.batch // gpus // recipe.parallel.accumulate
    times = f" {recipe.parallel.accumulate} times" if recipe.parallel.accumulate > 1 else ""
    return [("memory", f"{memory.total / 1e9:.1f} GB a process for {tiles} tiles{times}, in {precision}"), ("", parts)]


def _advice(recipe: Recipe, gpus: int, gpu: Gpu, precision: Precision) -> str:
    """The fewest micro-batches with which the step fits, as a setting to give."""
    share = recipe.run.batch // (gpus * recipe.run.group)
    for count in (n for n in range(recipe.parallel.accumulate + 1, share + 1) if share % n == 0):
        memory = _memory(recipe, gpus, count, gpu, precision)
        if memory.total <= ROOM * gpu.memory_gb * 1e9:
            return f"--set parallel.accumulate={count} takes {memory.total / 1e9:.1f} GB"
    return "more GPUs, --set parallel.recompute=full or --set parallel.strategy=fsdp take less"


def _about_time(recipe: Recipe, flops: Flops, gpu: Gpu, gpus: int, precision: str) -> list[tuple[str, str]]:
    if precision != "bf16":
        return [("time", f"not estimated in {precision}: the peak of {gpu.name} is known for bf16")]
    mfu = assumed_mfu(recipe.encoder)
    needed = hours(recipe, flops, gpu.tflops * 1e12, gpus, mfu)
    rate = recipe.run.steps * recipe.run.batch / needed / 3600
    assumed = f"assumed, not measured: {mfu:.0%} MFU of {gpu.tflops:g} TFLOP/s (dense bf16), and slides read as fast"
    return [("time", f"{duration(needed)} on {gpus} x {gpu.name} at {rate:,.0f} tiles/s"), ("", assumed)]


def duration(needed: float) -> str:
    if needed < 2:
        return f"{needed * 60:.0f} minutes"
    return f"{needed:.0f} h" if needed < 72 else f"{needed / 24:.1f} days"


def _giga(flops: float) -> str:
    return f"{flops / 1e9:,.0f} GF" if flops >= 1e11 else f"{flops / 1e9:.3g} GF"


def _about_tiles(plan: TilePlan) -> list[tuple[str, str]]:
    tile = plan.tile(0)
    lines = []
    for source, weight in zip(plan.sources, plan.weights, strict=True):
        if isinstance(source, SlideSource):
            lines.append(("slides", f"{len(source)} from {source.cohort.path}, weight {weight:g}"))
        elif isinstance(source, FolderSource):
            text = f"{len(source)} images of {source.mpp:g} µm/px from {source.where}, weight {weight:g}"
            lines.append(("tiles", text))
        lines.append(("µm/px", source.config.scales_text))
    if plan.visits_told:
        lines.append(("visits", plan.visits_told))
    at = tile.address
    return [*lines, ("first tile", f"{at.name} at ({at.x}, {at.y}), {at.mpp:g} µm/px")]
