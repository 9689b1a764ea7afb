"""PCA colours, nearest neighbours and the choice of tiles on embeddings whose answer is known."""

from __future__ import annotations

import numpy as np

from eosin.report.pictures import (
    in_batches,
    nearest,
    own_slide_share,
    pca_rgb,
    spread_over_slides,
    tissue_cells,
)


def two_regions() -> np.ndarray:
    """Tokens [2, 8, 8, 16]: the left half of each tile points one way, the right half another, plus noise."""
    values = np.random.default_rng(1)
    tokens = values.normal(0, 0.05, (2, 8, 8, 16))
    tokens[:, :, :4, 0] += 3.0
    tokens[:, :, 4:, 1] += 3.0
    return tokens


def test_regions_have_their_own_colour() -> None:
    colours = pca_rgb(two_regions()).astype(float)
    left, right = colours[:, :, :4].reshape(-1, 3), colours[:, :, 4:].reshape(-1, 3)
    first = np.abs(left[:, 0].mean() - right[:, 0].mean())
    assert first > 200
    assert max(left[:, 0].std(), right[:, 0].std()) < 15


def test_colours_do_not_depend_on_rotation_order_or_run() -> None:
    tokens = two_regions()
    once = pca_rgb(tokens)
    assert once.dtype == np.uint8
    assert np.array_equal(once, pca_rgb(tokens))
    swapped = pca_rgb(tokens[::-1])[::-1]
    assert np.abs(once.astype(int) - swapped.astype(int)).max() <= 1
    # A rotation of feature space moves the axes but not the parts; signs may flip, which mirrors a channel.
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0]
    turned = pca_rgb(tokens @ rotation).astype(int)
    for channel in range(3):
        a, b = once[..., channel].astype(int), turned[..., channel]
        assert min(np.abs(a - b).max(), np.abs(a - (255 - b)).max()) <= 1


def test_scale_comes_from_the_foreground() -> None:
    tokens = two_regions()
    tokens[0, 0] = 500.0  # a row of glass far away from all tissue
    foreground = np.ones(tokens.shape[:3], dtype=bool)
    foreground[0, 0] = False
    masked, plain = pca_rgb(tokens, foreground).astype(float), pca_rgb(tokens).astype(float)
    apart = [abs(one[1, :, :4, 0].mean() - one[1, :, 4:, 0].mean()) for one in (masked, plain)]
    assert apart[0] > 200
    assert apart[1] < 20  # without the mask, glass against tissue is the first axis
    assert np.array_equal(pca_rgb(tokens, np.zeros_like(foreground)), pca_rgb(tokens))


def test_degenerate_tokens_are_grey() -> None:
    assert np.all(pca_rgb(np.ones((1, 4, 4, 8))) == 128)
    flat = np.zeros((1, 2, 8, 5))
    flat[..., 2] = np.arange(16).reshape(1, 2, 8)
    colours = pca_rgb(flat)
    assert colours[..., 0].min() == 0
    assert colours[..., 0].max() == 255
    assert np.all(colours[..., 1:] == 128)
    assert np.all(pca_rgb(np.random.default_rng(0).normal(size=(1, 4, 4, 2)))[..., 2] == 128)


def test_tissue_cells_are_the_coloured_ones() -> None:
    tile = np.full((1, 32, 32, 3), 240, dtype=np.uint8)
    tile[0, :16, 16:] = (200, 80, 160)
    assert tissue_cells(tile, 2, 2).tolist() == [[[False, True], [False, False]]]


def test_neighbours_prefer_other_slides() -> None:
    angles = np.deg2rad([0, 1, 10, 20, 90, 2])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 7)[:, None]
    slides = ["a", "a", "b", "c", "c", "a"]
    order, similarity = nearest(vectors, slides, [0, 3], count=4)
    assert order.tolist() == [[2, 3, 4, 1], [2, 5, 1, 0]]
    assert np.allclose(similarity[0], np.cos(np.deg2rad([10, 20, 90, 1])), atol=1e-6)
    everything, _ = nearest(vectors, slides, [0], count=99)
    assert sorted(everything[0].tolist()) == [1, 2, 3, 4, 5]


def test_neighbours_against_plain_loop() -> None:
    vectors = np.random.default_rng(3).normal(size=(20, 5))
    slides = [str(n % 7) for n in range(20)]
    order, _ = nearest(vectors, slides, range(20), count=6)
    for query in range(20):
        others = []
        for n in range(20):
            if slides[n] != slides[query]:
                cosine = vectors[query] @ vectors[n]
                cosine /= np.sqrt((vectors[query] ** 2).sum() * (vectors[n] ** 2).sum())
                others.append((-cosine, n))
        assert order[query].tolist() == [n for _, n in sorted(others)[:6]]


def test_own_slide_share() -> None:
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    assert own_slide_share(vectors, ["a", "a", "b", "b"]) == 1.0
    assert own_slide_share(vectors, ["a", "b", "a", "b"]) == 0.0
    assert own_slide_share(vectors, ["a", "a", "b", "c"]) == 0.5


def test_tiles_are_spread_over_slides() -> None:
    assert spread_over_slides(["a", "a", "a", "b", "c", "b"], 4) == [0, 3, 4, 1]
    assert spread_over_slides(["a"], 4) == [0]


def test_batches_are_joined_in_order() -> None:
    tiles = np.arange(37, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    sizes = []

    def value(pixels: np.ndarray) -> np.ndarray:
        sizes.append(len(pixels))
        return pixels.reshape(len(pixels), 3).astype(np.float64)

    found = in_batches(value, tiles)
    assert found.dtype == np.float32
    assert found[:, 1].tolist() == list(range(37))
    assert sizes == [16, 16, 5]
