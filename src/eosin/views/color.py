"""Colour steps of a view, batched, each image with its own numbers. Why: no image leaves the batch.

Definitions are torchvision's for float images in [0, 1] (ColorJitter, rgb_to_grayscale, gaussian_blur,
solarize), so a recipe written for them means the same here. Every function but `luma` and `blur_matrix`
overwrites `images` [N, 3, H, W] in place and returns them. Which images a step applies to, and with which
numbers, is decided in multicrop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.views.transfer import to_device

# Rec. 601 weights as torchvision rounds them.
LUMA = (0.2989, 0.587, 0.114)


def _each(values: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1]."""
    return values[:, None, None, None]


def luma(images: Tensor) -> Tensor:
    """Grey value [N, 1, H, W] of `images` [N, 3, H, W]."""
    grey = images[:, 0:1] * LUMA[0]
    return grey.add_(images[:, 1:2], alpha=LUMA[1]).add_(images[:, 2:3], alpha=LUMA[2])


def brightness_(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` [N]."""
    return images.mul_(_each(factor)).clamp_(0.0, 1.0)


def contrast_(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from (factor > 1) or towards (factor < 1) the image's mean grey value; `factor` [N]."""
    mean = luma(images).mean(dim=(1, 2, 3))  # [N]
    return images.mul_(_each(factor)).add_(_each((1.0 - factor) * mean)).clamp_(0.0, 1.0)


def saturation_(images: Tensor, factor: Tensor) -> Tensor:
    """Move away from or towards the pixel's own grey value; `factor` [N]."""
    grey = luma(images).mul_(_each(1.0 - factor))
    return images.mul_(_each(factor)).add_(grey).clamp_(0.0, 1.0)


def hue_(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue circle by `shift` [N], as a share of the full turn; value and chroma stay (HSV)."""
    red, green, blue = images.unbind(dim=1)  # [N, H, W] each, views
    value = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least
    # Selection by 0/1 weights: torch.where costs ten times as much on a CPU, remainder as much again.
    is_red = torch.eq(value, red, out=torch.empty_like(value))
    is_green = torch.eq(value, green, out=torch.empty_like(value))
    hue = (red - green).add_(chroma, alpha=4.0)  # in sixths of the circle, times chroma
    hue.lerp_((blue - red).add_(chroma, alpha=2.0), is_green).lerp_(green - blue, is_red)
    # A grey pixel (chroma 0) has no hue, and the division must not make a NaN of it.
    hue.div_(chroma.clamp(min=1e-12).mul_(6.0)).add_(shift[:, None, None])
    hue.sub_(hue.floor()).mul_(6.0)  # [N, H, W] in 0..6
    for channel, (centre, slope, base) in enumerate(((3.0, 1.0, -1.0), (2.0, -1.0, 2.0), (4.0, -1.0, 2.0))):
        share = (hue - centre).abs_().mul_(slope).add_(base).clamp_(0.0, 1.0)
        torch.addcmul(least, share, chroma, out=images[:, channel])
    return images


# Columns of the drawn factors and entries of the drawn order mean these four, in this order.
JITTERS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness_, contrast_, saturation_, hue_)


def grey_(images: Tensor) -> Tensor:
    """Replace the three channels by the grey value."""
    return images.copy_(luma(images).expand_as(images))


def solarise_(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at least `threshold`."""
    bright = torch.ge(images, threshold, out=torch.empty_like(images))
    return images.lerp_(1.0 - images, bright)


def blur_taps(sigma: Tensor, kernel_px: int) -> Tensor:
    """Gaussian weights [..., kernel] that sum to 1, for `sigma` [...] in pixels."""
    half = kernel_px // 2
    offsets = torch.arange(-half, half + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offsets / sigma[..., None]).square())
    return taps / taps.sum(dim=-1, keepdim=True)


def blur_matrix(sigma: Tensor, size_px: int, kernel_px: int) -> Tensor:
    """Gaussian blur of one axis: banded matrices [N, size, size], borders reflected; `sigma` [N] px."""
    taps = blur_taps(sigma, kernel_px)  # [N, kernel]
    half = kernel_px // 2
    offsets = torch.arange(-half, half + 1, device=sigma.device)
    rows = torch.arange(size_px, device=sigma.device)[:, None]
    columns = (rows + offsets).abs()  # reflect at 0 ...
    columns = (size_px - 1) - (size_px - 1 - columns).abs()  # ... and at the far edge: [size, kernel]
    matrix = taps.new_zeros(len(sigma), size_px, size_px)
    index = columns.expand(len(sigma), -1, -1)
    return matrix.scatter_add_(2, index, taps[:, None, :].expand(-1, size_px, -1))


def blur_(images: Tensor, sigma: Tensor, kernel_px: int = 9) -> Tensor:
    """Gaussian blur with `sigma` [N] in pixels on both axes of square `images`: two batched products."""
    count, channels, size_px, _ = images.shape
    matrix = blur_matrix(sigma, size_px, kernel_px)  # [N, size, size]
    beside = images.transpose(1, 2).reshape(count, size_px, channels * size_px)  # channels side by side
    down = torch.bmm(matrix, beside).view(count, size_px, channels, size_px)
    stacked = down.transpose(1, 2).reshape(count, channels * size_px, size_px)
    return images.copy_(torch.bmm(stacked, matrix.transpose(1, 2)).view_as(images))


@dataclass(frozen=True)
class Choice:
    """An in-place step on those images of a batch for which it was drawn."""

    step: Callable[..., Tensor]
    rows: npt.NDArray[np.int64]  # ascending
    values: tuple[npt.NDArray[np.float32], ...]  # [rows, ...] each


def choose(step: Callable[..., Tensor], chosen: npt.NDArray[np.bool_], *values: npt.NDArray[np.float64]) -> Choice:
    """`step` where `chosen` [N], with those rows of each array in `values` [N, ...]."""
    rows = np.flatnonzero(chosen)
    return Choice(step, rows, tuple(value[rows].astype(np.float32) for value in values))


def apply_(images: Tensor, choices: Sequence[Choice]) -> Tensor:
    """Run the steps one after another; all their numbers go to the device at once."""
    choices = [choice for choice in choices if len(choice.rows)]
    arrays: list[npt.NDArray[Any]] = []
    for choice in choices:
        arrays += [choice.rows, *choice.values]
    sent = iter(to_device(arrays, images.device))
    for choice in choices:
        index, *numbers = islice(sent, 1 + len(choice.values))
        first, last = int(choice.rows[0]), int(choice.rows[-1]) + 1
        if last - first == len(index):  # neighbours: no copy there and back
            choice.step(images[first:last], *numbers)
        else:
            images.index_copy_(0, index, choice.step(images.index_select(0, index), *numbers))
    return images
