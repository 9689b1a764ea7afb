"""What GPUs can do by their makers' data sheets: dense bf16 peak and memory, found by name."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from eosin.errors import RecipeError


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. name: the words that its device name has, e.g. "H100 PCIe"."""

    name: str
    tflops: float
    """Dense bf16 products with fp32 sums, TFLOP/s; data sheets print twice as much "with sparsity"."""
    memory_gb: float


GPUS = (
    Gpu("B200", 2250, 180),  # NVIDIA HGX B200 data sheet
    Gpu("H200", 989, 141),  # NVIDIA H200 data sheet
    Gpu("H100", 989, 80),  # NVIDIA H100 data sheet, SXM
    Gpu("H100 NVL", 835, 94),  # the same, NVL
    Gpu("H100 PCIe", 756, 80),  # NVIDIA H100 PCIe data sheet
    Gpu("A100", 312, 80),  # NVIDIA A100 data sheet
    Gpu("A100 40GB", 312, 40),  # the same
    Gpu("L40S", 362, 48),  # NVIDIA L40S data sheet
    Gpu("L4", 121, 24),  # NVIDIA L4 data sheet
    Gpu("A40", 150, 48),  # NVIDIA A40 data sheet
    Gpu("A10", 125, 24),  # NVIDIA A10 data sheet
    Gpu("RTX 6000 Ada", 364, 48),  # NVIDIA RTX 6000 Ada data sheet
    Gpu("RTX A6000", 155, 48),  # NVIDIA Ampere GA102 white paper
    Gpu("RTX 5090", 210, 32),  # NVIDIA RTX Blackwell white paper
    Gpu("RTX 4090", 165, 24),  # NVIDIA Ada white paper
    Gpu("RTX 3090", 71, 24),  # NVIDIA Ampere GA102 white paper
    Gpu("MI300X", 1307, 192),  # AMD Instinct MI300X data sheet
)


_LESSER = {"laptop", "q", "d", "mig"}
"""Words of device names that stand for another chip, or a part of one: RTX 4090 Laptop, Max-Q, 4090 D, MIG slices."""


def gpu_called(name: str) -> Gpu:
    """The GPU of that name, written as in GPUS but for case, spaces and dashes. Raises RecipeError for others."""
    for gpu in GPUS:
        if _plain(gpu.name) == _plain(name):
            return gpu
    raise RecipeError(f"--gpu {name}: not known; known are {', '.join(gpu.name.replace(' ', '-') for gpu in GPUS)}")


def gpu_here() -> tuple[str, Gpu | None] | None:
    """Name of this machine's GPU, and what is known of that kind; None where there is no GPU."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return found.name, gpu_of_device(found.name, found.total_memory / 1e9)


def gpu_of_device(device: str, memory_gb: float) -> Gpu | None:
    """The kind of a device by the words of its name, with its own memory; None for kinds that are not listed."""
    words = set(re.split(r"[\s\-]+", device.lower()))
    if words & _LESSER:
        return None
    fitting = [gpu for gpu in GPUS if set(gpu.name.lower().split()) <= words]
    if not fitting:
        return None
    best = max(fitting, key=lambda gpu: len(gpu.name.split()))
    return Gpu(best.name, best.tflops, memory_gb)


def _plain(name: str) -> str:
    return re.sub(r"[\s\-_]+", "", name.lower())
