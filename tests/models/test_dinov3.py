"""Encoders with rotary positions against timm's DINOv3 models and against the rotation written out."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import timm
import torch
from timm.models.eva import checkpoint_filter_fn

from eosin.errors import WeightsError
from eosin.models import PRESETS, EncoderConfig, ViT, config_of_timm, load_encoder, timm_arch, to_timm
from eosin.models.layouts import from_timm
from eosin.models.positions import rotate, rotation

SMALL = EncoderConfig(
    width=48,
    depth=3,
    heads=3,
    patch=8,
    grid=6,
    registers=2,
    layer_scale=0.5,
    positions="rotary",
    qkv_bias="no_key",
    norm_eps=1e-5,
)


def lively(module: torch.nn.Module, seed: int = 0) -> Any:
    """The module with every parameter far from its start value, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def all_tokens(vit: ViT, images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    (tokens,) = vit([images], [mask])
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)


def meta_dinov3(config: EncoderConfig, prefix: str = "") -> dict[str, torch.Tensor]:
    """A state with the names, shapes and buffers that Meta publishes for DINOv3."""
    d, hidden, generator = config.width, config.ffn_hidden, torch.Generator().manual_seed(1)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "storage_tokens": (1, config.registers, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    linears = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
    if config.ffn == "mlp":
        linears |= {"mlp.fc1": (hidden, d), "mlp.fc2": (d, hidden)}
    else:
        linears |= {"mlp.w1": (hidden, d), "mlp.w2": (hidden, d), "mlp.w3": (d, hidden)}
    for n in range(config.depth):
        for name, shape in linears.items():
            shapes |= {f"blocks.{n}.{name}.weight": shape, f"blocks.{n}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{n}.{name}"] = (d,)
    state = {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for n in range(config.depth):
        state[f"blocks.{n}.attn.qkv.bias_mask"] = torch.cat([torch.ones(d), torch.zeros(d), torch.ones(d)])
    pairs = d // config.heads // 4
    state["rope_embed.periods"] = torch.tensor([100 ** (j / pairs) for j in range(pairs)]).bfloat16()
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("size", [(4, 4), (3, 7), (1, 1)])
def test_rotation_is_that_of_the_paper(size: tuple[int, int]) -> None:
    """Each pair of channels as a complex number, turned by row or column."""
    head, prefix, base = 16, 3, 100.0
    x = torch.randn(2, prefix + size[0] * size[1], head, dtype=torch.float64)
    wanted = x.clone()
    for row in range(size[0]):
        for column in range(size[1]):
            token = prefix + row * size[1] + column
            centres = (2 * (row + 0.5) / size[0] - 1, 2 * (column + 0.5) / size[1] - 1)
            for pair in range(head // 2):
                axis, number = divmod(pair, head // 4)
                turn = cmath.exp(2j * math.pi * centres[axis] / base ** (number / (head / 4)))
                for crop in range(2):
                    value = complex(x[crop, token, pair], x[crop, token, pair + head // 2]) * turn
                    wanted[crop, token, pair], wanted[crop, token, pair + head // 2] = value.real, value.imag
    got = rotate(x, rotation(size, prefix, head, base, torch.device("cpu")))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert torch.equal(got[:, :prefix], x[:, :prefix])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_small_patch16_dinov3", {}),
        ("vit_small_patch16_dinov3_qkvb", {}),
        ("vit_base_patch16_dinov3", {"depth": 3}),
        ("vit_base_patch16_dinov3_qkvb", {"depth": 2}),
        ("vit_large_patch16_dinov3_qkvb", {"depth": 1}),
        ("vit_small_plus_patch16_dinov3", {"depth": 3}),
        ("vit_huge_plus_patch16_dinov3_qkvb", {"depth": 1}),
        ("vit_small_patch16_dinov3", {"depth": 3, "attn_type": "rope", "qkv_bias": True}),
        ("vit_small_patch16_dinov3_qkvb", {"depth": 3, "num_reg_tokens": 0, "rope_temperature": 30.0}),
    ],
)
def test_outputs_equal_timms_both_ways(name: str, args: dict[str, Any]) -> None:
    theirs = lively(timm.create_model(name, **args))
    config = config_of_timm(name, **args)
    vit = ViT(config).eval()
    report = load_encoder(vit, theirs.state_dict())
    assert (report.layout, report.kept, report.ignored, report.resized) == ("timm", ("mask_token",), (), None)
    arch, model_args = timm_arch(config)
    back = timm.create_model(arch, **model_args).eval()
    back.load_state_dict(to_timm(vit.state_dict(), config), strict=True)
    for size in ((256, 256), (96, 176)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted, again, got = theirs.forward_features(images), back.forward_features(images), all_tokens(vit, images)
        assert wanted.abs().max() > 1
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(again, wanted, atol=1e-4, rtol=0)


def test_presets_are_the_published_encoders() -> None:
    for size in ("small", "base", "large", "huge_plus"):
        ours, theirs = PRESETS[f"vit_{size}_patch16_dinov3"], config_of_timm(f"vit_{size}_patch16_dinov3_qkvb")
        differing = {key for key in EncoderConfig.model_fields if getattr(ours, key) != getattr(theirs, key)}
        assert differing == {"drop_path_form"}


def test_gradients_through_masks_equal_timms() -> None:
    """timm has no mask token: there it is put in behind the patch projection."""
    vit = lively(ViT(SMALL)).double()
    arch, model_args = timm_arch(SMALL)
    theirs = timm.create_model(arch, **model_args).double()
    theirs.load_state_dict(to_timm(vit.state_dict(), SMALL), strict=True)
    images = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.4
    weight = torch.randn(2, 27, 48, dtype=torch.float64)
    (all_tokens(vit, images, mask) * weight).sum().backward()

    token = vit.mask_token.detach().clone().requires_grad_()

    def put_in(_module: Any, _inputs: Any, patches: torch.Tensor) -> torch.Tensor:
        return torch.where(mask.view(2, 6, 4, 1), token[0], patches)

    theirs.patch_embed.register_forward_hook(put_in)
    (theirs.forward_features(images) * weight).sum().backward()
    torch.testing.assert_close(vit.mask_token.grad, token.grad, atol=1e-5, rtol=1e-5)
    wanted = from_timm({name: p.grad for name, p in theirs.named_parameters()}, SMALL)
    assert len(wanted) == len(list(vit.parameters())) - 1
    for name, parameter in vit.named_parameters():
        if name != "mask_token":
            assert parameter.grad.abs().max() > 0
            torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-5, rtol=1e-5)
    assert not vit.blocks[0].attn.qkv.bias.grad[48:96].any()


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
def test_metas_file_gives_what_timm_makes_of_it(ffn: str, prefix: str) -> None:
    config = SMALL.model_copy(update={"ffn": ffn})
    arch, model_args = timm_arch(config)
    theirs = timm.create_model(arch, **model_args).eval()
    theirs.load_state_dict(checkpoint_filter_fn(meta_dinov3(config), theirs), strict=True)
    vit = ViT(config).eval()
    report = load_encoder(vit, meta_dinov3(config, prefix))
    assert (report.layout, report.kept, report.ignored) == ("meta", (), ())
    assert report.loaded == len(vit.state_dict())
    assert torch.equal(vit.mask_token, meta_dinov3(config)["mask_token"])
    images = torch.randn(2, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(all_tokens(vit, images), theirs.forward_features(images), atol=1e-4, rtol=0)


def test_bias_is_multiplied_by_its_mask() -> None:
    """Meta's published masks are 0 throughout: their models have no bias, whatever the file holds."""
    state = meta_dinov3(SMALL)
    for key in [key for key in state if key.endswith("bias_mask")]:
        state[key].zero_()
    with_bias, without = ViT(SMALL).eval(), ViT(SMALL.model_copy(update={"qkv_bias": "none"})).eval()
    load_encoder(with_bias, state)
    load_encoder(without, state)
    assert not with_bias.blocks[1].attn.qkv.bias.any()
    images = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(all_tokens(with_bias, images), all_tokens(without, images), atol=1e-5, rtol=0)
    load_encoder(with_bias, to_timm(without.state_dict(), without.config))
    torch.testing.assert_close(all_tokens(with_bias, images), all_tokens(without, images), atol=1e-5, rtol=0)
    with pytest.raises(WeightsError, match="have qkv_bias no_key; the encoder has qkv_bias none"):
        load_encoder(without, meta_dinov3(SMALL))


def test_another_head_count_or_base_is_seen_by_the_periods() -> None:
    state = meta_dinov3(SMALL)
    with pytest.raises(WeightsError, match="these weights have heads 3; the encoder has heads 6"):
        load_encoder(ViT(SMALL.model_copy(update={"heads": 6})), state)
    with pytest.raises(WeightsError, match=r"periods 1 to 31\.\d+, the encoder 1 to \d+\.?\d*; set encoder\.rotary"):
        load_encoder(ViT(SMALL.model_copy(update={"rotary_base": 30.0})), state)
    table = SMALL.model_copy(update={"positions": "table"})
    with pytest.raises(WeightsError, match="have positions rotary; the encoder has positions table"):
        load_encoder(ViT(table), state)
    key_bias = {**ViT(SMALL).state_dict(), "blocks.1.attn.qkv.bias": torch.ones(144)}
    with pytest.raises(WeightsError, match="have qkv_bias full; the encoder has qkv_bias no_key"):
        load_encoder(ViT(SMALL), key_bias, "eosin")


def test_first_use_in_inference_mode_does_not_hinder_training() -> None:
    vit = ViT(SMALL)
    images = torch.randn(1, 3, 88, 24)
    with torch.inference_mode():
        before = all_tokens(vit, images)
    after = all_tokens(vit, images)
    after.sum().backward()
    assert torch.equal(before, after.detach())


def test_heads_that_cannot_be_turned_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4 channels, not 6"):
        EncoderConfig(width=36, depth=1, heads=6, patch=8, grid=4, positions="rotary")
    with pytest.raises(WeightsError, match="norm_eps 1e-05, this encoder 1e-06"):
        timm_arch(SMALL.model_copy(update={"norm_eps": 1e-6}))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("eva02_tiny_patch14_224", "other positions"),
        ("vit_base_patch16_rope_reg1_gap_256", "no CLS token, or other positions"),
        ("vit_small_patch16_rope_224", "other positions"),
    ],
)
def test_other_rotary_networks_are_refused(name: str, why: str) -> None:
    with pytest.raises(WeightsError, match=why) as caught:
        config_of_timm(name)
    assert str(caught.value).startswith(name)
