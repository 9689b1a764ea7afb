"""Time on the device and on the host, the same words for both."""

from __future__ import annotations

import time

import torch

Mark = torch.cuda.Event | float


def mark(device: torch.device) -> Mark:
    """A point in the device's work: an event on a GPU, the clock on a CPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Mark, last: Mark) -> float:
    """Seconds between two marks; on a GPU only after it was waited for."""
    if isinstance(first, float) or isinstance(last, float):
        return float(last) - float(first)
    return first.elapsed_time(last) / 1000


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
