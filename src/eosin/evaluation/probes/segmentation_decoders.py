"""Decoders from patch tokens to the class of each pixel; G of them stacked in one module, which never meet.

| name | what it is |
|---|---|
| 1x1 | a 1 x 1 convolution on the tokens, then bilinear to the image's size |
| ms | twice: nearest x 2, 3 x 3 convolution (to 64 channels, to the classes); then bilinear |
| image | nearest x 2, 3 x 3 to 64, bilinear, beside the image 3 x 3 to 32 twice, 1 x 1; batch norm and ReLU |
| colour | a 1 x 1 convolution on red, green, blue, hue, saturation and value of each pixel, no tokens: a baseline |

`ms` and `image` compute what eva 0.4.5's ConvDecoderMS and ConvDecoderWithImage do. A 3 x 3 convolution of something
that nearest neighbours made twice as large is done before the enlargement: nine products a token in place of 36.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eosin.randomness import Words

DecoderName = Literal["1x1", "ms", "image", "colour"]
DECODERS: tuple[DecoderName, ...] = get_args(DecoderName)
WITHOUT_TOKENS: tuple[DecoderName, ...] = ("colour",)
WITH_PIXELS: tuple[DecoderName, ...] = ("image", "colour")

_MIDDLE = 64
_BESIDE = 32


class StackedConv(nn.Module):
    """G convolutions with a bias, heads first: weight [G, outside, inside, k, k], bias [G, outside]."""

    def __init__(self, heads: int, inside: int, outside: int, side: int) -> None:
        super().__init__()
        self.inside, self.outside = inside, outside
        self.weight = nn.Parameter(torch.empty(heads, outside, inside, side, side))
        self.bias = nn.Parameter(torch.empty(heads, outside))

    def forward(self, x: Tensor) -> Tensor:
        """[B, G · inside, H, W] or, where all see the same, [B, inside, H, W] -> [B, G · outside, H, W]; padded with
        zeros, so that sizes stay.
        """
        groups = x.shape[1] // self.inside
        return F.conv2d(x, self.weight.flatten(0, 1), self.bias.flatten(), padding="same", groups=groups)

    def at_each_place(self, x: Tensor) -> Tensor:
        """1 x 1 only, channels last: [G or 1, B, h, w, inside] -> [G, B, h, w, outside]."""
        y = torch.matmul(x.flatten(1, 3), self.weight.flatten(2).transpose(1, 2))
        return (y + self.bias[:, None]).unflatten(1, x.shape[1:4])

    def after_doubling(self, x: Tensor) -> Tensor:
        """3 x 3 only, channels last, of `x` made twice as large by nearest neighbours: [G or 1, B, h, w, inside] ->
        [G, B, 2 h, 2 w, outside].
        """
        taps = self.weight.permute(0, 2, 3, 4, 1).flatten(2)  # [G, inside, 3 · 3 · outside]
        y = torch.matmul(x.flatten(1, 3), taps)  # [G, B · h · w, 3 · 3 · outside]
        y = y.view(-1, *x.shape[1:4], 3, 3 * self.outside)  # [G, B, h, w, 3, 3 · outside]
        y = _Doubled.apply(y, 2).unflatten(-1, (3, self.outside))  # [G, B, 2 h, w, 3, outside]
        y = _Doubled.apply(y, 3)  # [G, B, 2 h, 2 w, outside]
        return y + self.bias[:, None, None, None]


class _Doubled(torch.autograd.Function):
    """Sums three taps (before, at, behind; the last axis but one) while `axis` is doubled: of two equal places the
    first has `at` and `behind` on its own and `before` on the one ahead, the second the mirror of that. Beyond the
    ends is zero.
    """

    @staticmethod
    def forward(ctx: Any, taps: Tensor, axis: int) -> Tensor:
        """[…, L, …, 3, n] -> […, 2 L, …, n]."""
        ctx.axis, length = axis, taps.shape[axis]
        before, at, behind = taps.unbind(-2)
        shape = list(at.shape)
        made = at.new_empty(*shape[:axis], length, 2, *shape[axis + 1 :])
        first, second = made.unbind(axis + 1)
        torch.add(at, behind, out=first)
        torch.add(at, before, out=second)
        first.narrow(axis, 1, length - 1).add_(before.narrow(axis, 0, length - 1))
        second.narrow(axis, 0, length - 1).add_(behind.narrow(axis, 1, length - 1))
        return made.flatten(axis, axis + 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        """Slopes of the taps."""
        axis = ctx.axis
        slope = slopes[0].unflatten(axis, (-1, 2))
        first, second = slope.unbind(axis + 1)
        length = first.shape[axis]
        made = first.new_empty(*first.shape[:-1], 3, first.shape[-1])
        before, at, behind = made.unbind(-2)
        torch.add(first, second, out=at)
        before.copy_(second)
        before.narrow(axis, 0, length - 1).add_(first.narrow(axis, 1, length - 1))
        behind.copy_(first)
        behind.narrow(axis, 1, length - 1).add_(second.narrow(axis, 0, length - 1))
        return made, None


class StackedNorm(nn.Module):
    """G batch norms of `width` channels each, torch's defaults: [B, G · width, H, W] -> the same."""

    mean: Tensor
    variance: Tensor

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))
        self.register_buffer("mean", torch.zeros(heads, width))
        self.register_buffer("variance", torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        """By the batch in training, which moves the running mean and variance by a tenth; else by these."""
        running = self.mean.view(-1), self.variance.view(-1)
        return F.batch_norm(x, *running, self.weight.flatten(), self.bias.flatten(), self.training)


class StackedDecoder(nn.Module):
    """G decoders of one kind; `forward` gives logits [B, G, C, H, W].

    tokens: [G, B, h, w, D], or [1, B, h, w, D] seen by all; images: [G or 1, B, 3, H, W] as the encoder normalises
    them (`colour`: in [0, 1]); size: H, W.
    """

    def __init__(self, heads: int, classes: int) -> None:
        super().__init__()
        self.heads, self.classes = heads, classes

    def forward(self, tokens: Tensor | None, images: Tensor | None, size: tuple[int, int]) -> Tensor:
        raise NotImplementedError


class OneByOne(StackedDecoder):
    """A 1 x 1 convolution on the tokens."""

    def __init__(self, heads: int, classes: int, width: int) -> None:
        super().__init__(heads, classes)
        self.conv = StackedConv(heads, width, classes, 1)

    def forward(self, tokens: Tensor | None, images: Tensor | None, size: tuple[int, int]) -> Tensor:
        assert tokens is not None
        return _logits(self.conv.at_each_place(tokens), size)


class MultiStage(StackedDecoder):
    """Two enlargements, each with a 3 x 3 convolution; nothing between them, so that it is linear in the tokens."""

    def __init__(self, heads: int, classes: int, width: int) -> None:
        super().__init__(heads, classes)
        self.first = StackedConv(heads, width, _MIDDLE, 3)
        self.second = StackedConv(heads, _MIDDLE, classes, 3)

    def forward(self, tokens: Tensor | None, images: Tensor | None, size: tuple[int, int]) -> Tensor:
        assert tokens is not None
        return _logits(self.second.after_doubling(self.first.after_doubling(tokens)), size)


class WithImage(StackedDecoder):
    """Tokens beside the image itself, which has the edges that tokens lack."""

    def __init__(self, heads: int, classes: int, width: int) -> None:
        super().__init__(heads, classes)
        self.first, self.first_norm = StackedConv(heads, width, _MIDDLE, 3), StackedNorm(heads, _MIDDLE)
        self.second, self.second_norm = StackedConv(heads, _MIDDLE + 3, _BESIDE, 3), StackedNorm(heads, _BESIDE)
        self.third, self.third_norm = StackedConv(heads, _BESIDE, _BESIDE, 3), StackedNorm(heads, _BESIDE)
        self.last = StackedConv(heads, _BESIDE, classes, 1)

    def forward(self, tokens: Tensor | None, images: Tensor | None, size: tuple[int, int]) -> Tensor:
        assert tokens is not None
        assert images is not None
        x = self.first.after_doubling(tokens).permute(1, 0, 4, 2, 3).flatten(1, 2)  # [B, G · 64, 2 h, 2 w]
        x = _to_size(F.relu(self.first_norm(x)), size).unflatten(1, (self.heads, _MIDDLE))
        beside = images.transpose(0, 1).expand(-1, self.heads, -1, -1, -1)  # [B, G, 3, H, W]
        x = torch.cat([x, beside], 2).flatten(1, 2)
        x = F.relu(self.second_norm(self.second(x)), inplace=True)
        x = F.relu(self.third_norm(self.third(x)), inplace=True)
        return self.last(x).unflatten(1, (self.heads, self.classes))


class PixelColour(StackedDecoder):
    """The colour of each pixel alone; images in [0, 1]."""

    def __init__(self, heads: int, classes: int, width: int = 0) -> None:
        super().__init__(heads, classes)
        self.conv = StackedConv(heads, 6, classes, 1)

    def forward(self, tokens: Tensor | None, images: Tensor | None, size: tuple[int, int]) -> Tensor:
        assert images is not None
        colours = (torch.cat([images, hsv(images)], -3) - 0.5) * 4.0  # [G or 1, B, 6, H, W]
        weight = self.conv.weight.flatten(2).unsqueeze(1)  # [G, 1, C, 6]
        found = torch.matmul(weight, colours.flatten(3)) + self.conv.bias[:, None, :, None]  # [G, B, C, H · W]
        return found.unflatten(3, size).transpose(0, 1)


_KINDS: dict[DecoderName, Callable[[int, int, int], StackedDecoder]] = {
    "1x1": OneByOne,
    "ms": MultiStage,
    "image": WithImage,
    "colour": PixelColour,
}


def new_decoder(name: DecoderName, words: list[Words], classes: int, width: int) -> StackedDecoder:
    """Untrained decoders, one for each stream of `words`: weights and biases U(-1/sqrt(n), 1/sqrt(n)), n inputs a
    weight, as torch.nn.Conv2d; two equal streams give two equal decoders. `width`: of a token.
    """
    decoder = _KINDS[name](len(words), classes, width)
    with torch.no_grad():
        for module in decoder.modules():
            if isinstance(module, StackedConv):
                edge = float(np.prod(module.weight.shape[2:])) ** -0.5
                for head, stream in enumerate(words):
                    for values in (module.weight[head], module.bias[head]):
                        values.copy_(torch.from_numpy(stream.between(-edge, edge, *values.shape)))
    return decoder


def hsv(rgb: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1] of colours in [0, 1], [..., 3, H, W] (Smith, SIGGRAPH 1978)."""
    high, low = rgb.amax(-3, keepdim=True), rgb.amin(-3, keepdim=True)
    range_ = high - low
    red, green, blue = rgb.split(1, -3)
    safe = torch.where(range_ > 0, range_, torch.ones_like(range_))
    of_blue = 4.0 + (red - green) / safe
    sixths = torch.where(
        high == red, (green - blue) / safe, torch.where(high == green, 2.0 + (blue - red) / safe, of_blue)
    )
    hue = torch.where(range_ > 0, (sixths / 6.0) % 1.0, torch.zeros_like(range_))
    saturation = torch.where(high > 0, range_ / torch.where(high > 0, high, torch.ones_like(high)), high)
    return torch.cat([hue, saturation, high], -3)


def _logits(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[G, B, h, w, C] -> [B, G, C, H, W]."""
    maps = maps.permute(1, 0, 4, 2, 3)
    if maps.shape[-2:] == size:
        return maps.contiguous()
    return _to_size(maps.flatten(1, 2).contiguous(), size).unflatten(1, maps.shape[1:3])


def _to_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, pixel centres aligned as torch does it without align_corners."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", align_corners=False)
