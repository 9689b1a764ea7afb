"""Adam and AdamW over stacked weights [S, ...], where some of the S runs may rest in a step.

Runs have unequal numbers of training bags; one that has none left in an epoch must not move, though its momentum and
weight decay would move it. For runs that step it equals `torch.optim.Adam` and `AdamW` (Kingma & Ba 2015; Loshchilov &
Hutter 2019), each with its own step count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class StackedAdam:
    """`parameters`: tensors [S, ...] with gradients. `decoupled`: AdamW's weight decay instead of L2."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        weight_decay: float,
        decoupled: bool,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay, self.decoupled, self.betas, self.eps = weight_decay, decoupled, betas, eps
        self.first = [torch.zeros_like(weight) for weight in self.parameters]
        self.second = [torch.zeros_like(weight) for weight in self.parameters]
        self.steps = torch.zeros(len(self.parameters[0]), dtype=torch.float64)

    @torch.no_grad()
    def step(self, lr: Tensor, active: Tensor) -> None:
        """One step with learning rates `lr` [S] for the runs that `active` bool [S] names; gradients are dropped."""
        self.steps += active
        rates, steps = lr.tolist(), self.steps.tolist()
        moving = [run for run, moves in enumerate(active.tolist()) if moves]
        # Runs in step and at one rate are one call over the whole stack; others are moved row by row.
        together = len(moving) == len(steps) and len(set(zip(rates, steps, strict=True))) == 1
        for weight, first, second in zip(self.parameters, self.first, self.second, strict=True):
            if weight.grad is None:
                continue
            if together:
                self._move(weight, weight.grad, first, second, rates[0], steps[0])
            else:
                for run in moving:
                    self._move(weight[run], weight.grad[run], first[run], second[run], rates[run], steps[run])
            weight.grad = None

    def _move(self, weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, lr: float, step: float) -> None:
        """Adam's step number `step` on views, in place."""
        if self.weight_decay and self.decoupled:
            weight.mul_(1 - lr * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient.add(weight, alpha=self.weight_decay)
        first.lerp_(gradient, 1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        root = second.sqrt().div_(math.sqrt(1 - self.betas[1] ** step)).add_(self.eps)
        weight.addcdiv_(first, root, value=-lr / (1 - self.betas[0] ** step))

    def keep(self, parameters: Sequence[Tensor], rows: Sequence[int]) -> StackedAdam:
        """The optimiser of a choice of runs, whose weights are now in `parameters`."""
        kept = StackedAdam(parameters, self.weight_decay, self.decoupled, self.betas, self.eps)
        chosen = torch.as_tensor(list(rows))
        kept.first = [values[chosen.to(values.device)].clone() for values in self.first]
        kept.second = [values[chosen.to(values.device)].clone() for values in self.second]
        kept.steps = self.steps[chosen].clone()
        return kept
