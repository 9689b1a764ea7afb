"""Encoder settings by name, and timm's names."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from eosin.errors import WeightsError
from eosin.models import PRESETS, EncoderConfig, ViT, config_of_timm, timm_arch


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit_tiny_patch16", 5.5),
        ("vit_small_patch16", 21.7),
        ("vit_small_patch8", 21.7),
        ("vit_base_patch16", 85.8),
        ("vit_base_patch8", 85.8),
        ("vit_small_patch14", 22.1),
        ("vit_base_patch14", 86.6),
        ("vit_large_patch14_reg4", 304.4),
        ("vit_giant_patch14", 1136.5),
        ("vit_small_patch16_dinov3", 21.6),
        ("vit_base_patch16_dinov3", 85.7),
        ("vit_large_patch16_dinov3", 303.2),
        ("vit_huge_plus_patch16_dinov3", 840.6),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        vit = ViT(PRESETS[name])
    assert sum(p.numel() for p in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_timm_model(name: str) -> None:
    """timm builds a model of the stated arguments whose settings read back as ours."""
    config = PRESETS[name]
    arch, args = timm_arch(config)
    assert json.loads(json.dumps(args)) == args
    back = config_of_timm(arch, **args)
    same = {"width", "depth", "heads", "patch", "grid", "registers", "ffn", "ffn_hidden", "layer_scale"}
    same |= {"positions", "qkv_bias", "norm_eps"}
    assert {key: getattr(back, key) for key in same} == {key: getattr(config, key) for key in same}


def test_dinov2s_published_names_are_the_presets() -> None:
    for size in ("small", "base", "large", "giant"):
        for suffix in ("", "_reg4"):
            ours, theirs = (
                PRESETS[f"vit_{size}_patch14{suffix}"],
                config_of_timm(f"vit_{size}_patch14{suffix}_dinov2"),
            )
            differing = {key for key in EncoderConfig.model_fields if getattr(ours, key) != getattr(theirs, key)}
            # timm has one resampling rule, no CLS row beside registers, and no drop path of its own.
            assert differing <= {"interpolation", "class_position", "drop_path_form"}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit_base_patch16_clip_224", "norm_pre"),
        ("vit_base_patch16_siglip_224", "CLS token"),
        ("vit_medium_patch16_gap_256", "CLS token"),
        ("swin_tiny_patch4_window7_224", "not a plain ViT"),
        ("vit_small_patch16_18x2_224", "blocks"),
        ("vit_intern300m_patch14_448", "norm.weight"),
        ("resnet18", "not a plain ViT"),
        ("vit_that_nobody_made", "timm cannot build it"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(WeightsError, match=why) as caught:
        config_of_timm(name)
    assert str(caught.value).startswith(name)


def test_another_activation_is_refused() -> None:
    with pytest.raises(WeightsError, match="activation"):
        config_of_timm("vit_tiny_patch16_224", act_layer="gelu_tanh")
    with pytest.raises(WeightsError, match="grid that is not square"):
        config_of_timm("vit_tiny_patch16_224", img_size=(224, 448))


def test_odd_settings_survive_timm() -> None:
    config = EncoderConfig(width=96, depth=1, heads=3, patch=10, grid=9, registers=1, mlp_ratio=3.07)
    arch, args = timm_arch(config)
    model = timm.create_model(arch, **args)
    assert model.blocks[0].mlp.fc1.out_features == config.ffn_hidden == 294
    assert model.patch_embed.patch_size == (10, 10)
    with pytest.raises(WeightsError, match="norm_eps"):
        timm_arch(config.model_copy(update={"norm_eps": 1e-5}))
    with pytest.raises(WeightsError, match="95 px is not a multiple of the patch size 10 px"):
        timm_arch(config, img_size=95)
