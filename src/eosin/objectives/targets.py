"""Teacher logits -> target distributions: Sinkhorn-Knopp or centering.

Both are one formula, target = softmax(logits / temperature + offset), with an offset [1, K] a prototype: centering's
is -center / temperature; Sinkhorn's last act evens the rows, which is that softmax, so all that its iterations leave
behind is the log scaling of the columns. So no second [N, K] matrix is ever needed.

Sinkhorn: Cuturi 2013 as used by SwAV (Caron et al. 2020) and DINOv2 (Oquab et al. 2023). Centering: DINO (Caron et
al. 2021). Runs in at least fp32; fp64 stays fp64. Rows are samples, columns prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eosin.distributed import World
from eosin.objectives.precision import at_least_fp32, row_chunks


def target(logits: Tensor, offset: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature + offset) over prototypes. logits [N, K], offset [1, K] -> [N, K]."""
    return torch.softmax(at_least_fp32(logits) / temperature + offset, dim=-1)


@torch.no_grad()
def sinkhorn_offset(
    logits: Sequence[Tensor], temperature: float, iterations: int = 3, world: World | None = None
) -> Tensor:
    """Log scaling [1, K] of the prototypes that balances all rows of `logits` (matrices [n, K]) over all processes.

    Each iteration evens the columns (prototypes), then the rows (samples); the rows after the last are `target`'s
    softmax. In the log domain, so that no logit overflows, and in one pass over the logits an iteration, some rows at
    a time. temperature above 0; no rows at all gives an offset of 0.
    """
    world = world or World.here()
    first = at_least_fp32(logits[0][:0])
    offset: Tensor | None = None
    for _ in range(iterations):
        sums = first.new_full((1, first.shape[1]), -torch.inf)
        for matrix in logits:
            for begin, end in row_chunks(len(matrix), matrix.shape[1], matrix.device):
                scores = at_least_fp32(matrix[begin:end]) / temperature
                if offset is not None:
                    scores = torch.log_softmax(scores + offset, dim=1) - offset
                sums = torch.logaddexp(sums, torch.logsumexp(scores, dim=0, keepdim=True))
        offset = -_log_sum(sums, world)
    assert offset is not None
    return torch.where(torch.isfinite(offset), offset, torch.zeros_like(offset))


def _log_sum(x: Tensor, world: World) -> Tensor:
    """log Σ exp over the processes."""
    if world.size == 1:
        return x
    top = world.max_(x.clone()).clamp(min=torch.finfo(x.dtype).min)
    return world.sum_(torch.exp(x - top)).log() + top


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced assignment of N samples to K prototypes: [N, K] -> [N, K], rows sum to 1, columns nearly equal."""
    return target(logits, sinkhorn_offset([logits], temperature, iterations), temperature)


def center_offset(center: Tensor, temperature: float) -> Tensor:
    """The offset of DINO v1's centering. center [1, K] -> [1, K]."""
    return -at_least_fp32(center) / temperature


@torch.no_grad()
def centering(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """softmax((logits - center) / temperature) over prototypes. logits [N, K], center [1, K] -> [N, K]."""
    return target(logits, center_offset(center, temperature), temperature)


@torch.no_grad()
def update_center(
    center: Tensor, logits: Sequence[Tensor], momentum: float = 0.9, world: World | None = None
) -> Tensor:
    """The moving mean of teacher logits: momentum * center + (1 - momentum) * mean over all rows of all processes.

    logits: matrices [n, K]; center [1, K]. Returns a new [1, K].
    """
    total = at_least_fp32(torch.zeros_like(center))
    count = torch.zeros((), dtype=total.dtype, device=total.device)
    for matrix in logits:
        for begin, end in row_chunks(len(matrix), matrix.shape[1], matrix.device):
            total += at_least_fp32(matrix[begin:end]).sum(dim=0, keepdim=True)
        count += len(matrix)
    world = world or World.here()
    both = world.sum_(torch.cat([total.flatten(), count[None]]))
    return center * momentum + (both[:-1] / both[-1].clamp(min=1))[None] * (1 - momentum)
