"""Attention on a CPU, forward and backward: torch's fused kernel beside plain products, at the token counts of crops.

Why `eosin.models.vit.attend` takes plain products for bf16 training on a CPU. python benchmarks/attention.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPES = [(64, 37), (128, 10), (16, 197)]  # crops, tokens: 96-px and 48-px crops at patch 16, one 224-px crop
HEADS, WIDTH, ROUNDS = 3, 64, 7


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v."""
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1) @ v


def milliseconds(attend: Callable[..., Tensor], crops: int, tokens: int, dtype: torch.dtype) -> float:
    """Median of forward + backward."""
    qkv = torch.randn(3, crops, HEADS, tokens, WIDTH, dtype=dtype, requires_grad=True)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        attend(*qkv.unbind(0)).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) * 1e3


def main() -> None:
    """Print one line a dtype and shape."""
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        for crops, tokens in SHAPES:
            fused = milliseconds(F.scaled_dot_product_attention, crops, tokens, dtype)
            products = milliseconds(plain, crops, tokens, dtype)
            name = str(dtype).removeprefix("torch.")
            print(f"{name:9s} {crops:4d} crops of {tokens:3d} tokens: fused {fused:7.2f} ms, plain {products:7.2f} ms")


if __name__ == "__main__":
    main()
