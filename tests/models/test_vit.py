"""The encoder against plain twins of itself, and what it must not look at."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from eosin.errors import RecipeError
from eosin.models import EncoderConfig, Tokens, ViT, draw_drop_path, resize_positions
from eosin.models.drop_path import Packing
from eosin.models.vit import attend
from eosin.randomness import Words

PLAIN = EncoderConfig(width=32, depth=3, heads=4, patch=8, grid=4)
RICH = EncoderConfig(
    width=32,
    depth=3,
    heads=4,
    patch=14,
    grid=5,
    registers=3,
    ffn="swiglu",
    layer_scale=0.5,
    interpolation="offset",
)
ROTARY = PLAIN.model_copy(update={"registers": 2, "positions": "rotary", "qkv_bias": "no_key", "layer_scale": 0.5})


def lively(config: EncoderConfig, seed: int = 0) -> ViT:
    """A ViT whose every parameter is far from its start value, so that no part is silent."""
    generator = torch.Generator().manual_seed(seed)
    vit = ViT(config, generator)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return vit


def crops_of(config: EncoderConfig, counts: tuple[int, ...], sides: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randn(count, 3, side * config.patch, side * config.patch, generator=generator)
        for count, side in zip(counts, sides, strict=True)
    ]


def joined(tokens: Tokens) -> torch.Tensor:
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)


@pytest.mark.parametrize("config", [PLAIN, RICH, ROTARY], ids=["plain", "rich", "rotary"])
@pytest.mark.parametrize("form", [None, "sample", "subset"])
def test_sizes_in_one_call_equal_one_call_each(config: EncoderConfig, form: str | None) -> None:
    config = config.model_copy(update={"drop_path": 0.4 if form else 0.0, "drop_path_form": form or "sample"})
    vit = lively(config)
    images = crops_of(config, (8, 16, 4), (4, 2, 3))  # 4 tiles: 2, 4 and 1 views
    masks = [torch.rand(8, 16, generator=torch.Generator().manual_seed(1)) < 0.4, None, None]
    drops = draw_drop_path(config, Words(3, "drop"), 4, (2, 4, 1), 2) if form else None
    together = vit(images, masks, drops)
    for k, image in enumerate(images):
        own = None
        if drops is not None:
            own = type(drops)(drops.form, drops.tiles, drops.group, drops.crops[k : k + 1], drops.draws[k : k + 1])
        (alone,) = vit([image], [masks[k]], own)
        torch.testing.assert_close(joined(together[k]), joined(alone), atol=1e-5, rtol=0)
    assert together[1].registers.shape == (16, config.registers, 32)
    assert together[2].patches.shape == (4, 9, 32)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_block_equals_its_formula(ffn: str) -> None:
    """One block written out per crop and head with an explicit softmax."""
    config = PLAIN.model_copy(update={"ffn": ffn, "layer_scale": 0.3})
    block = lively(config).blocks[0]
    x = torch.randn(3, 5, 32)
    (got,) = block([x.flatten(0, 1)], Packing((3,), (5,)))
    for crop, wanted in zip(x, got.detach().view(3, 5, 32), strict=True):
        y = F.layer_norm(crop, (32,), block.norm1.weight, block.norm1.bias, 1e-6)
        q, k, v = (y @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(32, dim=-1)
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(8), dim=-1)
            heads.append(weights @ v[:, part])
        mixed = torch.cat(heads, -1) @ block.attn.proj.weight.T + block.attn.proj.bias
        crop = crop + block.ls1.gamma * mixed
        y = F.layer_norm(crop, (32,), block.norm2.weight, block.norm2.bias, 1e-6)
        if ffn == "mlp":
            y = y @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
            y = y @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        else:
            y = y @ block.mlp.w12.weight.T + block.mlp.w12.bias
            gate, value = y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]
            y = (gate * torch.sigmoid(gate) * value) @ block.mlp.w3.weight.T + block.mlp.w3.bias
        torch.testing.assert_close(crop + block.ls2.gamma * y, wanted, atol=1e-5, rtol=1e-5)


def test_patches_are_a_strided_convolution() -> None:
    vit = lively(RICH)
    image = torch.randn(2, 3, 28, 42)
    (got,) = vit.patch_embed([image])
    wanted = vit.patch_embed.proj(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_masked_patches_are_not_seen() -> None:
    vit = lively(RICH)
    image = torch.randn(2, 3, 70, 70)
    mask = torch.rand(2, 25) < 0.5
    pixels = mask.view(2, 1, 5, 5).repeat_interleave(14, 2).repeat_interleave(14, 3)
    other = torch.where(pixels, torch.randn_like(image), image)
    (a,), (b,) = vit([image], [mask]), vit([other], [mask])
    assert torch.equal(joined(a), joined(b))
    (open_a,), (open_b,) = vit([image]), vit([other])
    assert not torch.allclose(open_a.cls, open_b.cls)


def test_masked_tokens_still_have_a_position() -> None:
    """Positions are added after masking, so masked patches differ by position alone."""
    vit = lively(PLAIN)
    (tokens,) = vit.embed([torch.randn(1, 3, 32, 32)], [torch.ones(1, 16, dtype=torch.bool)])
    torch.testing.assert_close(tokens[:, 1:], vit.mask_token + vit.pos_embed[:, 1:])


def test_registers_have_no_position() -> None:
    vit = lively(RICH)
    (tokens,) = vit.embed([torch.randn(2, 3, 70, 70)])
    torch.testing.assert_close(tokens[:, 1:4], vit.register_tokens.expand(2, -1, -1))
    torch.testing.assert_close(tokens[0, 0], vit.cls_token[0, 0] + vit.pos_embed[0, 0])


@pytest.mark.parametrize("size", [(7, 7), (16, 16), (37, 37), (5, 9), (1, 3)])
def test_positions_equal_direct_interpolation(size: tuple[int, int]) -> None:
    table = torch.randn(1, 14 * 14, 8)
    square = table.view(1, 14, 14, 8).permute(0, 3, 1, 2)
    by_size = F.interpolate(square, size=size, mode="bicubic", antialias=True)
    factors = ((size[0] + 0.1) / 14, (size[1] + 0.1) / 14)
    by_factor = F.interpolate(square, scale_factor=factors, mode="bicubic")
    for rule, wanted in (("antialias", by_size), ("offset", by_factor)):
        got = resize_positions(table, size, rule)
        torch.testing.assert_close(got, wanted.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_positions_equal_timm() -> None:
    from timm.layers import resample_abs_pos_embed

    table = torch.randn(1, 37 * 37, 8)
    wanted = resample_abs_pos_embed(table, new_size=[7, 16], old_size=[37, 37], num_prefix_tokens=0)
    torch.testing.assert_close(resize_positions(table, (7, 16), "antialias"), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", ["antialias", "offset"])
def test_native_grid_keeps_the_table(rule: str) -> None:
    table = torch.randn(1, 36, 4)
    assert torch.equal(resize_positions(table, (6, 6), rule), table)


def test_position_weights_made_in_inference_mode_can_train() -> None:
    table = torch.randn(1, 121, 4, requires_grad=True)
    with torch.inference_mode():
        resize_positions(table, (3, 10), "antialias")
    resize_positions(table, (3, 10), "antialias").sum().backward()
    assert table.grad is not None
    # Weights of a resampling sum to 1, so each of the 30 outputs hands out gradient 1.
    torch.testing.assert_close(table.grad.sum(), torch.tensor(120.0))


@pytest.mark.parametrize("tokens", [1, 10, 50])
def test_attention_in_bf16_is_the_same_with_and_without_gradients(tokens: int) -> None:
    """Training on a CPU takes plain products, all else the fused kernel; both equal fp32 up to bf16."""
    q, k, v = (torch.randn(4, 3, tokens, 16) for _ in range(3))
    exact = torch.softmax(q @ k.transpose(-2, -1) / 4, -1) @ v
    fused = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    plain = attend(q.bfloat16().requires_grad_(), k.bfloat16(), v.bfloat16())
    assert plain.requires_grad
    for got in (fused, plain):
        torch.testing.assert_close(got.float(), exact, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("config", [RICH, ROTARY], ids=["rich", "rotary"])
def test_bf16_autocast_is_close_and_reaches_every_parameter(config: EncoderConfig) -> None:
    vit = lively(config)
    images = crops_of(config, (4, 4), (5, 2))
    masks = [torch.arange(25).expand(4, -1) % 3 == 0, None]
    exact = vit(images, masks)
    with torch.autocast("cpu", torch.bfloat16):
        rough = vit(images, masks)
    for a, b in zip(exact, rough, strict=True):
        assert F.cosine_similarity(joined(a), joined(b).float(), dim=-1).min() > 0.999
    sum(joined(tokens).float().square().sum() for tokens in rough).backward()
    silent = [name for name, p in vit.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_start_values_are_dinov2s() -> None:
    config = EncoderConfig(width=128, depth=2, heads=4, patch=16, grid=14, registers=4, layer_scale=1e-5)
    vit = ViT(config, torch.Generator().manual_seed(0))
    again = ViT(config, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(vit.parameters(), again.parameters(), strict=True))
    for weight in (vit.blocks[1].attn.qkv.weight, vit.blocks[0].mlp.fc2.weight, vit.pos_embed):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert vit.cls_token.abs().max() < 1e-5
    assert vit.register_tokens.abs().max() < 1e-5
    assert not vit.mask_token.any()
    assert not vit.blocks[0].attn.qkv.bias.any()
    assert torch.equal(vit.blocks[0].ls2.gamma, torch.full((128,), 1e-5))
    # torch starts a convolution uniformly within 1 / sqrt(fan in): sd = bound / sqrt(3).
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx((3 * 768) ** -0.5, rel=0.03)


def test_impossible_settings_and_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="not divisible by 5 heads"):
        EncoderConfig(width=32, depth=1, heads=5, patch=8, grid=4)
    with pytest.raises(ValueError, match="one rate"):
        EncoderConfig(width=32, depth=1, heads=4, patch=8, grid=4, drop_path_form="subset", drop_path_law="linear")
    with pytest.raises(RecipeError, match="30 x 32 px does not divide into patches of 8 px"):
        lively(PLAIN)([torch.zeros(1, 3, 30, 32)])
    config = PLAIN.model_copy(update={"drop_path": 0.5})
    drops = draw_drop_path(config, Words(0), 4, (2,), 2)
    with pytest.raises(RecipeError, match=r"drawn for \(8,\) crops, the call has \(6,\)"):
        lively(config)([torch.zeros(6, 3, 32, 32)], None, drops)
