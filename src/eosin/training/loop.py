"""A training run from first step to last: step, log, watch, save, stop. The method itself is in pretrain.py.

The same on one process and on many: all take the same turns, the first one writes and speaks.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eosin.distributed import World, world
from eosin.errors import Interrupted, PlanError, TrainingStopped
from eosin.evaluation.tasks import open_task
from eosin.features.extract import find_device
from eosin.files import check_writable, write_json
from eosin.optim.schedules import step_count
from eosin.progress import Bar, progress_bar, say
from eosin.runs import RunFolder, append_line, read_lines
from eosin.tiles import TileBatch, TilePlan, TileStream
from eosin.training.alarms import Alarms
from eosin.training.checkpoint import CheckpointWriter
from eosin.training.estimate import flops_of
from eosin.training.gpus import gpu_here
from eosin.training.loggers import check_loggers
from eosin.training.metrics_log import MetricsLog
from eosin.training.monitor import Monitor, keep_sample, watched_tiles
from eosin.training.pace import Speed
from eosin.training.prepare import Run, prepare, reading_processes
from eosin.training.pretrain import draw_step, micro_batches, pretrain_step
from eosin.training.recipe import Recipe, recipe_values


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

    Under torchrun every process calls this alike. probes: name → labelled tiles, watched by k-NN. fresh: start anew.
    accept_changed: go on although recipe or data changed. SIGTERM (and SIGUSR1) save and stop. Raises ResumeError,
    PlanError, DataError, OutputError, TrainingStopped: one line each.
    """
    folder = RunFolder(out)
    tasks = {name: open_task(f"{name}={path}") for name, path in (probes or {}).items()}
    plan.check()
    check_writable(out)
    check_loggers(recipe.run.log_to)
    place = _device(device)
    with StopSignals() as signals, world(place) as here:
        try:
            run = prepare(recipe, marks, plan, folder, place, fresh, accept_changed)
            if run.step >= run.schedules.steps:
                say(f"{folder.root} is complete: {run.step} steps")
                return folder
            say(_first_line(run))
            _train(run, Monitor(recipe, _watched(run), tasks), signals)
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {_way_on(folder)}") from None
        except RuntimeError as error:
            if here.size > 1 and _is_about_others(error):
                raise TrainingStopped(f"another process of this run has died; {_way_on(folder)}") from error
            raise
    return folder


