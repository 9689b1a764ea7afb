"""Weights in the transformers library's names: against that library's own networks where it is installed, and always
against a plain inverse of the map.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from eosin.errors import WeightsError
from eosin.models import EncoderConfig, ViT, load_encoder, open_start
from eosin.models.transformers_models import config_of_transformers

SMALL = EncoderConfig(width=48, depth=2, heads=3, patch=8, grid=6, layer_scale=0.5, interpolation="plain")
KINDS = {
    "vit": SMALL.model_copy(update={"layer_scale": None}),
    "dinov2": SMALL,
    "dinov2 swiglu": SMALL.model_copy(update={"ffn": "swiglu"}),
    "dinov2_with_registers": SMALL.model_copy(update={"registers": 4, "interpolation": "antialias"}),
    "dinov3_vit": SMALL.model_copy(
        update={"registers": 4, "positions": "rotary", "qkv_bias": "no_key", "norm_eps": 1e-5}
    ),
    "dinov3_vit swiglu": SMALL.model_copy(
        update={"registers": 4, "positions": "rotary", "qkv_bias": "no_key", "norm_eps": 1e-5, "ffn": "swiglu"}
    ),
}


def lively(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            if isinstance(module, ViT) and module.config.qkv_bias == "no_key" and name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return module.eval()


def in_their_names(vit: ViT) -> dict[str, torch.Tensor]:
    """The state of `vit` as the transformers library publishes such a model, key by key."""
    config, ours = vit.config, vit.state_dict()
    rotary, plain = config.positions == "rotary", config.layer_scale is None
    out = {f"embeddings.{key}": ours[key] for key in ("cls_token", "register_tokens") if key in ours}
    if not plain:
        out["embeddings.mask_token"] = ours["mask_token"][None] if rotary else ours["mask_token"]
    if not rotary:
        out["embeddings.position_embeddings"] = ours["pos_embed"]
    for kind in ("weight", "bias"):
        out[f"embeddings.patch_embeddings.{'' if rotary else 'projection.'}{kind}"] = ours[f"patch_embed.proj.{kind}"]
        out[f"{'norm' if rotary else 'layernorm'}.{kind}"] = ours[f"norm.{kind}"]
        for n in range(config.depth):
            a, b = f"blocks.{n}.", f"layer.{n}." if rotary else f"encoder.layer.{n}."
            parts = ours[f"{a}attn.qkv.{kind}"].chunk(3)
            for name, value in zip(("q", "k", "v") if rotary else ("query", "key", "value"), parts, strict=True):
                if rotary and not (name == "k" and kind == "bias"):
                    out[f"{b}attention.{name}_proj.{kind}"] = value
                elif not rotary:
                    out[f"{b}attention.attention.{name}.{kind}"] = value
            out[f"{b}attention.{'o_proj' if rotary else 'output.dense'}.{kind}"] = ours[f"{a}attn.proj.{kind}"]
            norms = ("layernorm_before", "layernorm_after") if plain else ("norm1", "norm2")
            for name, norm in zip(norms, ("norm1", "norm2"), strict=True):
                out[f"{b}{name}.{kind}"] = ours[f"{a}{norm}.{kind}"]
            if config.ffn == "swiglu" and rotary:
                gate, value = ours[f"{a}mlp.w12.{kind}"].chunk(2)
                out |= {f"{b}mlp.gate_proj.{kind}": gate, f"{b}mlp.up_proj.{kind}": value}
                out[f"{b}mlp.down_proj.{kind}"] = ours[f"{a}mlp.w3.{kind}"]
            elif config.ffn == "swiglu":
                out[f"{b}mlp.weights_in.{kind}"] = ours[f"{a}mlp.w12.{kind}"]
                out[f"{b}mlp.weights_out.{kind}"] = ours[f"{a}mlp.w3.{kind}"]
            else:
                first, second = {
                    "vit": ("intermediate.dense", "output.dense"),
                    "dinov2": ("mlp.fc1", "mlp.fc2"),
                    "dinov3": ("mlp.up_proj", "mlp.down_proj"),
                }["dinov3" if rotary else "vit" if plain else "dinov2"]
                out[f"{b}{first}.{kind}"], out[f"{b}{second}.{kind}"] = (
                    ours[f"{a}mlp.{name}.{kind}"] for name in ("fc1", "fc2")
                )
    for n in range(config.depth if not plain else 0):
        start = f"layer.{n}." if rotary else f"encoder.layer.{n}."
        out |= {f"{start}layer_scale{b}.lambda1": ours[f"blocks.{n}.ls{b}.gamma"] for b in (1, 2)}
    return {key: value.clone() for key, value in out.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_their_names_become_ours(kind: str, prefix: str, tmp_path: Path) -> None:
    vit = lively(ViT(KINDS[kind]))
    state = {f"{prefix}{key}": value for key, value in in_their_names(vit).items()}
    state[f"{prefix}pooler.dense.weight"] = torch.zeros(48, 48)
    state["classifier.weight"] = torch.zeros(3, 48)
    save_file(state, tmp_path / "model.safetensors")
    start = open_start(str(tmp_path / "model.safetensors"))
    assert start.layout == "transformers"
    ours = ViT(KINDS[kind])
    report = start.load_into(ours)
    assert len(report.ignored) == 2
    wanted = vit.state_dict()
    for key, value in ours.state_dict().items():
        assert (key == "mask_token" and kind == "vit") or torch.equal(value, wanted[key]), key


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = in_their_names(lively(ViT(SMALL)))
    lacking = {key: value for key, value in state.items() if "layer.1.attention.attention.key" not in key}
    with pytest.raises(WeightsError, match=r"1 missing \(blocks\.1\.attn\.qkv\.weight\), 2 unexpected"):
        load_encoder(ViT(SMALL), lacking)
    with pytest.raises(WeightsError, match=r"1 unexpected \(encoder\.something\)"):
        load_encoder(ViT(SMALL), state | {"encoder.something": torch.zeros(1)})
    with pytest.raises(WeightsError, match="have ffn_hidden 192, ffn mlp; the encoder has ffn_hidden 128, ffn swiglu"):
        load_encoder(ViT(KINDS["dinov2 swiglu"]), state)


def test_a_config_that_eosin_does_not_equal_is_refused() -> None:
    for told, said in (
        ({"model_type": "swin"}, "model_type 'swin' is none of"),
        ({"model_type": "vit", "hidden_act": "relu"}, "activation 'relu'"),
    ):
        with pytest.raises(WeightsError, match=said):
            config_of_transformers(told)


def network_of(kind: str, config: EncoderConfig) -> Any:
    """The library's own network with the settings of `config`."""
    library = pytest.importorskip("transformers", reason="compared where the transformers library is installed")
    common: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.patch * config.grid,
    }
    name = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "dinov3_vit": "DINOv3ViT"}
    swiglu = config.ffn == "swiglu"
    extra: dict[str, dict[str, Any]] = {
        "vit": {"intermediate_size": config.ffn_hidden},
        "dinov2": {"use_swiglu_ffn": swiglu},
        "dinov2_with_registers": {"use_swiglu_ffn": swiglu, "num_register_tokens": config.registers},
        "dinov3_vit": {
            "intermediate_size": config.ffn_hidden,
            "num_register_tokens": config.registers,
            "use_gated_mlp": swiglu,
            "hidden_act": "silu" if swiglu else "gelu",
        },
    }
    stem = kind.split()[0]
    return getattr(library, f"{name[stem]}Model")(getattr(library, f"{name[stem]}Config")(**common, **extra[stem]))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_library(kind: str, tmp_path: Path) -> None:
    theirs = lively(network_of(kind, KINDS[kind]))
    theirs.save_pretrained(tmp_path)
    config = config_of_transformers(json.loads((tmp_path / "config.json").read_text()))
    assert config.ffn_hidden == KINDS[kind].ffn_hidden
    ours = ViT(config).eval()
    start = open_start(str(tmp_path))
    assert start.config == config
    start.load_into(ours)
    sizes = [config.grid] if kind == "vit" else [config.grid, 4, 9]
    for state in (load_file(tmp_path / "model.safetensors"), theirs.state_dict()):  # published and current names
        load_encoder(ours, state)
        for side in sizes:
            images = torch.randn(2, 3, side * config.patch, side * config.patch)
            with torch.no_grad():
                (tokens,), wanted = ours([images]), theirs(images).last_hidden_state
            found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
