"""How a slide's attention is spread: a sparse one starves the tile encoder of gradient (ABMILX, arXiv 2506.02408)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_spread(weights: Tensor, name: str) -> dict[str, Tensor]:
    """Two numbers of attention weights [N] that sum to 1, 0-d on their device, under `attention/{name}_…`.

    entropy: over its largest value ln N; 1 = even, 0 = all on one. max_times_n: the largest weight times N; 1 = even,
    N = all on one.
    """
    count = weights.numel()
    whole = weights.double()
    entropy = -torch.special.xlogy(whole, whole).sum() / math.log(count) if count > 1 else whole.new_ones(())
    return {f"attention/{name}_entropy": entropy, f"attention/{name}_max_times_n": whole.max() * count}
