"""Attention maps against softmax(q kᵀ / √d) written out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.models import EncoderConfig, ViT
from eosin.models.drop_path import Packing
from eosin.runs import RunFolder
from eosin.training.attention import OCTAVE, attention_to_patches, keep_attention

KINDS = {
    "table": {},
    "registers": {"registers": 3, "layer_scale": 0.1},
    "rotary": {"positions": "rotary", "registers": 2, "qkv_bias": "no_key"},
    "no position for CLS": {"class_position": False, "qkv_bias": "none", "ffn": "swiglu"},
}


def encoder(**changes: object) -> ViT:
    config = EncoderConfig(**{"width": 24, "depth": 3, "heads": 3, "patch": 8, "grid": 4, **changes})
    vit = ViT(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return vit


def by_hand(vit: ViT, image: torch.Tensor) -> torch.Tensor:
    """[heads, h, w] for one image: the blocks one after another, then pair by pair."""
    config = vit.config
    x = vit.embed([image[None]])[0][0]  # [tokens, D]
    turns = vit.rotations([image[None]]) if config.positions == "rotary" else None
    packing = Packing((1,), (len(x),), turns)
    for block in vit.blocks[:-1]:
        x = block([x], packing)[0]
    last = vit.blocks[-1]
    rows = last.attn.qkv(last.norm1(x)).detach()
    d = config.head_dim
    first = 1 + config.registers
    maps = []
    for head in range(config.heads):
        q, k = (rows[:, part * config.width + head * d :][:, :d].clone() for part in (0, 1))
        if turns is not None:
            for token in range(len(x)):
                for channel in range(d // 2):
                    cos, sin = turns[0].cos[token, channel], turns[0].sin[token, channel]
                    for vector in (q[token], k[token]):
                        a, b = vector[channel].item(), vector[channel + d // 2].item()
                        vector[channel], vector[channel + d // 2] = a * cos - b * sin, b * cos + a * sin
        scores = [float(q[0] @ k[token]) / math.sqrt(d) for token in range(len(x))]
        weights = [math.exp(score - max(scores)) for score in scores]
        maps.append([weight / sum(weights) for weight in weights][first:])
    return torch.tensor(maps).unflatten(1, vit.patch_embed.grid_of(image))


@pytest.mark.parametrize("kind", list(KINDS))
def test_maps_are_softmax_of_queries_and_keys(kind: str) -> None:
    vit = encoder(**KINDS[kind])
    images = torch.randn(2, 3, 32, 24, generator=torch.Generator().manual_seed(2))
    before = vit([images])[0]
    found = attention_to_patches(vit, images)
    assert found.shape == (2, 3, 4, 3)
    for image, maps in zip(images, found, strict=True):
        torch.testing.assert_close(maps, by_hand(vit, image), atol=1e-5, rtol=1e-4)
    assert found.std() > 1e-3
    assert torch.equal(vit([images])[0].cls, before.cls)
    assert not vit.blocks[-1].attn.qkv._forward_hooks


def test_compiled_blocks_are_looked_into_and_stay_compiled() -> None:
    vit, images = encoder(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    plain, wanted = attention_to_patches(vit, images), vit([images])[0].cls
    for block in vit.blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        vit([images])
    torch.testing.assert_close(attention_to_patches(vit, images), plain)
    torch.testing.assert_close(vit([images])[0].cls, wanted)


def test_first_and_latest_maps_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    even = torch.full((1, 2, 2, 2), 0.2)
    peaked = torch.tensor([[[[0.8, 0.1], [0.05, 0.0]], [[0.2, 0.2], [0.2, 0.2]]]])
    for step, maps in ((0, even), (5, even), (9, peaked)):
        keep_attention(maps, step, run)
    with np.load(run.pictures / "attention_first.npz") as first, np.load(run.pictures / "attention_latest.npz") as last:
        assert (int(first["step"]), int(last["step"])) == (0, 9)
        assert first["maps"].shape == (1, 3, 2, 2)
        assert first["maps"].dtype == np.uint8
        assert np.unique(first["maps"]).tolist() == [round(128 + OCTAVE * math.log2(0.8))]
        mean, head = 2.0 ** ((last["maps"][0, :2].astype(float) - 128) / OCTAVE) / 4
        assert head.ravel() == pytest.approx([0.8, 0.1, 0.05, 0.0], rel=0.03, abs=1e-3)
        assert mean.ravel() == pytest.approx([0.5, 0.15, 0.125, 0.1], rel=0.03)
    assert {path.name for path in run.own_files()} >= {"attention_first.npz", "attention_latest.npz"}
