"""Label-free measures of an embedding space, watched while a model learns and reported beside its probes.

RankMe (Garrido et al., "RankMe", ICML 2023), off-diagonal correlation (ODCorr, as in the kaiko study, arXiv
2404.15217; its reduction is not published, hence the named variants), uniformity and alignment (Wang & Isola,
ICML 2020). Takes embeddings, gives one number; knows no encoder and no labels. All sums are in float64.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.errors import DataError

Embeddings: TypeAlias = Tensor | npt.NDArray[np.floating]
OdcorrVariant = Literal["mean-abs", "mean-square", "frobenius"]


def rankme(z: Embeddings) -> float:
    """Smooth rank of embeddings `z` [N, D]: exp of the entropy of p = s / sum(s) + 1e-7, s = singular values.

    Between 1 (all on one line) and about min(N, D). The embeddings are taken as they are, not centred.
    All-zero embeddings have no spectrum and give 0. Raises DataError for anything but a finite [N, D].
    """
    s = torch.linalg.svdvals(_rows(z))  # [min(N, D)]
    total = s.sum()
    if total == 0:
        return 0.0
    p = s / total + 1e-7
    return float(torch.exp(-(p * p.log()).sum()))


def odcorr(z: Embeddings, variant: OdcorrVariant = "mean-abs") -> float:
    """How far the dimensions of `z` [N, D] repeat each other: off-diagonal entries of the correlation matrix.

    `mean-abs`: mean of |c|; `mean-square`: mean of c^2; `frobenius`: sqrt(sum of c^2) / D. 0 = uncorrelated,
    1 = all the same. Dimensions that do not vary have no correlation and are left out; NaN where fewer than
    two are left (a collapsed model must not look decorrelated). Raises DataError for an unknown variant.
    """
    if variant not in ("mean-abs", "mean-square", "frobenius"):
        raise DataError(f"unknown ODCorr variant {variant!r}: mean-abs, mean-square or frobenius")
    x = _rows(z)
    mean = x.mean(dim=0)
    x = x - mean
    norm = x.norm(dim=0)  # [D]
    varies = norm > 1e-9 * math.sqrt(len(x)) * mean.abs()
    kept = int(varies.sum())
    if kept < 2:
        return math.nan
    x = x[:, varies] / norm[varies]
    correlation = x.T @ x  # [K, K]
    correlation.fill_diagonal_(0.0)
    pairs = kept * (kept - 1)
    if variant == "mean-abs":
        return float(correlation.abs().sum() / pairs)
    square = correlation.square().sum()
    return float(square / pairs) if variant == "mean-square" else float(square.sqrt() / kept)


def uniformity(z: Embeddings, t: float = 2.0, chunk: int = 2048) -> float:
    """log of the mean of exp(-t |x_i - x_j|^2) over all pairs i < j of L2-normalised rows of `z` [N, D].

    0 = collapsed to a point; lower = more spread, at least -4 t; NaN for fewer than two rows. Works on
    `chunk` rows at a time, so memory stays at chunk x N.
    """
    x = _unit(_rows(z))
    count = len(x)
    if count < 2:
        return math.nan
    total = x.new_zeros(())
    for first in range(0, count, chunk):
        part = x[first : first + chunk]
        potential = torch.exp(-t * (2.0 - 2.0 * (part @ x.T)).clamp_min(0.0))  # [c, N]
        total = total + potential.triu(first + 1).sum()
    return float(torch.log(total / (count * (count - 1) / 2)))


def alignment(z: Embeddings, z_positive: Embeddings, power: float = 2.0) -> float:
    """Mean of |x_i - y_i|^power over positive pairs (row i of both, two views of a tile), L2-normalised, [N,
    D] each.

    0 = both views fall together. Raises DataError where the shapes differ.
    """
    x, y = _rows(z), _rows(z_positive)
    if x.shape != y.shape:
        raise DataError(f"alignment needs pairs: got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    return float((_unit(x) - _unit(y)).norm(dim=1).pow(power).mean())


def _rows(z: Embeddings) -> Tensor:
    x = torch.as_tensor(z).detach().to(torch.float64)
    if x.ndim != 2 or len(x) == 0:
        raise DataError(f"embeddings must be [N, D] with N > 0, got shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise DataError("embeddings hold NaN or infinite values")
    return x


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
