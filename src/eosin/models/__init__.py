"""Encoders, heads, token masks and the weights of others."""

from eosin.models.drop_path import DropPath, draw_drop_path
from eosin.models.heads import ProjectionHead, Scores
from eosin.models.layouts import from_meta, from_timm, to_timm
from eosin.models.positions import resize_positions
from eosin.models.presets import PRESETS
from eosin.models.start import StartWeights, open_start
from eosin.models.timm_models import config_of_timm, timm_arch
from eosin.models.token_masks import draw_masks, mask_counts
from eosin.models.vit import EncoderConfig, Tokens, ViT
from eosin.models.weights import LoadReport, load_encoder, read_state

__all__ = [
    "PRESETS",
    "DropPath",
    "EncoderConfig",
    "LoadReport",
    "ProjectionHead",
    "Scores",
    "StartWeights",
    "Tokens",
    "ViT",
    "config_of_timm",
    "draw_drop_path",
    "draw_masks",
    "from_meta",
    "from_timm",
    "load_encoder",
    "mask_counts",
    "open_start",
    "read_state",
    "resize_positions",
    "timm_arch",
    "to_timm",
]
