"""What a run is before its first step: device, networks, optimiser, schedules; its identity; what it resumes.

A run folder belongs to one recipe and one tile plan. The same command again goes on where it stopped, exactly: all
randomness is keyed by the step, so a checkpoint holds weights and optimiser only.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from eosin.distributed import World
from eosin.errors import EosinError, OutputError, ResumeError
from eosin.files import write_json, write_text
from eosin.optim import Schedules
from eosin.progress import say
from eosin.provenance import versions
from eosin.runs import RunFolder
from eosin.tiles import SlideSource, TilePlan, TileStream
from eosin.tiles.slide_source import chosen_patients
from eosin.training.checkpoint import load_checkpoint, remove_torn_checkpoints
from eosin.training.lineage import seen_until_now
from eosin.training.method import Method
from eosin.training.method import make_optimizer as make_optimizer
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel
from eosin.training.pretrain import draw_step, micro_batches, pretrain_step
from eosin.training.recipe import Recipe, load_recipe, recipe_text

TIMED_STEPS = 4  # steps measured to find how many fit into `run.minutes`
SHARED_SECONDS = 10.0
"""How long storage may take to show one machine what another has written."""


@dataclass
class Run:
    """Everything a running run holds."""

    recipe: Recipe
    plan: TilePlan
    folder: RunFolder
    networks: Networks
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    parallel: Parallel
    identity: dict[str, Any]
    step: int = 0
    method: Method = field(default_factory=Method)


def prepare(
    recipe: Recipe,
    marks: dict[str, str],
    plan: TilePlan,
    folder: RunFolder,
    device: torch.device,
    fresh: bool = False,
    accept_changed: bool = False,
    method: Method | None = None,
) -> Run:
    """A run ready for its next step: begun in `folder`, or as its newest checkpoint left it.

    Raises ResumeError, OutputError, RecipeError, WeightsError, one line.
    """
    world, method = World.here(), method or Method()
    method.check(recipe, world.size)
    identity = _identity(recipe, plan, device) | method.identity(recipe)
    known, saved = world.from_first(lambda: _what_is_there(folder, identity, fresh, accept_changed))
    gone_on_from = known if saved else None
    identity["start_seen"] = world.from_first(lambda: seen_until_now(recipe.start, gone_on_from, identity))
    networks = method.networks(recipe)
    if not saved:
        say(method.start(networks, recipe))
    parallel = method.spread(networks, recipe, device, identity["precision"])
    optimizer = method.optimizer(recipe, networks)
    same = known is not None and known["recipe_hash"] == identity["recipe_hash"]
    identity["steps"] = (
        known["steps"] if known and same else world.first(_steps_that_fit(recipe, plan, device, identity, method))
    )
    step = saved[-1] if saved else 0
    if step > identity["steps"]:
        raise ResumeError(
            f"{folder.root} has done {step} steps, more than the {identity['steps']} of this recipe; "
            "choose another -o, or --fresh to start anew"
        )
    if saved:
        state = load_checkpoint(folder, step, networks, optimizer)
        say(f"resuming {folder.root} at step {state['step']}")
    world.barrier()  # nobody removes what another is still looking at
    text = recipe_text(recipe, marks)
    world.from_first(lambda: _set_up(folder, identity, text, step))
    schedules = method.schedules(recipe, identity["steps"])
    run = Run(recipe, plan, folder, networks, optimizer, schedules, parallel, identity, step, method)
    method.begin(run)
    return run


def check_shared(root: Path) -> None:
    """Prove that every process sees what the first one writes into `root`. Raises OutputError, one line, in all."""
    world = World.here()
    if world.size == 1:
        return
    # Another name each time: storage may remember for a while that a file was missing.
    path = root / world.first(f".shared.{secrets.token_hex(8)}")

    def see() -> None:
        deadline = time.monotonic() + SHARED_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise OutputError(
                    f"the run folder {root} has to be shared by all machines: {socket.gethostname()} does not see what "
                    "the first one writes there"
                )
            time.sleep(0.05)

    try:
        world.from_first(lambda: write_text(path, ""))
        world.agree(see)
    finally:
        if world.is_first:
            path.unlink(missing_ok=True)


def _what_is_there(
    folder: RunFolder, identity: dict[str, Any], fresh: bool, accept_changed: bool
) -> tuple[dict[str, Any] | None, list[int]]:
    """identity.json of an earlier start that this one goes on from, and the steps saved; None and [] without one."""
    known = _known_identity(folder, identity, fresh, accept_changed)
    return known, [] if known is None else folder.steps()


def _set_up(folder: RunFolder, identity: dict[str, Any], text: str, step: int) -> None:
    """Bring the folder to where the run goes on from. A complete run keeps what it says of itself."""
    remove_torn_checkpoints(folder)
    if step == 0:
        _clear(folder)
    if step < identity["steps"]:
        write_json(folder.identity, identity)
        write_text(folder.recipe, text)


def _identity(recipe: Recipe, plan: TilePlan, device: torch.device) -> dict[str, Any]:
    """What a run is: hashes of what decides its outcome, where it computes, and what it learns from."""
    slides = [source.cohort.usable for source in plan.sources if isinstance(source, SlideSource)]
    patients = [str(name) for table in slides for name in table["patient"].dropna().unique() if str(name)]
    return {
        "recipe_hash": recipe.hash,
        "plan_hash": plan.hash,
        "cohort_hash": [s.cohort.hash if isinstance(s, SlideSource) else s.hash for s in plan.sources],
        "seed": recipe.run.seed,
        "device": device.type,
        "precision": _precision(recipe, device),
        "data": [source.told for source in plan.sources],
        "patients": sorted(set(patients)),
        "slides": _slides(plan, recipe),
        "versions": versions(),
    }


def _slides(plan: TilePlan, recipe: Recipe) -> list[str] | None:
    """Ids of the slides that tiles are drawn from; None where some tiles were cut by others."""
    found: set[str] = set()
    for source in plan.sources:
        if not isinstance(source, SlideSource):
            return None
        table = source.cohort.usable
        drawn = chosen_patients(table, source.config.slides, recipe.run.seed) & (
            table["tissue_mm2"].to_numpy(float) > 0
        )
        found |= {str(name) for name in table["slide_id"][drawn]}
    return sorted(found)


def _known_identity(
    folder: RunFolder, identity: dict[str, Any], fresh: bool, accept_changed: bool
) -> dict[str, Any] | None:
    """identity.json of an earlier start, None without one, or where a `fresh` one takes its place.

    Raises ResumeError where it belongs to another recipe, other tiles or another precision, and OutputError where the
    folder holds what no run of ours wrote.
    """
    if not folder.identity.exists():
        if foreign := folder.own_files():
            raise OutputError(f"{foreign[0]} is there, but no identity.json beside it; give a new folder with -o")
        return None
    known = folder.read_identity()
    if fresh:
        return None
    if not folder.steps() or accept_changed:
        return known
    for key, what in (
        ("recipe_hash", "another recipe"),
        ("plan_hash", "other tiles (cohort, filters or reader versions)"),
        ("precision", "another precision (set run.precision)"),
        ("labels_hash", "other labels of slides"),
    ):
        if known.get(key) != identity.get(key):
            raise ResumeError(
                f"{folder.root} belongs to {what} ({known.get(key)}, now {identity.get(key)}); "
                "choose another -o, or --fresh to start anew, or --accept-changed to go on"
            )
    return known


def _clear(folder: RunFolder) -> None:
    """Remove what an earlier start wrote into the folder, and nothing else."""
    for path in folder.own_files():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _precision(recipe: Recipe, device: torch.device) -> str:
    """bf16 where the recipe says so, or by itself where the device multiplies in bf16 (GPUs, CPUs with AMX)."""
    if recipe.run.precision != "auto":
        return recipe.run.precision
    fast = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    return "bf16" if fast else "fp32"


def _steps_that_fit(
    recipe: Recipe, plan: TilePlan, device: torch.device, identity: dict[str, Any], method: Method
) -> int:
    """The method's steps, or fewer where `run.minutes` is given: measured on throw-away networks, then fixed."""
    if recipe.run.minutes is None:
        return method.steps(recipe)
    networks = method.networks(recipe)
    parallel = method.spread(networks, recipe, device, identity["precision"])
    optimizer = method.optimizer(recipe, networks)
    values = method.schedules(recipe, recipe.run.steps).at(0)
    world = parallel.world
    times: list[float] = []
    before = time.perf_counter()
    for tiles in TileStream(
        plan, recipe.run.batch, steps=TIMED_STEPS, rank=world.rank, world=world.size, workers=reading_processes(recipe)
    ):
        batch = micro_batches(recipe, tiles, draw_step(recipe, tiles.step), parallel)
        pretrain_step(networks, optimizer, recipe, batch, values, parallel)["loss"].item()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    seconds = sum(times[1:]) / len(times[1:])  # the first step warms up
    return max(min(recipe.run.steps, int(recipe.run.minutes * 60 / seconds)), 1)


def reading_processes(recipe: Recipe) -> int:
    """Worker processes that read tiles for each process of the run: the recipe's number, or half of its cores."""
    if recipe.run.workers is not None:
        return recipe.run.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(16, cores // 2 // here))


def open_run(path: str | os.PathLike[str]) -> tuple[RunFolder, Recipe, dict[str, Any]]:
    """Folder, recipe and identity of a run. Raises ResumeError where `path` is not a run folder."""
    folder = RunFolder(path)
    if not folder.recipe.exists() or not folder.identity.exists():
        raise ResumeError(f"{Path(path)} is not a run folder: it has no recipe.yaml and identity.json")
    try:
        recipe, _ = load_recipe(str(folder.recipe))
        return folder, recipe, folder.read_identity()
    except EosinError as error:
        raise ResumeError(f"{Path(path)} cannot be read: {error}") from error
