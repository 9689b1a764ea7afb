"""LoRA on stage 1: W + (alpha / rank) · B A in every attention's linears, W fixed (Hu et al., arXiv 2106.09685).

The sum is formed before it is used, so what an export holds (`merged`) is, bit for bit, what was trained with.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from eosin.models import ViT


class LowRank(nn.Module):
    """W [out, in] -> W + scale · up @ down. down [rank, in] starts uniform, up [out, rank] zero: nothing changes."""

    def __init__(self, out: int, width: int, rank: int, alpha: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.scale = alpha / rank
        bound = width**-0.5
        self.down = nn.Parameter(torch.empty(rank, width).uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in], in the precision of the weights: autocast would round the product, the export not."""
        with torch.autocast(weight.device.type, enabled=False) if weight.device.type != "meta" else nullcontext():
            return weight + self.scale * (self.up @ self.down)


def add_lora(vit: ViT, rank: int, alpha: float, generator: torch.Generator | None = None) -> None:
    """Fix all weights of `vit` and put low-rank ones beside those of `attn.qkv` and `attn.proj` of every block."""
    vit.requires_grad_(False)
    for block in vit.blocks:
        for linear in (block.attn.qkv, block.attn.proj):
            out, width = linear.weight.shape
            parametrize.register_parametrization(linear, "weight", LowRank(out, width, rank, alpha, generator))


def has_lora(vit: ViT) -> bool:
    """Whether `add_lora` was called."""
    return any(isinstance(module, LowRank) for module in vit.modules())


def merged(vit: ViT) -> ViT:
    """A plain ViT that computes the same: `vit` itself without LoRA, else a copy with the sums as its weights."""
    if not has_lora(vit):
        return vit
    plain = ViT(vit.config).to(vit.cls_token.dtype)
    state: dict[str, Tensor] = {}
    for name, value in vit.state_dict().items():
        if ".parametrizations.weight.original" in name:
            path = name.removesuffix(".parametrizations.weight.original")
            state[f"{path}.weight"] = vit.get_submodule(path).weight.detach()
        elif ".parametrizations." not in name:
            state[name] = value
    plain.load_state_dict(state)
    return plain


def load_base(vit: ViT, state: dict[str, Tensor]) -> None:
    """Load the state of a plain ViT; where `vit` has LoRA, as the fixed weights beside it."""
    held = {}
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        fixed = f"{path}.parametrizations.{leaf}.original"
        held[fixed if leaf == "weight" and parametrize.is_parametrized(vit.get_submodule(path), leaf) else name] = value
    vit.load_state_dict({**vit.state_dict(), **held})
