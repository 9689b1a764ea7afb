"""Colour steps against torchvision's functional operations, one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from eosin.views import color

FACTORS = torch.tensor([0.0, 0.6, 0.9, 1.0, 1.4, 2.0])
SHIFTS = torch.tensor([-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])


def pictures(count: int = 6, size_px: int = 21) -> Tensor:
    """Random colours, with grey, black, white and pure-colour pixels among them: [count, 3, size, size]."""
    images = torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1, :7] = torch.tensor(
        [[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0.3, 0.7, 0.7]]
    ).T
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (color.brightness_, vision.adjust_brightness, FACTORS),
        (color.contrast_, vision.adjust_contrast, FACTORS),
        (color.saturation_, vision.adjust_saturation, FACTORS),
        (color.hue_, vision.adjust_hue, SHIFTS),
    ],
)
def test_jitters(
    ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, float], Tensor], values: Tensor
) -> None:
    images = pictures()
    expected = torch.stack([theirs(image, float(value)) for image, value in zip(images, values, strict=True)])
    torch.testing.assert_close(ours(images.clone(), values), expected, atol=1e-5, rtol=0)


def test_grey_and_solarise() -> None:
    images = pictures()
    expected = vision.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(color.grey_(images.clone()), expected, atol=1e-6, rtol=0)
    images[0, 0, 0, :2] = torch.tensor([127 / 255, 128 / 255])  # the two sides of Meta's threshold of 128
    torch.testing.assert_close(color.solarise_(images.clone()), vision.solarize(images, 0.5))
    torch.testing.assert_close(color.solarise_(images.clone(), 0.8), vision.solarize(images, 0.8))


@pytest.mark.parametrize(("size_px", "kernel_px"), [(21, 9), (48, 9), (9, 5), (12, 23)])
def test_blur(size_px: int, kernel_px: int) -> None:
    images = pictures(size_px=size_px)
    sigmas = torch.tensor([0.1, 0.3, 0.7, 1.0, 1.5, 2.0])
    expected = torch.stack(
        [
            vision.gaussian_blur(image, [kernel_px, kernel_px], [float(sigma)])
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )
    torch.testing.assert_close(color.blur_(images.clone(), sigmas, kernel_px), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chosen", [[], [2], [1, 2, 3], [0, 2, 5], [0, 1, 2, 3, 4, 5]])
def test_a_step_touches_the_chosen_images_only(chosen: list[int]) -> None:
    images = pictures()
    flags = np.isin(np.arange(6), chosen)
    factors = np.linspace(0.5, 0.9, 6)
    after = images.clone()
    color.apply_(after, [color.choose(color.brightness_, flags, factors)])
    expected = images.clone()
    for row in chosen:
        expected[row] *= factors[row]
    torch.testing.assert_close(after, expected)
