"""Rows of slides that were read already: in journals beside the cohort, and in a finished cohort.

A journal is JSON lines, written as each slide is done, so a killed indexing loses only the slides under way. Who
indexes a part of the slides has a journal of its own. All are removed once the cohort is written. What is held in
memory of a row is where it lies; its pictures are read when the cohort is written.
"""

from __future__ import annotations

import base64
import glob
import json
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import OutputError
from eosin.slides.cohort_file import BYTES, COLUMNS, stored

Row = dict[str, Any]


def journal_path(cohort: Path, part: tuple[int, int] | None = None) -> Path:
    """Where the journal of a cohort file lies; part: (number from 1, of how many)."""
    behind = "" if part is None else f"-{part[0]}-of-{part[1]}"
    return cohort.with_name(f".{cohort.name}.journal{behind}")


class _Place(NamedTuple):
    """Where a row lies: at a byte of a journal, or row `at` of the finished cohort (journal None)."""

    journal: Path | None
    at: int
    digest: str


class KnownRows:
    """Rows that were made, by key; of earlier indexings only good ones. Takes new ones into the journal."""

    def __init__(self, cohort: Path, fresh: bool = False, part: tuple[int, int] | None = None) -> None:
        """Look at what there is; `fresh` forgets it. A part looks at its own journal and the finished cohort."""
        self._cohort, self._part = cohort, part
        self._own = journal_path(cohort, part)
        self._places: dict[str, _Place] = {}
        self._handles: dict[Path, BinaryIO] = {}
        self._group: tuple[int, list[Row]] = (-1, [])
        self._finished: pq.ParquetFile | None = None
        if fresh:
            self._remove_journals()
        else:
            self._look_at_cohort()
            for journal in self._journals() if part is None else [self._own]:
                self._look_at_journal(journal)
        try:
            self._file = open(self._own, "ab")  # noqa: SIM115
            self._file.write(b"\n")  # ends a line that a killed process left half-written
        except OSError as error:
            raise OutputError(f"cannot write {self._own}: {error.strerror or error}") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def digest(self, key: str) -> str:
        """Digest of a row's content, empty where the slide failed."""
        return self._places[key].digest

    def note(self, key: str, row: Row) -> None:
        """Keep one finished row under `key`."""
        packed = {name: row[name] and base64.b64encode(row[name]).decode() for name in BYTES}
        try:
            place = _Place(self._own, self._file.tell(), row["digest"])
            self._file.write(json.dumps([key, row | packed]).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._own}: {error.strerror or error}") from error
        self._places[key] = place

    def row(self, key: str) -> Row:
        """The row of a key, with its pictures; patient, site and stain are the caller's to join."""
        place = self._places[key]
        return self._of_cohort(place.at) if place.journal is None else self._of_journal(place.journal, place.at)

    def close(self) -> None:
        """Let go of the journals and of the finished cohort: only then can some systems replace or remove them."""
        for handle in (self._file, *self._handles.values()):
            handle.close()
        if self._finished is not None:
            self._finished.close()

    def finish(self) -> None:
        """Remove the journals: their rows are in the cohort."""
        self.close()
        self._remove_journals()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _journals(self) -> list[Path]:
        """All journals of the cohort, the parts' first."""
        own = journal_path(self._cohort)
        return [*sorted(own.parent.glob(f"{glob.escape(own.name)}-*-of-*")), own]

    def _remove_journals(self) -> None:
        for journal in self._journals():
            journal.unlink(missing_ok=True)

    def _look_at_journal(self, path: Path) -> None:
        if not path.is_file():
            return
        at = 0
        with open(path, "rb") as file:
            for line in file:
                try:
                    key, row = json.loads(line)
                    self._keep(key, row["status"], _Place(path, at, row["digest"]))
                except (ValueError, TypeError, KeyError):
                    pass  # empty, or being written when the process was killed
                at += len(line)

    def _look_at_cohort(self) -> None:
        try:
            self._finished = pq.ParquetFile(self._cohort)
            known = stored(self._finished.schema_arrow)
            if not known:
                return
            statuses = self._finished.read(["status"])["status"].to_pylist()
        except (OSError, pa.ArrowException):
            return
        for number, (key, digest, status) in enumerate(zip(known["keys"], known["digests"], statuses, strict=True)):
            self._keep(key, status, _Place(None, number, digest))

    def _keep(self, key: str, status: str, place: _Place) -> None:
        if status == "ok":
            self._places[key] = place

    def _of_cohort(self, number: int) -> Row:
        assert self._finished is not None
        size = self._finished.metadata.row_group(0).num_rows
        if self._group[0] != number // size:
            table = self._finished.read_row_group(number // size, list(COLUMNS), use_threads=False)
            self._group = number // size, table.to_pylist()
        return self._group[1][number % size] | {"patient": None, "site": None, "stain": None}

    def _of_journal(self, path: Path, at: int) -> Row:
        if path not in self._handles:
            self._handles[path] = open(path, "rb")  # noqa: SIM115
        self._handles[path].seek(at)
        row = json.loads(self._handles[path].readline())[1]
        return {name: row.get(name) for name in COLUMNS} | {
            name: row[name] and base64.b64decode(row[name]) for name in BYTES
        }
