"""What a kind of task has to say of itself to be judged; everything else is the same for all kinds.

A kind turns a task and a protocol into an `Outcome`: it refuses what cannot be judged, reads what the judge needs (and
keeps it), fits, predicts and scores. Intervals, differences, files and resuming are not its business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from eosin.errors import DataError
from eosin.evaluation.folds import folds_of
from eosin.evaluation.outcome import Outcome
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task
from eosin.features import Encoder, FeatureStore, kept_embeddings


@dataclass(frozen=True)
class Asked:
    """Whose features of which task are wanted, and where they are kept.

    `protocol`: already the one for the task's kind. `encoder`: None where features came with the task. `model`: its
    name in results. `key`: name of the encoder's features of these samples; features of another form (dense, bags) add
    to it. `device`, `batch`, `workers`: how images are embedded.
    """

    task: Task
    protocol: Protocol
    encoder: Encoder | None
    model: str
    key: str
    store: FeatureStore
    device: torch.device
    batch: int = 64
    workers: int = 0


class Kind(ABC):
    """How tasks of one kind are judged. Has no state. The protocol it is given is that of its kind."""

    name: ClassVar[str]

    def check(self, task: Task, protocol: Protocol) -> None:
        """Refuse what cannot be judged before any work: DataError, one line. Reads no sample."""
        folds_of(task, protocol)

    def inputs(self, asked: Asked) -> Any:
        """What `judge` reads, made or found in the store. Here: features float32 [N, D], a row a sample."""
        encoder, images = asked.encoder, asked.task.images
        if encoder is not None and images is not None:
            return kept_embeddings(
                asked.store,
                asked.key,
                encoder,
                images,
                device=asked.device,
                batch=asked.batch,
                workers=asked.workers,
                title=f"{asked.model}, {asked.task.name}",
            )
        if asked.task.features is None:
            raise DataError(f"task {asked.task.name}: there is no encoder, and no features came with it")
        return asked.task.features

    @abstractmethod
    def judge(self, task: Task, inputs: Any, protocol: Protocol, device: torch.device) -> Outcome:
        """Judge what `inputs` gave. Deterministic on a CPU."""

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        """Further keys of a row of results.json: chance where it is defined, metrics beside the main one."""
        return {}

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        """Columns of predictions.parquet, a value a reported sample: of label, predicted, correct, scores, truth."""
        return {}
