"""Where a run writes its numbers: metrics.jsonl always; TensorBoard, W&B and MLflow by `run.log_to`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from eosin.files import finite
from eosin.progress import say
from eosin.runs import RunFolder, append_line, rewrite_lines
from eosin.training.loggers import Logger, open_logger


class MetricsLog:
    """metrics.jsonl and the loggers beside it. On resume, rows after the checkpoint are dropped."""

    def __init__(
        self,
        run: RunFolder,
        first_step: int,
        log_to: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """first_step: of the checkpoint that the run goes on from. settings: the recipe as nested values, for W&B and
        MLflow. Raises RecipeError where a logger is not installed, OutputError where it cannot be opened.
        """
        self._run = run
        rows = run.read_metrics()
        kept = [row for row in rows if row["step"] <= first_step]
        if len(kept) < len(rows):
            rewrite_lines(run.metrics, kept)
        names = dict.fromkeys(log_to)
        self._loggers: dict[str, Logger] = {name: open_logger(name, run, first_step, settings or {}) for name in names}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row after `step` optimiser steps.

        A logger that fails (its server is gone …) is named once and left out from then on; the run goes on.
        """
        append_line(self._run.metrics, finite({"step": step, **values}))
        for name, logger in list(self._loggers.items()):
            try:
                logger.write(step, values)
            except Exception as error:  # each library raises its own kinds; none is worth a run
                del self._loggers[name]
                say(f"{name} takes no more numbers ({' '.join(str(error).split())}); metrics.jsonl has them all")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, logger in self._loggers.items():
            try:
                logger.close(failed=error is not None)
            except Exception as problem:
                say(f"{name} did not close ({' '.join(str(problem).split())}); metrics.jsonl has all numbers")
