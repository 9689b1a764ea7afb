"""A training run from first step to last: prepare, resume, step, log, watch, save. The method itself is in pretrain.py.

A run folder belongs to one recipe and one tile plan. The same command again goes on where it stopped, exactly: all
randomness is keyed by the step, so a checkpoint holds weights and optimiser only.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eosin.errors import EosinError, OutputError, PlanError, ResumeError, TrainingStopped
from eosin.evaluation.tasks import open_task
from eosin.features.extract import find_device
from eosin.files import check_writable, write_json, write_text
from eosin.optim import Schedules, make_schedules, parameter_groups
from eosin.optim.schedules import step_count
from eosin.progress import Bar, progress_bar, say
from eosin.provenance import versions
from eosin.runs import RunFolder, append_line, read_lines
from eosin.tiles import SlideSource, TileBatch, TilePlan, TileStream
from eosin.training.checkpoint import load_checkpoint, prune_checkpoints, remove_torn_checkpoints, save_checkpoint
from eosin.training.monitor import MetricsLog, Monitor, Speed, keep_sample, watched_tiles
from eosin.training.networks import Networks
from eosin.training.pretrain import draw_step, pretrain_step
from eosin.training.recipe import Recipe, load_recipe, recipe_text

TIMED_STEPS = 4  # steps measured to find how many fit into `run.minutes`


@dataclass
class Run:
    """Everything a running run holds."""

    recipe: Recipe
    plan: TilePlan
    folder: RunFolder
    device: torch.device
    networks: Networks
    optimizer: torch.optim.Optimizer
    schedules: Schedules
    autocast: torch.autocast
    identity: dict[str, Any]
    step: int = 0


def run_training(
    recipe: Recipe,
    marks: dict[str, str],
    plan: TilePlan,
    out: str | os.PathLike[str],
    *,
    probes: dict[str, str] | None = None,
    device: str | None = None,
    fresh: bool = False,
    accept_changed: bool = False,
) -> RunFolder:
    """Train `recipe` on the tiles of `plan` into the run folder `out`; resumes what is there.

    probes: name → labelled tiles, watched by k-NN. fresh: start anew. accept_changed: go on although recipe or data
    changed. Raises ResumeError, PlanError, DataError, OutputError, TrainingStopped: one line each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainingStopped("this version trains in one process; start it without torchrun")
    folder = RunFolder(out)
    tasks = {name: open_task(f"{name}={path}") for name, path in (probes or {}).items()}
    plan.check()
    check_writable(out)
    run = _prepare(recipe, marks, plan, folder, device, fresh, accept_changed)
    if run.step >= run.schedules.steps:
        say(f"{folder.root} is complete: {run.step} steps")
        return folder
    watched = watched_tiles(plan, recipe)
    keep_sample(watched, recipe, folder)
    monitor = Monitor(recipe, watched.pixels, tasks)
    say(_first_line(run))
    with (
        MetricsLog(folder, run.step) as log,
        progress_bar(recipe.name, run.schedules.steps * recipe.run.batch, "tiles") as bar,
    ):
        bar.advance(run.step * recipe.run.batch)
        try:
            _loop(run, monitor, log, bar)
        except KeyboardInterrupt:
            raise TrainingStopped(
                f"stopped at step {run.step}; the same command goes on from {_last_saved(folder)}"
            ) from None
    return folder


def _last_saved(folder: RunFolder) -> str:
    steps = folder.steps()
    return f"step {steps[-1]}" if steps else "the start, as no checkpoint was saved yet"


def _prepare(
    recipe: Recipe,
    marks: dict[str, str],
    plan: TilePlan,
    folder: RunFolder,
    device_name: str | None,
    fresh: bool,
    accept_changed: bool,
) -> Run:
    device = find_device(device_name)
    identity = _identity(recipe, plan, device)
    known = None if fresh else _known_identity(folder, identity, accept_changed)
    saved = [] if known is None else folder.steps()
    networks = Networks(recipe, with_start_weights=not saved).to(device)
    optimizer = _optimizer(recipe, networks)
    autocast = _autocast(identity["precision"], device)
    same = known is not None and known["recipe_hash"] == identity["recipe_hash"]
    identity["steps"] = known["steps"] if known and same else _steps_that_fit(recipe, plan, device, autocast)
    remove_torn_checkpoints(folder)
    if saved:
        state = load_checkpoint(folder, saved[-1], networks, optimizer)
        say(f"resuming {folder.root} at step {state['step']}")
    else:
        _clear(folder)
    if identity != known:
        write_text(folder.recipe, recipe_text(recipe, marks))
        write_json(folder.identity, identity)
    schedules = make_schedules(recipe.optim, identity["steps"], recipe.run.batch)
    step = saved[-1] if saved else 0
    return Run(recipe, plan, folder, device, networks, optimizer, schedules, autocast, identity, step)


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
        "versions": versions(),
    }


