"""TensorBoard, W&B and MLflow behind one small interface. What they need to go on after a resume is in loggers.json.

The libraries are imported only where a recipe names them, so that nobody needs all of them. Their own environment
variables hold: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, Protocol

from eosin.errors import EosinError, OutputError, RecipeError
from eosin.files import write_json
from eosin.marks import leaves
from eosin.runs import RunFolder

LoggerName = Literal["tensorboard", "wandb", "mlflow"]
PROJECT = "eosin"
"""What a W&B project or MLflow experiment is called where the environment names none."""


class Logger(Protocol):
    """Takes the numbers of a run."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` optimiser steps."""

    def close(self, failed: bool) -> None:
        """No more will come; failed: the run ended by an error or a signal."""


def check_loggers(names: Sequence[str]) -> None:
    """Raises RecipeError, one line that names the extra, for a logger whose library cannot be imported."""
    for name in names:
        _library(name)


def _library(name: str) -> ModuleType:
    try:
        library = importlib.import_module("torch.utils.tensorboard" if name == "tensorboard" else name)
        if library.__file__ is None:
            raise ImportError(f"{name} here is only a folder of records")  # what W&B leaves behind looks importable
        return library
    except ImportError as error:
        extra = "" if name == "tensorboard" else f"[{name}]"
        raise RecipeError(
            f"run.log_to: {name} cannot be imported ({error}); pip install 'eosin{extra}', or leave it out"
        ) from error


def open_logger(name: str, run: RunFolder, first_step: int, settings: Mapping[str, Any]) -> Logger:
    """The logger `name` for a run that goes on from `first_step`. Raises RecipeError or OutputError, one line."""
    library = _library(name)
    try:
        return _LOGGERS[name](library, run, first_step, settings)
    except EosinError:
        raise
    except Exception as error:  # each library raises its own kinds; the user needs one line
        raise OutputError(f"{name} cannot be opened: {error}; take it out of run.log_to to run without it") from error


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, library: Any, run: RunFolder, first_step: int, settings: Mapping[str, Any]) -> None:
        self._board = library.SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._board.close()


class _Wandb:
    """One W&B run, offline records in RUN/wandb. Steps are a value of their own: W&B refuses numbers of earlier steps,
    and a resumed run repeats some.
    """

    def __init__(self, library: Any, run: RunFolder, first_step: int, settings: Mapping[str, Any]) -> None:
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.root.absolute().name,
            id=_known(run, "wandb").get("id"),
            resume="allow",
            dir=str(run.root),
            config=dict(settings),
            settings=library.Settings(console="off"),
        )
        _keep(run, "wandb", {"id": self._run.id})
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _MlFlow:
    """One MLflow run: on MLFLOW_TRACKING_URI, or in files in RUN/mlruns.

    The file store keeps a metric in a file of its name, so `loss/ibot` could not stand beside `loss`: it is loss.ibot.
    """

    def __init__(self, library: Any, run: RunFolder, first_step: int, settings: Mapping[str, Any]) -> None:
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if not place:
            place = (run.root.absolute() / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 wants to be told that files are meant
        self._metric = library.entities.Metric
        self._client = library.MlflowClient(tracking_uri=place)
        known = _known(run, "mlflow")
        if known.get("tracking_uri") == place:
            self._id = str(known["run_id"])
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        at = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._id = self._client.create_run(at, run_name=run.root.absolute().name).info.run_id
        _keep(run, "mlflow", {"run_id": self._id, "tracking_uri": place})
        told = [library.entities.Param(key, str(value)[:500]) for key, value in leaves(dict(settings)).items()]
        for first in range(0, len(told), 100):  # as many as MLflow takes at once
            self._client.log_batch(self._id, params=told[first : first + 100])

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        numbers = [(re.sub(r"[^\w\-. :]", ".", name), value) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._id, metrics=[self._metric(name, value, now, step) for name, value in numbers])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_LOGGERS: dict[str, Callable[..., Logger]] = {"tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MlFlow}


def _known(run: RunFolder, name: str) -> dict[str, Any]:
    """What loggers.json holds of a logger; empty where the run has not used it."""
    try:
        told = json.loads(run.loggers.read_text(encoding="utf-8")) if run.loggers.exists() else {}
        return dict(told.get(name, {}))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OutputError(f"{run.loggers} is damaged ({error}); remove it to begin {name} anew") from error


def _keep(run: RunFolder, name: str, what: dict[str, Any]) -> None:
    told = json.loads(run.loggers.read_text(encoding="utf-8")) if run.loggers.exists() else {}
    write_json(run.loggers, {**told, name: what})
