"""Whole training steps at full size: draws, views, step. Images a second, MFU, memory, and where the time goes.

Random uint8 tiles lie ready on the host, so reading is outside; everything from there to the teacher's average is
inside. Each model runs in a process of its own, its variants one after another; a variant that fails is a row with its
error, and one that takes the process with it is a row too.

    python -m benchmarks.gpu.steps MODEL ROWS DEVICE SIZE VARIANT…       (one model, by the proof itself)
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.gpu.child import one_line, run_child
from benchmarks.gpu.settings import TINY, VARIANTS, Settings
from benchmarks.gpu.timing import Mark, between, mark, wait_for

from eosin.files import finite
from eosin.optim import make_schedules
from eosin.runs import append_line, read_lines
from eosin.tiles import TileBatch
from eosin.training import Recipe, load_recipe
from eosin.training.estimate import encoder_name, flops_of, memory_of, parameters_of
from eosin.training.gpus import gpu_here
from eosin.training.networks import Networks
from eosin.training.parallel import spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import draw_step, micro_batches, pretrain_step

Weights = dict[str, torch.Tensor]
MODELS = {
    "ViT-S/14": ("vits14-1h", "run.batch=128"),
    "ViT-L/14": ("kaiko-vitl14", "run.batch=32"),
}
"""Recipe and batch: what fits into 40 GB by the estimate, plain."""
SHARES = {"ViT-S/14": 0.45, "ViT-L/14": 0.55}  # of the time
WARM_UP, WINDOWS, WINDOW_SECONDS = 4, 5, 1.0
BATCHES = 4  # different batches of tiles, in turn


def measure_steps(settings: Settings, seconds: float) -> list[dict[str, Any]]:
    """Rows of all models and variants, within about `seconds`."""
    path = settings.out / "steps.jsonl"
    path.unlink(missing_ok=True)
    deadline, left = time.perf_counter() + seconds, sum(SHARES.values())
    rows: list[dict[str, Any]] = []
    for model, share in SHARES.items():
        here = (deadline - time.perf_counter()) * share / left
        left -= share
        rows += _one_model(settings, model, path, here)
    return rows


def _one_model(settings: Settings, model: str, path: Path, seconds: float) -> list[dict[str, Any]]:
    """Runs the model's process, again where it ended early, until each variant has its row."""
    deadline = time.perf_counter() + seconds
    todo = list(settings.variants)
    failed: list[dict[str, Any]] = []
    while todo:
        size = "tiny" if settings.tiny else "full"
        words = ["-m", "benchmarks.gpu.steps", model, str(path), settings.device, size, *todo]
        ended = run_child(words, deadline - time.perf_counter(), settings.out / "steps.log")
        done = {row["variant"] for row in rows_of(model, path)}
        rest = [variant for variant in todo if variant not in done]
        if rest and (ended.timed_out or rest == todo):  # the first of them is what ended the process
            failed.append({"model": model, "variant": rest.pop(0), "error": ended.problem or "left no row"})
        todo = rest
        if ended.timed_out:
            failed += [{"model": model, "variant": variant, "error": "no time was left for it"} for variant in todo]
            break
    return sorted([*rows_of(model, path), *failed], key=lambda row: list(VARIANTS).index(row["variant"]))


def rows_of(model: str, path: Path) -> list[dict[str, Any]]:
    """The rows that the model's processes have left so far."""
    return [row for row in read_lines(path) if row["model"] == model]


def recipe_for(model: str, variant: str, tiny: bool) -> Recipe:
    """The recipe that a row runs: as shipped, from random weights, shortened so that its warm-up is over midway."""
    name, batch = MODELS[model]
    changes = [
        "start=random",
        "run.group=16",
        batch,
        "run.steps=1000",
        "optim.warmup_steps=10%",
        "optim.teacher_temperature_steps=30%",
        "optim.freeze_last_layer_steps=1%",
        *(["run.batch=8", "run.group=4", *TINY] if tiny else []),
        *VARIANTS[variant],
    ]
    return load_recipe(name, changes)[0]


class Marks(NamedTuple):
    """Where one step's work begins and ends on the device; seconds that the host took to draw."""

    begin: Mark
    rendered: Mark
    end: Mark
    drawing: float
    loss: torch.Tensor


@dataclass
class Bench:
    """A model in one variant on a device, ready to take steps."""

    recipe: Recipe
    device: torch.device
    step: Callable[[int], Marks]


