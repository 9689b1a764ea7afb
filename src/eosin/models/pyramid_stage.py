"""Stages 2 and 3 of a pyramid: a ViT over the vectors of a grid with holes.

Tokens are the tiles (or regions) that exist; what is absent is in no sequence, so nothing attends to it and it costs
nothing. Grids lie one after another without padding, neighbours of equal size share one attention call. There is no
mask and no bias between tokens. Blocks are those of `vit.py`, so drop path and rotary positions come from outside too.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eosin.errors import RecipeError
from eosin.models.drop_path import Branch, Packing, drop_rates
from eosin.models.mil.attention import GatedAttention
from eosin.models.positions import resize_positions, rotate
from eosin.models.pyramid_config import StageConfig
from eosin.models.rotary import grid_rotation
from eosin.models.vit import Block

GATE_WIDTH = 192
"""Width inside gated attention, at most (HIPT)."""


class Grids(NamedTuple):
    """Which tokens of a joined tensor [T, …] belong to which grid, and where they stand in it."""

    counts: tuple[int, ...]
    """Tokens of each of G grids."""
    row: Tensor  # int64 [T]
    column: Tensor  # int64 [T]


class GridVectors(NamedTuple):
    """What a stage makes of G grids with T tokens in all."""

    grids: Tensor  # [G, D], one a grid
    tokens: Tensor  # [T, D], after the final norm
    attention: Tensor | None = None  # [T], what each token has of its grid's vector; sums to 1 over a grid; no gradient


class GridEncoder(nn.Module):
    """One stage. `side`: of the position table's grid. Start values are the ViT's, drawn from `generator`."""

    def __init__(self, width_in: int, config: StageConfig, side: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        blocks = config.blocks(side) if config.depth else None
        self.rates = tuple(drop_rates(blocks)) if blocks is not None else ()
        self.mean: Tensor
        self.sd: Tensor
        if config.standardise:  # until it is measured, nothing changes
            self.register_buffer("mean", torch.zeros(width_in))
            self.register_buffer("sd", torch.ones(width_in))
        needed = config.enter != "if-needed" or width_in != config.width
        self.enter = nn.Linear(width_in, config.width) if needed else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.pool == "cls" else None
        self.prefix = int(config.pool == "cls")
        rows = self.prefix + side * side
        table = config.positions == "table" and blocks is not None
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, config.width)) if table else None
        self.blocks = nn.ModuleList([Block(blocks) for _ in range(config.depth)] if blocks is not None else [])
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        gated = config.pool == "gated"
        self.gate = GatedAttention(config.width, min(config.width, GATE_WIDTH), 1, True) if gated else None
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set every parameter to its start value."""
        if self.cls_token is not None:
            # Without a table nothing else gives CLS a size. At the ViT's 1e-6 LayerNorm divides by √eps alone: the
            # first gradients of stage 3 are four times those at .02, mostly of CLS itself, and beyond a clip of 3.
            nn.init.normal_(self.cls_token, std=1e-6 if self.pos_embed is not None else 0.02, generator=generator)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        vectors: Tensor,
        grids: Grids,
        factors: Tensor | None = None,
        size: tuple[int, int] | None = None,
        look: bool = False,
    ) -> GridVectors:
        """vectors [T, width_in] of `grids`, joined in their order.

        factors: drop path [layers, 2, G] from `SlideDraws`; none drops nothing. size: (rows, columns) of these grids,
        to which a position table is brought; its own without. look: also give `attention`: of the last block's CLS
        token, mean over heads, over the tokens alone; or the pool's. Raises RecipeError where the parts do not fit.
        """
        if len(vectors) != sum(grids.counts) or len(grids.row) != len(vectors) or len(grids.column) != len(vectors):
            raise RecipeError(f"{len(vectors)} vectors do not fit grids of {sum(grids.counts)} places")
        packing = self.packing(grids)
        x = self.with_prefix(self.entered(vectors) + self.table_at(grids, size), packing)
        pieces, attention = [x], None
        for number, (block, drop) in enumerate(zip(self.blocks, self.branches(factors, packing), strict=True)):
            if look and self.prefix and number + 1 == len(self.blocks):
                attention = self.seen_by_cls(block, pieces[0], packing)
            pieces = block(pieces, packing, drop)
        normed = self.norm(pieces[0])
        tokens = self.without_prefix(normed, packing)
        if self.gate is not None:
            pooled, weights = self.pooled(tokens, packing)
            return GridVectors(pooled, tokens, weights.detach() if look else None)
        first = [0]
        for count in grids.counts:
            first.append(first[-1] + 1 + count)
        return GridVectors(normed[torch.tensor(first[:-1], device=normed.device)], tokens, attention)

    def entered(self, vectors: Tensor) -> Tensor:
        """[T, width_in] -> [T, D] in the precision of `vectors`, under autocast too, as the residual stream must be."""
        if self.config.standardise:
            vectors = (vectors - self.mean) / self.sd
        x = vectors if self.enter is None else self.enter(vectors).to(vectors.dtype)
        if self.config.enter == "gelu":
            return F.gelu(x)
        return torch.relu(x) if self.config.enter == "relu" else x

    def table_at(self, grids: Grids, size: tuple[int, int] | None) -> Tensor | float:
        """What the position table adds to each token, [T, D]; 0 where positions are rotary."""
        if self.pos_embed is None:
            return 0.0
        table = self.pos_embed[:, self.prefix :]
        side = round(table.shape[1] ** 0.5)
        size = size or (side, side)
        return resize_positions(table, size, "antialias")[0, grids.row * size[1] + grids.column]

    def packing(self, grids: Grids) -> Packing:
        """Neighbouring grids of equal size are one part of the packing; rotary positions are of each grid's own."""
        crops, tokens, rotations, done = [], [], [], 0
        for count, same in groupby(grids.counts):
            many = len(list(same))
            crops.append(many)
            tokens.append(self.prefix + count)
            if self.config.positions == "rotary" and self.config.depth:
                span = slice(done, done + many * count)
                # CLS stands at 0, the corner of the box.
                row, column = (F.pad(x[span].view(many, 1, count), (self.prefix, 0)) for x in (grids.row, grids.column))
                head = self.config.width // self.config.heads
                rotations.append(grid_rotation(row, column, head, self.config.rotary_base))
            done += many * count
        return Packing(tuple(crops), tuple(tokens), tuple(rotations) or None)

    def with_prefix(self, x: Tensor, packing: Packing) -> Tensor:
        """[T, D] -> [G + T, D], CLS in front of each grid's tokens; x itself without CLS."""
        if self.cls_token is None:
            return x
        cls = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        counts = [b * (n - 1) for b, n in zip(packing.crops, packing.tokens, strict=True)]
        parts = [
            torch.cat([cls.to(x.dtype).expand(b, -1, -1), part.view(b, n - 1, -1)], dim=1).flatten(0, 1)
            for part, b, n in zip(x.split(counts), packing.crops, packing.tokens, strict=True)
        ]
        return torch.cat(parts)

    def without_prefix(self, x: Tensor, packing: Packing) -> Tensor:
        """[G + T, D] -> [T, D]."""
        if not self.prefix:
            return x
        parts = zip(x.split(packing.rows), packing.crops, strict=True)
        return torch.cat([part.unflatten(0, (b, -1))[:, 1:].flatten(0, 1) for part, b in parts])

    def branches(self, factors: Tensor | None, packing: Packing) -> list[tuple[Branch, Branch] | None]:
        """Drop path of each layer in the form that blocks take."""
        if factors is None:
            return [None] * len(self.blocks)
        if factors.shape != (len(self.blocks), 2, sum(packing.crops)):
            raise RecipeError(f"drop path was drawn as {list(factors.shape)} for {sum(packing.crops)} grids")
        parts = factors.to(self.norm.weight.device).split(list(packing.crops), dim=2)
        ones = (1.0,) * len(parts)
        return [
            (
                Branch("sample", tuple(part[layer, 0] for part in parts), ones),
                Branch("sample", tuple(part[layer, 1] for part in parts), ones),
            )
            for layer in range(len(self.blocks))
        ]

    @torch.no_grad()
    def seen_by_cls(self, block: Block, x: Tensor, packing: Packing) -> Tensor:
        """What a block's CLS takes from each token of its grid, [T]: mean over heads, scaled to sum 1 without CLS."""
        heads = self.config.heads
        parts = block.attn.qkv(block.norm1(x)).float().split(packing.rows)
        found = []
        for number, (part, b) in enumerate(zip(parts, packing.crops, strict=True)):
            q, k, _ = part.view(b, -1, 3, heads, self.config.width // heads).permute(2, 0, 3, 1, 4).unbind(0)
            if packing.rotations is not None:
                by = packing.rotations[number]
                q, k = rotate(q, by), rotate(k, by)
            scores = (q[:, :, :1] @ k.transpose(-2, -1))[:, :, 0, 1:] * q.shape[-1] ** -0.5  # [B, h, n]
            found.append(torch.softmax(scores, dim=-1).mean(dim=1).flatten())
        return torch.cat(found)

    def pooled(self, tokens: Tensor, packing: Packing) -> tuple[Tensor, Tensor]:
        """Gated attention over the tokens of each grid: vectors [G, D] and weights [T]."""
        assert self.gate is not None
        vectors, weights = [], []
        for part, b in zip(tokens.split(packing.rows), packing.crops, strict=True):
            bags = part.unflatten(0, (b, -1))  # [B, n, D]
            weight = torch.softmax(self.gate(bags, {}), dim=-1)  # [B, 1, n]
            vectors.append((weight @ bags)[:, 0])
            weights.append(weight.flatten())
        return torch.cat(vectors), torch.cat(weights)
