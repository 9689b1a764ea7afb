"""The way from our encoder settings to timm's models and back: equal functions, or a refusal.

timm has plain ViTs as VisionTransformer and the DINOv3 encoders as Eva. Weights are renamed in `layouts.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eosin.errors import WeightsError
from eosin.models.layouts import from_timm
from eosin.models.vit import EncoderConfig, ViT

_EVA_SIZES = {384: "small", 768: "base", 1024: "large", 1280: "huge_plus"}
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
    does not know the other rules: then the table is that of `img_size` px (`layouts.to_timm` with the
    same `img_size`) and the two agree at that size. Raises WeightsError for what timm cannot build.
    """
    rotary = config.positions == "rotary"
    eps = 1e-5 if rotary else 1e-6
    if config.norm_eps != eps:
        raise WeightsError(
            f"timm's ViTs of this kind have norm_eps {eps:g}, this encoder {config.norm_eps:g}; no timm model equals it"
        )
    if img_size is not None and img_size % config.patch:
        raise WeightsError(f"image size {img_size} px is not a multiple of the patch size {config.patch} px")
    if rotary:
        return _eva_arch(config)
    swiglu = config.ffn == "swiglu"
    name = (
        "vit_giant_patch14_dinov2" if swiglu else _TIMM_NAMES.get((config.width, config.patch), "vit_base_patch16_224")
    )
    if config.registers and name.endswith("patch14_dinov2"):
        name = name.replace("_dinov2", "_reg4_dinov2")
    native = config.grid * config.patch
    hidden = config.ffn_hidden * (2 if swiglu else 1)
    return name, {
        "img_size": img_size if config.interpolation != "antialias" and img_size else native,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "qkv_bias": config.qkv_bias != "none",
        "mlp_ratio": _ratio(hidden, config.width),
        # 0 means no LayerScale; None would leave the family's own value in place.
        "init_values": config.layer_scale or 0.0,
        "reg_tokens": config.registers,
        "no_embed_class": bool(config.registers) or not config.class_position,
        "global_pool": "token",
        "num_classes": 0,
        "dynamic_img_size": True,
    }


def _eva_arch(config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """`timm_arch` of an encoder with rotary positions; it takes every image size."""
    size = _EVA_SIZES.get(config.width, "base")
    return f"vit_{size}_patch16_dinov3_qkvb", {
        "img_size": config.grid * config.patch,
        "patch_size": config.patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "qkv_bias": config.qkv_bias != "none",
        # The one kind of attention has no key bias, the other has.
        "attn_type": "rope" if config.qkv_bias == "full" else "eva",
        "mlp_ratio": _ratio(config.ffn_hidden, config.width),
        "swiglu_mlp": config.ffn == "swiglu",
        "swiglu_align_to": 8,
        "init_values": config.layer_scale or 1.0,
        "num_reg_tokens": config.registers,
        "rope_temperature": config.rotary_base,
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
    from timm.models.eva import Eva

    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, **model_args)
    except Exception as error:  # whatever timm raises, it is this model that it cannot build
        raise WeightsError(f"{name}: timm cannot build it ({error})") from error
    config = _config_of_eva(model, name) if type(model) is Eva else _config_of_vit(model, name)
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


def _config_of_vit(model: Any, name: str) -> EncoderConfig:
    """Settings read off a timm VisionTransformer."""
    from timm.models.vision_transformer import Block, VisionTransformer

    if type(model) is not VisionTransformer or model.cls_token is None or model.pos_embed is None:
        raise WeightsError(
            f"{name}: not a plain ViT with CLS token and positions as a table or as DINOv3's; eosin has no such encoder"
        )
    _refuse_other_blocks(model, name, Block)
    block = model.blocks[0]
    width, hidden = model.embed_dim, block.mlp.fc1.out_features
    swiglu = block.mlp.fc2.in_features != hidden
    ratio = _ratio(hidden, width)
    if swiglu:  # half of the wide linear is 2/3 of the hidden width that the ratio states
        ratio = _swiglu_ratio(hidden // 2, width)
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
        qkv_bias="none" if block.attn.qkv.bias is None else "full",
        class_position=not model.no_embed_class,
        interpolation="antialias",
        norm_eps=block.norm1.eps,
    )


def _config_of_eva(model: Any, name: str) -> EncoderConfig:
    """Settings read off a timm Eva; WeightsError where it is none of DINOv3's kind."""
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
    from timm.models.eva import EvaBlock

    rope = model.rope
    if type(rope) is not RotaryEmbeddingDinoV3 or model.cls_token is None or model.pos_embed is not None:
        raise WeightsError(f"{name}: has no CLS token, or other positions than DINOv3's; eosin has no such encoder")
    if (rope.normalize_coords, rope.grid_indexing, rope.grid_offset, rope.rotate_half, rope.min_period) != (
        "separate",
        "ij",
        0.0,
        True,
        None,
    ) or not rope.temperature:
        raise WeightsError(f"{name}: differs from eosin's ViT in its rotary positions")
    _refuse_other_blocks(model, name, EvaBlock)
    block = model.blocks[0]
    width, attention = model.embed_dim, block.attn
    if attention.qkv is None:
        raise WeightsError(f"{name}: differs from eosin's ViT in its attention")
    swiglu = hasattr(block.mlp, "fc1_g")
    hidden = block.mlp.fc2.in_features
    has_bias = attention.qkv.bias is not None
    return EncoderConfig(
        width=width,
        depth=len(model.blocks),
        heads=attention.num_heads,
        patch=model.patch_embed.patch_size[0],
        grid=model.patch_embed.grid_size[0],
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        ffn="swiglu" if swiglu else "mlp",
        mlp_ratio=_swiglu_ratio(hidden, width) if swiglu else _ratio(hidden, width),
        layer_scale=None if block.gamma_1 is None else getattr(block, "init_values", 1e-5),
        qkv_bias="full" if has_bias else "no_key" if getattr(attention, "q_bias", None) is not None else "none",
        positions="rotary",
        rotary_base=rope.temperature,
        norm_eps=block.norm1.eps,
    )


def _refuse_other_blocks(model: Any, name: str, kind: type) -> None:
    square = all(len(set(sides)) == 1 for sides in (model.patch_embed.grid_size, model.patch_embed.patch_size))
    if not square or {type(block) for block in model.blocks} != {kind}:
        raise WeightsError(f"{name}: differs from eosin's ViT in its blocks or by a grid that is not square")


def _swiglu_ratio(half: int, width: int) -> float:
    """The MLP ratio of an encoder whose SwiGLU has halves of `half`."""
    return next(
        (ratio for ratio in (4.0, 6.0) if half == (int(width * ratio * 2 / 3) + 7) // 8 * 8), 1.5 * half / width
    )


def _is_plain(model: Any, config: EncoderConfig) -> bool:
    """Whether the parts without parameters are ours too."""
    act = nn.SiLU if config.ffn == "swiglu" else nn.GELU
    return all(
        type(block.mlp.act) is act
        and getattr(block.mlp.act, "approximate", "none") == "none"
        and isinstance(block.norm1, nn.LayerNorm)
        and block.norm1.eps == model.norm.eps == config.norm_eps
        and getattr(block.attn, "gate", None) is None
        for block in model.blocks
    )
