"""Which patch tokens the student does not see (iBOT), drawn for the global batch of a step.

Blockwise masking after Bao et al. 2021 (BEiT) as DINOv2 uses it, with two differences that make counts
static: ratios are the midpoints of equal bins instead of drawn inside them, and a mask that blocks leave
short is topped up with single patches. Draws numbers only; the network replaces the tokens.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from eosin.errors import RecipeError
from eosin.randomness import Words

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

BLOCK_PATCHES = 4
"""The smallest block."""
ASPECT = (0.3, 1 / 0.3)
"""Height over width of a block, drawn log-uniformly."""
TRIES = 48
"""Blocks tried for a mask before it is topped up."""


def mask_counts(
    views: int, grid: int, group: int, ratio: tuple[float, float] = (0.1, 0.5), probability: float = 0.5
) -> IntArray:
    """Masked patches of each masked crop of one group, ascending: the same in every group and step.

    int(views * group * probability) crops of a group are masked; their ratios are the midpoints of as many
    equal bins of `ratio`. A masked crop has at least one masked patch.
    """
    masked = int(views * group * probability)
    low, high = ratio
    ratios = low + (high - low) * (np.arange(masked) + 0.5) / max(masked, 1)
    return np.maximum(np.floor(ratios * grid**2 + 0.5), 1).astype(np.int64)


def draw_masks(
    words: Words,
    tiles: int,
    views: int,
    grid: int,
    group: int,
    ratio: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
) -> BoolArray:
    """Masks for `views` global crops of each of `tiles` tiles on a `grid` x `grid` patch grid.

    Returns bool [views * tiles, grid * grid], view-major (row v * tiles + t), True = masked; rows of crops
    that stay whole are all False. Inside each group of `group` tiles the masked crops and their counts are
    those of `mask_counts`, dealt out at random. Raises RecipeError if `group` does not divide `tiles` or
    `ratio` is not inside [0, 1].
    """
    if tiles % group:
        raise RecipeError(f"a batch of {tiles} tiles is not divisible by group {group}; change batch or group")
    if not 0.0 <= ratio[0] <= ratio[1] <= 1.0 or not 0.0 <= probability <= 1.0:
        raise RecipeError(f"mask ratio {ratio} and probability {probability} must lie in 0..1, low before high")
    counts = mask_counts(views, grid, group, ratio, probability)
    groups = tiles // group
    order = words.permutations(views * group, groups)[:, : len(counts)]  # [groups, masked]
    rows = order // group * tiles + np.arange(groups)[:, None] * group + order % group
    masks = np.zeros((views * tiles, grid * grid), dtype=np.bool_)
    masks[rows.ravel()] = _block_masks(words, np.tile(counts, groups), grid)
    return masks


def _block_masks(words: Words, counts: IntArray, grid: int) -> BoolArray:
    """Masks [C, grid * grid] with exactly counts[c] True patches in row c."""
    crops = len(counts)
    masks = np.zeros((crops, grid, grid), dtype=np.bool_)
    left_over = counts.copy()
    draws = words.uniform(TRIES, 4, crops)
    for size, aspect, down, across in draws:
        open_rows = np.flatnonzero(left_over)
        if len(open_rows) == 0:
            break
        room = left_over[open_rows]
        area = BLOCK_PATCHES + size[open_rows] * np.maximum(room - BLOCK_PATCHES, 0)
        shape = np.exp(math.log(ASPECT[0]) + aspect[open_rows] * math.log(ASPECT[1] / ASPECT[0]))
        high = np.rint(np.sqrt(area * shape)).astype(np.int64)
        wide = np.rint(np.sqrt(area / shape)).astype(np.int64)
        blocks = _spans(down[open_rows], high, grid)[:, :, None] & _spans(across[open_rows], wide, grid)[:, None, :]
        fresh = blocks & ~masks[open_rows]  # [open, grid, grid]
        gain = np.count_nonzero(fresh.reshape(len(open_rows), -1), axis=1)
        good = (gain > 0) & (gain <= room) & (high * wide >= BLOCK_PATCHES)
        masks[open_rows[good]] |= fresh[good]
        left_over[open_rows[good]] -= gain[good]
    return _top_up(words, masks.reshape(crops, grid * grid), left_over)


def _spans(position: npt.NDArray[np.float64], length: IntArray, grid: int) -> BoolArray:
    """[C, grid], True on `length` neighbours that start at `position` (0..1) of the room there is."""
    first = (position * (grid - length + 1)).astype(np.int64)[:, None]
    cells = np.arange(grid)
    return (cells >= first) & (cells < first + length[:, None]) & (length[:, None] <= grid)


def _top_up(words: Words, masks: BoolArray, left_over: IntArray) -> BoolArray:
    """Mask `left_over` more patches of each row, chosen uniformly among those still open."""
    keys = np.where(masks, 2.0, words.uniform(*masks.shape))
    rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    return masks | (rank < left_over[:, None])
