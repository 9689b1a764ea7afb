"""Drawing and rendering: the chain against a slow twin, probabilities by view, independence of the spread."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from eosin.randomness import Words
from eosin.views import CropPlan, ViewPlan, ViewsConfig, denormalise, draw_views, render, stain

SMALL = ViewsConfig(global_px=32, local_px=16, local_count=3, hed_sigma=0.1)
TWIN = ViewsConfig(
    global_px=40, local_px=24, local_count=2, hed_sigma=0.1, hed_probability=0.7, grey_probability=0.3,
    blur_probability=(1.0, 0.4, 0.5), solarise_probability=0.5, mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip


def tissue(count: int, size_px: int, seed: int = 0) -> np.ndarray:
    """Smooth violet-pink noise with sharp dots: uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 2, 8, 8))).float()
    amount = torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic")
    amount[:, 0] += torch.from_numpy(rng.random((count, size_px, size_px)) < 0.05) * 0.6
    rgb = stain.compose(torch.cat([amount, torch.zeros_like(amount[:, :1])], dim=1))
    noisy = rgb.permute(0, 2, 3, 1).numpy() * 255 + rng.normal(0, 6, (count, size_px, size_px, 3))
    return noisy.clip(0, 255).round().astype(np.uint8)


def twin(tile: np.ndarray, plan: CropPlan, v: int, t: int, size_px: int, config: ViewsConfig) -> Tensor:
    """View v of one tile in Meta's order, by torchvision's operations on one float image."""
    image = torch.from_numpy(tile).permute(2, 0, 1) / 255
    top, left, height, width = plan.boxes(config, *tile.shape[:2])[v, t].tolist()
    bicubic = vision.InterpolationMode.BICUBIC  # Pillow resizes columns, clips, resizes rows, clips
    image = vision.resized_crop(image, top, left, height, width, [height, size_px], bicubic, True).clamp(0, 1)
    image = vision.resize(image, [size_px, size_px], bicubic, antialias=True).clamp(0, 1)
    if plan.horizontal_flip[v, t]:
        image = vision.horizontal_flip(image)
    if plan.vertical_flip[v, t]:
        image = vision.vertical_flip(image)
    image = torch.rot90(image, int(plan.quarter_turns[v, t]), (1, 2))
    kernel = [config.blur_kernel_px] * 2
    if plan.blur[v, t] and config.blur_order == "before":
        image = vision.gaussian_blur(image, kernel, [float(plan.blur_sigma[v, t])])
    if plan.hed[v, t]:
        scale = 1 + torch.from_numpy(plan.hed_alpha[v, t])[None, :, None, None]
        shift = torch.from_numpy(plan.hed_beta[v, t])[None, :, None, None]
        image = stain.compose(stain.separate(image[None].double()) * scale + shift)[0].float()
    if plan.jitter[v, t]:
        steps = [
            vision.adjust_brightness,
            vision.adjust_contrast,
            vision.adjust_saturation,
            vision.adjust_hue,
        ]
        for kind in plan.jitter_order[v, t]:
            image = steps[kind](image, float(plan.jitter_factors[v, t, kind]))
    if plan.grey[v, t]:
        image = vision.rgb_to_grayscale(image, num_output_channels=3)
    if plan.blur[v, t] and config.blur_order == "after":
        image = vision.gaussian_blur(image, kernel, [float(plan.blur_sigma[v, t])])
    if plan.solarise[v, t]:
        image = vision.solarize(image, config.solarise_threshold)
    return vision.normalize(image, list(config.mean), list(config.std))


def twins(pixels: np.ndarray, plan: ViewPlan, config: ViewsConfig) -> list[Tensor]:
    assert plan.locals is not None
    return [
        torch.stack([twin(pixels[t], p, v, t, px, config) for v in range(len(p.grey)) for t in range(len(pixels))])
        for p, px in ((plan.globals, config.global_px), (plan.locals, config.local_px))
    ]


