"""Rows of slides that were read already: from a journal beside the cohort, and from a finished cohort.

The journal is JSON lines, written as each slide is done, so a killed indexing loses only the slides under
way. It is removed once the cohort is written.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import OutputError
from eosin.slides.cohort import BYTES, COLUMNS, stored

Row = dict[str, Any]


def journal_path(cohort: Path) -> Path:
    """Where the journal of a cohort file lies."""
    return cohort.with_name(f".{cohort.name}.journal")


class Journal:
    """The journal of one indexing, open for appending."""

    def __init__(self, cohort: Path, fresh: bool) -> None:
        """Open it; `fresh` forgets what it holds. OutputError where it cannot be written."""
        self._path = journal_path(cohort)
        try:
            self._file = open(self._path, "w" if fresh else "a", encoding="utf-8")  # noqa: SIM115
            self._file.write("\n")  # ends a line that a killed process left half-written
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def note(self, key: str, row: Row) -> None:
        """Keep one finished row under `key`."""
        packed = {name: row[name] and base64.b64encode(row[name]).decode() for name in BYTES}
        try:
            self._file.write(json.dumps([key, row | packed]) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def finish(self) -> None:
        """Remove it: its rows are in the cohort."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def rows_of(cohort: Path) -> dict[str, Row]:
    """Good rows of an earlier indexing into `cohort`, by key; failed slides are not among them."""
    rows = _finished(cohort) | _journalled(journal_path(cohort))
    return {key: row for key, row in rows.items() if row["status"] == "ok"}


def _finished(cohort: Path) -> dict[str, Row]:
    try:
        known = stored(pq.read_schema(cohort))
        table = pq.read_table(cohort, columns=list(COLUMNS)).to_pylist() if known else []
    except (OSError, pa.ArrowException):
        return {}
    if not known:
        return {}
    plain = [row | {"patient": None, "site": None, "stain": None} for row in table]
    told = zip(known["keys"], known["digests"], plain, strict=True)
    return {key: row | {"digest": digest} for key, digest, row in told}


def _journalled(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, row = json.loads(line)
            except ValueError:
                continue  # empty, or being written when the process was killed
            rows[key] = row | {name: row[name] and base64.b64decode(row[name]) for name in BYTES}
    return rows
