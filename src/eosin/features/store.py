"""Features on disk, so that nothing is embedded twice, and nothing that a killed call had done already.

One `.npy` file a (model, transform, data), opened as a memory map. The file name is the hash of those three, so a
changed model, input size or image is another file and nothing stale is ever read. An array that is filled block by
block lies beside it with a journal of its finished blocks until it is whole; only then does it get its name.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from eosin.errors import OutputError
from eosin.features.encoder import Encoder
from eosin.files import PathLike, atomic_path, check_writable
from eosin.progress import say
from eosin.provenance import hash_of

Features = npt.NDArray[np.float32]


def feature_key(encoder: Encoder, content_hash: str) -> str:
    """Name of the features that `encoder` gives for the data with `content_hash`."""
    return hash_of([encoder.model_hash, encoder.transform, content_hash])


class FeatureStore:
    """A folder of feature arrays float32 [N, …], by key."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where the features of `key` lie or would lie."""
        return self.folder / f"{key}.npy"

    def get(self, key: str) -> Features | None:
        """Features of `key`, memory-mapped and read-only; None where there are none (or the file is damaged)."""
        try:
            found: Any = np.load(self.path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found

    def get_or(self, key: str, make: Callable[[], Features]) -> Features:
        """Features of `key`, made by `make` in one piece and kept where there are none yet."""
        found = self.get(key)
        if found is not None:
            return found
        features = np.ascontiguousarray(make(), dtype=np.float32)
        with atomic_path(self.path(key)) as temporary, open(temporary, "wb") as handle:
            np.save(handle, features)
        return features

    def grow(self, key: str, shape: Sequence[int], fill: Callable[[Growing], None]) -> Features:
        """Features of `key`, float32 `shape` [N, …], memory-mapped; where there are none yet, `fill` appends them.

        `fill` gets the array as far as an earlier call had come (`Growing.done` rows) and appends the rest. Where it is
        killed or raises, the finished blocks stay for the next call. Another process that fills the same key is waited
        for. Raises OutputError where the folder cannot be written, and whatever `fill` raises.
        """
        found = self.get(key)
        if found is not None:
            return found
        check_writable(self.folder)
        journal = self.folder / f".{key}.journal"
        with _held(journal) as lines:
            found = self.get(key)  # another process may have made it while this one waited
            if found is None:
                with _growing(self.folder, key, tuple(shape), lines) as growing:
                    fill(growing)
                    growing.finish(self.path(key))
                found = self.get(key)
            journal.unlink(missing_ok=True)
        if found is None:
            raise OutputError(f"{self.path(key)} cannot be read again after it was written")
        return found


class Growing:
    """An array that is appended to block by block. `done`: rows that are finished, from the first on."""

    def __init__(self, file: IO[bytes], journal: IO[str], shape: tuple[int, ...], start: int, done: int) -> None:
        self._file, self._journal, self._shape, self._start = file, journal, shape, start
        self.done = done

    def append(self, block: npt.NDArray[Any]) -> None:
        """The next rows [n, …]. Raises OutputError where they cannot be written."""
        values = np.ascontiguousarray(block, dtype=np.float32)
        end = self.done + len(values)
        if values.shape[1:] != self._shape[1:] or end > self._shape[0]:
            raise ValueError(f"a block {values.shape} does not fit behind row {self.done} of {self._shape}")
        try:
            # Through the file, not a map of it: a full disk is then an error and not a signal.
            self._file.seek(self._start + 4 * self.done * math.prod(self._shape[1:]))
            self._file.write(values.data)
            self._file.flush()
            self._journal.write(json.dumps([end, zlib.crc32(values.data)]) + "\n")
            self._journal.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._file.name}: {error.strerror or error}") from error
        self.done = end

    def finish(self, path: Path) -> None:
        """Give the array its name, which only a whole one gets."""
        if self.done != self._shape[0]:
            raise ValueError(f"{self.done} of {self._shape[0]} rows are there")
        try:
            os.fsync(self._file.fileno())
            os.replace(self._file.name, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _growing(folder: Path, key: str, shape: tuple[int, ...], journal: IO[str]) -> Iterator[Growing]:
    """The array of `key` as far as `journal` proves it; from its start where there is nothing to go on from."""
    path = folder / f".{key}.part"
    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    size = head.tell() + 4 * math.prod(shape)
    try:
        # A file of another size is of something else. What is not written yet takes no room on the disk.
        file = open(path, "r+b" if path.is_file() and path.stat().st_size == size else "w+b")  # noqa: SIM115
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    with file:
        try:
            blocks = _proven(file, journal, shape, head.tell())
            file.seek(0)
            file.write(head.getvalue())
            file.truncate(size)
            journal.seek(0)
            journal.truncate()
            journal.writelines(json.dumps(line) + "\n" for line in (list(shape), *blocks))
            journal.flush()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        yield Growing(file, journal, shape, head.tell(), blocks[-1][0] if blocks else 0)


def _proven(file: IO[bytes], journal: IO[str], shape: tuple[int, ...], start: int) -> list[list[int]]:
    """[end, crc32] of the blocks that lie in `file` as `journal` says, from the first one on."""
    journal.seek(0)
    found: list[list[int]] = []
    width, done = math.prod(shape[1:]), 0
    for number, line in enumerate(journal):
        try:
            told = json.loads(line)
            if number == 0:
                if told != list(shape):
                    break
                continue
            end, crc = (int(value) for value in told)
        except (ValueError, TypeError):
            break  # being written when the process was killed
        file.seek(start + 4 * done * width)
        if not done < end <= shape[0] or zlib.crc32(file.read(4 * (end - done) * width)) != crc:
            break  # the machine stopped before the block was on the disk
        found.append([end, crc])
        done = end
    return found


@contextmanager
def _held(path: Path) -> Iterator[IO[str]]:
    """The journal at `path`, open for reading and appending, for this process alone."""
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closing it gives the lock back)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
        with file:
            _lock(file, path)
            # Whoever held it may have finished and removed it: what was opened is then no file any more.
            if _same(file, path):
                yield file
                return


def _same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file: IO[str], path: Path) -> None:
    """Wait for whoever has the file; on storage without locks there is nobody to wait for."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another process makes features that go into {path.parent}; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        return
