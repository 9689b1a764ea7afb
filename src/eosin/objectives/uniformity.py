"""Terms that spread embeddings over the sphere, so that they do not collapse. Lower = more spread; minimise both.

KDE: the kernel-density term of Virchow2 (Zimmermann et al. 2024) and Midnight (Karasikov et al. 2025), after Wang &
Isola 2020. Three public code bases have its sign inverted, which rewards collapse; here it is positive and minimised.
KoLeo: Sablayrolles et al. 2019, as DINOv2 uses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from eosin.objectives.precision import at_least_fp32


def kde(z: Tensor, kappa: float = 5.0, address: Tensor | None = None) -> Tensor:
    """mean_i [ logsumexp_{j in P_i}( kappa · x_iᵀx_j ) - log |P_i| ] with x = z / ‖z‖.

    z: [N, D] embeddings of one view; kappa: concentration of the von Mises-Fisher kernel, above 0; address: [N] tile
    numbers; P_i are the other rows of another address (all other rows without one), since pushing a tile from itself
    teaches nothing. Rows with empty P_i are left out; none left = 0. Values lie in [-kappa, kappa].
    """
    x = normalize(at_least_fp32(z), dim=-1)
    similarity = kappa * (x @ x.T)  # [N, N]
    same = torch.eye(len(x), dtype=torch.bool, device=x.device)
    if address is not None:
        same = same | (address[:, None] == address[None, :])
    others = (~same).sum(dim=1).to(x.dtype)  # [N]
    counted = others > 0
    # A finite stand-in for -inf keeps the gradient of an empty row at zero instead of NaN.
    density = torch.logsumexp(similarity.masked_fill(same, -1e9), dim=1) - torch.log(others.clamp(min=1))
    return torch.where(counted, density, torch.zeros_like(density)).sum() / counted.sum().clamp(min=1)


def koleo(z: Tensor, eps: float = 1e-8) -> Tensor:
    """-mean_i log( ‖x_i - x_nn(i) + eps‖ ), nn(i) the most similar other row. z: [N, D], N ≥ 2.

    eps stands inside the difference, as in Meta's code, and a second one inside the logarithm keeps equal rows finite.
    """
    x = normalize(at_least_fp32(z), dim=-1, eps=eps)
    with torch.no_grad():
        similarity = x @ x.T
        similarity.fill_diagonal_(-math.inf)
        nearest = similarity.argmax(dim=1)
    distance = (x - x[nearest] + eps).norm(dim=-1)
    return -torch.log(distance + eps).mean()
