"""Teacher logits -> target distributions: Sinkhorn-Knopp or centering.

Sinkhorn: Cuturi 2013 as used by SwAV (Caron et al. 2020) and DINOv2 (Oquab et al. 2023). Centering: DINO (Caron et
al. 2021). Runs in at least fp32; fp64 stays fp64. Rows are samples, columns prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.objectives.precision import at_least_fp32


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced assignment of B samples to K prototypes.

    logits: [B, K], any real values; temperature above 0. Returns [B, K] whose rows sum to 1 and whose column sums are
    nearly equal. In the log domain, so that no logit overflows: log Q = logits/temperature + u + v, where each
    iteration first evens the columns (prototypes), then the rows (samples).
    """
    if logits.shape[0] == 0:
        return at_least_fp32(logits)
    scores = at_least_fp32(logits) / temperature  # [B, K]
    rows = torch.zeros_like(scores[:, :1])  # [B, 1] log scaling of samples
    for _ in range(iterations):
        columns = -torch.logsumexp(scores + rows, dim=0, keepdim=True)  # [1, K]
        rows = -torch.logsumexp(scores + columns, dim=1, keepdim=True)  # [B, 1]
    return torch.exp(scores + columns + rows)


@torch.no_grad()
def centering(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature) over prototypes. logits [B, K], center [1, K] -> [B, K]."""
    return torch.softmax((at_least_fp32(logits) - at_least_fp32(center)) / temperature, dim=-1)


@torch.no_grad()
def update_center(center: Tensor, logits: Tensor, momentum: float = 0.9) -> Tensor:
    """The moving mean of teacher logits: momentum * center + (1 - momentum) * mean over rows. Returns a new [1, K]."""
    return center * momentum + at_least_fp32(logits).mean(dim=0, keepdim=True) * (1 - momentum)
