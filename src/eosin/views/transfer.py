"""Numbers from the host to the device, so that neither waits for the other.

A plain copy to a GPU makes the host wait until the GPU has done all that was asked of it before; a few dozen of them a
step and the two take turns. From pinned memory the copy is one more thing asked of the GPU. So all arrays of a piece of
work travel together, in one such copy. Knows nothing of views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNED = 16  # bytes: every array begins where any dtype may

Array = npt.NDArray[Any]


def to_device(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """`arrays` as tensors of the same shapes and dtypes on `device`; on the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(tensor_to(pack(arrays, pinned=device.type == "cuda"), device), arrays)


def tensor_to(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; on its way to a GPU it goes through pinned memory."""
    if device.type != "cuda":
        return x.to(device)
    if x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def pack(arrays: Sequence[Array], pinned: bool = False) -> Tensor:
    """The bytes of `arrays` one after another in one CPU tensor, uint8 [bytes]."""
    ends = _ends(arrays)
    packed = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8, pin_memory=pinned)
    bytes_ = packed.numpy()
    for array, end in zip(arrays, ends, strict=True):
        first = end - _padded(array)
        bytes_[first : first + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed


def unpack(packed: Tensor, like: Sequence[Array]) -> list[Tensor]:
    """What `pack` put together, as views of `packed` with the shapes and dtypes of the arrays `like`."""
    found = []
    for array, end in zip(like, _ends(like), strict=True):
        first = end - _padded(array)
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        found.append(packed[first : first + array.nbytes].view(dtype).view(array.shape))
    return found


def _padded(array: Array) -> int:
    return -(-array.nbytes // _ALIGNED) * _ALIGNED


def _ends(arrays: Sequence[Array]) -> list[int]:
    """Where each array ends, its padding included."""
    return np.cumsum([_padded(array) for array in arrays], dtype=np.int64).tolist()
