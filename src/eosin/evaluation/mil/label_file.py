"""The CSV file of a label table: delimiter, column names, empty cells, slide names. Knows no tasks.

Comma, semicolon (then 14,5 is a number) or tab, with or without a byte-order mark; NA, N/A, NaN and null are empty
cells, as R and pandas write them; columns without a name (a written index) are left out.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eosin.errors import DataError
from eosin.files import PathLike

ALIASES = {"slide_id": "slide", "case_id": "patient", "patient_id": "patient"}
_EMPTY = ("na", "n/a", "#n/a", "<na>", "nan", "null")
_SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".vms", ".dcm", ".h5", ".pt")


class LabelFile(NamedTuple):
    """Column name -> a word a row, "" where the cell is empty; `lines`: the line of the file that each row ends on.

    There is a `slide`, each once, and a `patient` in every row.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]


def slide_name(word: str) -> str:
    """A slide's id: what is left of its file name without the suffix of a slide or feature file."""
    plain = word.strip()
    for suffix in _SLIDE_SUFFIXES:
        if plain.lower().endswith(suffix):
            return plain[: -len(suffix)]
    return plain


def read_label_file(path: PathLike) -> LabelFile:
    """The columns of the CSV file `path`. Raises DataError naming the line or column that is wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, [_word(cell, delimiter) for cell in row]) for row in reader]
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"cannot read labels {path}: {error}; a CSV file in UTF-8 is needed") from error
    rows = [(line, row) for line, row in rows if any(row)]
    names = _column_names(path, rows[0][1] if rows else [])
    if len(rows) < 2:
        raise DataError(f"{path} has no rows")
    for line, row in rows[1:]:
        if any(row[len(names) :]):
            raise DataError(f"{path} line {line} has {len(row)} cells, the first line names {len(names)}")
    columns = {
        name: [row[place] if place < len(row) else "" for _, row in rows[1:]]
        for place, name in enumerate(names)
        if name
    }
    columns["slide"] = [slide_name(word) for word in columns["slide"]]
    found = LabelFile(path, columns, [line for line, _ in rows[1:]])
    _check_keys(found)
    return found


def read_patients(path: PathLike) -> dict[str, str]:
    """The patient of each slide in a label table. Raises DataError as `read_label_file`."""
    columns = read_label_file(path).columns
    return dict(zip(columns["slide"], columns["patient"], strict=True))


def _word(cell: str, delimiter: str) -> str:
    plain = cell.strip()
    if delimiter == ";" and re.fullmatch(r"-?[0-9]+,[0-9]+", plain):
        return plain.replace(",", ".")
    return "" if plain.casefold() in _EMPTY else plain


def _column_names(path: Path, header: Sequence[str]) -> list[str]:
    names = [ALIASES.get(name, name) if ALIASES.get(name) not in header else name for name in header]
    if twice := [name for place, name in enumerate(names) if name and name in names[:place]]:
        raise DataError(f"{path} has two columns `{twice[0]}`; name each once")
    for needed in ("slide", "patient"):
        if needed not in names:
            close = difflib.get_close_matches(needed, names, n=1, cutoff=0.7)
            meant = f" ({close[0]!r} is near)" if close else ""
            why = "; splits must never share a patient, so copy `slide` into it where every slide is another patient"
            found = f"found {', '.join(header) or 'nothing'}"
            raise DataError(f"{path} has no column `{needed}`{meant}, {found}{why if needed == 'patient' else ''}")
    return names


def _check_keys(table: LabelFile) -> None:
    first: dict[str, int] = {}
    for line, slide, patient in zip(table.lines, table.columns["slide"], table.columns["patient"], strict=True):
        for column, word in (("slide", slide), ("patient", patient)):
            if not word:
                raise DataError(f"{table.path} line {line} has no {column}")
        if first.setdefault(slide, line) != line:
            raise DataError(f"{table.path} line {line} lists slide {slide} a second time, after line {first[slide]}")
