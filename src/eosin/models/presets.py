"""Encoders by name: the sizes that recipes use, and the way to and from timm's model names.

Values are those of DINO (Caron et al. 2021; patch 8 and 16, 224 px), DINOv2 (Oquab et al. 2023; patch 14,
518 px, LayerScale) and DINOv2 with registers (Darcet et al. 2023). Weights are not here (`weights.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eosin.errors import WeightsError
from eosin.models.vit import EncoderConfig, ViT
from eosin.models.weights import from_timm

_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""width, depth, heads"""


def _dino(size: str, patch: int) -> EncoderConfig:
    width, depth, heads = _SIZES[size]
    return EncoderConfig(width=width, depth=depth, heads=heads, patch=patch, grid=224 // patch, interpolation="offset")


def _dinov2(size: str, registers: int) -> EncoderConfig:
    width, depth, heads = (1536, 40, 24) if size == "giant" else _SIZES[size]
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        patch=14,
        grid=37,
        registers=registers,
        ffn="swiglu" if size == "giant" else "mlp",
        layer_scale=1e-5,
        interpolation="antialias" if registers else "offset",
        drop_path_form="subset",
    )


PRESETS: dict[str, EncoderConfig] = {
    "vit_tiny_patch16": _dino("tiny", 16).model_copy(update={"interpolation": "antialias"}),
    "vit_small_patch16": _dino("small", 16),
    "vit_small_patch8": _dino("small", 8),
    "vit_base_patch16": _dino("base", 16),
    "vit_base_patch8": _dino("base", 8),
    **{
        f"vit_{size}_patch14{'_reg4' if registers else ''}": _dinov2(size, registers)
        for size in ("small", "base", "large", "giant")
        for registers in (0, 4)
    },
}
"""Encoder settings by name; patch 8 and 16 are DINO's, patch 14 DINOv2's, `_reg4` with four registers."""

_TIMM_NAMES = {
    (192, 16): "vit_tiny_patch16_224",
    (384, 8): "vit_small_patch8_224",
    (384, 14): "vit_small_patch14_dinov2",
    (384, 16): "vit_small_patch16_224",
    (768, 8): "vit_base_patch8_224",
    (768, 14): "vit_base_patch14_dinov2",
    (768, 16): "vit_base_patch16_224",
    (1024, 14): "vit_large_patch14_dinov2",
    (1024, 16): "vit_large_patch16_224",
}


def timm_arch(config: EncoderConfig, img_size: int | None = None) -> tuple[str, dict[str, Any]]:
    """Name and `model_args` with which timm.create_model(name, **args) builds the same encoder.

    The arguments are complete, so the name only picks the family; all are plain JSON values. With the
    "antialias" rule the table stays native and timm's `dynamic_img_size` equals ours at every size. timm
    does not know the "offset" rule: then the table is that of `img_size` px (`weights.to_timm` with the
    same `img_size`) and the two agree at that size. Raises WeightsError for what timm cannot build.
    """
    if config.norm_eps != 1e-6:
        raise WeightsError(f"timm's ViTs have norm_eps 1e-6, this encoder {config.norm_eps}; no timm model equals it")
    if img_size is not None and img_size % config.patch:
        raise WeightsError(f"image size {img_size} px is not a multiple of the patch size {config.patch} px")
    swiglu = config.ffn == "swiglu"
    name = (
        "vit_giant_patch14_dinov2" if swiglu else _TIMM_NAMES.get((config.width, config.patch), "vit_base_patch16_224")
    )
    if config.registers and name.endswith("patch14_dinov2"):
        name = name.replace("_dinov2", "_reg4_dinov2")
    native = config.grid * config.patch
    hidden = config.ffn_hidden * (2 if swiglu else 1)
    return name, {
        "img_size": img_size if config.interpolation == "offset" and img_size else native,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": _ratio(hidden, config.width),
        # 0 means no LayerScale; None would leave the family's own value in place.
        "init_values": config.layer_scale or 0.0,
        "reg_tokens": config.registers,
        "no_embed_class": bool(config.registers) or not config.class_position,
        "global_pool": "token",
        "num_classes": 0,
        "dynamic_img_size": True,
    }


def config_of_timm(name: str, **model_args: Any) -> EncoderConfig:
    """The settings with which our `ViT` computes what timm's model `name` does up to its final norm.

    model_args go to timm.create_model (img_size, depth, …). Position rule: timm's. Raises WeightsError if
    timm does not know the name, or if the model has parts that our `ViT` lacks (no CLS token, pre-norm, q/k
    norm, other activation …).
    """
    import timm
    from timm.models.vision_transformer import Block, VisionTransformer

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **model_args)
    except RuntimeError as error:
        raise WeightsError(f"{name}: timm cannot build it ({error})") from error
    if type(model) is not VisionTransformer or model.cls_token is None or model.pos_embed is None:
        raise WeightsError(f"{name}: not a plain ViT with CLS token and position table; eosin has no such encoder")
    square = all(len(set(sides)) == 1 for sides in (model.patch_embed.grid_size, model.patch_embed.patch_size))
    if not square or {type(block) for block in model.blocks} != {Block}:
        raise WeightsError(f"{name}: differs from eosin's ViT in its blocks or by a grid that is not square")
    config = _config_of(model)
    theirs = from_timm(model.state_dict(), config)
    with torch.device("meta"):
        ours = ViT(config).state_dict()
    strange = [
        key
        for key in {**ours, **theirs}
        if key != "mask_token" and (key not in ours or key not in theirs or ours[key].shape != theirs[key].shape)
    ]
    if strange or not _is_plain(model, config):
        what = ", ".join(strange[:3]) or "activation, norm or attention"
        raise WeightsError(f"{name}: differs from eosin's ViT in {what}")
    return config


def _ratio(hidden: int, width: int) -> float:
    """A ratio r with int(width * r) == hidden."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _config_of(model: Any) -> EncoderConfig:
    """Settings read off a timm VisionTransformer."""
    block = model.blocks[0]
    width, hidden = model.embed_dim, block.mlp.fc1.out_features
    swiglu = block.mlp.fc2.in_features != hidden
    ratio = _ratio(hidden, width)
    if swiglu:  # half of the wide linear is 2/3 of the hidden width that the ratio states
        ratio = 4.0 if hidden == 2 * ((int(width * 8 / 3) + 7) // 8 * 8) else 0.75 * hidden / width
    scale = getattr(block.ls1, "gamma", None)
    return EncoderConfig(
        width=width,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        grid=model.patch_embed.grid_size[0],
        registers=model.num_reg_tokens,
        ffn="swiglu" if swiglu else "mlp",
        mlp_ratio=ratio,
        layer_scale=None if scale is None else getattr(block.ls1, "init_values", 1e-5),
        class_position=not model.no_embed_class,
        interpolation="antialias",
        norm_eps=block.norm1.eps,
    )


def _is_plain(model: Any, config: EncoderConfig) -> bool:
    """Whether the parts without parameters are ours too."""
    act = nn.SiLU if config.ffn == "swiglu" else nn.GELU
    return all(
        type(block.mlp.act) is act
        and getattr(block.mlp.act, "approximate", "none") == "none"
        and isinstance(block.norm1, nn.LayerNorm)
        and block.norm1.eps == model.norm.eps == config.norm_eps
        for block in model.blocks
    )