def prepare(recipe: Recipe, state: Weights, device: torch.device) -> Bench:
    """Networks of weights `state` on `device`, an optimiser, and tiles in host memory."""
    with torch.device("meta"):
        networks = Networks(recipe)
    networks.to_empty(device=device).load_state_dict(state)
    parallel = spread(networks, recipe, device, recipe.run.precision)
    optimizer = make_optimizer(recipe, networks)
    values = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch).at(recipe.run.steps // 2)
    batches = random_tiles(recipe)

    def step(number: int) -> Marks:
        began = time.perf_counter()
        draws = draw_step(recipe, number)
        drawing = time.perf_counter() - began
        begin = mark(device)
        batch = micro_batches(recipe, batches[number % BATCHES], draws, parallel)
        rendered = mark(device)
        losses = pretrain_step(networks, optimizer, recipe, batch, values, parallel)
        return Marks(begin, rendered, mark(device), drawing, losses["loss"])

    return Bench(recipe, device, step)


def random_tiles(recipe: Recipe) -> list[TileBatch]:
    """Noise, as a loader would give it: other pixels in each batch."""
    generator = np.random.default_rng(0)
    count, side = recipe.run.batch, recipe.tiles.size_px
    found = []
    for number in range(BATCHES):
        pixels = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        index = np.arange(number * count, (number + 1) * count)
        found.append(TileBatch(number, pixels, index, index, np.full(count, 0.5), ["noise"] * count))
    return found


def window(bench: Bench, first: int, count: int) -> tuple[float, list[Marks]]:
    """Seconds of `count` steps from the first request to the device's last work, and their marks."""
    wait_for(bench.device)
    began = time.perf_counter()
    marks = [bench.step(number) for number in range(first, first + count)]
    wait_for(bench.device)
    return time.perf_counter() - began, marks


def measure(bench: Bench, peak: float | None, tiny: bool) -> dict[str, Any]:
    """The numbers of one row: medians over windows of about a second."""
    compiled, _ = window(bench, 0, 1)
    number = 1
    seconds, marks = window(bench, number, WARM_UP)
    number += WARM_UP
    loss = float(marks[-1].loss)
    count = 1 if tiny else max(2, min(60, round(WINDOW_SECONDS * WARM_UP / seconds)))
    rates, steps, views, draws = [], [], [], []
    for _ in range(2 if tiny else WINDOWS):
        seconds, marks = window(bench, number, count)
        number += count
        rates.append(count * bench.recipe.run.batch / seconds)
        views.append(sum(between(m.begin, m.rendered) for m in marks) / count)
        steps.append(sum(between(m.rendered, m.end) for m in marks) / count)
        draws.append(sum(m.drawing for m in marks) / count)
    rate, step, view = statistics.median(rates), statistics.median(steps), statistics.median(views)
    flops = flops_of(bench.recipe).executed
    return {
        "img_s": rate,
        "img_s_range": [min(rates), max(rates)],
        "step_ms": step * 1e3,
        "views_ms": view * 1e3,
        "views_share": view / (view + step),
        "draws_ms": statistics.median(draws) * 1e3,
        "mfu": rate * flops / peak if peak else None,
        "mfu_of_step_alone": bench.recipe.run.batch / step * flops / peak if peak else None,
        "first_step_s": compiled,
        "steps": number,
        "loss_after_warm_up": loss,
        "loss_at_the_end": float(marks[-1].loss),
    }


def told_of(recipe: Recipe, model: str, variant: str) -> dict[str, Any]:
    """What a row ran."""
    estimate = memory_of(recipe, recompute=recipe.parallel.recompute)
    return {
        "model": model,
        "variant": variant,
        "recipe": recipe.name,
        "encoder": encoder_name(recipe.encoder),
        "batch": recipe.run.batch,
        "prototypes": recipe.objective.dino_prototypes,
        "precision": recipe.run.precision,
        "parameters": parameters_of(recipe).student,
        "gflops_a_tile": flops_of(recipe).executed / 1e9,
        "estimated_gb": estimate.total / 1e9,
    }


def row_of(
    model: str, variant: str, state: dict[str, torch.Tensor], device: torch.device, tiny: bool
) -> dict[str, Any]:
    """Measure one variant; what goes wrong is in `error`."""
    from torch._dynamo.utils import counters  # here, since it takes seconds to import

    recipe = recipe_for(model, variant, tiny)
    row = told_of(recipe, model, variant)
    known = gpu_here() if device.type == "cuda" else None
    peak = known[1].tflops * 1e12 if known and known[1] else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    counters.clear()
    try:
        row.update(measure(prepare(recipe, state, device), peak, tiny))
        if not np.isfinite(row["loss_at_the_end"]):
            row["error"] = f"the loss is {row['loss_at_the_end']}"
    except Exception as error:  # out of memory, no compiler …: all of them are results here
        row["error"] = one_line(error)
    if recipe.parallel.compile:
        row["graphs"] = counters["stats"]["unique_graphs"]
        row["graph_breaks"] = sum(counters["graph_break"].values())
    if device.type == "cuda":
        row["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        row["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    return row


def main(words: Sequence[str]) -> None:
    """One model: a row appended to the file ROWS for each variant, up to the first that fails."""
    model, path, device_name, size, *variants = words
    device, tiny = torch.device("cuda", 0) if device_name == "cuda" else torch.device("cpu"), size == "tiny"
    state = Networks(recipe_for(model, "plain", tiny)).state_dict()
    for variant in variants:
        row = row_of(model, variant, state, device, tiny)
        append_line(path, finite(row))
        if row.get("error"):  # the GPU may be in any state: the next variant begins in a fresh process
            return
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
