"""Encoders by name: the sizes that recipes use.

Values are those of DINO (Caron et al. 2021; patch 8 and 16, 224 px), DINOv2 (Oquab et al. 2023; patch 14,
518 px, LayerScale), DINOv2 with registers (Darcet et al. 2023) and DINOv3 (Siméoni et al. 2025; patch 16, 256 px,
rotary positions). Weights are not here (`start.py`), nor timm's names (`timm_models.py`).
"""

from __future__ import annotations

from eosin.models.vit import EncoderConfig

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


def _dinov3(size: str) -> EncoderConfig:
    width, depth, heads = (1280, 32, 20) if size == "huge_plus" else _SIZES[size]
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        patch=16,
        grid=16,
        registers=4,
        ffn="swiglu" if size == "huge_plus" else "mlp",
        mlp_ratio=6.0 if size == "huge_plus" else 4.0,
        layer_scale=1e-5,
        qkv_bias="no_key",
        positions="rotary",
        drop_path_form="subset",
        norm_eps=1e-5,
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
    **{f"vit_{size}_patch16_dinov3": _dinov3(size) for size in ("small", "base", "large", "huge_plus")},
}
"""Encoder settings by name; patch 8 and 16 are DINO's, patch 14 DINOv2's, `_reg4` with four registers."""
