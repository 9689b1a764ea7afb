"""Linear heads trained side by side: S runs (each with its own samples and order) x G settings, one batched problem.

A head has a few thousand weights; what costs time in training it is everything around the arithmetic. So all heads
lie in one flat tensor, a step is one gather, two batched products and one update of that tensor, and gradients are
written down instead of found by autograd: for the mean cross-entropy they are (softmax - one-hot) / B, for the mean
binary cross-entropy (sigmoid - target) / B, times the features. Heads never meet: each is what training it alone
would give, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Loss = Literal["cross_entropy", "bce"]
Optimizer = Literal["adamw", "sgd"]

BETAS, EPS = (0.9, 0.999), 1e-8


class StackedLinear:
    """Heads [S, G]: `weight` [S, G, K, D], `bias` [S, G, K]; K = 1 under `bce`, which takes classes 0 and 1.

    `xs`, `targets`: what stream s learns from, features [N_s, D] and, for cross-entropy one-hot [N_s, K], for bce
    [N_s, 1]; the same tensor may serve several streams. `lr`, `weight_decay`: of each setting, [G]. AdamW has torch's
    betas and eps (Kingma & Ba 2015; Loshchilov & Hutter 2019); SGD adds `weight_decay` to the gradient.
    """

    def __init__(
        self,
        xs: Sequence[Tensor],
        targets: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor,
        *,
        lr: Sequence[float],
        weight_decay: Sequence[float],
        loss: Loss = "cross_entropy",
        optimizer: Optimizer = "adamw",
        momentum: float = 0.9,
    ) -> None:
        self.xs, self.targets = list(xs), list(targets)
        self.loss, self.optimizer, self.momentum = loss, optimizer, momentum
        self.lr, self.weight_decay = list(lr), list(weight_decay)
        self.shape = tuple(weight.shape)  # S, G, K, D
        self.steps = 0
        self._flat = torch.cat([weight.reshape(-1), bias.reshape(-1)])
        self._first, self._second = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._arrange()

    @property
    def weight(self) -> Tensor:
        """[S, G, K, D], a view."""
        return self._weight.view(self.shape)

    @property
    def bias(self) -> Tensor:
        """[S, G, K], a view."""
        return self._bias.view(self.shape[:3])

    def logits(self, x: Tensor) -> Tensor:
        """Logits [S, G, M, K] of features [M, D] by every head."""
        streams, settings, outputs, width = self.shape
        found = torch.addmm(self._bias.view(-1), x, self._weight.view(-1, width).T)  # [M, S G K]
        return found.view(len(x), streams, settings, outputs).permute(1, 2, 0, 3)

    def step(self, rows: Tensor, factor: float = 1.0) -> None:
        """One step of all heads: stream s on its samples rows[s] (int64 [S, B]), learning rates times `factor`."""
        x, target = self._gather(rows)  # [S, B, D], [S, 1, K, B]
        streams, settings, outputs, _ = self.shape
        count = rows.shape[1]
        # Samples last: a softmax over few classes is fifteen times slower along the last axis.
        slope = torch.baddbmm(self._bias.unsqueeze(2), self._weight, x.transpose(1, 2))  # [S, G K, B]
        by_head = slope.view(streams, settings, outputs, count)
        if self.loss == "bce":
            by_head.sigmoid_()
        else:
            torch.softmax(by_head, dim=2, out=by_head)
        by_head.sub_(target).mul_(1.0 / count)
        torch.bmm(slope, x, out=self._weight_slope)
        torch.sum(slope, dim=2, out=self._bias_slope)
        self.steps += 1
        if self.optimizer == "adamw":
            self._adamw(factor)
        else:
            self._sgd(factor)

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only, in this order."""
        total, settings, outputs, width = self.shape
        inside = torch.as_tensor(list(streams), device=self._flat.device)
        edge = total * settings * outputs * width

        def kept(flat: Tensor) -> Tensor:
            parts = flat[:edge].view(total, -1), flat[edge:].view(total, -1)
            return torch.cat([part[inside].reshape(-1) for part in parts])

        self._flat, self._first, self._second = kept(self._flat), kept(self._first), kept(self._second)
        self.xs, self.targets = [self.xs[s] for s in streams], [self.targets[s] for s in streams]
        self.shape = (len(inside), settings, outputs, width)
        self._arrange()

    def _arrange(self) -> None:
        """Views into the flat tensors, and what does not change from step to step."""
        streams, settings, outputs, width = self.shape
        self._slope = torch.empty_like(self._flat)
        edge = streams * settings * outputs * width
        block = (streams, settings * outputs)
        self._weight, self._bias = self._flat[:edge].view(*block, width), self._flat[edge:].view(block)
        self._weight_slope, self._bias_slope = self._slope[:edge].view(*block, width), self._slope[edge:].view(block)
        self._shared = all(x is self.xs[0] for x in self.xs) and all(t is self.targets[0] for t in self.targets)
        self._x = self._flat.new_empty(0)
        self._rates, self._decays = self.lr[0], self.lr[0] * self.weight_decay[0]
        self._rate: Tensor | None = None
        self._decay: Tensor | None = None
        self._penalty: Tensor | None = None
        if self.optimizer == "sgd" and any(self.weight_decay):
            self._penalty = self._spread(torch.tensor(self.weight_decay, dtype=torch.float64))
        if len(set(self.lr)) > 1 or len(set(self.weight_decay)) > 1:
            rate = torch.tensor(self.lr, dtype=torch.float64)
            self._rate = self._spread(rate)
            self._decay = self._spread(rate * torch.tensor(self.weight_decay, dtype=torch.float64))

    def _spread(self, values: Tensor) -> Tensor:
        """Values [G] of the settings, as one for each entry of the flat tensor."""
        streams, settings, outputs, width = self.shape
        values = values.to(self._flat)
        weight = values.view(1, settings, 1).expand(streams, settings, outputs * width)
        bias = values.view(1, settings, 1).expand(streams, settings, outputs)
        return torch.cat([weight.reshape(-1), bias.reshape(-1)])

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features [S, B, D] and targets [S, 1, K, B] of samples `rows` [S, B]."""
        streams, count = rows.shape
        width = self.shape[3]
        if self._x.shape[:2] != (streams, count):
            self._x = self._flat.new_empty(streams, count, width)
        if self._shared:
            flat = rows.reshape(-1)
            torch.index_select(self.xs[0], 0, flat, out=self._x.view(-1, width))
            target = self.targets[0].index_select(0, flat).view(streams, count, -1)
        else:
            for number, x in enumerate(self.xs):
                torch.index_select(x, 0, rows[number], out=self._x[number])
            parts = [part.index_select(0, row) for part, row in zip(self.targets, rows, strict=True)]
            target = torch.stack(parts)
        return self._x, target.transpose(1, 2).unsqueeze(1)

    def _adamw(self, factor: float) -> None:
        slope, first, second, flat = self._slope, self._first, self._second, self._flat
        start, spread = 1.0 - BETAS[0] ** self.steps, math.sqrt(1.0 - BETAS[1] ** self.steps)
        first.lerp_(slope, 1.0 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(slope, slope, value=1.0 - BETAS[1])
        root = torch.sqrt(second, out=slope).div_(spread).add_(EPS)
        if self._rate is None or self._decay is None:
            flat.mul_(1.0 - factor * self._decays)
            flat.addcdiv_(first, root, value=-factor * self._rates / start)
        else:
            flat.addcmul_(flat, self._decay, value=-factor)
            flat.addcdiv_(first * self._rate, root, value=-factor / start)

    def _sgd(self, factor: float) -> None:
        slope, first, flat = self._slope, self._first, self._flat
        if self._penalty is not None:
            slope.addcmul_(flat, self._penalty)
        first.mul_(self.momentum).add_(slope)
        if self._rate is None:
            flat.add_(first, alpha=-factor * self._rates)
        else:
            flat.addcmul_(first, self._rate, value=-factor)
