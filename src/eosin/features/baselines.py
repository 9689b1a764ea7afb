"""Encoders without weights, by which others are judged: six numbers of colour, thirty of texture.

No encoder is worth its cost on a task where it does not beat these.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.features.encoder import Encoder, Features, Pixels

OCTAVES = 3
TURNS = 8
_WAVES_PX = (3.0, 4.24)  # wavelengths of an octave; the next one is twice as long
_RADIUS_PX = 5
_SQUARE_PX = 8


class ColourEncoder(Encoder):
    """Colour alone: mean and standard deviation of R, G, B of the raw tile, 6 numbers in [0, 1]."""

    places = "pixels"

    def __init__(self) -> None:
        super().__init__(name="colour", width=6, pooling="mean", input_size=None, model_hash="colour-mean-sd")

    def vector(self, features: Features) -> Tensor:
        values = features.patches.flatten(1, 2)  # [B, H*W, 3]
        return torch.cat([values.mean(dim=1), values.std(dim=1, unbiased=False)], dim=1)

    def features(self, images: Tensor) -> Features:
        return Features(None, images.permute(0, 2, 3, 1))


class TextureEncoder(Encoder):
    """Texture alone: how strong waves of six lengths (3 to 17 px) are in a tile's optical density, whatever its colour.

    Gabor energies (quadrature pairs in 8 directions, Daugman 1985; as texture: Jain and Farrokhnia 1991), divided by
    the tile's contrast. Of each wavelength the log of: mean and standard deviation over places, mean of the strongest
    direction, largest place, and energy over its spread between directions. 30 numbers; tiles of at least 24 px.
    """

    bank: Tensor

    def __init__(self) -> None:
        super().__init__(name="texture", width=30, pooling="mean", input_size=None, model_hash="texture-gabor-30")
        self.register_buffer("bank", gabor_bank(), persistent=False)

    @torch.no_grad()
    def patch_tokens(self, pixels: Pixels, norm: bool = True) -> Tensor:
        """Texture of squares of 8 px, float32 [B, h, w, 12]: of each wavelength the log of the mean energy and of that
        in the strongest direction. `norm` changes nothing.
        """
        maps = []
        for octave, energy in enumerate(self._energies(self.prepare(pixels))):
            both = torch.cat([energy.mean(dim=2), energy.amax(dim=2)], dim=1)  # [B, 2 · 2, h, w]
            maps.append(F.avg_pool2d(both, _SQUARE_PX >> octave))
        height, width = (min(part.shape[axis] for part in maps) for axis in (2, 3))
        joined = torch.cat([part[:, :, :height, :width] for part in maps], dim=1)
        return torch.log(joined + 1e-4).permute(0, 2, 3, 1)

    def features(self, images: Tensor) -> Features:
        return Features(None, images.permute(0, 2, 3, 1))

    def _energies(self, images: Tensor) -> list[Tensor]:
        """Strength of the waves of each octave at each place, [B, 2, 8, h, w], of images [B, 3, H, W]."""
        density = -torch.log(images.mean(dim=1, keepdim=True) + 0.02)  # [B, 1, H, W]
        contrast = density.std(dim=(1, 2, 3), keepdim=True) + 0.02
        density = (density - density.mean(dim=(2, 3), keepdim=True)) / contrast
        found = []
        for octave in range(OCTAVES):
            layer = density if octave == 0 else F.avg_pool2d(density, 2**octave)
            waves = F.conv2d(layer, self.bank, padding=_RADIUS_PX)  # [B, 2 · 8 · 2, h, w]
            found.append(waves.unflatten(1, (len(_WAVES_PX), TURNS, 2)).square().sum(dim=3).sqrt())
        return found

    def vector(self, features: Features) -> Tensor:
        numbers = []
        for energy in self._energies(features.patches.permute(0, 3, 1, 2)):
            mean = energy.mean(dim=2)
            numbers += [
                mean.mean(dim=(2, 3)),
                mean.std(dim=(2, 3)),
                energy.amax(dim=2).mean(dim=(2, 3)),
                mean.amax(dim=(2, 3)),
                (mean / (energy.std(dim=2) + 1e-3)).mean(dim=(2, 3)),
            ]
        return torch.log(torch.cat(numbers, dim=1) + 1e-4)


def gabor_bank() -> Tensor:
    """Filters [waves · turns · 2, 1, 11, 11]: a cosine and a sine under a Gaussian, each of sum 0."""
    y, x = torch.meshgrid(*[torch.arange(-_RADIUS_PX, _RADIUS_PX + 1.0)] * 2, indexing="ij")
    filters = []
    for wave in _WAVES_PX:
        window = torch.exp(-(x * x + y * y) / (2 * (0.56 * wave) ** 2))
        window = window / window.sum()
        for turn in range(TURNS):
            along = x * math.cos(math.pi * turn / TURNS) + y * math.sin(math.pi * turn / TURNS)
            for phase in (0.0, math.pi / 2):
                carried = window * torch.cos(2 * math.pi * along / wave + phase)
                filters.append(carried - window * carried.sum())
    return torch.stack(filters)[:, None]


BASELINES: dict[str, Callable[[], Encoder]] = {"colour": ColourEncoder, "texture": TextureEncoder}
"""Model words of encoders that have no weights."""
