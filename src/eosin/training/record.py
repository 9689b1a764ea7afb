"""What a run writes down as it goes: means of the losses, pace, the ledger, alarms; of all processes, by the first."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from eosin.distributed import World
from eosin.errors import EosinError, TrainingStopped
from eosin.files import write_json
from eosin.runs import append_line, read_lines
from eosin.tiles import TileBatch
from eosin.tiles.acceptance import Acceptance, keep_acceptance, read_acceptance
from eosin.training.alarms import Alarms
from eosin.training.estimate import flops_of
from eosin.training.gpus import gpu_here
from eosin.training.metrics_log import MetricsLog
from eosin.training.pace import Speed
from eosin.training.prepare import Run, reading_processes
from eosin.training.recipe import recipe_values


class Record:
    """What a run writes down: metrics of the global batch, the ledger; by the first process."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._world = run.parallel.world
        recipe, told = run.recipe, recipe_values(run.recipe)
        self._log = MetricsLog(run.folder, run.step, recipe.run.log_to, told) if self._world.is_first else None
        self.alarms = Alarms(run.folder, recipe.watch, run.step, run.schedules.steps, reading_processes(recipe))
        self._window = Window(run.parallel.device)
        self._errors: list[dict[str, Any]] = []
        self._taken = Acceptance()  # since the last flush, of this process
        self._accepted: Acceptance = self._world.from_first(self._read_acceptance)  # of the run
        self._flops = flops_of(run.recipe).executed
        known = gpu_here() if run.parallel.device.type == "cuda" else None
        self._peak = known[1].tflops * 1e12 * self._world.size if known and known[1] else 0.0  # 0: not known
        self.speed = Speed(run.parallel.device)
        self.ledger: dict[tuple[int, int], int] = self._world.from_first(self._read_ledger)
        self.watched: bool = self._world.from_first(self._read_watched)

    def _read_ledger(self) -> dict[tuple[int, int], int]:
        return {(entry["i"], entry["attempt"]): entry["next"] for entry in read_lines(self._run.folder.ledger)}

    def _read_acceptance(self) -> Acceptance:
        step = self._run.step
        return read_acceptance(self._run.folder.acceptance, step) if step else Acceptance()

    def _read_watched(self) -> bool:
        """Whether an earlier start has watched the teacher at the step that the run goes on from."""
        rows = self._run.folder.read_metrics()
        return any(row["step"] == self._run.step and "rankme" in row for row in rows)

    def __enter__(self) -> Record:
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
        self._taken.add(tiles, self._run.recipe.tiles)
        self.speed.tiles += self._run.recipe.run.batch

    def write(self, values: dict[str, float]) -> None:
        """A row after the run's present step, which may raise an alarm: TrainingStopped."""
        if self._log is not None:
            self._log.write(self._run.step, values)
        self.alarms.check(self._run.step, values)

    def flush(self, values: dict[str, float]) -> None:
        """Ledger and means of the steps since the last flush, if any, of all processes.

        Raises TrainingStopped for a loss that is not finite.
        """
        if self._window.count == 0:
            return
        for errors in self._world.gather_objects(self._errors):
            for entry in errors if self._world.is_first else []:
                key = entry["i"], entry["attempt"]
                if key not in self.ledger:  # with tiles.distinct_tiles the same tile is read again and again
                    append_line(self._run.folder.ledger, entry)
                    self.ledger[key] = entry["next"]
        self._errors = []
        for taken in self._world.gather_objects(self._taken.counts):
            self._accepted.counts.update(taken)
        self._taken = Acceptance()
        row, bad_step = self._window.read()
        if bad_step >= 0:
            stop_non_finite(self._run, bad_step, self.ledger)
        pace = self.speed.read()
        if self._peak:
            row["mfu"] = pace["img_s"] * self._flops / self._peak
        self.write({**row, **pace, "tiles": self._run.step * self._run.recipe.run.batch, **values})

    def keep(self) -> None:
        """Write which slides gave tiles, up to the last flush."""
        if self._world.is_first:
            keep_acceptance(self._run.folder.acceptance, self._run.step, self._accepted)


class Window:
    """Sums of the losses since the last reading, kept on the device: adding never waits, reading does."""

    def __init__(self, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self.count = 0
        self._bad_step = torch.tensor(-1, device=device)

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Add one step's 0-d tensors; remembers the first step whose loss or gradient is not finite."""
        for name, value in losses.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        finite = torch.isfinite(losses["loss"]) & torch.isfinite(losses["grad_norm"])
        self._bad_step = torch.where(~finite & (self._bad_step < 0), step, self._bad_step)
        self.count += 1

    def read(self) -> tuple[dict[str, float], int]:
        """Means over steps and processes since the last reading, and the first bad step (-1 = none)."""
        here = World.here()
        sums = here.sum_(torch.stack(list(self._sums.values())).double()) / (here.size * max(self.count, 1))
        row = dict(zip(self._sums, sums.tolist(), strict=True))
        self._sums, self.count = {}, 0
        return row, int(here.max_(self._bad_step))


def stop_non_finite(run: Run, step: int, ledger: Mapping[tuple[int, int], int]) -> None:
    """Write down the tiles of the step that went wrong, and stop without saving a checkpoint."""
    first = step * run.recipe.run.batch
    path = run.folder.non_finite
    if run.parallel.world.is_first:
        tiles = []
        for index in range(first, first + run.recipe.run.batch):
            try:
                tiles.append({"i": index, **vars(run.plan.tile(index, ledger).address)})
            except EosinError as error:
                tiles.append({"i": index, "error": str(error)})
        write_json(path, {"step": step, "tiles": tiles})
        text = f"the loss or its gradient is not finite at step {step}; its tiles are listed in {path.name}"
        append_line(run.folder.alarms, {"step": step, "alarm": "non_finite", "action": "stop", "text": text})
    run.parallel.world.barrier()
    raise TrainingStopped(
        f"the loss or its gradient is not finite at step {step}; its {run.recipe.run.batch} tiles are listed in {path}"
    )
