"""The projection head of DINO and iBOT: MLP to a bottleneck, L2, weight-normed linear onto prototypes.

Caron et al. 2021 (DINO), Zhou et al. 2021 (iBOT), Oquab et al. 2023 (DINOv2). Losses and targets are not
here. Parameter names are those of Meta's DINOv2 heads.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scores(NamedTuple):
    """How N tokens compare with K prototypes, before the product is formed: logits = points @ prototypesᵀ.

    Both come in the precision in which that product is to run. Losses and targets form it a few rows at a time, since
    N·K numbers are the largest tensor of a step.
    """

    points: Tensor  # [N, d], unit length
    prototypes: Tensor  # [K, d]

    def rows(self, first: int, last: int) -> Scores:
        """The scores of tokens first..last-1."""
        return Scores(self.points[first:last], self.prototypes)

    def logits(self) -> Tensor:
        """[N, K], cosines times the prototypes' gain."""
        return self.points @ self.prototypes.T


class Prototypes(nn.Module):
    """The prototypes: row k is gain_k * v_k / |v_k| (weight normalisation, Salimans and Kingma 2016).

    Starts with gain 1 and directions as torch starts a linear. `train_gain=False` (DINO v1) keeps gain 1.
    """

    def __init__(self, width: int, count: int, train_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=train_gain)
        self.weight_v = nn.Parameter(torch.empty(count, width))

    def forward(self) -> Tensor:
        """[count, width]."""
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True))


class ProjectionHead(nn.Module):
    """Token vectors to scores against prototypes.

    width: of the encoder. prototypes, hidden, bottleneck: sizes. layers: linears in the MLP, at least 1.
    train_gain: learn the gain of the prototypes (DINOv2) or keep it at 1 (DINO v1). MLP weights start
    truncated normal with sd .02, biases 0, drawn from `generator` or torch's global one.
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        train_gain: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for before, after in pairwise(widths):
            steps += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*steps[:-1])
        self.last_layer = Prototypes(bottleneck, prototypes, train_gain)
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter to its start value."""
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)
        bound = self.last_layer.weight_v.shape[1] ** -0.5
        nn.init.uniform_(self.last_layer.weight_v, -bound, bound, generator=generator)
        nn.init.ones_(self.last_layer.weight_g)

    def forward(self, x: Tensor) -> Scores:
        """[N, width] -> scores of N tokens against the prototypes, in autocast's precision where it is on."""
        x = self.mlp(x)  # [N, bottleneck]
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # lengths of bf16 vectors are too coarse
        with torch.autocast(x.device.type, enabled=False):
            points, prototypes = F.normalize(x, dim=-1), self.last_layer()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            return Scores(points.to(dtype), prototypes.to(dtype))
        return Scores(points, prototypes)
