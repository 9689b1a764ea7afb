"""Any encoder that eosin can load, as stage 1 of a pyramid: a zoo model, a timm network, an export of one's own run."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from eosin.errors import RecipeError
from eosin.features.encoder import Encoder, VitEncoder
from eosin.models.exported import Pooling
from eosin.models.pyramid_tiles import NetworkTiles, TileStage, VitTiles
from eosin.models.vit import ViT


def tile_stage(encoder: Encoder, drop_path: float = 0.0, trained: bool = True) -> TileStage:
    """Stage 1 with the encoder's weights (shared, not copied), its input size, mean, std and pooling.

    drop_path: rate of all layers, for our own ViT alone; the random layers of another network are off. trained: its
    weights learn; they stay as they are otherwise. Raises RecipeError where the encoder has no input size, a BatchNorm
    that learns, or cannot drop what it is asked to drop.
    """
    encoder.requires_grad_(trained)
    if encoder.input_size is None:
        raise RecipeError(f"{encoder.name} has no input size; state the side of the tiles that it is to see")
    mean, std = encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()
    if isinstance(encoder, VitEncoder):
        assert isinstance(encoder.vit, ViT)
        encoder.vit.config = encoder.vit.config.model_copy(
            update={"drop_path": drop_path, "drop_path_form": "sample", "drop_path_law": "uniform"}
        )
        return VitTiles(encoder.vit, encoder.input_size, mean, std, cast(Pooling, encoder.pooling))
    if drop_path:
        raise RecipeError(f"{encoder.name} does not run through our ViT, so nothing of it can be dropped: drop_path 0")
    return NetworkTiles(_Vectors(encoder), encoder.dim, encoder.input_size, mean, std)


class _Vectors(nn.Module):
    """Normalised images [B, 3, S, S] -> the encoder's vectors [B, dim], with a graph."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.vector(self.encoder.features(images))