@pytest.mark.parametrize("blur_order", ["after", "before"])
def test_chain_equals_the_slow_twin(blur_order: str) -> None:
    """Float from end to end (matrix crops): equal to 5e-5 in normalised units, everywhere."""
    config = TWIN.model_copy(update={"blur_order": blur_order})
    pixels = tissue(24, 64)
    plan = draw_views(config, 24, Words(1))
    for ours, expected in zip(render(pixels, plan, config, route="matrix"), twins(pixels, plan, config), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("blur_order", ["after", "before"])
def test_opencv_differs_by_the_rounding_of_its_crops_only(blur_order: str) -> None:
    """A step of 8 bits before the chain, which the logarithm of a dark pixel and contrast enlarge."""
    config = TWIN.model_copy(update={"blur_order": blur_order})
    pixels = tissue(24, 64)
    plan = draw_views(config, 24, Words(1))
    for ours, expected in zip(render(pixels, plan, config, route="opencv"), twins(pixels, plan, config), strict=True):
        assert ours.dtype == torch.float32
        error = (ours - expected).abs() * torch.tensor(config.std)[:, None, None]
        assert error.mean() < 0.25 / 255
        assert error.max() < 5 / 255


def test_real_tiles_through_both_routes(shared_data: Path) -> None:
    files = sorted((shared_data / "colon5_tiles" / "train").glob("*/*.jp*g"))[::200]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB"))[:128, :128] for file in files])
    plan = draw_views(SMALL, len(pixels), Words(0))
    matrix, opencv = (render(pixels, plan, SMALL, route=route) for route in ("matrix", "opencv"))
    for a, b in zip(matrix, opencv, strict=True):
        assert torch.isfinite(a).all()
        assert a.std() > 0.1
        assert ((a - b).abs() * 0.5).mean() < 0.3 / 255


def test_shapes_and_order_are_view_major() -> None:
    """With nothing random left, row v·tiles + t is tile t."""
    config = ViewsConfig(
        global_px=16, local_px=8, local_count=3, global_scale=(1, 1), local_scale=(1, 1), ratio=(1, 1),
        horizontal_flip=0, vertical_flip=0, quarter_turns=False, jitter_probability=0, grey_probability=0,
        blur_probability=(0, 0, 0), solarise_probability=0, blur_kernel_px=9,
    )  # fmt: skip
    shades = np.array([10, 60, 110, 160, 210], dtype=np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (5, 16, 16, 3)).copy()
    views = render(torch.from_numpy(pixels), draw_views(config, 5, Words(0)), config)
    assert [tuple(v.shape) for v in views] == [(10, 3, 16, 16), (15, 3, 8, 8)]
    for view, count in zip(views, (2, 3), strict=True):
        pictures = denormalise(view, config)
        assert pictures.dtype == np.uint8
        np.testing.assert_array_equal(pictures[:, 3, 3, 1], np.tile(shades, count))
    only_globals = config.model_copy(update={"local_count": 0})
    assert len(render(pixels, draw_views(only_globals, 5, Words(0)), only_globals)) == 1


@pytest.mark.parametrize(("route", "tolerance"), [("opencv", 0.0), ("matrix", 2e-6)])
def test_views_do_not_depend_on_the_spread_over_ranks(route: str, tolerance: float) -> None:
    pixels = tissue(8, 48)
    plan = draw_views(SMALL, 8, Words(5, "views", 7))
    whole = render(pixels, plan, SMALL, route=route)
    for ranks in (2, 4):
        share = 8 // ranks
        parts = [render(pixels[a : a + share], plan.rows(a, a + share), SMALL, route=route) for a in range(0, 8, share)]
        for size, expected in enumerate(whole):
            shards = [part[size].unflatten(0, (-1, share)) for part in parts]
            joined = torch.cat(shards, dim=1).flatten(0, 1)
            torch.testing.assert_close(joined, expected, atol=tolerance, rtol=0)


def test_chunks_do_not_change_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = tissue(5, 48)
    plan = draw_views(SMALL, 5, Words(6))
    whole = render(pixels, plan, SMALL, route="matrix")
    monkeypatch.setattr("eosin.views.multicrop._CHUNK_BYTES", {"cpu": 2 * 2 * 3 * 32 * 32 * 4})
    for a, b in zip(render(pixels, plan, SMALL, route="matrix"), whole, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_same_words_same_views() -> None:
    pixels = tissue(4, 48)
    first, again, other = (render(pixels, draw_views(SMALL, 4, Words(seed)), SMALL) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_switched_off_step_changes_no_other_number() -> None:
    off = SMALL.model_copy(update={"hed_sigma": 0.0, "grey_probability": 0.0, "blur_probability": (0.0, 0.0, 0.0)})
    a, b = draw_views(SMALL, 6, Words(1)), draw_views(off, 6, Words(1))
    for one, two in ((a.globals, b.globals), (a.locals, b.locals)):
        for field in fields(CropPlan):
            if field.name not in ("hed", "hed_alpha", "hed_beta", "grey", "blur"):
                np.testing.assert_array_equal(getattr(one, field.name), getattr(two, field.name))
        assert not np.stack([two.hed, two.grey, two.blur]).any()


def test_probabilities_by_view() -> None:
    """Shares over 8,000 tiles lie within four standard errors of the recipe's probabilities."""
    tiles = 8000
    plan = draw_views(ViewsConfig(hed_sigma=0.05, hed_probability=0.6, local_count=2), tiles, Words(0))
    assert plan.locals is not None

    def near(flags: np.ndarray, probability: float) -> None:
        assert abs(flags.mean() - probability) <= 4 * np.sqrt(probability * (1 - probability) / flags.size)

    near(plan.globals.blur[0], 1.0)
    near(plan.globals.blur[1], 0.1)
    near(plan.locals.blur[0], 0.5)
    near(plan.locals.blur[1], 0.5)
    near(plan.globals.solarise[0], 0.0)
    near(plan.globals.solarise[1], 0.2)
    near(plan.locals.solarise, 0.0)
    for crops in (plan.globals, plan.locals):
        near(crops.jitter, 0.8)
        near(crops.grey, 0.2)
        near(crops.horizontal_flip, 0.5)
        near(crops.vertical_flip, 0.5)
        near(crops.hed, 0.6)
        for quarter in range(4):
            near(crops.quarter_turns == quarter, 0.25)
        code = crops.jitter_order @ np.array([64, 16, 4, 1])
        assert len(np.unique(code)) == 24
        for order in np.unique(code):
            near(code == order, 1 / 24)


def test_strengths_are_uniform_over_their_ranges() -> None:
    config = ViewsConfig(hed_sigma=0.05, brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    plan = draw_views(config, 4000, Words(0)).globals
    ranges = [(plan.hed_alpha, -0.05, 0.05), (plan.hed_beta, -0.05, 0.05), (plan.blur_sigma, 0.1, 2.0)]
    bounds = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)]  # contrast stops at 0, as in ColorJitter
    ranges += [(plan.jitter_factors[..., k], *bound) for k, bound in enumerate(bounds)]
    for values, low, high in ranges:
        quantiles = np.quantile((values - low) / (high - low), [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.03)
        assert low <= values.min() <= values.max() <= high


def test_views_of_a_tile_differ_and_steps_are_independent() -> None:
    plan = draw_views(ViewsConfig(), 4000, Words(3)).globals
    flags = np.stack([plan.jitter[0], plan.grey[0], plan.horizontal_flip[0], plan.vertical_flip[0],
                      plan.jitter[1], plan.grey[1], plan.solarise[1], plan.blur[1]])  # fmt: skip
    correlation = np.corrcoef(flags) - np.eye(len(flags))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(4000)
    assert not np.array_equal(plan.tries[0], plan.tries[1])


def test_wrong_input_is_refused() -> None:
    pixels = tissue(4, 48)
    plan = draw_views(SMALL, 4, Words(0))
    with pytest.raises(ValueError, match="uint8"):
        render(pixels.astype(np.float32), plan, SMALL)
    with pytest.raises(ValueError, match="3 tiles do not match"):
        render(pixels[:3], plan, SMALL)
    with pytest.raises(ValueError, match="not within"):
        plan.rows(2, 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"gobal_px": 96},
        {"global_scale": [1.0, 0.4]},
        {"local_scale": [0.0, 0.3]},
        {"grey_probability": 1.2},
        {"hue": 0.6},
        {"blur_kernel_px": 8},
        {"blur_kernel_px": 41, "local_px": 16},
        {"std": [0.5, 0.0, 0.5]},
        {"interpolation": "nearest"},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewsConfig(**settings)  # type: ignore[arg-type]


def test_lists_of_a_yaml_recipe_are_taken() -> None:
    config = ViewsConfig.model_validate({"global_scale": [0.4, 1], "blur_probability": [1, 0.1, 0.5]})
    assert config.global_scale == (0.4, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_renders_what_the_cpu_renders() -> None:
    pixels = tissue(16, 64)
    plan = draw_views(TWIN, 16, Words(1))
    for ours, expected in zip(
        render(pixels, plan, TWIN, device="cuda"), render(pixels, plan, TWIN, route="matrix"), strict=True
    ):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), expected, atol=2e-4, rtol=0)