def _known_identity(folder: RunFolder, identity: dict[str, Any], accept_changed: bool) -> dict[str, Any] | None:
    """identity.json of an earlier start, None without one.

    Raises ResumeError where it belongs to another recipe, other tiles or another precision, and OutputError where the
    folder holds what no run of ours wrote.
    """
    if not folder.identity.exists():
        if foreign := folder.own_files():
            raise OutputError(f"{foreign[0]} is there, but no identity.json beside it; give a new folder with -o")
        return None
    known: dict[str, Any] = json.loads(folder.identity.read_text())
    if not folder.steps() or accept_changed:
        return known
    for key, what in (
        ("recipe_hash", "another recipe"),
        ("plan_hash", "other tiles (cohort, filters or reader versions)"),
        ("precision", "another precision (set run.precision)"),
    ):
        if known.get(key) != identity[key]:
            raise ResumeError(
                f"{folder.root} belongs to {what} ({known.get(key)}, now {identity[key]}); "
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


def _optimizer(recipe: Recipe, networks: Networks) -> torch.optim.Optimizer:
    groups = parameter_groups(
        networks.student.encoder,
        networks.student.heads,
        recipe.encoder.depth,
        recipe.optim.layer_decay,
        recipe.optim.patch_embed_factor,
    )
    return torch.optim.AdamW(
        groups, lr=recipe.optim.base_lr, betas=recipe.optim.betas, eps=recipe.optim.eps, fused=True
    )


def _precision(recipe: Recipe, device: torch.device) -> str:
    """bf16 where the recipe says so, or by itself where the device multiplies in bf16 (GPUs, CPUs with AMX)."""
    if recipe.run.precision != "auto":
        return recipe.run.precision
    fast = device.type == "cuda" or (device.type == "cpu" and torch.cpu._is_amx_tile_supported())
    return "bf16" if fast else "fp32"


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _steps_that_fit(recipe: Recipe, plan: TilePlan, device: torch.device, autocast: torch.autocast) -> int:
    """`run.steps`, or fewer where `run.minutes` is given: measured on throw-away networks, then fixed for the run."""
    if recipe.run.minutes is None:
        return recipe.run.steps
    networks = Networks(recipe, with_start_weights=False).to(device)
    optimizer = _optimizer(recipe, networks)
    values = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch).at(0)
    times: list[float] = []
    before = time.perf_counter()
    for tiles in TileStream(plan, recipe.run.batch, steps=TIMED_STEPS, workers=_workers(recipe)):
        losses = pretrain_step(networks, optimizer, recipe, tiles, draw_step(recipe, tiles.step), values, autocast)
        losses["loss"].item()
        now = time.perf_counter()
        times.append(now - before)
        before = now
    seconds = sum(times[1:]) / len(times[1:])  # the first step warms up
    return max(min(recipe.run.steps, int(recipe.run.minutes * 60 / seconds)), 1)


def _workers(recipe: Recipe) -> int:
    if recipe.run.workers is not None:
        return recipe.run.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores // 2))


