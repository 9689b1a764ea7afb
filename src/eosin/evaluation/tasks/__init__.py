"""Tasks: labelled data in the layouts that people have it in.

`NAME=DIR` (class folders), `NAME=table.csv`, `NAME=arrays.npz`.
"""

from __future__ import annotations

from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.arrays import read_arrays
from eosin.evaluation.tasks.folder import read_folder
from eosin.evaluation.tasks.table import read_table
from eosin.evaluation.tasks.task import Task
from eosin.files import PathLike

__all__ = ["Task", "open_task"]


def open_task(spec: str, data: PathLike | None = None) -> Task:
    """The task that `spec` = "NAME=PATH" names; a relative PATH is also looked for below `data`.

    Raises DataError that says what was looked for and what was found.
    """
    name, equals, where = spec.partition("=")
    if not equals or not name.strip() or not where.strip():
        raise DataError(
            f"task {spec!r} is not of the form NAME=PATH (folder of class folders, table.csv or arrays.npz)"
        )
    path = Path(where).expanduser()
    if data is not None and not path.exists():
        path = Path(data) / where
    if path.is_dir():
        return read_folder(name, path)
    if not path.exists():
        raise DataError(f"task {name}: looked for {path}, found nothing there")
    if path.suffix.lower() == ".csv":
        return read_table(name, path)
    if path.suffix.lower() == ".npz":
        return read_arrays(name, path)
    raise DataError(f"task {name}: {path} is neither a folder nor a .csv table nor a .npz archive")
