"""What a run folder holds, read for its page at any time, also while the run is being written."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eosin.errors import EosinError
from eosin.marks import read_marked
from eosin.report import pictures
from eosin.runs import RunFolder, read_lines
from eosin.tiles.acceptance import Acceptance, read_acceptance


@dataclass
class Record:
    """What a run folder holds at the moment of reading; `problems` says in one sentence why a section is absent, by
    its key, or the sample.
    """

    run: RunFolder
    recipe: dict[str, Any] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    acceptance: Acceptance = field(default_factory=Acceptance)
    unreadable: int = 0
    sample: pictures.Sample | None = None
    problems: dict[str, str] = field(default_factory=dict)


def read_record(run: RunFolder) -> Record:
    """Everything of a run that the page shows; parts that are missing or half written are left out, never
    an error.
    """
    record = Record(run)
    if run.recipe.is_file():
        try:
            record.recipe, record.marks = read_marked(run.recipe)
        except EosinError as error:
            record.problems["recipe"] = f"{error}."
    record.metrics = _rows(record, run.metrics, "curves")
    record.alarms = _rows(record, run.alarms, "alarms")
    try:
        record.acceptance = read_acceptance(run.acceptance)
    except EosinError as error:
        record.problems["acceptance"] = f"{error}."
    record.unreadable = len(_rows(record, run.ledger, "ledger"))
    if run.identity.is_file():
        record.identity = _mapping(run.identity)
    try:
        record.sample = pictures.Sample.read(run.pictures / "sample.npz")
    except FileNotFoundError:
        record.problems["sample"] = "the run has not set its sample of tiles aside yet (pictures/sample.npz)."
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        record.problems["sample"] = f"pictures/sample.npz cannot be read ({error})."
    return record


def _rows(record: Record, path: Path, key: str) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file that may be growing; none, and a problem noted, where it cannot be read."""
    try:
        return [row for row in read_lines(path) if isinstance(row, dict)]
    except (EosinError, OSError, UnicodeDecodeError) as error:
        record.problems[key] = f"{error}."
        return []


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
