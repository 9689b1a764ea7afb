"""Arrays on their way to a device: packed into one tensor and taken apart again, nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eosin.views.transfer import pack, tensor_to, to_device, unpack


def arrays() -> list[np.ndarray]:
    """Every dtype that views and masks use, odd sizes, an empty one, one that is not contiguous, a single number."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(-(2**40), 2**40, (2, 5, 4)),
        rng.random((3, 7)) < 0.5,
        rng.random(11).astype(np.float32),
        np.zeros((0, 3), dtype=np.float32),
        rng.random((6, 4))[::2, 1:],
        np.array(3.5),
        rng.integers(0, 256, (5, 3), dtype=np.uint8),
    ]


def test_packed_arrays_come_out_as_they_went_in() -> None:
    given = arrays()
    packed = pack(given)
    assert packed.dtype == torch.uint8
    for tensor, array in zip(unpack(packed, given), given, strict=True):
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


def test_nothing_to_send_is_no_error() -> None:
    assert unpack(pack([]), []) == []
    assert to_device([], torch.device("cpu")) == []


def test_on_the_cpu_nothing_is_copied() -> None:
    given = arrays()[0]
    (tensor,) = to_device([given], torch.device("cpu"))
    given[:] = 7
    assert (tensor == 7).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu_without_waiting() -> None:
    device, given = torch.device("cuda", 0), arrays()
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    to_device(given, device)  # the first call starts CUDA
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent, moved = to_device(given, device), tensor_to(pixels, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor, array in zip(sent, given, strict=True):
        assert tensor.device == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), array)
    assert torch.equal(moved.cpu(), pixels)