def _device(name: str | None) -> torch.device:
    """The device of this process: under torchrun each takes the GPU of its number."""
    device = find_device(name)
    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def _is_about_others(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _way_on(folder: RunFolder) -> str:
    steps = folder.steps()
    saved = f"step {steps[-1]}" if steps else "the start, as no checkpoint was saved yet"
    return f"the same command goes on from {saved}"


def _watched(run: Run) -> Any:
    """The tiles that the monitor looks at; some of them are kept for the report."""
    watched = watched_tiles(run.plan, run.recipe)
    if run.parallel.world.is_first:
        keep_sample(watched, run.recipe, run.folder)
    return watched.pixels


class StopSignals:
    """Notes SIGTERM and SIGUSR1 (SLURM's warnings before it kills) so that the run can save first."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        try:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever called is in charge of signals
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.received and kind is None:  # came too late to stop the run: whoever called must not miss it
            signal.raise_signal(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def _train(run: Run, monitor: Monitor, signals: StopSignals) -> None:
    recipe, here, total = run.recipe, run.parallel.world, run.schedules.steps
    writer = CheckpointWriter(run.folder, run.networks, run.optimizer)
    watch_every = max(1, step_count(recipe.run.monitor_every, total))
    save_every = max(1, step_count(recipe.run.checkpoint_every, total))
    with (
        writer,
        _Record(run) as record,
        progress_bar(recipe.name, total * recipe.run.batch, "tiles") as bar,
    ):
        bar.advance(run.step * recipe.run.batch)
        if run.step == 0:
            _watch(run, monitor, record)
        record.speed.restart()
        for tiles in record.speed.waiting(_tiles(run), record.alarms, recipe.watch.no_tiles_seconds):
            losses, values = _step(run, tiles, bar)
            record.add(losses, tiles)
            writer.poll()
            stop = here.any(bool(signals.received) or bool(record.alarms.stopping))
            last = run.step == total
            watching, saving = last or run.step % watch_every == 0, last or stop or run.step % save_every == 0
            if watching or saving or run.step % recipe.run.log_every == 0:
                record.flush(values)
            if watching:
                _watch(run, monitor, record)
            if saving:
                state = {"identity": run.identity}
                writer.start(run.step, state, recipe.run.keep_last, recipe.run.keep_every)
            if watching or saving:
                record.speed.restart()
            if stop and not last:
                break
        writer.finish()
        here.barrier()
    if run.step < total and record.alarms.stopping:
        raise TrainingStopped(f"{record.alarms.stopping} from step {run.step}")
    if run.step < total:
        raise Interrupted(f"stopped by a signal at step {run.step}; {_way_on(run.folder)}")


def _watch(run: Run, monitor: Monitor, record: _Record) -> None:
    values = monitor.measure(run.networks, run.schedules.at(run.step)["teacher_temperature"])
    monitor.keep_attention(run.networks, run.step, run.folder)
    record.write(values)


def _step(run: Run, tiles: TileBatch, bar: Bar) -> tuple[dict[str, Tensor], dict[str, float]]:
    values = run.schedules.at(run.step)
    batch = micro_batches(run.recipe, tiles, draw_step(run.recipe, run.step), run.parallel)
    losses = pretrain_step(run.networks, run.optimizer, run.recipe, batch, values, run.parallel)
    run.step += 1
    bar.advance(run.recipe.run.batch)
    return losses, values


def _tiles(run: Run) -> Iterator[TileBatch]:
    """The rest of this process's batches; permanent read errors of earlier starts are replayed."""
    known = {(entry["i"], entry["attempt"]): entry["next"] for entry in read_lines(run.folder.ledger)}
    stream = TileStream(
        run.plan,
        run.recipe.run.batch,
        first_step=run.step,
        steps=run.schedules.steps - run.step,
        rank=run.parallel.world.rank,
        world=run.parallel.world.size,
        workers=reading_processes(run.recipe),
        known_errors=known,
    )
    yield from stream
    if never := sorted(set(stream.rejections) - set(stream.accepted)):
        more = " …" if len(never) > 5 else ""
        say(f"{len(never)} slides were tried and never gave a tile: {', '.join(never[:5])}{more}")


class _Record:
    """What a run writes down: metrics of the global batch, the ledger; by the first process."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._world = run.parallel.world
        recipe, told = run.recipe, recipe_values(run.recipe)
        self._log = MetricsLog(run.folder, run.step, recipe.run.log_to, told) if self._world.is_first else None
        self.alarms = Alarms(run.folder, recipe.watch, run.step, run.schedules.steps, reading_processes(recipe))
        self._window = Window(run.parallel.device)
        self._errors: list[dict[str, Any]] = []
        self._flops = flops_of(run.recipe).executed
        known = gpu_here() if run.parallel.device.type == "cuda" else None
        self._peak = known[1].tflops * 1e12 * self._world.size if known and known[1] else 0.0  # 0: not known
        self.speed = Speed(run.parallel.device)

    def __enter__(self) -> _Record:
        if self._log is not None:
            self._log.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.__exit__(kind, error, trace)

    def add(self, losses: dict[str, Tensor], tiles: TileBatch) -> None:
        """One step's losses and read errors; nothing is waited for."""
        self._window.add(self._run.step - 1, losses)
        self._errors += tiles.errors
        self.speed.tiles += self._run.recipe.run.batch

    def write(self, values: dict[str, float]) -> None:
        """A row after the run's present step, which may raise an alarm: TrainingStopped."""
        if self._log is not None:
            self._log.write(self._run.step, values)
        self.alarms.check(self._run.step, values)

    def flush(self, values: dict[str, float]) -> None:
        """Ledger and means since the last flush, of all processes. Raises TrainingStopped for a loss not finite."""
        for errors in self._world.gather_objects(self._errors):
            for entry in errors if self._world.is_first else []:
                append_line(self._run.folder.ledger, entry)
        self._errors = []
        row, bad_step = self._window.read()
        if bad_step >= 0:
            stop_non_finite(self._run, bad_step)
        pace = self.speed.read()
        if self._peak:
            row["mfu"] = pace["img_s"] * self._flops / self._peak
        self.write({**row, **pace, "tiles": self._run.step * self._run.recipe.run.batch, **values})


class Window:
    """Sums of the losses since the last reading, kept on the device: adding never waits, reading does."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._bad_step = torch.tensor(-1, device=device)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Add one step's 0-d tensors; remembers the first step whose loss or gradient is not finite."""
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        finite = torch.isfinite(losses["loss"]) & torch.isfinite(losses["grad_norm"])
        self._bad_step = torch.where(~finite & (self._bad_step < 0), step, self._bad_step)
        self._count += 1

    def read(self) -> tuple[dict[str, float], int]:
        """Means over steps and processes since the last reading, and the first bad step (-1 = none)."""
        here = World.here()
        sums = here.sum_(torch.stack(list(self._sums.values())).double()) / (here.size * max(self._count, 1))
        row = dict(zip(self._sums, sums.tolist(), strict=True))
        self._sums, self._count = {}, 0
        return row, int(here.max_(self._bad_step))


def stop_non_finite(run: Run, step: int) -> None:
    """Write down the tiles of the step that went wrong, and stop without saving a checkpoint."""
    first = step * run.recipe.run.batch
    path = run.folder.root / "non_finite_step.json"
    if run.parallel.world.is_first:
        tiles = []
        for index in range(first, first + run.recipe.run.batch):
            try:
                tiles.append({"i": index, **vars(run.plan.tile(index).address)})
            except PlanError as error:
                tiles.append({"i": index, "error": str(error)})
        write_json(path, {"step": step, "tiles": tiles})
        text = f"the loss or its gradient is not finite at step {step}; its tiles are listed in {path.name}"
        append_line(run.folder.alarms, {"step": step, "alarm": "non_finite", "action": "stop", "text": text})
    run.parallel.world.barrier()
    raise TrainingStopped(
        f"the loss or its gradient is not finite at step {step}; its {run.recipe.run.batch} tiles are listed in {path}"
    )


def _first_line(run: Run) -> str:
    millions = sum(parameter.numel() for parameter in run.networks.student.encoder.parameters()) / 1e6
    processes = f"{run.parallel.world.size} processes, " if run.parallel.world.size > 1 else ""
    return (
        f"{run.recipe.name}: encoder {millions:.1f} M parameters, {run.schedules.steps} steps of "
        f"{run.recipe.run.batch} tiles, {run.identity['precision']} on {run.parallel.device.type}, {processes}"
        f"{reading_processes(run.recipe)} reading processes"
    )