def _loop(run: Run, monitor: Monitor, log: MetricsLog, bar: Bar) -> None:
    recipe, total = run.recipe, run.schedules.steps
    watch_every = max(1, step_count(recipe.run.monitor_every, total))
    save_every = max(1, step_count(recipe.run.checkpoint_every, total))
    window = Window(run.device)
    speed = Speed()
    if run.step == 0:
        log.write(0, monitor.measure(run.networks))
    speed.restart()
    for tiles in _tiles(run):
        draws = draw_step(recipe, run.step)
        values = run.schedules.at(run.step)
        losses = pretrain_step(run.networks, run.optimizer, recipe, tiles, draws, values, run.autocast)
        window.add(run.step, losses)
        run.step += 1
        speed.tiles += recipe.run.batch
        bar.advance(recipe.run.batch)
        last = run.step == total
        watching, saving = last or run.step % watch_every == 0, last or run.step % save_every == 0
        if watching or saving or run.step % recipe.run.log_every == 0:
            row = window.read()
            if row.pop("bad_step") >= 0:
                _stop_non_finite(run, int(window.bad_step))
            log.write(run.step, {**row, "img_s": speed.read(), "tiles": run.step * recipe.run.batch, **values})
        if watching:
            log.write(run.step, monitor.measure(run.networks))
        if saving:
            save_checkpoint(run.folder, run.step, run.networks, run.optimizer, {"identity": run.identity})
            prune_checkpoints(run.folder, recipe.run.keep_last, recipe.run.keep_every)
        if watching or saving:
            speed.restart()


def _tiles(run: Run) -> Iterator[TileBatch]:
    """The rest of the run's batches; permanent read errors go into the ledger, which is replayed on resume."""
    known = {(entry["i"], entry["attempt"]): entry["next"] for entry in read_lines(run.folder.ledger)}
    stream = TileStream(
        run.plan,
        run.recipe.run.batch,
        first_step=run.step,
        steps=run.schedules.steps - run.step,
        workers=_workers(run.recipe),
        known_errors=known,
    )
    for tiles in stream:
        for entry in tiles.errors:
            append_line(run.folder.ledger, entry)
        yield tiles
    if never := sorted(set(stream.rejections) - set(stream.accepted)):
        more = " …" if len(never) > 5 else ""
        say(f"{len(never)} slides were tried and never gave a tile: {', '.join(never[:5])}{more}")


class Window:
    """Sums of the losses since the last reading, kept on the device: adding never waits, reading does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self.bad_step = torch.tensor(-1, device=device)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Add one step's 0-d tensors; remembers the first step whose loss or gradient is not finite."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self._device)) + value
        finite = torch.isfinite(losses["loss"]) & torch.isfinite(losses["grad_norm"])
        bad = ~finite & (self.bad_step < 0)
        self.bad_step = torch.where(bad, torch.tensor(step, device=self._device), self.bad_step)
        self._count += 1

    def read(self) -> dict[str, float]:
        """Means since the last reading, and `bad_step` (-1 = none)."""
        row = {name: float(value) / max(self._count, 1) for name, value in self._sums.items()}
        self._sums, self._count = {}, 0
        return {**row, "bad_step": float(self.bad_step)}


def _stop_non_finite(run: Run, step: int) -> None:
    """Write down the tiles of the step that went wrong, and stop without saving a checkpoint."""
    first = step * run.recipe.run.batch
    tiles = []
    for index in range(first, first + run.recipe.run.batch):
        try:
            address = run.plan.tile(index).address
        except PlanError as error:
            tiles.append({"i": index, "error": str(error)})
            continue
        tiles.append({"i": index, **vars(address)})
    path = run.folder.root / "non_finite_step.json"
    write_json(path, {"step": step, "tiles": tiles})
    raise TrainingStopped(
        f"the loss or its gradient is not finite at step {step}; its {len(tiles)} tiles are listed in {path}"
    )


def _first_line(run: Run) -> str:
    millions = sum(parameter.numel() for parameter in run.networks.student.encoder.parameters()) / 1e6
    precision = "bf16" if run.autocast._enabled else "fp32"
    return (
        f"{run.recipe.name}: encoder {millions:.1f} M parameters, {run.schedules.steps} steps of "
        f"{run.recipe.run.batch} tiles, {precision} on {run.device.type}, {_workers(run.recipe)} reading processes"
    )


def open_run(path: str | os.PathLike[str]) -> tuple[RunFolder, Recipe, dict[str, Any]]:
    """Folder, recipe and identity of a run. Raises ResumeError where `path` is not a run folder."""
    folder = RunFolder(path)
    if not folder.recipe.exists() or not folder.identity.exists():
        raise ResumeError(f"{Path(path)} is not a run folder: it has no recipe.yaml and identity.json")
    try:
        recipe, _ = load_recipe(str(folder.recipe))
        return folder, recipe, json.loads(folder.identity.read_text())
    except (EosinError, ValueError) as error:
        raise ResumeError(f"{Path(path)} cannot be read: {error}") from error
