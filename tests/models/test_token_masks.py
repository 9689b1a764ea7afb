"""Token masks: exact counts, stratified ratios, blocks, speed of a step's draw."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.errors import RecipeError
from eosin.models import draw_masks, mask_counts
from eosin.randomness import Words


@pytest.mark.parametrize(
    ("tiles", "views", "grid", "group"), [(32, 2, 16, 16), (24, 2, 6, 12), (12, 2, 28, 6), (4, 2, 3, 2)]
)
def test_every_group_has_the_stated_counts(tiles: int, views: int, grid: int, group: int) -> None:
    masks = draw_masks(Words(0, "masks"), tiles, views, grid, group)
    assert masks.shape == (views * tiles, grid * grid)
    per_tile = masks.sum(1).reshape(views, tiles)
    wanted = mask_counts(views, grid, group)
    assert len(wanted) == views * group // 2
    for first in range(0, tiles, group):
        counts = np.sort(per_tile[:, first : first + group].ravel())
        assert counts[: views * group // 2].max() == 0
        np.testing.assert_array_equal(counts[views * group // 2 :], wanted)


def test_ratios_are_the_midpoints_of_equal_bins() -> None:
    ratios = mask_counts(2, 100, 16) / 100**2
    np.testing.assert_allclose(ratios, [0.1 + 0.4 * (k + 0.5) / 16 for k in range(16)], atol=5e-5)
    # 76.8 masked patches in a masked 16 x 16 crop on average, as in DINOv2.
    assert mask_counts(2, 16, 16).mean() == pytest.approx(76.8, abs=0.5)
    assert len(mask_counts(2, 16, 16, probability=0.25)) == 8
    assert mask_counts(2, 2, 4).min() == 1


def test_masks_are_dealt_out_at_random() -> None:
    masks = draw_masks(Words(1), 16 * 50, 2, 8, 16)
    share = masks.reshape(2, 50, 16, 64).sum(-1) > 0  # [view, group, tile]
    assert np.abs(share.mean(axis=1) - 0.5).max() < 0.25  # sd .07
    where = masks.mean(0).reshape(8, 8)
    assert where.mean() == pytest.approx(0.15, abs=0.002)
    # Blocks reach corners less often than the middle, but no side more than another; sd .01.
    assert where.min() > 0.02
    for mirrored in (where[::-1], where[:, ::-1], where.T):
        assert np.abs(where - mirrored).max() < 0.05


def test_masks_are_blocks() -> None:
    """Neighbours of a masked patch are masked far more often than the ratio: a quarter of 16 x 16 in single
    patches would share an edge with .25 of its neighbours."""
    masks = draw_masks(Words(2), 64, 2, 16, 16).reshape(-1, 16, 16)
    for low, high, wanted in ((0.1, 0.3, 0.6), (0.3, 0.5, 0.7)):
        chosen = masks[(masks.mean((1, 2)) > low) & (masks.mean((1, 2)) <= high)]
        pairs = np.concatenate(
            [(chosen[:, 1:] & chosen[:, :-1]).ravel()[chosen[:, :-1].ravel()],
             (chosen[:, :, 1:] & chosen[:, :, :-1]).ravel()[chosen[:, :, :-1].ravel()]]
        )  # fmt: skip
        assert pairs.mean() > wanted


def test_same_words_same_masks() -> None:
    a, b, c = (draw_masks(Words(seed), 8, 2, 7, 4) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_all_or_nothing() -> None:
    assert not draw_masks(Words(0), 4, 2, 5, 2, probability=0.0).any()
    assert draw_masks(Words(0), 4, 2, 5, 2, ratio=(1.0, 1.0), probability=1.0).all()


def test_bad_input_is_one_line() -> None:
    with pytest.raises(RecipeError, match="10 tiles is not divisible by group 4"):
        draw_masks(Words(0), 10, 2, 16, 4)
    with pytest.raises(RecipeError, match="must lie in"):
        draw_masks(Words(0), 8, 2, 16, 4, ratio=(0.5, 0.1))
