"""The layout of the folders that eosin writes, in one place.

RUN/recipe.yaml, metrics.jsonl, alarms.jsonl, ledger.jsonl, acceptance.parquet, checkpoints/step_00001234/,
tensorboard/, pictures/.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from eosin.errors import DataError, OutputError, ResumeError
from eosin.files import PathLike, write_text
from eosin.progress import say

IDENTITY = ("recipe_hash", "plan_hash", "precision", "steps")
"""What every identity.json of a run holds, among other things."""
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
        self.acceptance = self.root / "acceptance.parquet"
        self.non_finite = self.root / "non_finite_step.json"
        self.lock = self.root / ".lock"
        self.loggers = self.root / "loggers.json"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.pictures = self.root / "pictures"
        self.report = self.root / "report.html"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint taken after `step` optimiser steps."""
        return self.checkpoints / f"step_{step:08d}"

    def own_files(self) -> list[Path]:
        """Files and folders in it that only a run writes: what `--fresh` removes, the identity last."""
        files = [self.metrics, self.alarms, self.ledger, self.acceptance, self.loggers, self.recipe, self.report]
        files.append(self.non_finite)
        files += [self.pictures / f"{name}.npz" for name in ("sample", *ATTENTION)]
        found = [path for path in files if path.exists()]
        found += [folder for folder in self.checkpoints.glob("step_*") if (folder / "state.json").exists()]
        found += sorted(self.tensorboard.glob("events.out.tfevents*"))
        return [*found, self.identity] if self.identity.exists() else found

    def read_identity(self) -> dict[str, Any]:
        """The content of identity.json. Raises ResumeError where no run of ours wrote it, or it is damaged."""
        try:
            known = json.loads(self.identity.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ResumeError(f"{self.identity} cannot be read ({error}); give another -o, or move it away") from error
        if not isinstance(known, dict) or not set(IDENTITY) <= known.keys():
            raise ResumeError(f"{self.identity} is not that of a run; give another -o, or move it away")
        return known

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder for this process while the block lasts: two runs would overwrite each other's files.

        The lock is the system's, so it goes with this process however that ends, and is not inherited by reading
        processes. Raises OutputError, one line, where another run has it; without locks (some network storage) says so.
        """
        try:
            handle = open(self.lock, "a+", encoding="utf-8")  # noqa: SIM115  (closing it is what gives the lock back)
        except OSError as error:
            raise OutputError(f"cannot write {self.lock}: {error.strerror or error}") from error
        with handle:
            if _locked(handle, self.root):
                handle.truncate(0)
                handle.write(f"process {os.getpid()} on {socket.gethostname()}")
                handle.flush()
            try:
                yield
            finally:
                self.lock.unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, in order."""
        found = [folder.name for folder in self.checkpoints.glob("step_*") if folder.is_dir()]
        return sorted(int(name.removeprefix("step_")) for name in found if name.removeprefix("step_").isdigit())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, last value of a step first seen last; a torn last line is left out."""
        return read_lines(self.metrics)


def _locked(handle: TextIO, root: Path) -> bool:
    """Lock an open file for this process; False on storage without locks. Raises OutputError where another has it."""
    import fcntl

    who = "another process"
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle.fileno()).st_nlink:  # else its last holder has just removed it
            return True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            say(f"{root} lies on storage without locks ({error.strerror}): see that no other run writes there")
            return False
        handle.seek(0)
        who = handle.read() or who
    raise OutputError(f"{root} is in use: {who} trains there; wait for it, or give another -o")


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
