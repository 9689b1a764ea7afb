"""Bytes of a slide file by position: what the TIFF reader reads from.

A local file is read with `pread`, so threads share one descriptor without a lock. Any other store can take its
place by offering the same three things.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from eosin.errors import SlideError

Span = tuple[int, int]  # offset and length in bytes


class ByteSource(Protocol):
    """A file that is read in spans. Threads may share it.

    name: what error lines call it. size: its length in bytes.
    """

    name: str
    size: int

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span; SlideError where they cannot be had in full."""
        ...

    def close(self) -> None:
        """Release it; reading afterwards is a SlideError."""
        ...


class FileBytes:
    """A file on a local or mounted disk."""

    def __init__(self, path: Path) -> None:
        """Open it; SlideError where it cannot be."""
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self._release = weakref.finalize(self, os.close, self._descriptor)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise SlideError(f"{path}: cannot be read: {error.strerror or error}") from error

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """See `ByteSource.read`."""
        return [self._read(offset, length) for offset, length in spans]

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise SlideError(
                f"{self.name}: truncated or damaged: bytes {offset} to {offset + length} wanted, it has {self.size}"
            )
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length and (more := os.pread(self._descriptor, length - len(data), offset + len(data))):
                data += more  # a signal or a network file system may cut one read short
        except (OSError, OverflowError) as error:
            raise SlideError(f"{self.name}: cannot be read: {error}") from error
        if len(data) < length:
            raise SlideError(f"{self.name}: became shorter while it was read")
        return data

    def close(self) -> None:
        """Close the file."""
        self._descriptor = -1
        self._release()
