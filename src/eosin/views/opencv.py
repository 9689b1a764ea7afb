"""Views on a CPU, a crop at a time through OpenCV. Why: a batch goes to memory and back for each step, a crop does not.

Crops are resized by torch's uint8 kernel (crops.py), so they are rounded to 8 bits there, as Pillow rounds them; every
later step is float32, with the definitions of color.py and stain.py. Tiles are shared out over as many threads as torch
may use; the values do not depend on their number. Draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.views import color, crops, stain
from eosin.views.config import ViewsConfig
from eosin.views.plan import CropPlan

FloatArray = npt.NDArray[np.float64]
Values = npt.NDArray[np.float32]

# A crop's share of Python is done by one thread at a time, so more threads than this would wait for each other.
_MOST_THREADS = 8


def _colour_map(matrix: FloatArray, offset: FloatArray | float = 0.0) -> FloatArray:
    """The map v -> `matrix` [..., 3, 3] · v + `offset` [..., 3] as [..., 3, 5]: matrix, offset, sums of its rows."""
    maps = np.empty((*matrix.shape[:-1], 5))
    maps[..., :3], maps[..., 3], maps[..., 4] = matrix, offset, matrix.sum(axis=-1)
    return maps


_SAME, _GREY = _colour_map(np.eye(3)), _colour_map(np.tile(np.array(color.LUMA), (3, 1)))


class _Crop:
    """The crop that is on its way through the chain: `pixels` · scale + shift, in [0, 1] after every step.

    The scale and the shift wait until a step needs the values themselves: brightness and contrast touch the pixels only
    where a value could leave [0, 1]. One of these serves many crops of `size_px`, one after the other.
    """

    def __init__(self, size_px: int) -> None:
        self.picture = np.empty((size_px, size_px, 3), np.uint8)
        self.planes = torch.from_numpy(self.picture[None]).permute(0, 3, 1, 2)  # [1, 3, n, n], the same memory
        self.pixels, self.spare = (np.empty((size_px, size_px, 3), np.float32) for _ in range(2))
        self.scale, self.shift = 1.0, 0.0
        self._basis = np.zeros((5, 4))
        self._basis[3, 3] = 1.0

    def cut(
        self, tile: crops.Picture, box: Sequence[int], turn: tuple[bool, bool, bool], interpolation: crops.Interpolation
    ) -> None:
        """Begin anew with the pixels of `box` in `tile` [H, W, 3]."""
        crops.crop_native(tile, box, self.planes, interpolation)
        np.copyto(self.pixels, crops.turned(self.picture, *turn))
        self.scale, self.shift = 1 / 255, 0.0

    def _clip(self) -> None:
        """Cut the values off at 0 and 1."""
        if self.scale > 0.0:  # else all of them are the shift
            self.pixels.clip(-self.shift / self.scale, (1.0 - self.shift) / self.scale, out=self.pixels)

    def _settle(self) -> None:
        """Make `pixels` the values themselves."""
        if (self.scale, self.shift) != (1.0, 0.0):
            cv2.addWeighted(self.pixels, self.scale, self.pixels, 0.0, self.shift, self.pixels)
            self.scale, self.shift = 1.0, 0.0

    def _rows(self, colours: FloatArray) -> FloatArray:
        """`colours` [3, 5], a map of values (_colour_map), as one of `pixels`: [3, 4]."""
        basis = self._basis
        basis[0, 0] = basis[1, 1] = basis[2, 2] = self.scale
        basis[4, 3] = self.shift
        return colours.dot(basis)

    def _map(self, colours: FloatArray) -> None:
        cv2.transform(self.pixels, self._rows(colours), self.pixels)
        self.scale, self.shift = 1.0, 0.0

    def stain(self, exponents: FloatArray) -> None:
        """`exponents` [3, 5] maps ln((I + 1) / 256), minus the density, to the logarithm of the light (_exponents).

        Comes first or after a blur, when `pixels` are still I in 0..255.
        """
        np.add(self.pixels, 1.0, out=self.pixels)
        cv2.log(self.pixels, self.pixels)
        self.scale, self.shift = 1.0, -math.log(256)
        self._map(exponents)
        cv2.exp(self.pixels, self.pixels)
        self.shift = -1 / 255
        self._clip()

    def brightness(self, factor: float) -> None:
        self.scale, self.shift = self.scale * factor, self.shift * factor
        if factor > 1.0:
            self._clip()

    def contrast(self, factor: float) -> None:
        red, green, blue, _ = cv2.mean(self.pixels)
        weights = color.LUMA
        grey = weights[0] * red + weights[1] * green + weights[2] * blue
        mean = self.scale * grey + self.shift * sum(weights)
        self.scale, self.shift = self.scale * factor, self.shift * factor + (1.0 - factor) * mean
        if factor > 1.0:
            self._clip()

    def saturation(self, factor: float) -> None:
        self._map(factor * _SAME + (1.0 - factor) * _GREY)
        if factor > 1.0:
            self._clip()

    def hue(self, shift: float) -> None:
        self._settle()
        cv2.cvtColor(self.pixels, cv2.COLOR_RGB2HSV, self.spare)
        degrees = self.spare[..., 0]
        np.add(degrees, 360.0 * (shift % 1.0), out=degrees)  # OpenCV takes full turns off again, but adds none
        cv2.cvtColor(self.spare, cv2.COLOR_HSV2RGB, self.pixels)

    def grey(self) -> None:
        self._map(_GREY)

    def blur(self, taps: Values) -> None:
        """`taps` [kernel] of either axis sum to 1, so scale and shift may wait on."""
        cv2.sepFilter2D(self.pixels, -1, taps, taps, self.spare, borderType=cv2.BORDER_REFLECT_101)
        self.pixels, self.spare = self.spare, self.pixels

    def solarise(self, threshold: float) -> None:
        self._settle()
        flat, inverse = (part.reshape(len(part), -1) for part in (self.pixels, self.spare))  # a mask has one channel
        np.subtract(1.0, flat, out=inverse)
        cv2.copyTo(inverse, (flat >= threshold).view(np.uint8), flat)

    def write(self, planes: Values, colours: FloatArray) -> None:
        """The values under the map `colours` [3, 5] into `planes` [3, n, n]."""
        rows = self._rows(colours)
        for channel in range(3):
            cv2.transform(self.pixels, rows[channel : channel + 1], planes[channel])


_JITTERS = (_Crop.brightness, _Crop.contrast, _Crop.saturation, _Crop.hue)  # in the order of color.JITTERS


def _exponents(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    """HED jitter by `alpha`, `beta` [..., 3] as maps [..., 3, 5] from minus the density to ln(light + 1/255)."""
    mix, offset = stain.jitter_maps(alpha, beta)
    return _colour_map(mix, math.log(256 / 255) - offset)


class _Size:
    """All crops of one size: of `tiles` uint8 [b, H, W, 3] under `plan` [V, b] into `out` float32 [V, b, 3, n, n]."""

    def __init__(self, tiles: npt.NDArray[np.uint8], plan: CropPlan, config: ViewsConfig, out: Values) -> None:
        self.tiles, self.plan, self.config, self.out = tiles, plan, config, out
        self.boxes = plan.boxes(config, *tiles.shape[1:3])
        self.turns = crops.turns_of(plan.horizontal_flip, plan.vertical_flip, plan.quarter_turns)
        self.exponents = _exponents(plan.hed_alpha, plan.hed_beta)  # [V, b, 3, 5]
        self.taps = color.blur_taps(torch.from_numpy(plan.blur_sigma), config.blur_kernel_px).float().numpy()
        mean, std = np.array(config.mean), np.array(config.std)
        self.normalisation = _colour_map(np.diag(1.0 / std), -mean / std)

    def render(self, tile: int) -> None:
        """All crops of one tile. Threads may do several tiles at the same time."""
        crop, pixels = _Crop(self.out.shape[-1]), self.tiles[tile]
        turns = zip(*(part[:, tile].tolist() for part in self.turns), strict=True)
        for view, (box, turn) in enumerate(zip(self.boxes[:, tile].tolist(), turns, strict=True)):
            crop.cut(pixels, box, turn, self.config.interpolation)
            self._photometric(crop, view, tile)
            crop.write(self.out[view, tile], self.normalisation)

    def _photometric(self, crop: _Crop, view: int, tile: int) -> None:
        """Stain and colour steps in the order of multicrop.photometric_, each if it was drawn."""
        plan, config, at = self.plan, self.config, (view, tile)
        blur = bool(plan.blur[at])
        if blur and config.blur_order == "before":
            crop.blur(self.taps[at])
        if plan.hed[at]:
            crop.stain(self.exponents[at])
        if plan.jitter[at]:
            factors = plan.jitter_factors[at].tolist()
            for kind in plan.jitter_order[at].tolist():
                _JITTERS[kind](crop, factors[kind])
        if plan.grey[at]:
            crop.grey()
        if blur and config.blur_order == "after":
            crop.blur(self.taps[at])
        if plan.solarise[at]:
            crop.solarise(config.solarise_threshold)


def render_crops(
    tiles: npt.NDArray[np.uint8], plans: Sequence[tuple[CropPlan, int]], config: ViewsConfig
) -> list[Tensor]:
    """The views of `tiles` uint8 [b, H, W, 3] under plans of one crop size each: (plan [V, b], size in px).

    Returns for each plan float32 [V·b, 3, size, size] on the CPU, normalised, view-major.
    """
    views = [torch.empty(*plan.grey.shape, 3, size_px, size_px) for plan, size_px in plans]
    sizes = [_Size(tiles, plan, config, out.numpy()) for (plan, _), out in zip(plans, views, strict=True)]
    tasks = [(size, tile) for size in sizes for tile in range(len(tiles))]
    threads = min(torch.get_num_threads(), _MOST_THREADS, len(tasks))
    if threads <= 1:
        for size, tile in tasks:
            size.render(tile)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(size.render, tile) for size, tile in tasks]:
                done.result()
    return [out.flatten(0, 1) for out in views]
