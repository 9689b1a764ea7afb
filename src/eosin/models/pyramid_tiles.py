"""Stage 1 of a pyramid: uint8 tiles in, one vector a tile out, through our ViT or any other network.

Which branches of our ViT are dropped is handed in (`pyramid_draws.py`); of another network the random layers are off,
since nobody could run them twice alike. BatchNorm that learns is refused: its output depends on who else is in the
chunk. Pixels are prepared as `features.Encoder` does: short side to the input size (bilinear, antialias), centre crop,
mean and std.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as pixels_of

from eosin.errors import DataError, RecipeError
from eosin.models.drop_path import DropPath, drop_rates
from eosin.models.exported import Pooling
from eosin.models.vit import Tokens, ViT


class TileStage(nn.Module):
    """Base of stage 1. `width`: length of a tile's vector; `rates`: drop rate of each layer, empty: nothing drops."""

    mean: Tensor
    std: Tensor
    rates: tuple[float, ...] = ()

    def __init__(self, width: int, tile_px: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.width = width
        self.tile_px = tile_px
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, factors: Tensor | None = None) -> Tensor:
        """uint8 [B, S, S, 3] on this stage's device -> vectors [B, width] in the precision of `mean`.

        factors: [layers, 2, B] from `SlideDraws.tiles`; none drops nothing. Raises DataError for other pixels.
        """
        if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != torch.uint8:
            raise DataError(f"tiles must be uint8 [B, H, W, 3], got {pixels.dtype} {tuple(pixels.shape)}")
        vectors = self.encode(self.prepare(pixels), factors)
        if vectors.shape != (len(pixels), self.width):
            raise DataError(f"stage 1 gave {list(vectors.shape)} for {len(pixels)} tiles, not [B, {self.width}]")
        return vectors.to(self.mean.dtype)

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> normalised [B, 3, S, S]."""
        batch = pixels.permute(0, 3, 1, 2)
        if min(batch.shape[-2:]) != self.tile_px:
            batch = pixels_of.resize(batch, [self.tile_px], antialias=True)
        if batch.shape[-2] != batch.shape[-1]:
            batch = pixels_of.center_crop(batch, [self.tile_px])
        return (batch.to(self.mean.dtype) / 255.0 - self.mean) / self.std

    def encode(self, images: Tensor, factors: Tensor | None) -> Tensor:
        """Normalised [B, 3, S, S] -> [B, width]."""
        raise NotImplementedError


class VitTiles(TileStage):
    """Our ViT as stage 1. pooling: the CLS token, the mean of the patch tokens, or both one behind the other."""

    def __init__(
        self, vit: ViT, tile_px: int, mean: Sequence[float], std: Sequence[float], pooling: Pooling = "cls"
    ) -> None:
        width = vit.config.width * (2 if pooling == "cls+mean" else 1)
        super().__init__(width, tile_px, mean, std)
        self.vit = vit
        self.pooling = pooling
        self.rates = tuple(drop_rates(vit.config))

    def encode(self, images: Tensor, factors: Tensor | None) -> Tensor:
        """Normalised [B, 3, S, S] -> [B, width]."""
        drops = None
        if factors is not None:
            draw = factors[:, :, None].to(images.device)  # [layers, 2, 1 view, B]
            drops = DropPath("sample", len(images), 1, (1,), (draw,))
        return self.pooled(self.vit([images], None, drops)[0])

    def pooled(self, tokens: Tokens) -> Tensor:
        """Tokens of B tiles -> [B, width]."""
        if self.pooling == "cls":
            return tokens.cls
        mean = tokens.patches.mean(dim=1)
        return mean if self.pooling == "mean" else torch.cat([tokens.cls, mean], dim=1)


class NetworkTiles(TileStage):
    """Any network that maps normalised images [B, 3, S, S] to [B, width], its random layers off.

    It stays in evaluation mode, whatever `train()` says; its parameters learn all the same. Raises RecipeError where it
    has a BatchNorm that learns.
    """

    def __init__(
        self, network: nn.Module, width: int, tile_px: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(width, tile_px, mean, std)
        self.network = network.eval()
        refuse_batch_norm(network)

    def train(self, mode: bool = True) -> NetworkTiles:
        """As nn.Module's, but the network inside is left in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def encode(self, images: Tensor, factors: Tensor | None) -> Tensor:
        """Normalised [B, 3, S, S] -> [B, width]."""
        vectors: Tensor = self.network(images)
        return vectors


def refuse_batch_norm(network: nn.Module) -> None:
    """Raises RecipeError where a BatchNorm in `network` learns: chunks would see other statistics than the slide."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and any(parameter.requires_grad for parameter in module.parameters()):
            raise RecipeError(
                f"stage 1 has a BatchNorm that learns ({name or type(module).__name__}): its output depends on the "
                "chunk; freeze it (requires_grad false) or take an encoder with LayerNorm"
            )
