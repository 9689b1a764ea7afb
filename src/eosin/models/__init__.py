"""Encoders, heads, token masks and the weights of others."""

from eosin.models.drop_path import DropPath, draw_drop_path
from eosin.models.heads import ProjectionHead
from eosin.models.presets import PRESETS, config_of_timm, timm_arch
from eosin.models.token_masks import draw_masks, mask_counts
from eosin.models.vit import EncoderConfig, Tokens, ViT, resize_positions
from eosin.models.weights import LoadReport, from_meta, from_timm, load_encoder, read_state, to_timm

__all__ = [
    "PRESETS",
    "DropPath",
    "EncoderConfig",
    "LoadReport",
    "ProjectionHead",
    "Tokens",
    "ViT",
    "config_of_timm",
    "draw_drop_path",
    "draw_masks",
    "from_meta",
    "from_timm",
    "load_encoder",
    "mask_counts",
    "read_state",
    "resize_positions",
    "timm_arch",
    "to_timm",
]
