"""Task from a CSV table: file, label and, where known, split, patient, slide, site; one row a sample.

`file` is relative to the table's folder. Other columns are left alone and named, but a column that looks like
a misspelt known one is refused: an unseen `pateint` would quietly turn off clustering by patient.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import pandas

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles
from eosin.evaluation.tasks.task import Task, make_task
from eosin.progress import say

COLUMNS = ("file", "label", "split", "patient", "slide", "site")
_OTHER_KINDS = ("value", "mask", "time", "event")


def read_table(name: str, path: Path) -> Task:
    """The task listed in the CSV file `path`. Raises DataError naming column or line."""
    table = _read_csv(name, path)
    columns = [str(column) for column in table.columns]
    if "file" not in columns and "slide" in columns:
        raise DataError(f"task {name}: {path} lists slides, not tiles; a column `file` with image files is needed")
    if "label" not in columns and (other := [column for column in columns if column in _OTHER_KINDS]):
        raise DataError(f"task {name}: {path} has a column `{other[0]}`; only tasks with a `label` are known so far")
    for needed in ("file", "label"):
        if needed not in columns:
            raise DataError(f"task {name}: looked for a column `{needed}` in {path}, found {', '.join(columns)}")
    refuse_misspelt(name, path, columns, COLUMNS)
    if ignored := [column for column in columns if column not in COLUMNS]:
        say(f"task {name}: columns not used: {', '.join(ignored)}")

    files, labels = table["file"].tolist(), table["label"].tolist()
    if not files:
        raise DataError(f"task {name}: {path} has no rows")
    for column in ("file", "label"):
        if blank := [row for row, value in enumerate(table[column]) if not value.strip()]:
            raise DataError(f"task {name}: {path} line {blank[0] + 2} has no {column}")
    if repeated := table.index[table["file"].duplicated()].tolist():
        raise DataError(f"task {name}: {path} line {repeated[0] + 2} lists {files[repeated[0]]} a second time")
    paths = [path.parent / file for file in files]
    if missing := [row for row, file in enumerate(paths) if not file.is_file()]:
        raise DataError(
            f"task {name}: {len(missing)} of {len(paths)} files of {path} are missing,"
            f" first line {missing[0] + 2}: looked for {paths[missing[0]]}"
        )
    optional = {column: table[column].tolist() if column in columns else None for column in COLUMNS[2:]}
    return make_task(name, path, ImageFiles(paths), labels, ids=files, **optional)


def refuse_misspelt(name: str, path: Path, found: list[str], known: tuple[str, ...]) -> None:
    """Raise DataError for a name in `found` that is nearly, but not quite, one of `known`."""
    for word in found:
        plain = word.strip().lower()
        close = difflib.get_close_matches(plain, known, n=1, cutoff=0.85)
        if word not in known and close:
            raise DataError(f"task {name}: {path} has {word!r}; is {close[0]!r} meant?")


def _read_csv(name: str, path: Path) -> pandas.DataFrame:
    try:
        return pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise DataError(f"task {name}: cannot read table {path}: {error}") from error
