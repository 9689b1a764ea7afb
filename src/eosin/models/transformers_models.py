"""Encoder settings from the config.json of a model of the transformers library.

Weights are renamed in `layouts.py`; the library itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from eosin.errors import WeightsError
from eosin.models.vit import EncoderConfig

MODEL_TYPES = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""`model_type` of the models that our `ViT` equals."""


def config_of_transformers(told: Mapping[str, Any], name: str = "config.json") -> EncoderConfig:
    """The settings with which our `ViT` computes what the model that `told` (a config.json) describes does up to its
    final norm.

    Values that config.json leaves out are the library's own. Raises WeightsError, one line beginning with `name`, for
    other kinds of models and for parts that our `ViT` lacks.
    """
    kind = told.get("model_type")
    if kind not in MODEL_TYPES:
        raise WeightsError(
            f"{name}: model_type {kind!r} is none of {', '.join(MODEL_TYPES)}; eosin has no such encoder"
        )
    rotary = kind == "dinov3_vit"
    width = int(told.get("hidden_size", 384 if rotary else 768))
    swiglu = bool(told.get("use_gated_mlp" if rotary else "use_swiglu_ffn", False))
    act = told.get("hidden_act", "gelu")
    if act not in (("gelu", "silu") if swiglu else ("gelu",)) or (rotary and swiglu and act != "silu"):
        raise WeightsError(f"{name}: activation {act!r}; eosin's encoder has GELU, or SiLU in a SwiGLU")
    patch = int(told.get("patch_size", 14 if kind.startswith("dinov2") else 16))
    hidden = told.get("intermediate_size", 4 * width) if kind in ("vit", "dinov3_vit") else None
    ratio = float(told.get("mlp_ratio", 4)) if hidden is None else _ratio(int(hidden), width, swiglu)
    qkv_bias: Literal["full", "no_key", "none"] = "full" if told.get("qkv_bias", True) else "none"
    if rotary:
        outer = bool(told.get("query_bias", True) and told.get("value_bias", True))
        qkv_bias = "none" if not outer else "full" if told.get("key_bias", False) else "no_key"
    return EncoderConfig(
        width=width,
        depth=int(told.get("num_hidden_layers", 12)),
        heads=int(told.get("num_attention_heads", 6 if rotary else 12)),
        patch=patch,
        grid=int(told.get("image_size", 224)) // patch,
        registers=int(told.get("num_register_tokens", 4 if kind == "dinov2_with_registers" else 0)),
        ffn="swiglu" if swiglu else "mlp",
        mlp_ratio=ratio,
        layer_scale=None if kind == "vit" else float(told.get("layerscale_value", 1.0)),
        qkv_bias=qkv_bias,
        positions="rotary" if rotary else "table",
        rotary_base=float(told.get("rope_theta", 100.0)),
        interpolation="antialias" if told.get("num_register_tokens") or kind == "dinov2_with_registers" else "plain",
        norm_eps=float(told.get("layer_norm_eps", {"vit": 1e-12, "dinov3_vit": 1e-5}.get(kind, 1e-6))),
    )


def read_config_of_transformers(path: Path) -> EncoderConfig | None:
    """Settings from a config.json of the transformers library; None where it is none, or tells of a model that our
    `ViT` does not equal.
    """
    try:
        return config_of_transformers(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, AttributeError, WeightsError):
        return None


def _ratio(hidden: int, width: int, swiglu: bool) -> float:
    """The MLP ratio of an encoder with `hidden` inside its FFN; a SwiGLU has 2/3 of what its ratio says."""
    exact = hidden / width * (1.5 if swiglu else 1.0)
    near = (exact, exact + 0.75 / width, exact - 0.75 / width)
    for ratio in near:
        inside = int(width * ratio)
        if hidden == (inside if not swiglu else (int(inside * 2 / 3) + 7) // 8 * 8):
            return ratio
    raise WeightsError(f"config.json: no FFN of eosin's encoder is {hidden} wide inside")
