"""Labelled tasks that a run is probed on while it learns: the tasks, protocols and judge of `eosin eval`, with the
encoder as it stands in memory. Features are of one look: they lie in a temporary folder and go with it.

Every process takes the same turns (FSDP needs that): images are shared where a task asks for one vector a sample, the
first process fits and scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from eosin.distributed import World
from eosin.errors import DataError, EosinError
from eosin.evaluation.judge import judge, row_of
from eosin.evaluation.kinds import KINDS, Asked, Kind, kind_of
from eosin.evaluation.protocols import Protocol, find_protocols
from eosin.evaluation.tasks import Task, open_tasks
from eosin.features import FeatureStore, embed_images
from eosin.features.encoder import Encoder
from eosin.files import PathLike

_KEY = "look"


@dataclass(frozen=True)
class Probe:
    """A task with the protocols that judge it during a run."""

    task: Task
    protocols: tuple[Protocol, ...]


def open_probes(
    specs: Sequence[str], data: PathLike | None, protocol: str, steps: int, any_count: bool = False
) -> list[Probe]:
    """The probes that `specs` name: NAME=PATH, or public tasks by name, which lie below `data`.

    `protocol`: names of `eosin eval --protocol`; a task is judged by those that judge its kind. `steps`: as
    `probes_of`. Raises DataError, one line, for a task that is missing, holds no images, or that none of them judges.
    """
    tasks: list[Task] = []
    for spec in specs:
        try:
            tasks += open_tasks([spec], data, any_count, [kind for kind in KINDS if kind != "slide"])
        except DataError as error:
            raise DataError(f"--probe {spec}: {error}") from error
    return probes_of(tasks, protocol, steps)


def probes_of(tasks: Sequence[Task], protocol: str, steps: int) -> list[Probe]:
    """Tasks with those of the protocols that judge them, whose heads and decoders train for at most `steps` steps."""
    names = [task.name for task in tasks]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise DataError(f"two probes are called {repeated[0]}; give each its own name")
    protocols = [shortened(one, steps) for one in find_protocols(protocol)]
    return [Probe(task, tuple(_fitting(task, protocols))) for task in tasks]


def shortened(protocol: Protocol, steps: int) -> Protocol:
    """The protocol with at most `steps` steps of training, which its name then says: strict-200."""
    few = {kind: shortened(one, steps) for kind, one in protocol.kinds.items()}
    settings, tasks = _fewer(protocol.settings, steps), {n: _fewer(own, steps) for n, own in protocol.tasks.items()}
    if (settings, tasks) == (protocol.settings, protocol.tasks):
        return replace(protocol, kinds=few)
    return replace(protocol, id=f"{protocol.id}-{steps}", settings=settings, tasks=tasks, kinds=few)


def _fewer(settings: dict[str, Any], steps: int) -> dict[str, Any]:
    """Settings of a probe whose steps, or numbers of steps to choose from, are at most `steps`."""
    asked = settings.get("steps")
    if asked is None:
        return settings
    if isinstance(asked, list):
        return {**settings, "steps": list(dict.fromkeys(min(count, steps) for count in asked))}
    return {**settings, "steps": min(asked, steps)}


def measure_probes(probes: Sequence[Probe], encoder: Encoder, batch: int = 64) -> dict[str, float]:
    """What the probes say of `encoder` as it stands, in the first process; the others take part and get nothing.

    PROTOCOL: the score, PROTOCOL_low and PROTOCOL_high: its 95 % interval over samples or patients (where there is
    one); with several probes PROTOCOL/NAME and so on.
    """
    found: dict[str, float] = {}
    for probe in probes:
        for name, row in _rows(probe, encoder, batch).items():
            ends = {"": row["mean"], "_low": row["ci_low"], "_high": row["ci_high"]}
            for end, value in ends.items():
                if value is not None and math.isfinite(value):
                    found[f"{name}{end}" + ("" if len(probes) == 1 else f"/{probe.task.name}")] = float(value)
    return found


def _rows(probe: Probe, encoder: Encoder, batch: int) -> dict[str, dict[str, Any]]:
    """Row of results of each protocol, by its id; empty in processes other than the first."""
    task, world = probe.task, World.here()
    kind, device = kind_of(task), encoder.mean.device
    rows: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory(prefix="eosin-probe-") as folder:
        store = FeatureStore(Path(folder) / "cache" / "features")
        if type(kind).inputs is Kind.inputs:
            store.get_or(_KEY, partial(_shared, task, encoder, batch))
        for protocol in probe.protocols:
            own = protocol.of(task.kind)
            asked = Asked(task, own, encoder, encoder.name, _KEY, store, device, batch)
            inputs = kind.inputs(asked)
            if world.is_first:
                rows[own.id] = row_of(task, protocol, judge(task, inputs, protocol, device))
    return rows


def _shared(task: Task, encoder: Encoder, batch: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Features float32 [N, D], a part of the images embedded by each process."""
    assert task.images is not None
    world, count = World.here(), len(task)
    part = embed_images(encoder, Subset(task.images, own_share(count).tolist()), batch, title=f"probe {task.name}")
    return world.gather(torch.from_numpy(part).to(encoder.mean.device))[:count].cpu().numpy()


def own_share(count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Numbers of the rows that this process takes of `count`: as many in each, the last one again where some lack.

    Gathered in rank order and cut to `count` they are 0, 1, 2 …
    """
    world = World.here()
    each = -(-count // world.size)
    return np.minimum(np.arange(world.rank * each, (world.rank + 1) * each), count - 1)


def _fitting(task: Task, protocols: Sequence[Protocol]) -> list[Protocol]:
    """Those that judge the task. DataError where there is none, or where one cannot."""
    if task.images is None:
        held = "features" if task.has_features else "slides"
        raise DataError(f"probe {task.name}: {task.source} holds {held}; a run is probed on images")
    able = [protocol for protocol in protocols if protocol.judges(task.kind)]
    if not able:
        try:
            protocols[0].of(task.kind)
        except EosinError as error:
            raise DataError(f"probe {task.name}: {error} (--set run.probe_protocol=…)") from error
    for protocol in able:
        kind_of(task).check(task, protocol.of(task.kind))
    return able
