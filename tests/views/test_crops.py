"""Crops against torchvision: pixels of both routes, boxes of RandomResizedCrop, flips and quarter turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as vision

from eosin.randomness import Words
from eosin.views import ViewPlan, ViewsConfig, crops, denormalise, draw_views, render


def crop_by_crop(
    pixels: torch.Tensor, boxes: np.ndarray, turns: crops.Turns, out_px: int, interpolation: crops.Interpolation
) -> torch.Tensor:
    """What the CPU does, in and out as crop_by_matrices."""
    views, tiles = boxes.shape[:2]
    out = torch.empty(views, tiles, 3, out_px, out_px)
    for v in range(views):
        for t in range(tiles):
            crop = np.empty((out_px, out_px, 3), np.uint8)
            planes = torch.from_numpy(crop).permute(2, 0, 1)[None]
            crops.crop_native(pixels[t].numpy(), boxes[v, t].tolist(), planes, interpolation)
            crop = crops.turned(crop, *(bool(part[v, t]) for part in turns))
            out[v, t] = torch.from_numpy(crop).permute(2, 0, 1) / 255
    return out


ROUTES = {"matrix": crops.crop_by_matrices, "opencv": crop_by_crop}


def noisy_tiles(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Noise, half of it in 0 and 255 only (the strongest ringing): uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    tiles[::2] = (tiles[::2] > 127) * np.uint8(255)
    return torch.from_numpy(tiles)


def straight(*shape: int) -> crops.Turns:
    return crops.Turns(*(np.zeros(shape, dtype=bool) for _ in range(3)))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("height", "width", "out_px"),
    [(128, 128, 96), (128, 128, 48), (64, 64, 98), (100, 70, 33), (256, 256, 224)],
)
def test_crops_equal_torchvision(route: str, interpolation: str, height: int, width: int, out_px: int) -> None:
    tiles, views = 3, 6
    pixels = noisy_tiles(tiles, height, width)
    rng = np.random.default_rng(1)
    box_height = rng.integers(3, height + 1, (views, tiles))  # from far up-scaling to far down-scaling
    box_width = rng.integers(3, width + 1, (views, tiles))
    boxes = np.stack(
        [
            rng.integers(0, height - box_height + 1),
            rng.integers(0, width - box_width + 1),
            box_height,
            box_width,
        ],
        -1,
    )
    ours = ROUTES[route](pixels, boxes, straight(views, tiles), out_px, interpolation)
    assert ours.shape == (views, tiles, 3, out_px, out_px)
    mode = vision.InterpolationMode(interpolation)
    for view in range(views):
        for tile in range(tiles):
            image = pixels[tile].permute(2, 0, 1).contiguous()
            expected = vision.resized_crop(image, *boxes[view, tile].tolist(), [out_px, out_px], mode, antialias=True)
            assert (ours[view, tile] - expected / 255).abs().max() <= 2 / 255


def test_matrix_weights_are_those_of_a_plain_loop() -> None:
    start, length, in_px, out_px = 5, 41, 64, 12
    flip = torch.tensor(False)
    ours = crops.resize_weights(torch.tensor(start), torch.tensor(length), flip, in_px, out_px, "bicubic")

    def cubic(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    scale = length / out_px
    expected = np.zeros((out_px, in_px))
    for i in range(out_px):
        for j in range(start, start + length):
            expected[i, j] = cubic((j + 0.5 - start - (i + 0.5) * scale) / scale)
        expected[i] /= expected[i].sum()
    np.testing.assert_allclose(ours.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_flips_and_quarter_turns_are_exact(route: str) -> None:
    """The whole tile at its own size, turned in all 16 ways, is the turned tile, bit for bit."""
    pixels = noisy_tiles(16, 24, 24)
    config = ViewsConfig(
        global_px=24, global_count=1, global_scale=(1, 1), ratio=(1, 1), local_count=0,
        jitter_probability=0, grey_probability=0, blur_probability=(0, 0, 0),
    )  # fmt: skip
    ways = np.arange(16)[None]
    drawn = replace(
        draw_views(config, 16, Words(3)).globals,
        horizontal_flip=ways % 2 == 1,
        vertical_flip=ways // 2 % 2 == 1,
        quarter_turns=ways // 4,
    )
    (ours,) = render(pixels, ViewPlan(drawn, None), config, route=route)
    for way, picture in enumerate(denormalise(ours, config)):
        expected = pixels[way].numpy()
        expected = np.fliplr(expected) if way % 2 else expected
        expected = np.flipud(expected) if way // 2 % 2 else expected
        np.testing.assert_array_equal(picture, np.rot90(expected, way // 4))


@pytest.mark.parametrize("route", ROUTES)
def test_a_turned_crop_is_the_crop_turned(route: str) -> None:
    """First resized, then turned, as in the recipes, for a box that is not square."""
    rng = np.random.default_rng(5)
    pixels = noisy_tiles(8, 40, 40)
    boxes = np.tile(np.array([3, 7, 30, 19]), (4, 8, 1))
    horizontal, vertical = rng.random((4, 8)) < 0.5, rng.random((4, 8)) < 0.5
    quarters = rng.integers(0, 4, (4, 8))
    turned = ROUTES[route](pixels, boxes, crops.turns_of(horizontal, vertical, quarters), 24, "bicubic")
    plain = ROUTES[route](pixels, boxes, straight(4, 8), 24, "bicubic")
    for v in range(4):
        for t in range(8):
            expected = plain[v, t]
            expected = expected.flip(-1) if horizontal[v, t] else expected
            expected = expected.flip(-2) if vertical[v, t] else expected
            expected = torch.rot90(expected, int(quarters[v, t]), (-2, -1))
            torch.testing.assert_close(turned[v, t], expected, atol=1e-5, rtol=0)


def slow_box(tries: np.ndarray, place: np.ndarray, height: int, width: int, ratio: tuple[float, float]) -> list[int]:
    """RandomResizedCrop as a loop over its tries, with Python's round."""
    for share, aspect in tries:
        w = round((share * height * width * aspect) ** 0.5)
        h = round((share * height * width / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return [int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(("height", "width"), [(128, 128), (97, 64), (33, 200)])
@pytest.mark.parametrize("scale", [(0.05, 0.32), (0.32, 1.0), (0.95, 1.0)])
def test_boxes_equal_a_plain_loop(height: int, width: int, scale: tuple[float, float]) -> None:
    config = ViewsConfig(global_scale=scale, local_count=0)
    plan = draw_views(config, 200, Words(1)).globals
    boxes = plan.boxes(config, height, width)
    for view in range(2):
        for tile in range(200):
            expected = slow_box(plan.tries[view, tile], plan.place[view, tile], height, width, config.ratio)
            assert boxes[view, tile].tolist() == expected


@pytest.mark.parametrize(("height", "width"), [(90, 90), (91, 60), (60, 91)])
@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.2, 0.25)])
def test_fallback_box_is_torchvisions(height: int, width: int, ratio: tuple[float, float]) -> None:
    """A box that never fits: torchvision's answer is then not random."""
    config = ViewsConfig(global_scale=(1, 1), ratio=ratio, local_count=0)
    boxes = draw_views(config, 3, Words(0)).globals.boxes(config, height, width)
    expected = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1, 1], list(ratio))
    assert boxes.reshape(-1, 4).tolist() == [list(expected)] * 6


@pytest.mark.parametrize("scale", [(0.05, 0.32), (0.4, 1.0)])
def test_boxes_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    """Kolmogorov-Smirnov distances of area, aspect, place and sides below the bound at level 1e-4."""
    count = 3000
    config = ViewsConfig(global_count=1, global_scale=scale, local_count=0)
    ours = draw_views(config, count, Words(2)).globals.boxes(config, 256, 256)[0]
    torch.manual_seed(0)
    image = torch.zeros(3, 256, 256)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)])

    def measures(boxes: np.ndarray) -> np.ndarray:
        top, left, height, width = boxes.T.astype(float)
        return np.stack([height * width, np.log(width / height), top, left, height, width])

    bound = np.sqrt(-np.log(1e-4 / 2) / count)
    for a, b in zip(measures(ours), measures(theirs), strict=True):
        grid = np.sort(np.concatenate([a, b]))
        below_a = np.searchsorted(np.sort(a), grid, side="right") / count
        below_b = np.searchsorted(np.sort(b), grid, side="right") / count
        assert np.abs(below_a - below_b).max() < bound
