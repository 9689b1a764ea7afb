"""A training run from first step to last: step, log, watch, save, stop. The method itself is in pretrain.py.

The same on one process and on many: all take the same turns, the first one writes and speaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eosin.distributed import TIMEOUT, World, own_device, world
from eosin.errors import EosinError, Interrupted, TrainingStopped
from eosin.features.extract import find_device
from eosin.files import PathLike, check_writable
from eosin.optim.schedules import step_count
from eosin.progress import Bar, progress_bar, say
from eosin.runs import RunFolder
from eosin.tiles import TileBatch, TilePlan, TileStream
from eosin.training.checkpoint import CheckpointWriter
from eosin.training.loggers import check_loggers
from eosin.training.method import Method, StoppedWithinStep
from eosin.training.monitor import CutShort, Monitor, keep_sample, watched_tiles
from eosin.training.prepare import Run, check_shared, prepare, reading_processes
from eosin.training.probes import Probe, open_probes
from eosin.training.recipe import Recipe
from eosin.training.record import Record
from eosin.training.stopping import StoppedWhenComplete, StopSignals


def run_training(
    recipe: Recipe,
    marks: dict[str, str],
    plan: TilePlan,
    out: PathLike,
    *,
    probes: Sequence[str] = (),
    data: PathLike | None = None,
    device: str | None = None,
    fresh: bool = False,
    accept_changed: bool = False,
    method: Method | None = None,
) -> RunFolder:
    """Train `recipe` on the tiles of `plan` into the run folder `out`; resumes what is there.

    Under torchrun every process calls this alike. probes: tasks that the run is judged on as it learns, NAME=PATH or
    public ones by name, which lie below `data`. fresh: start anew. accept_changed: go on although recipe or data
    changed. SIGTERM, SIGUSR1 and Ctrl-C save and stop. Raises ResumeError, PlanError, DataError, OutputError,
    TrainingStopped: one line each.
    """
    folder = RunFolder(out)
    place = own_device(find_device(device), torch.cuda.device_count())
    # Signals are heard only when all are here: before, the launcher may end a process that waits for one that failed.
    with world(place) as here, StopSignals() as signals, ExitStack() as stack:
        try:
            opened = here.agree(lambda: _checked(recipe, plan, probes, data, out))
            check_shared(folder.root)
            here.from_first(lambda: stack.enter_context(folder.held()))
            run = prepare(recipe, marks, plan, folder, place, fresh, accept_changed, method)
            stopped = None
            if run.step < run.schedules.steps:
                say(_first_line(run))
                monitor = Monitor(recipe, _watched(run), opened)
                signals.saves = True
                stopped = _train(run, monitor, signals)
            else:
                say(f"{folder.root} is complete: {run.step} steps")
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {_way_on(folder)}") from None
        except RuntimeError as error:
            if told := _about_processes(error, here):
                raise TrainingStopped(f"{told}; {_way_on(folder)}") from error
            raise
        if stopped is None and signals.received:
            stopped = StoppedWhenComplete(f"stopped by a signal; {folder.root} is complete: {run.step} steps")
        if stopped is not None:
            raise stopped
    return folder


def _checked(
    recipe: Recipe, plan: TilePlan, probes: Sequence[str], data: PathLike | None, out: PathLike
) -> list[Probe]:
    """The probes, once all that can be known before the first step is right."""
    opened = open_probes(probes, data, recipe.run.probe_protocol, recipe.run.probe_steps)
    plan.check()
    check_writable(out)
    check_loggers(recipe.run.log_to)
    return opened


def _about_processes(error: RuntimeError, here: World) -> str:
    """What has become of another process, where that is what `error` means."""
    text = str(error)
    if "DataLoader worker" in text:  # told by a signal, in the middle of whatever is being done
        return "a reading process died (out of memory?); lower run.workers"
    if here.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
        return ""
    if re.search(r"timed out|timeout", text, re.IGNORECASE):
        minutes = TIMEOUT.total_seconds() / 60
        return (
            f"a process of this run has waited {minutes:g} minutes for another one, which hangs or is far slower (its "
            "storage, a large probe, swapping)"
        )
    return "another process of this run has died"


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


def _train(run: Run, monitor: Monitor, signals: StopSignals) -> EosinError | None:
    """The steps that are left. Returns why it stopped before the last one, None where it did not."""
    recipe, total = run.recipe, run.schedules.steps
    writer = CheckpointWriter(run.folder, run.networks, run.optimizer)
    watch_every = max(1, step_count(recipe.run.monitor_every, total))
    save_every = max(1, step_count(recipe.run.checkpoint_every, total))
    saved = run.step

    def save() -> int:
        writer.start(run.step, {"identity": run.identity}, recipe.run.keep_last, recipe.run.keep_every)
        return run.step

    with (
        writer,
        Record(run) as record,
        progress_bar(recipe.name, total * recipe.run.batch, "tiles", run.step * recipe.run.batch) as bar,
    ):
        if run.step % watch_every == 0 and not record.watched:
            _watch(run, monitor, record, signals)
        record.speed.restart()
        turns = _Turns(run, record, signals)
        for tiles in turns:
            try:
                losses, values = _step(run, tiles, bar, signals)
            except StoppedWithinStep:
                break
            record.add(losses, tiles)
            writer.poll()
            last = run.step == total
            watching = last or run.step % watch_every == 0
            saving = last or run.step % save_every == 0 or run.method.saves(run)
            if watching or saving or run.step % recipe.run.log_every == 0 or run.method.turns(run):
                record.flush(values)
            if told := run.method.look(run, lambda: bool(signals.received)):
                record.write(told)
            if watching:
                _watch(run, monitor, record, signals)
            if saving:
                record.keep()
                saved = save()
            if watching or saving:
                record.speed.restart()
        if saved < run.step:  # stopped between two steps: the state is sound
            record.flush(run.schedules.at(run.step - 1))
            record.keep()
            save()
        writer.finish()
        if run.step == total:
            run.method.end(run)
        run.parallel.world.barrier()
    return turns.why_stopped()


class _Turns:
    """The tiles of every step that is left, until the processes agree to stop. They vote before each step."""

    def __init__(self, run: Run, record: Record, signals: StopSignals) -> None:
        self._run, self._record, self._signals = run, record, signals
        self._problem: EosinError | None = None

    def __iter__(self) -> Iterator[TileBatch]:
        run, alarms, here = self._run, self._record.alarms, self._run.parallel.world
        patience = run.recipe.watch.no_tiles_seconds
        batches = self._record.speed.waiting(_tiles(run, self._record.ledger), alarms, patience)
        while run.step < run.schedules.steps:
            tiles, problem = None, None
            try:
                tiles = self._signals.next_of(batches)
            except EosinError as error:  # no tiles, or none in time
                problem = error
            if tiles is not None and alarms.stopping:
                problem = TrainingStopped(alarms.stopping)
            if here.any(tiles is None or problem is not None or bool(self._signals.received)):
                self._problem = next((told for told in here.gather_objects(problem) if told is not None), None)
                return
            assert tiles is not None
            yield tiles
        for _ in batches:  # lets the reader say what it has seen
            pass

    def why_stopped(self) -> EosinError | None:
        """None where all steps are done."""
        run, problem = self._run, self._problem
        if run.step == run.schedules.steps:
            return None
        if problem is None:
            return Interrupted(f"stopped by a signal at step {run.step}; {_way_on(run.folder)}")
        if isinstance(problem, TrainingStopped):
            return TrainingStopped(f"{problem} from step {run.step}")
        return type(problem)(f"{problem}; {_way_on(run.folder)}")


def _watch(run: Run, monitor: Monitor, record: Record, signals: StopSignals) -> None:
    """Look at the teacher, unless the run is to stop: then saving comes first, and watching when it goes on."""
    temperature = run.schedules.at(run.step)["teacher_temperature"]
    try:
        values = monitor.measure(run.networks, temperature, lambda: bool(signals.received))
    except CutShort:
        return
    monitor.keep_attention(run.networks, run.step, run.folder)
    record.write(values)


def _step(run: Run, tiles: TileBatch, bar: Bar, signals: StopSignals) -> tuple[dict[str, Tensor], dict[str, float]]:
    values = run.schedules.at(run.step)
    losses = run.method.step(run, tiles, values, lambda: bool(signals.received))
    run.step += 1
    bar.advance(run.recipe.run.batch)
    return losses, values


def _tiles(run: Run, known: dict[tuple[int, int], int]) -> Iterator[TileBatch]:
    """The rest of this process's batches. known: the ledger; permanent read errors of earlier starts are replayed."""
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


def _first_line(run: Run) -> str:
    millions = sum(parameter.numel() for parameter in run.networks.student.encoder.parameters()) / 1e6
    processes = f"{run.parallel.world.size} processes, " if run.parallel.world.size > 1 else ""
    return (
        f"{run.recipe.name}: encoder {millions:.1f} M parameters, {run.schedules.steps} steps of "
        f"{run.recipe.run.batch} tiles, {run.identity['precision']} on {run.parallel.device.type}, {processes}"
        f"{reading_processes(run.recipe)} reading processes"
    )
