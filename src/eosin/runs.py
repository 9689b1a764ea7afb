"""The layout of the folders that eosin writes, in one place.

RUN/recipe.yaml, metrics.jsonl, alarms.jsonl, ledger.jsonl, checkpoints/step_00001234/, tensorboard/, pictures/.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from eosin.errors import DataError, OutputError
from eosin.files import PathLike, write_text

ATTENTION = ("attention_first", "attention_latest")
"""Names of the attention maps in pictures/ (`training/attention.py`)."""


class RunFolder:
    """Paths and small records of one training run."""

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        self.recipe = self.root / "recipe.yaml"
        self.identity = self.root / "identity.json"
        self.metrics = self.root / "metrics.jsonl"
        self.alarms = self.root / "alarms.jsonl"
        self.ledger = self.root / "ledger.jsonl"
        self.loggers = self.root / "loggers.json"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.pictures = self.root / "pictures"
        self.report = self.root / "report.html"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint taken after `step` optimiser steps."""
        return self.checkpoints / f"step_{step:08d}"

    def own_files(self) -> list[Path]:
        """Files and folders in it that only a run writes: what `--fresh` removes."""
        files = [self.identity, self.metrics, self.alarms, self.ledger, self.loggers, self.recipe, self.report]
        files += [self.pictures / f"{name}.npz" for name in ("sample", *ATTENTION)]
        found = [path for path in files if path.exists()]
        found += [folder for folder in self.checkpoints.glob("step_*") if (folder / "state.json").exists()]
        return found + sorted(self.tensorboard.glob("events.out.tfevents*"))

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        found = [folder.name for folder in self.checkpoints.glob("step_*") if folder.is_dir()]
        return sorted(int(name.removeprefix("step_")) for name in found if name.removeprefix("step_").isdigit())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, last value of a step first seen last; a torn last line is left out."""
        return read_lines(self.metrics)


def read_lines(path: PathLike) -> list[dict[str, Any]]:
    """Records of a JSON-lines file; missing file = none; a torn last line (killed process) is left out."""
    path = Path(path)
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) - 1:
                break
            raise DataError(f"{path} line {number + 1} is not JSON: {error.msg}") from error
    return records


def append_line(path: PathLike, record: dict[str, Any]) -> None:
    """Append one record to a JSON-lines file; a torn last line (killed process, full disk) is dropped first.

    Raises OutputError, one line.
    """
    try:
        with open(path, "ab+") as handle:
            end = handle.seek(0, os.SEEK_END)
            if end and (handle.seek(end - 1), handle.read(1))[1] != b"\n":
                handle.seek(0)
                handle.truncate(handle.read().rfind(b"\n") + 1)
            handle.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def rewrite_lines(path: PathLike, records: list[dict[str, Any]]) -> None:
    """Replace a JSON-lines file atomically (used when a resumed run drops what came after its checkpoint)."""
    write_text(os.fspath(path), "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
