"""Tasks: labelled data in the layouts that people have it in.

`NAME=DIR` (class folders, or images and masks), `NAME=table.csv`, `NAME=arrays.npz`, features of others (eva manifests,
folders of feature files with labels.csv), and the public tasks by name: `bach`, or `bach=DIR` where its official folder
has another name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.arrays import read_arrays
from eosin.evaluation.tasks.folder import read_folder
from eosin.evaluation.tasks.layout import PublicTask
from eosin.evaluation.tasks.manifest import as_public, holds_features, read_kept
from eosin.evaluation.tasks.public import PUBLIC
from eosin.evaluation.tasks.table import read_table
from eosin.evaluation.tasks.task import Task
from eosin.files import PathLike
from eosin.progress import say

__all__ = ["FAMILIES", "PUBLIC", "PublicTask", "Task", "expand", "find_public", "open_task", "open_tasks"]

FAMILIES = ("hest", "pathorob")
"""Words that stand for all public tasks whose names begin with them."""


def open_tasks(
    specs: Sequence[str], data: PathLike | None = None, any_count: bool = False, kinds: Sequence[str] | None = None
) -> list[Task]:
    """The tasks that `specs` name, families expanded; `all` = every public task that is found below `data`, of
    `kinds` where given.

    Which ones `all` leaves out is said in one line. Raises DataError as `open_task`, and where `all` finds
    nothing.
    """
    tasks = []
    for spec in [name for word in specs for name in expand(word)]:
        if spec != "all":
            tasks.append(open_task(spec, data, any_count))
            continue
        if data is None:
            raise DataError("--tasks all needs --data ROOT, the folder that holds the data sets")
        wanted = [task for task in PUBLIC.values() if kinds is None or task.kind in kinds]
        found = [task for task in wanted if task.find(data) is not None]
        if not found:
            raise DataError(f"found none of the public tasks below {data}; `eosin tasks list --data {data}`")
        if absent := [task.name for task in wanted if task not in found]:
            say(f"not below {data}: {', '.join(absent)}")
        tasks += [task.open(data, any_count) for task in found]
    return tasks


def open_task(spec: str, data: PathLike | None = None, any_count: bool = False) -> Task:
    """The task that `spec` names: NAME=PATH, or a public task by its name, which lies below `data`.

    A relative PATH is also looked for below `data`. `any_count`: a public task may have other counts than the
    known ones. Raises DataError that says what was looked for and what was found.
    """
    name, equals, where = (part.strip() for part in spec.partition("="))
    if not equals and name in PUBLIC:
        if data is None:
            raise DataError(f"task {name}: give --data ROOT, the folder that holds it, or {name}=FOLDER")
        return PUBLIC[name].open(data, any_count)
    if not equals or not name or not where:
        close = difflib.get_close_matches(name.lower(), PUBLIC, n=1)
        hint = f"; is {close[0]} meant?" if close and not equals else ""
        raise DataError(
            f"task {spec!r} is neither a public task (`eosin tasks list`) nor of the form NAME=PATH"
            f" (class folders, table.csv or arrays.npz){hint}"
        )
    path = Path(where).expanduser()
    if data is not None and not path.exists():
        path = Path(data) / where
    if name in PUBLIC and not holds_features(path):
        if not path.is_dir() and path.suffix.lower() != ".npz":
            raise DataError(f"task {name} is a public one and {path} no folder; give your own task another name")
        if path.is_dir():
            return PUBLIC[name].open(path, any_count)
    task = _own(name, path)
    if task.name not in PUBLIC:
        return task
    if not task.has_features:
        raise DataError(f"task {task.name} is a public one and {path} holds images; give your own task another name")
    return as_public(task)


def expand(spec: str) -> list[str]:
    """The tasks that a word stands for: `hest` and `pathorob` for all of their family, anything else for itself."""
    return [name for name in PUBLIC if name.startswith(f"{spec}-")] if spec in FAMILIES else [spec]


def find_public(name: str) -> PublicTask:
    """The public task called `name`. Raises DataError that names close ones."""
    if name not in PUBLIC:
        close = difflib.get_close_matches(name.lower(), PUBLIC, n=2, cutoff=0.5)
        hint = f"is {' or '.join(close)} meant?" if close else f"there are {', '.join(PUBLIC)}"
        raise DataError(f"there is no public task {name!r}; {hint}")
    return PUBLIC[name]


def _own(name: str, path: Path) -> Task:
    if holds_features(path):
        return read_kept(name, path)
    if path.is_dir():
        return read_folder(name, path)
    if not path.exists():
        raise DataError(f"task {name}: looked for {path}, found nothing there")
    if path.suffix.lower() == ".csv":
        return read_table(name, path)
    if path.suffix.lower() == ".npz":
        return read_arrays(name, path)
    raise DataError(f"task {name}: {path} is neither a folder nor a .csv table nor a .npz archive")
