"""Where CLS looks: attention maps of the last block on a few tiles, kept small for the report."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from eosin.files import atomic_path
from eosin.models import ViT
from eosin.models.positions import rotate
from eosin.runs import ATTENTION, RunFolder

OCTAVE = 12.0
"""Steps of a kept map for a factor of two, so that it reaches from 1 / 1000 to 1000 times an even share."""


def attention_to_patches(vit: ViT, images: Tensor) -> Tensor:
    """What each head of the last block lets CLS take from each patch: float32 [B, heads, h, w].

    images: normalised [B, 3, H, W]. The softmax is over all tokens, so a map sums to 1 less what CLS and registers get.
    The weights are worked out once more from the queries and keys of an ordinary forward, since the fused kernel does
    not give them. Under FSDP every process calls this alike.
    """
    config, taken = vit.config, []
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: taken.append(output))
    # Compiled blocks do not notice hooks.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.no_grad(), eager:
            vit([images.to(vit.cls_token.dtype)])
    finally:
        hook.remove()
    qkv = taken[0].float().view(len(images), -1, 3, config.heads, config.head_dim)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, tokens, d] each
    if config.positions == "rotary":
        by = vit.rotations([images])[0]
        q, k = rotate(q, by), rotate(k, by)
    scores = q[:, :, :1] @ k.transpose(-2, -1) * config.head_dim**-0.5  # [B, heads, 1, tokens]
    weights = torch.softmax(scores, dim=-1)[:, :, 0, 1 + config.registers :]
    return weights.unflatten(-1, vit.patch_embed.grid_of(images))


def keep_attention(maps: Tensor, step: int, run: RunFolder) -> None:
    """Write `maps` [T, heads, h, w] after `step` steps into RUN/pictures: the run's first ones, else its latest.

    The file holds step and maps, uint8 [T, 1 + heads, h, w], the mean over heads first: 128 is an even share 1 / (h w),
    OCTAVE more or less is twice or half of it. Raises OutputError.
    """
    whole = torch.cat([maps.mean(dim=1, keepdim=True), maps], dim=1).cpu().numpy()
    octaves = np.log2(np.maximum(whole * whole.shape[2] * whole.shape[3], 1e-6))
    coded = np.clip(np.round(128 + OCTAVE * octaves), 0, 255).astype(np.uint8)
    first, latest = (run.pictures / f"{name}.npz" for name in ATTENTION)
    with atomic_path(latest if first.exists() else first) as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, step=step, maps=coded)
