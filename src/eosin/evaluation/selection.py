"""What is judged by what: the tasks that were asked for, each with the protocols that can judge it.

Everything that can be refused before the first image is read is refused here, and leaks are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosin.errors import DataError
from eosin.evaluation.kinds import KINDS, kind_of
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import PUBLIC, Task, open_tasks
from eosin.files import PathLike
from eosin.progress import say

_FEW_GROUPS = 5
"""Of fewer groups a bootstrap has too few different resamples: it looks surer than it is."""


class Pair(NamedTuple):
    """A task, and a protocol (that of its kind) by which it is judged. `opened`: the words of `open_task` that open the
    task again.
    """

    task: Task
    protocol: Protocol
    opened: dict[str, Any]


def select(
    specs: Sequence[str], data: PathLike | None, protocols: Sequence[Protocol], images: bool, any_count: bool = False
) -> list[Pair]:
    """Each task that `specs` names with each of `protocols`, task by task. `images`: whether there is a model, which
    needs images or slides; without one the task brings its features.

    A task that is named must be judged by every protocol; of `all`, what a protocol does not judge is left out and
    said. Raises DataError, one line.
    """
    pairs: list[Pair] = []
    for spec in specs:
        pairs += _of_all(data, protocols, any_count) if spec == "all" else _of_named(spec, data, protocols, any_count)
    tasks = tasks_of(pairs)
    names = [task.name for task in tasks]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"two tasks are called {sorted(repeated)[0]}; give each its own name")
    for task in tasks:
        if not images and not task.has_features:
            raise DataError(f"task {task.name}: {task.source} holds images; give it as --tasks with a model")
        if images and task.has_features:
            raise DataError(f"task {task.name}: {task.source} holds features; use --features for it")
    for task, protocol, _ in pairs:
        kind_of(task).check(task, protocol)
    for task in tasks:
        groups = task.groups
        if groups is not None:
            reported = groups if task.split is None else groups[task.split == task.reported_split]
            if (count := len(np.unique(reported))) < _FEW_GROUPS:
                say(f"task {task.name}: {count} {task.group_name}s only, so intervals and p-values say little")
        if shared := task.shared_groups():
            where = f"in train and in {task.reported_split}"
            say(f"task {task.name}: {shared} {task.group_name}s are {where}: a leak")
    return pairs


def _of_named(spec: str, data: PathLike | None, protocols: Sequence[Protocol], any_count: bool) -> list[Pair]:
    pairs = []
    for task in open_tasks([spec], data, any_count):
        for protocol in protocols:
            try:
                pairs.append(Pair(task, protocol.of(task.kind), _opened(task, spec, data, any_count)))
            except DataError as error:
                raise DataError(f"task {task.name}: {error}") from error
    return pairs


def _of_all(data: PathLike | None, protocols: Sequence[Protocol], any_count: bool) -> list[Pair]:
    """The public tasks below `data` that some protocol judges, each with those that do."""
    able = [kind for kind in KINDS if any(protocol.judges(kind) for protocol in protocols)]
    for protocol in protocols:
        lying = [task for task in PUBLIC.values() if not protocol.judges(task.kind)]
        if left := [f"{task.name} ({task.kind})" for task in lying if data is not None and task.find(data)]:
            say(f"{protocol.id} does not judge {', '.join(left)}: left out")
    tasks = open_tasks(["all"], data, any_count, able)
    return [
        Pair(task, protocol.of(task.kind), _opened(task, task.name, data, any_count))
        for task in tasks
        for protocol in protocols
        if protocol.judges(task.kind)
    ]


def _opened(task: Task, spec: str, data: PathLike | None, any_count: bool) -> dict[str, Any]:
    """Words that open `task` again from any folder."""
    name, equals, where = (part.strip() for part in spec.partition("="))
    path = Path(where).expanduser()
    if data is not None and not path.exists():
        path = Path(data) / where
    again = f"{name}={path.absolute()}" if equals else task.name
    return {"spec": again, "data": None if data is None else str(Path(data).absolute()), "any_count": any_count}


def tasks_of(pairs: Sequence[Pair]) -> list[Task]:
    """The tasks, each once, in order."""
    return list({id(pair.task): pair.task for pair in pairs}.values())
