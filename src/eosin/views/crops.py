"""Cut crops from tiles, resized and turned, in one go. Why: this is most of the work of a view.

Two routes give the same pictures. On a GPU a crop is a pair of matrices, W_y · tile · W_xᵀ, two batched
products for a whole batch; on a CPU torch's native uint8 kernel is faster, a crop a call (OpenCV's own resizing has
another cubic and no antialiasing). Both resample as Pillow and torchvision do with antialiasing: the cubic (a = -0.5;
Keys, IEEE TASSP 1981) or triangle kernel, widened by the shrink factor, cut off at the edges of the box and normalised.
They differ by 8-bit rounding only (within 2/255). Nothing here touches colour, and nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.views.transfer import to_device

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear"]

_RESIZE = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa, "bilinear": torch.ops.aten._upsample_bilinear2d_aa}


class Turns(NamedTuple):
    """A flip-and-turn in one normal form: transpose first, then flip. Bool arrays of one shape."""

    transpose: BoolArray
    flip_rows: BoolArray
    flip_columns: BoolArray


def crop_boxes(tries: FloatArray, place: FloatArray, height: int, width: int, ratio: tuple[float, float]) -> IntArray:
    """Integer boxes of RandomResizedCrop (Szegedy et al. 2015, as in torchvision) from drawn numbers.

    `tries` is [..., T, 2]: share of the tile's area, and width / height; the first try that fits is taken.
    Where none fits, the box is the largest centred one within `ratio` (bounds of width / height).
    `place` is [..., 2] in [0, 1): where the box lies, top and left.
    Returns [..., 4]: top, left, height, width in tile pixels.
    """
    area = tries[..., 0] * (height * width)  # [..., T]
    widths = np.rint(np.sqrt(area * tries[..., 1])).astype(np.int64)
    heights = np.rint(np.sqrt(area / tries[..., 1])).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = np.argmax(fits, axis=-1)[..., None]
    found = fits.any(axis=-1)

    whole_width = min(width, int(np.rint(height * ratio[1])))
    whole_height = min(height, int(np.rint(width / ratio[0])))
    box_width = np.where(found, np.take_along_axis(widths, first, -1)[..., 0], whole_width)
    box_height = np.where(found, np.take_along_axis(heights, first, -1)[..., 0], whole_height)
    free_y, free_x = height - box_height, width - box_width
    top = np.where(found, np.floor(place[..., 0] * (free_y + 1)).astype(np.int64), free_y // 2)
    left = np.where(found, np.floor(place[..., 1] * (free_x + 1)).astype(np.int64), free_x // 2)
    return np.stack([top, left, box_height, box_width], axis=-1)


def turns_of(horizontal_flip: BoolArray, vertical_flip: BoolArray, quarter_turns: IntArray) -> Turns:
    """Normal form of: flip left-right, flip up-down, then `quarter_turns` (0..3) counter-clockwise."""
    odd = quarter_turns % 2 == 1
    flip_rows = np.where(odd, horizontal_flip ^ (quarter_turns == 1), vertical_flip ^ (quarter_turns == 2))
    flip_columns = np.where(odd, vertical_flip ^ (quarter_turns == 3), horizontal_flip ^ (quarter_turns == 2))
    return Turns(odd, flip_rows, flip_columns)


def resize_weights(
    start: Tensor, length: Tensor, flip: Tensor, in_px: int, out_px: int, interpolation: Interpolation
) -> Tensor:
    """Matrices that resample pixels [start, start + length) of `in_px` to `out_px`, reversed where `flip`.

    start, length: [...] in pixels; flip: bool [...]. Returns float32 [..., out_px, in_px]; rows sum to 1.
    """
    start, length = start.float()[..., None, None], length.float()[..., None, None]
    scale = length / out_px
    stretch = scale.clamp(min=1.0)  # the kernel widens when shrinking and keeps its size when enlarging
    out = torch.arange(out_px, dtype=torch.float32, device=start.device)
    out = torch.where(flip[..., None], out_px - 1 - out, out)[..., None]  # [..., out, 1]
    pixel = torch.arange(in_px, dtype=torch.float32, device=start.device)  # [in]
    distance = ((pixel + 0.5 - start - (out + 0.5) * scale) / stretch).abs()  # [..., out, in]
    inside = (pixel >= start) & (pixel < start + length)
    weights = _kernel(distance, interpolation) * inside
    return weights / weights.sum(dim=-1, keepdim=True)


def _kernel(x: Tensor, interpolation: Interpolation) -> Tensor:
    """Resampling kernel at distances x >= 0, in units of the stretched pixel."""
    if interpolation == "bilinear":
        return (1.0 - x).clamp(min=0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))


def crop_by_matrices(
    pixels: Tensor, boxes: IntArray, turns: Turns, out_px: int, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Crops as matrix products on the device of `pixels`.

    pixels: uint8 [b, H, W, 3]; boxes [V, b, 4]; turns [V, b]. Returns float32 [V, b, 3, out, out] in [0, 1].
    """
    device = pixels.device
    tiles, height, width, _ = pixels.shape
    views = boxes.shape[0]
    # The transpose comes last here, so where there is one, the flips trade axes.
    flips = (
        np.where(turns.transpose, turns.flip_columns, turns.flip_rows),
        np.where(turns.transpose, turns.flip_rows, turns.flip_columns),
    )
    sent, rows, columns, transpose = to_device([boxes, *flips, turns.transpose], device)
    top, left, box_height, box_width = sent.unbind(-1)  # [V, b]
    weights_y = resize_weights(top, box_height, rows, height, out_px, interpolation)  # [V, b, out, H]
    weights_x = resize_weights(left, box_width, columns, width, out_px, interpolation)  # [V, b, out, W]

    planes = pixels.permute(0, 3, 1, 2).reshape(tiles, 3 * height, width).float().mul_(1 / 255)
    # One product serves all views of a tile: their matrices stand side by side.
    beside = weights_x.permute(1, 3, 0, 2).reshape(tiles, width, views * out_px)
    # Pillow keeps 8 bits between its passes, columns first: ringing is cut off there as well as at the end.
    narrow = torch.bmm(planes, beside).clamp_(0.0, 1.0).view(tiles, 3, height, views, out_px)
    narrow = narrow.permute(3, 0, 2, 1, 4).reshape(views * tiles, height, 3 * out_px)
    crops = torch.bmm(weights_y.reshape(views * tiles, out_px, height), narrow)  # [V·b, out, 3·out]
    crops = crops.view(views, tiles, out_px, 3, out_px).transpose(2, 3).clamp(0.0, 1.0)
    return torch.where(transpose[..., None, None, None], crops.transpose(-1, -2), crops).contiguous()


def crop_native(tile: Picture, box: Sequence[int], out: Tensor, interpolation: Interpolation = "bicubic") -> None:
    """One crop by torch's uint8 resize kernel on the CPU, in one thread.

    tile: [H, W, 3]; box: top, left, height, width; out: uint8 [1, 3, n, n] in channels-last memory, overwritten.
    """
    top, left, height, width = box
    cut = np.ascontiguousarray(tile[None, top : top + height, left : left + width])  # else it is unpacked slowly
    planes = torch.from_numpy(cut).permute(0, 3, 1, 2)
    # functional.interpolate is this with an output of its own, in the other memory order: half as long again.
    _RESIZE[interpolation].out(planes, out.shape[2:], False, None, None, out=out)


def turned(crop: Picture, transpose: bool, flip_rows: bool, flip_columns: bool) -> Picture:
    """A square crop [n, n, 3], transposed first and then flipped."""
    if transpose:
        crop = cv2.transpose(crop)
    if flip_rows or flip_columns:
        crop = cv2.flip(crop, -1 if flip_rows and flip_columns else int(flip_columns))
    return crop
