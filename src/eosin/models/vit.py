"""The vision transformer that is trained, taught and exported.

Any patch size (8, 14 and 16 px are in use), registers, SwiGLU, LayerScale; positions from an interpolated table or
rotary (`positions.py`).

Crops of several sizes go through in one call: linears and norms see the tokens of all of them joined,
attention runs once a crop size. The network draws no random numbers: masks and drop path come from outside.
It has no classifier and no heads (`heads.py`), and knows no weight layout but its own (`weights.py`).

Sources: Dosovitskiy et al. 2020 (ViT), Touvron et al. 2021 (LayerScale), Oquab et al. 2023 (DINOv2), Darcet
et al. 2023 (registers), Shazeer 2020 (SwiGLU), Siméoni et al. 2025 (DINOv3: rotary positions, no key bias).
Parameter names are those of Meta's published DINOv2 weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from eosin.errors import RecipeError
from eosin.models.drop_path import Branch, DropPath, Packing, add_branch
from eosin.models.positions import Interpolation, Rotation, resize_positions, rotate, rotation

PLAIN_ATTENTION_TOKENS = 512
"""Most tokens for which attention may hold its [N, N] weights in memory (`attend`)."""


class EncoderConfig(BaseModel):
    """Everything that fixes the network; weights aside."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    patch: int = Field(gt=0, description="side of a patch in pixels")
    grid: int = Field(gt=0, description="side of the native grid in patches: that of the position table, if any")
    registers: int = Field(default=0, ge=0)
    ffn: Literal["mlp", "swiglu"] = "mlp"
    mlp_ratio: float = Field(default=4.0, gt=0)
    layer_scale: float | None = Field(default=None, gt=0, description="initial value; none: no LayerScale")
    qkv_bias: Literal["full", "no_key", "none"] = Field(
        default="full", description="bias of queries, keys and values; no_key: that of the keys stays 0 (DINOv3)"
    )
    positions: Literal["table", "rotary"] = Field(
        default="table", description="a learned table added to the tokens, or rotary (DINOv3; `positions.py`)"
    )
    rotary_base: float = Field(default=100.0, gt=1, description="longest period of rotary positions (not reached)")
    class_position: bool = Field(default=True, description="the position table has a row for CLS")
    interpolation: Interpolation = Field(
        default="antialias",
        description="antialias: bicubic by size, as timm and DINOv2 with registers;"
        " offset: bicubic by the factor (n + 0.1) / grid, as DINO and DINOv2 without registers;"
        " plain: bicubic by size without antialias, as the transformers library without registers",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    drop_path_form: Literal["sample", "subset"] = "sample"
    drop_path_law: Literal["uniform", "linear"] = Field(
        default="uniform", description="same rate in all layers (DINOv2), or rising from 0 (DINO v1)"
    )
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        if self.drop_path_form == "subset" and self.drop_path_law == "linear":
            raise ValueError("the subset form of drop path has one rate for all layers")
        if self.positions == "rotary" and self.head_dim % 4:
            raise ValueError(f"rotary positions need heads of a multiple of 4 channels, not {self.head_dim}")
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def ffn_hidden(self) -> int:
        """Width inside the FFN; for SwiGLU that of each half: 2/3 of the MLP's, up to a multiple of 8."""
        hidden = int(self.width * self.mlp_ratio)
        return hidden if self.ffn == "mlp" else (int(hidden * 2 / 3) + 7) // 8 * 8


class Tokens(NamedTuple):
    """Output tokens of one crop size, after the final norm unless asked for without."""

    cls: Tensor  # [B, D]
    registers: Tensor  # [B, R, D]
    patches: Tensor  # [B, N, D], row-major over the patch grid


class PatchEmbed(nn.Module):
    """Cuts crops into patches and projects them: a strided convolution, run as one matrix product."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, patch)

    def grid_of(self, crop: Tensor) -> tuple[int, int]:
        """Patches down and across; RecipeError if the crop does not divide into patches."""
        height, width = crop.shape[-2:]
        if height % self.patch or width % self.patch:
            raise RecipeError(
                f"a crop of {height} x {width} px does not divide into patches of {self.patch} px;"
                f" choose a multiple of {self.patch}"
            )
        return height // self.patch, width // self.patch

    def cut(self, crop: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B * N, 3 * p * p]."""
        (h, w), p = self.grid_of(crop), self.patch
        squares = crop.unflatten(3, (w, p)).unflatten(2, (h, p))  # [B, 3, h, p, w, p]
        return squares.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * p * p)

    def forward(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """[B_k, 3, H_k, W_k] of each size -> [B_k, N_k, D]."""
        cut = [self.cut(crop) for crop in crops]
        joined = cut[0] if len(cut) == 1 else torch.cat(cut)
        projected = F.linear(joined, self.proj.weight.flatten(1), self.proj.bias)  # [sum B_k * N_k, D]
        parts = projected.split([len(part) for part in cut])
        return [part.unflatten(0, (len(crop), -1)) for part, crop in zip(parts, crops, strict=True)]


class NoKeyBias(nn.Linear):
    """The linear of queries, keys and values whose keys have no bias: their third of `bias` is not used."""

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, 3 D]."""
        query, key, value = self.bias.chunk(3)
        return F.linear(x, self.weight, torch.cat([query, torch.zeros_like(key), value]))


class Attention(nn.Module):
    """Multi-head self-attention inside each crop, over joined tokens of several crop sizes."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.qkv = (NoKeyBias if config.qkv_bias == "no_key" else nn.Linear)(
            width, 3 * width, bias=config.qkv_bias != "none"
        )
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """[sum B_k * N_k, D] -> the same shape."""
        mixed = []
        parts = self.qkv(x).split(packing.rows)
        rotations = packing.rotations or [None] * len(parts)
        for part, crops, tokens, by in zip(parts, packing.crops, packing.tokens, rotations, strict=True):
            qkv = part.view(crops, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, h, N, d]
            q, k, v = qkv.unbind(0)  # [B, h, N, d] each
            if by is not None:
                q, k = rotate(q, by), rotate(k, by)
            out = attend(q, k, v)  # [B, h, N, d]
            mixed.append(out.transpose(1, 2).reshape(crops * tokens, -1))  # [B * N, D]
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v for [B, h, N, d]: the fused kernel or, where that is slow, plain products.

    torch's fused CPU backward is many times slower than plain products for the few tokens of a crop in bf16;
    in fp32 it is the faster one.
    """
    few = q.shape[-2] <= PLAIN_ATTENTION_TOKENS and q.dtype == torch.bfloat16 and q.device.type == "cpu"
    if not (few and q.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v)
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)  # [B, h, N, N]
    return weights.to(v.dtype) @ v


class Mlp(nn.Module):
    """Two linears with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """silu(first half) * second half of one wide linear, projected back (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)  # [T, hidden] each
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned factor a channel on the output of a residual branch."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: attention, then FFN, each added to the residual stream."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, scale = config.width, config.layer_scale
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.ls1 = nn.Identity() if scale is None else LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = (Mlp if config.ffn == "mlp" else SwiGlu)(width, config.ffn_hidden)
        self.ls2 = nn.Identity() if scale is None else LayerScale(width, scale)

    def forward(
        self, pieces: list[Tensor], packing: Packing, drop: tuple[Branch, Branch] | None = None
    ) -> list[Tensor]:
        """Pieces as `add_branch` describes them -> the same shapes."""
        drop_attention, drop_ffn = drop or (None, None)
        pieces = add_branch(pieces, packing, self.attention_branch, drop_attention)
        return add_branch(pieces, packing, self.ffn_branch, drop_ffn)

    def attention_branch(self, x: Tensor, packing: Packing) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.ls1(self.attn(self.norm1(x), packing))

    def ffn_branch(self, x: Tensor, packing: Packing) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """The encoder. Weights are fp32; it also runs under `torch.autocast` with an fp32 residual stream.

    Start values are DINOv2's: linear weights truncated normal with sd .02 and zero biases, position table
    the same, CLS and registers normal with sd 1e-6, mask token 0, patch projection as torch starts a
    convolution, norms 1 and 0, LayerScale its configured value. They are drawn from `generator`, or torch's
    global one.
    """

    def __init__(self, config: EncoderConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = PatchEmbed(config.patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        rows = config.class_position + config.grid**2 if config.positions == "table" else 0
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width)) if rows else None
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width)) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter to its start value."""
        conv = self.patch_embed.proj
        bound = (3 * self.config.patch**2) ** -0.5
        for parameter in (conv.weight, conv.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.start)

    def forward(
        self,
        images: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        drops: DropPath | None = None,
        *,
        norm: bool = True,
    ) -> list[Tokens]:
        """Encode crops of one or several sizes.

        images: normalised crops [B_k, 3, H_k, W_k], one tensor a size, sides multiples of the patch.
        masks: bool [B_k, N_k] or None for each size; True patches are replaced by the mask token before
        positions are added.
        drops: a draw for exactly these crops; None drops nothing (teacher, evaluation).
        norm: without it tokens come as the last block leaves them, before the final norm.
        Returns the tokens of each size. Raises RecipeError for crops that do not divide into patches, or a
        draw for another number of crops.
        """
        tokens = self.embed(images, masks)  # [B_k, 1 + R + N_k, D] each
        rotations = self.rotations(images) if self.config.positions == "rotary" else None
        packing = Packing(tuple(len(t) for t in tokens), tuple(t.shape[1] for t in tokens), rotations)
        layers = drops.branches() if drops is not None and drops.draws else [None] * self.config.depth
        if drops is not None and drops.draws:
            wanted = tuple(count * drops.tiles for count in drops.crops)
            if wanted != packing.crops:
                raise RecipeError(f"drop path was drawn for {wanted} crops, the call has {packing.crops}")
        if drops is not None and drops.is_subset:
            pieces = [t.flatten(1) for t in tokens]
        else:
            pieces = [torch.cat([t.flatten(0, 1) for t in tokens]) if len(tokens) > 1 else tokens[0].flatten(0, 1)]
        for block, drop in zip(self.blocks, layers, strict=True):
            pieces = block(pieces, packing, drop)
        x = torch.cat([piece.view(-1, self.config.width) for piece in pieces])  # [T, D]
        x = self.norm(x) if norm else x
        first = 1 + self.config.registers
        return [
            Tokens(part[:, 0], part[:, 1:first], part[:, first:])
            for part in (
                rows.unflatten(0, (crops, -1)) for rows, crops in zip(x.split(packing.rows), packing.crops, strict=True)
            )
        ]

    def embed(self, images: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Crops -> what enters the first block: CLS, registers, patches, [B_k, 1 + R + N_k, D] each."""
        masks = masks if masks is not None else [None] * len(images)
        out = []
        for image, mask, patches in zip(images, masks, self.patch_embed(images), strict=True):
            if mask is not None:
                patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
            cls = self.cls_token  # [1, 1, D]
            if self.pos_embed is not None:
                head, table = self.positions(self.patch_embed.grid_of(image))
                cls, patches = cls + head, patches + table
            prefix = [cls] if self.register_tokens is None else [cls, self.register_tokens]
            ahead = torch.cat(prefix, 1).to(patches.dtype)
            out.append(torch.cat([ahead.expand(len(image), -1, -1), patches], 1))
        return out

    def rotations(self, images: Sequence[Tensor]) -> tuple[Rotation, ...]:
        """The rotary positions of crops of each size."""
        config, device = self.config, self.cls_token.device
        return tuple(
            rotation(self.patch_embed.grid_of(image), 1 + config.registers, config.head_dim, config.rotary_base, device)
            for image in images
        )

    def positions(self, size: tuple[int, int]) -> tuple[Tensor | float, Tensor]:
        """What the table adds to CLS ([1, 1, D]; 0 without a CLS row) and to `size` patches ([1, h * w, D])."""
        assert self.pos_embed is not None
        rows = int(self.config.class_position)
        head = self.pos_embed[:, :1] if rows else 0.0
        return head, resize_positions(self.pos_embed[:, rows:], size, self.config.interpolation)
