"""Slide classification: a head on bags of tile features says the class of each slide. Balanced accuracy."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from eosin.errors import DataError
from eosin.evaluation.folds import Fold, folds_of
from eosin.evaluation.kinds.classification import columns_of_classes, describe_classes, outcome_of_classes
from eosin.evaluation.kinds.kind import Asked, Kind
from eosin.evaluation.outcome import Ints, Outcome
from eosin.evaluation.probes.bags import abmil
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task

_READING = ("mpp", "size_px")
"""Settings of a protocol that reads a task's slides at another scale than the task says."""


class Slide(Kind):
    """Bags float32 [n_i, D] of all N slides; ABMIL."""

    name = "slide"

    def check(self, task: Task, protocol: Protocol) -> None:
        if task.slides is None and task.bags is None:
            raise DataError(f"task {task.name}: it holds neither slides nor bags of tile features")
        for fold in folds_of(task, protocol):
            _watched(task, fold)

    def inputs(self, asked: Asked) -> Any:
        """Bags of the task's slides, or those that came with the task."""
        from eosin.evaluation.kinds.slide_bags import HeldBags, bags_of_slides

        task = asked.task
        if task.slides is None:
            return HeldBags(task.bags or [])
        settings = asked.protocol.settings_for(task.name)
        read = {name: settings[name] for name in _READING if name in settings}
        return HeldBags(bags_of_slides(asked, replace(task.slides, **read)))

    def judge(self, task: Task, inputs: Any, protocol: Protocol, device: torch.device) -> Outcome:
        started = time.perf_counter()
        folds = folds_of(task, protocol)
        told = {name: value for name, value in protocol.settings_for(task.name).items() if name not in _READING}
        settings = {**told, "seed": protocol.seed, "device": device}
        predictions = [
            abmil(
                inputs,
                task.labels,
                fold.train,
                _watched(task, fold),
                fold.test,
                len(task.classes),
                fold=number,
                title=f"{protocol.id}, {task.name}",
                **settings,
            )
            for number, fold in enumerate(folds)
        ]
        choices = [prediction.choices for prediction in predictions]
        return outcome_of_classes(task, protocol, folds, predictions, choices, started)

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        return describe_classes(task, outcome)

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        return columns_of_classes(task, outcome)


def _watched(task: Task, fold: Fold) -> Ints:
    """Slides that choose checkpoints."""
    if fold.watch is None or not len(fold.watch):
        raise DataError(f"task {task.name}: no slides to choose a checkpoint on")
    return np.asarray(fold.watch)
