"""OpenCV's steps on a crop against the tensor steps of a GPU on the same crop; threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from eosin.randomness import Words
from eosin.views import ViewsConfig, draw_views, render
from eosin.views.multicrop import photometric_

OFF = {
    "jitter_probability": 0.0, "grey_probability": 0.0, "blur_probability": (0.0, 0.0, 0.0),
    "solarise_probability": 0.0, "hed_probability": 0.0, "hed_sigma": 0.3,
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0,
}  # fmt: skip
ALL_BLURRED = {"blur_probability": (1.0, 1.0, 1.0)}
# The most a value may differ, in 0..1: float32 rounding. Every jitter goes through hue and back, if by no angle at all.
STEPS: dict[str, tuple[dict[str, object], float]] = {
    "none": ({}, 1e-7),
    "stain": ({"hed_probability": 1.0}, 3e-6),
    "brightness": ({"jitter_probability": 1.0, "brightness": 1.0}, 3e-6),
    "contrast": ({"jitter_probability": 1.0, "contrast": 1.0}, 3e-6),
    "saturation": ({"jitter_probability": 1.0, "saturation": 1.0}, 3e-6),
    "hue": ({"jitter_probability": 1.0, "hue": 0.5}, 3e-6),
    "grey": ({"grey_probability": 1.0}, 1e-6),
    "blur": (ALL_BLURRED, 1e-6),
    "wide blur": ({**ALL_BLURRED, "blur_kernel_px": 23, "blur_sigma": (0.1, 5.0)}, 1e-6),
    "solarise": ({"solarise_probability": 1.0}, 1e-6),
    "solarise late": ({"solarise_probability": 1.0, "solarise_threshold": 200.5 / 255}, 1e-6),
    "jitter": ({"jitter_probability": 1.0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}, 1e-5),
    "blur before stain": ({**ALL_BLURRED, "blur_order": "before", "hed_probability": 1.0}, 3e-6),
}


def tiles(count: int = 6, size_px: int = 40) -> np.ndarray:
    """Noise about a colour a tile, with black, white, grey and pure colours in it: uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(rng.uniform(40, 220, (count, 1, 1, 3)), 60, (count, size_px, size_px, 3)).clip(0, 255)
    pixels[:, :8, :8] = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]])[np.arange(64) % 4].reshape(
        8, 8, 3
    )
    pixels[:, 8:16] = pixels[:, 8:16, :, :1]
    return pixels.round().astype(np.uint8)


@pytest.mark.parametrize("step", STEPS)
def test_a_step_equals_the_tensor_step(step: str) -> None:
    """On the same 8-bit crops, cut without the step: the words of a view do not depend on what is switched on."""
    settings, tolerance = STEPS[step]
    plain = ViewsConfig(
        global_px=28,
        local_px=24,
        local_count=3,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        **OFF,  # type: ignore[arg-type]
    )
    config = ViewsConfig.model_validate({**plain.model_dump(), **settings})
    pixels = tiles()
    plan = draw_views(config, len(pixels), Words(3))
    crops = render(pixels, draw_views(plain, len(pixels), Words(3)), plain, route="opencv")
    ours = render(pixels, plan, config, route="opencv")
    assert plan.locals is not None
    for crop, view, numbers in zip(crops, ours, (plan.globals, plan.locals), strict=True):
        torch.testing.assert_close(crop, (crop * 255).round() / 255, atol=1e-7, rtol=0)
        torch.testing.assert_close(view, photometric_(crop.clone(), numbers, config), atol=tolerance, rtol=0)
    if step != "none":
        assert (ours[0] - crops[0]).abs().max() > 0.05


def test_means_and_deviations_go_by_channel() -> None:
    config = ViewsConfig(global_px=28, local_count=0, mean=(0.7, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    unit = config.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    pixels, plan = tiles(), draw_views(config, 6, Words(0))
    (ours,), (values,) = (render(pixels, plan, one, route="opencv") for one in (config, unit))
    expected = (values - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_a_tile_without_brightness_or_colour_stays_finite() -> None:
    """Strengths of 1 allow factors near 0; black, white and grey tiles have no hue."""
    config = ViewsConfig(
        global_px=16, local_px=16, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5, jitter_probability=1.0
    )
    shades = np.array([0, 1, 128, 254, 255], dtype=np.uint8)
    pixels = np.broadcast_to(shades[:, None, None, None], (5, 32, 32, 3)).copy()
    plan = draw_views(config, 5, Words(0))
    plan.globals.jitter_factors[0, :, 0] = 0.0
    for a, b in zip(*(render(pixels, plan, config, route=route) for route in ("opencv", "matrix")), strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_views_do_not_depend_on_the_number_of_threads() -> None:
    config, pixels = ViewsConfig(global_px=32, local_px=24, hed_sigma=0.1), tiles(7)
    plan, found = draw_views(config, 7, Words(1)), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(render(pixels, plan, config))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("threads")
def test_a_failure_in_a_thread_is_raised() -> None:
    torch.set_num_threads(2)
    config = ViewsConfig(global_px=32, local_count=0)
    plan = draw_views(config, 4, Words(0))
    plan.globals.jitter_order[:, 2] = 9
    plan.globals.jitter[:] = True
    with pytest.raises(IndexError):
        render(tiles(4), plan, config)
