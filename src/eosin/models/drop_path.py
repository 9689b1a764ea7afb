"""Drop path (stochastic depth): which crops skip which residual branch, drawn outside the network.

The draw is made for the global batch of a step and cut into rows for a rank or a micro-batch, so the step
does not depend on how it is spread. Nothing here draws while the network runs.

Two forms. "sample" is that of Huang et al., "Deep networks with stochastic depth" (2016): every crop keeps
a branch with probability 1 - p, its output divided by 1 - p. "subset" is that of DINOv2 (Oquab et al. 2023,
section 5): the branch runs on a fixed number of crops only, so the rate is work that is never done, and is
added back scaled by n / kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from eosin.errors import RecipeError
from eosin.models.positions import Rotation
from eosin.randomness import Words

if TYPE_CHECKING:
    from eosin.models.vit import EncoderConfig

ATTENTION, FFN = 0, 1


class Packing(NamedTuple):
    """How the tokens of several crop sizes lie one after another in [sum B_k * N_k, D]."""

    crops: tuple[int, ...]
    """B_k: crops of each size."""
    tokens: tuple[int, ...]
    """N_k: tokens of one crop of that size, CLS and registers included."""
    rotations: tuple[Rotation, ...] | None = None
    """Rotary positions of each size; none where positions are in the tokens."""

    @property
    def rows(self) -> list[int]:
        """Token rows of each crop size, B_k * N_k."""
        return [b * n for b, n in zip(self.crops, self.tokens, strict=True)]


@dataclass(frozen=True, eq=False)
class DropPath:
    """One draw of drop path for a batch of `tiles` tiles; made by `draw_drop_path`.

    Crops are numbered view-major: the crop of view v and tile t is row v * tiles + t of its crop size.
    """

    form: str
    tiles: int
    group: int
    crops: tuple[int, ...]
    """Crops a tile has of each size, in call order."""
    draws: tuple[Tensor, ...]
    """One a crop size; none at all if nothing is dropped.

    sample: float [depth, 2, views, tiles], 0 or 1 / (1 - p).
    subset: int64 [depth, 2, groups, kept], crop numbers v * group + t inside each group, ascending.
    """

    def rows(self, first: int, last: int) -> DropPath:
        """The part of tiles first .. last - 1, numbered anew from 0.

        Raises RecipeError if a bound of the subset form does not fall between two groups.
        """
        if not 0 <= first < last <= self.tiles:
            raise RecipeError(f"drop path: tiles {first}..{last} asked of a batch of {self.tiles}")
        if self.form == "sample":
            draws = tuple(draw[..., first:last] for draw in self.draws)
        else:
            if first % self.group or last % self.group:
                raise RecipeError(
                    f"drop path: tiles {first}..{last} cut through a group of {self.group};"
                    " choose micro-batches that are a multiple of group"
                )
            draws = tuple(draw[:, :, first // self.group : last // self.group] for draw in self.draws)
        return DropPath(self.form, last - first, self.group, self.crops, draws)

    def sizes(self, count: int) -> DropPath:
        """The draw of the first `count` crop sizes alone."""
        return DropPath(self.form, self.tiles, self.group, self.crops[:count], self.draws[:count])

    @property
    def is_subset(self) -> bool:
        """True if branches run on some of the crops only."""
        return self.form == "subset" and bool(self.draws)

    def branches(self) -> list[tuple[Branch, Branch]]:
        """For each layer the draw of its attention and of its FFN branch, in the numbering of this batch."""
        if self.form == "sample":
            per_size = [draw.flatten(2) for draw in self.draws]  # [depth, 2, views * tiles]
            scales: tuple[float, ...] = (1.0,) * len(per_size)
        else:
            per_size = [self._batch_rows(draw) for draw in self.draws]  # [depth, 2, groups * kept]
            scales = tuple(
                count * self.group / draw.shape[-1] for count, draw in zip(self.crops, self.draws, strict=True)
            )
        layers = []
        for layer in range(per_size[0].shape[0]):
            both = [Branch(self.form, tuple(d[layer, b] for d in per_size), scales) for b in (ATTENTION, FFN)]
            layers.append((both[ATTENTION], both[FFN]))
        return layers

    def _batch_rows(self, draw: Tensor) -> Tensor:
        """Numbers [depth, 2, groups, kept] inside groups -> batch rows [depth, 2, groups * kept]."""
        view = torch.div(draw, self.group, rounding_mode="floor")
        first_tile = torch.arange(draw.shape[2], device=draw.device)[:, None] * self.group
        return (view * self.tiles + first_tile + draw % self.group).flatten(2)


class Branch(NamedTuple):
    """What one residual branch drops: for each crop size the kept rows (subset) or the factors (sample)."""

    form: str
    per_size: tuple[Tensor, ...]
    scales: tuple[float, ...]


def drop_rates(config: EncoderConfig) -> list[float]:
    """The drop rate of each layer: the same everywhere (DINOv2), or rising from 0 (DINO v1, timm)."""
    if config.drop_path_law == "uniform" or config.depth == 1:
        return [config.drop_path] * config.depth
    return [config.drop_path * layer / (config.depth - 1) for layer in range(config.depth)]


def draw_drop_path(config: EncoderConfig, words: Words, tiles: int, crops: tuple[int, ...], group: int) -> DropPath:
    """Draw drop path for a global batch of `tiles` tiles with `crops[k]` crops of size k each.

    In the subset form a sample is a crop: inside each group of `group` tiles n = crops[k] * group, and each
    branch of each layer keeps its own max(int(n * (1 - p)), 1) of them. Raises RecipeError if `group` does
    not divide `tiles`.
    """
    if config.drop_path == 0.0:
        return DropPath(config.drop_path_form, tiles, group, crops, ())
    if config.drop_path_form == "sample":
        keep = 1.0 - torch.tensor(drop_rates(config), dtype=torch.float64).view(-1, 1, 1, 1)  # [depth, 1, 1, 1]
        draws = tuple((torch.from_numpy(words.uniform(config.depth, 2, views, tiles)) < keep) / keep for views in crops)
        return DropPath("sample", tiles, group, crops, draws)
    if tiles % group:
        raise RecipeError(f"a batch of {tiles} tiles is not divisible by group {group}; change batch or group")
    subsets = []
    for views in crops:
        count = views * group
        kept = kept_crops(count, config.drop_path)
        order = torch.from_numpy(words.permutations(count, config.depth, 2, tiles // group))
        subsets.append(order[..., :kept].sort(dim=-1).values)
    return DropPath("subset", tiles, group, crops, tuple(subsets))


def kept_crops(count: int, rate: float) -> int:
    """How many of `count` crops run a branch in the subset form."""
    return max(int(count * (1.0 - rate)), 1)


def add_branch(
    pieces: Sequence[Tensor],
    packing: Packing,
    branch: Callable[[Tensor, Packing], Tensor],
    drop: Branch | None,
) -> list[Tensor]:
    """Residual connection: pieces + drop path of branch(pieces).

    pieces: one joined [sum B_k * N_k, D] tensor; or, in the subset form, one [B_k, N_k * D] tensor a crop
    size, so that a crop is gathered and added back as one row.
    """
    if drop is None:
        (x,) = pieces
        return [x + branch(x, packing)]
    if drop.form == "sample":
        (x,) = pieces
        factors = [
            factor.repeat_interleave(n, output_size=len(factor) * n)
            for factor, n in zip(drop.per_size, packing.tokens, strict=True)
        ]
        out = branch(x, packing)
        return [x + out * torch.cat(factors).to(out.dtype)[:, None]]  # [T, D]
    kept = packing._replace(crops=tuple(len(rows) for rows in drop.per_size))
    chosen = [
        piece.index_select(0, rows).view(len(rows) * n, -1)
        for piece, rows, n in zip(pieces, drop.per_size, packing.tokens, strict=True)
    ]
    out = branch(torch.cat(chosen), kept)  # [sum kept_k * N_k, D]
    # Out of place: a recomputed (checkpointed) block must find its input as it was.
    return [
        add_rows(piece, rows, part.reshape(len(rows), -1).to(piece.dtype), scale)
        for piece, rows, part, scale in zip(pieces, drop.per_size, out.split(kept.rows), drop.scales, strict=True)
    ]


def add_rows(x: Tensor, rows: Tensor, part: Tensor, scale: float) -> Tensor:
    """x [B, C] with scale * part [n, C] added to its rows `rows` [n]; keeps only `rows` for backward."""
    out: Tensor = _AddRows.apply(x, rows, part, scale)
    return out


class _AddRows(torch.autograd.Function):
    """torch's index_add, which would keep `part` for backward although its gradient needs none of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, part: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows)
        ctx.scale = scale
        return x.index_add(0, rows, part, alpha=scale)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, Tensor, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors
        return slope, None, slope.index_select(0, rows).mul_(ctx.scale), None
