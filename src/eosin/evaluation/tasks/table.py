"""Task from a CSV table: one row a sample; the kind follows from the columns.

| columns | kind |
|---|---|
| file, label | classification |
| file, mask | segmentation: a mask file an image |
| file, value or value_NAME … | regression: one number a column |

With x, y and size_px a sample is the square of that side around (x, y) px of its file: spots on a large image.
Known as well: split, patient, slide, site. `file` and `mask` are relative to the table's folder. Other columns
are left alone and named, but a column that looks like a misspelt known one is refused: an unseen `pateint`
would quietly turn off clustering by patient.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles, ImageRegions
from eosin.evaluation.tasks.masks import masks_of
from eosin.evaluation.tasks.task import Task, checked_columns, make_task
from eosin.progress import say

GROUPS = ("split", "patient", "slide", "site")
SQUARE = ("x", "y", "size_px")
COLUMNS = ("file", "label", "mask", "value", *SQUARE, *GROUPS)


def read_table(name: str, path: Path) -> Task:
    """The task listed in the CSV file `path`. Raises DataError naming column or line."""
    table = _read_csv(name, path)
    columns = [str(column) for column in table.columns]
    values = [column for column in columns if column == "value" or column.startswith("value_")]
    target = _target(name, path, columns, values)
    refuse_misspelt(name, path, [column for column in columns if column not in values], COLUMNS)
    if ignored := [column for column in columns if column not in (*COLUMNS, *values)]:
        say(f"task {name}: columns not used: {', '.join(ignored)}")

    if not len(table):
        raise DataError(f"task {name}: {path} has no rows")
    for column in ("file", target):
        if blank := [row for row, value in enumerate(table[column]) if not value.strip()]:
            raise DataError(f"task {name}: {path} line {blank[0] + 2} has no {column}")
    files = _files(name, path, table, "file")
    samples, ids = _samples(name, path, table, files)
    if repeated := [row for row, repeat in enumerate(pandas.Series(ids).duplicated()) if repeat]:
        raise DataError(f"task {name}: {path} line {repeated[0] + 2} lists {ids[repeated[0]]} a second time")
    groups: dict[str, Any] = {column: table[column].tolist() if column in columns else None for column in GROUPS}
    if target == "label":
        return make_task(name, path, samples, table["label"].tolist(), ids=ids, **groups)
    groups = checked_columns(name, path, ids, **groups)
    if target == "mask":
        masks, classes = masks_of(name, _files(name, path, table, "mask"), path.parent)
        return Task(name, path, samples, np.asarray(ids), masks, classes, kind="segmentation", **groups)
    numbers = np.stack([_numbers(name, path, table, column) for column in values], axis=1).astype(np.float32)
    outputs = tuple(column.removeprefix("value_") for column in values)
    return Task(name, path, samples, np.asarray(ids), numbers, outputs, kind="regression", **groups)


def _target(name: str, path: Path, columns: list[str], values: list[str]) -> str:
    """The column that says what is to be predicted: label, mask, or the first value."""
    if "file" not in columns and "slide" in columns:
        raise DataError(f"task {name}: {path} lists slides, not tiles; a column `file` with image files is needed")
    if "file" not in columns:
        raise DataError(f"task {name}: looked for a column `file` in {path}, found {', '.join(columns)}")
    targets = [column for column in ("label", "mask", *values[:1]) if column in columns]
    if not targets and "time" in columns:
        raise DataError(f"task {name}: {path} has a column `time`; survival is judged by `eosin mil`")
    if not targets:
        wanted = "a column `label`, `mask`, `value` or `value_NAME`"
        raise DataError(f"task {name}: looked for {wanted} in {path}, found {', '.join(columns)}")
    if len(targets) > 1:
        raise DataError(f"task {name}: {path} has both {targets[0]} and {targets[1]}; which one is to be predicted?")
    return targets[0]


def _samples(
    name: str, path: Path, table: pandas.DataFrame, files: list[Path]
) -> tuple[ImageFiles | ImageRegions, list[str]]:
    """What an encoder reads, and an id a row: the file, and where in it."""
    given = [column for column in SQUARE if column in table.columns]
    if not given:
        return ImageFiles(files), table["file"].tolist()
    if len(given) < len(SQUARE):
        lacking = next(column for column in SQUARE if column not in given)
        raise DataError(f"task {name}: {path} has a column `{given[0]}`, but no `{lacking}`")
    x, y, sizes = (np.round(_numbers(name, path, table, column)).astype(np.int64) for column in SQUARE)
    if (sizes < 1).any():
        raise DataError(f"task {name}: {path} line {int(np.argmax(sizes < 1)) + 2} has a size_px below 1")
    ids = [f"{file}@{at_x},{at_y}" for file, at_x, at_y in zip(table["file"], x, y, strict=True)]
    return ImageRegions(files, np.stack([x, y], axis=1), sizes), ids


def _files(name: str, path: Path, table: pandas.DataFrame, column: str) -> list[Path]:
    paths = [path.parent / file for file in table[column]]
    there = {file: file.is_file() for file in dict.fromkeys(paths)}
    if missing := [row for row, file in enumerate(paths) if not there[file]]:
        raise DataError(
            f"task {name}: {len(missing)} of {len(paths)} files of {path} are missing,"
            f" first line {missing[0] + 2}: looked for {paths[missing[0]]}"
        )
    return paths


def _numbers(name: str, path: Path, table: pandas.DataFrame, column: str) -> npt.NDArray[np.float64]:
    """A column as finite numbers [N]."""
    numbers = pandas.to_numeric(table[column].str.strip(), errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise DataError(f"task {name}: {path} line {row + 2}: {column} {table[column].iloc[row]!r} is no number")
    return numbers


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
