"""Haematoxylin, eosin and DAB as concentrations, and their jitter. Why: slides differ in stain first of all.

Colour deconvolution after Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 2001): optical density is linear
in the amount of stain. Here OD = -ln((I + 1) / 256) for I in 0..255, with unit-norm stain vectors; in these
units haematoxylin's median over tissue tiles is near 0.3. scikit-image's rgb2hed has another scale, so widths
of a jitter cannot be carried over from it. Fitted stain matrices (Macenko, Reinhard) are not in this file.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

STAINS = ("haematoxylin", "eosin", "dab")
_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
# Row k is the optical density that one unit of stain k adds to R, G and B.
STAIN_VECTORS = _VECTORS / np.linalg.norm(_VECTORS, axis=1, keepdims=True)
_UNMIX = np.linalg.inv(STAIN_VECTORS)


@lru_cache(maxsize=16)
def _matrices(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """STAIN_VECTORS and its inverse; kept, since the host waits for the GPU whenever they are copied there."""
    with torch.inference_mode(False):
        vectors, unmix = (torch.tensor(matrix, dtype=dtype, device=device) for matrix in (STAIN_VECTORS, _UNMIX))
        return vectors, unmix


def optical_density(rgb: Tensor) -> Tensor:
    """OD = -ln((I + 1) / 256) of `rgb` in [0, 1]; 0 is white. Values outside (resampling) are clamped."""
    return rgb.clamp(0.0, 1.0).mul_(255 / 256).add_(1 / 256).log_().neg_()


def _light(density: Tensor) -> Tensor:
    """Inverse of `optical_density`, clamped to [0, 1]; overwrites `density`."""
    return density.neg_().exp_().mul_(256 / 255).sub_(1 / 255).clamp_(0.0, 1.0)


def separate(rgb: Tensor) -> Tensor:
    """Concentrations of `rgb` [N, 3, H, W] in [0, 1]: [N, 3, H, W] in the order of `STAINS`, unclamped."""
    return torch.einsum("nchw,cs->nshw", optical_density(rgb), _matrices(rgb.dtype, rgb.device)[1])


def compose(concentrations: Tensor) -> Tensor:
    """RGB in [0, 1] of stain `concentrations` [N, 3, H, W]; the inverse of `separate`."""
    vectors, _ = _matrices(concentrations.dtype, concentrations.device)
    return _light(torch.einsum("nshw,sc->nchw", concentrations, vectors))


def jitter_maps(
    alpha: npt.NDArray[np.float64], beta: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The jitter as maps of optical density: matrices [..., 3 out, 3 in] and offsets [..., 3] for alpha, beta [..., 3].

    The three steps (separate, scale and shift, compose) are one 3×3 map and an offset of the optical density.
    """
    mix = (_UNMIX * (1.0 + alpha)[..., None, :]) @ STAIN_VECTORS  # [..., 3 in, 3 out]
    return mix.swapaxes(-1, -2), beta @ STAIN_VECTORS


def jitter_hed_(images: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Per image and stain, concentration c becomes c·(1 + alpha) + beta (Tellez et al., IEEE TMI 2018).

    images: [N, 3, H, W] in [0, 1], overwritten; alpha, beta: [N, 3] in the order of `STAINS`.
    The three steps (separate, scale and shift, compose) are one 3×3 map and an offset of the optical density.
    """
    count, _, height, width = images.shape
    vectors, unmix = _matrices(torch.float64, images.device)  # small matrices, no cost
    mix = torch.einsum("cs,ns,sd->ndc", unmix, 1.0 + alpha.double(), vectors).to(images.dtype)  # [N, 3 out, 3 in]
    offset = (beta.double() @ vectors).to(images.dtype)  # [N, 3]
    density = optical_density(images).view(count, 3, height * width)
    return images.copy_(_light(torch.baddbmm(offset[:, :, None], mix, density)).view_as(images))
