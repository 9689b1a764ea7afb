"""Cross-entropy between a student's scores and a teacher's targets over many prototypes, some rows at a time.

With 131,072 prototypes the logits of the masked patches are by far the largest tensor of a step. So they are formed a
few rows at a time, and the gradient with them: what is kept for backward is [N, d] and [K, d], never [N, K].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eosin.models import Scores
from eosin.objectives.precision import at_least_fp32, row_chunks

Targets = Callable[[int, int], Tensor]
"""first, last + 1 row -> targets [n, K] ≥ 0; rows may sum to anything (several teacher views added up)."""


def cross_entropy(scores: Scores, targets: Targets, weight: Tensor, temperature: float = 0.1) -> Tensor:
    """Σ_i weight_i · ( -Σ_k target_ik · log softmax(logits_i / temperature)_k ), a scalar in at least fp32.

    scores: of N student tokens against K prototypes, differentiable in both; weight: [N].
    """
    loss: Tensor = _CrossEntropy.apply(scores.points, scores.prototypes, targets, at_least_fp32(weight), temperature)
    return loss


class _CrossEntropy(torch.autograd.Function):
    """The sum above. Its gradient is linear in the incoming one, so it is worked out on the way forward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, points: Tensor, prototypes: Tensor, targets: Targets, weight: Tensor, temperature: float
    ) -> Tensor:
        with torch.autocast(points.device.type, enabled=False):
            wide = torch.promote_types(points.dtype, torch.float32)
            loss = torch.zeros((), dtype=wide, device=points.device)
            to_points = torch.empty_like(points) if ctx.needs_input_grad[0] else None
            to_prototypes = torch.zeros_like(prototypes, dtype=wide) if ctx.needs_input_grad[1] else None
            for first, last in row_chunks(len(points), len(prototypes), points.device):
                some = points[first:last]
                logits = at_least_fp32(some @ prototypes.T).div_(temperature)  # [n, K]
                wanted = targets(first, last)
                total = wanted.sum(dim=-1, keepdim=True)  # [n, 1]
                log_sum = torch.logsumexp(logits, dim=-1, keepdim=True)
                rows = total * log_sum - (wanted * logits).sum(dim=-1, keepdim=True)
                scale = weight[first:last, None]
                loss += (rows * scale).sum()
                if to_points is None and to_prototypes is None:
                    continue
                # d loss / d logits = (total · softmax - target) · weight / temperature
                slope = logits.sub_(log_sum).exp_().mul_(total).sub_(wanted).mul_(scale / temperature).to(some.dtype)
                if to_points is not None:
                    torch.mm(slope, prototypes, out=to_points[first:last])
                if to_prototypes is not None:
                    to_prototypes += slope.T @ some
            ctx.save_for_backward(to_points, None if to_prototypes is None else to_prototypes.to(prototypes.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        to_points, to_prototypes = ctx.saved_tensors
        return (
            None if to_points is None else to_points * slope.to(to_points.dtype),
            None if to_prototypes is None else to_prototypes * slope.to(to_prototypes.dtype),
            None,
            None,
            None,
        )
