"""Losses and targets run in at least fp32, whatever autocast is on; fp64 stays fp64. And in rows that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_BYTES = {"cpu": 16 << 20, "gpu": 256 << 20}


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32, or as it is in fp64."""
    return x if x.dtype == torch.float64 else x.float()


def row_chunks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """first, last + 1 of pieces of a [rows, columns] matrix that may be held in fp32 several times over."""
    size = max(16, _CHUNK_BYTES["cpu" if device.type == "cpu" else "gpu"] // (4 * columns))
    for first in range(0, rows, size):
        yield first, min(first + size, rows)
