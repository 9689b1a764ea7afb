"""How a checkpoint's files are written: each process its part, with size and checksum, and a look that all are there.

The first process closes a checkpoint in the background, when every process has told it what it wrote. What goes wrong
on one process, or there, is raised on all.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from eosin.errors import OutputError

PATIENCE_S = 10.0
"""How long a file that another machine has written may take to be seen here (network file systems)."""


@dataclass(frozen=True)
class ShardFile:
    """A file of a checkpoint, as the process that wrote it knows it."""

    name: str
    bytes: int
    crc32: str  # of the whole file; 8 hex digits

    def told(self) -> dict[str, Any]:
        """Its entry in state.json."""
        return {"bytes": self.bytes, "crc32": self.crc32}


class ShardWriter(HuggingFaceStorageWriter):
    """Writes this process's part of a checkpoint into `folder`.

    complete: called on the first process, with the files of all, when all are there with the sizes they should have.
    """

    def __init__(self, folder: Path, complete: Callable[[list[ShardFile]], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._complete = folder, complete
        self._written: dict[str, ShardFile] = {}
        self.fs = _SummedFiles(self._written)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        """Write, and tell the first process name, size and checksum in place of offsets that nobody reads."""
        results = super().write_data(plan, planner).wait()
        told = [replace(result, storage_data=self._written[result.storage_data.relative_path]) for result in results]
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(told)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first process, when all have written. Raises OutputError."""
        files = {result.storage_data: rank for rank, written in enumerate(results) for result in written}
        look_for(self._folder, files)
        self._complete(sorted(files, key=lambda file: file.name))


def look_for(folder: Path, files: dict[ShardFile, int]) -> None:
    """Raises OutputError where a file (→ the process that wrote it) is not in `folder` with its size."""
    deadline = time.monotonic() + PATIENCE_S
    while absent := [file for file in files if _size(folder / file.name) != file.bytes]:
        if time.monotonic() > deadline:
            raise OutputError(
                f"cannot write {folder}: {absent[0].name} of process {files[absent[0]]} is not there; the run folder "
                "has to be shared by all machines"
            )
        time.sleep(0.1)
        os.listdir(folder)  # makes a network file system ask again


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


class _SummedFiles(FileSystem):
    """Files whose size and checksum are known when they are written."""

    def __init__(self, written: dict[str, ShardFile]) -> None:
        self._written = written

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with ThreadPoolExecutor(1) as beside, super().create_stream(path, mode) as stream:
            summed = _SummedStream(stream, beside)
            yield summed
        name = Path(path).name
        self._written[name] = ShardFile(name, summed.bytes, f"{summed.crc32.result():08x}")


class _SummedStream:
    """A stream that adds up what is written into it, in a thread beside the disk's work: the sum costs no time."""

    def __init__(self, stream: Any, beside: ThreadPoolExecutor) -> None:
        self._stream, self._beside = stream, beside
        self.bytes = 0
        self.crc32: Future[int] = beside.submit(int)

    def write(self, data: bytes) -> int:
        before = self.crc32
        self.crc32 = self._beside.submit(lambda: zlib.crc32(data, before.result()))
        self.bytes += len(data)
        written: int = self._stream.write(data)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
