"""Which tiles are worth learning from: share of foreground, and the HSV rule on the pixels."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Table = npt.NDArray[np.int32]

# OpenCV's scale: hue 0-180, saturation and value 0-255 (Midnight, Karasikov et al. 2025; same window in Virchow2).
HSV_LOW = (90, 8, 103)
HSV_HIGH = (180, 255, 255)

_FEW = 1024


def hsv_share(tile: Pixels) -> float:
    """Share of pixels with hue 90-180, saturation 8-255 and value 103-255; tile uint8 [H, W, 3] RGB -> [0, 1]."""
    inside = cv2.inRange(cv2.cvtColor(tile, cv2.COLOR_RGB2HSV), HSV_LOW, HSV_HIGH)
    return cv2.countNonZero(inside) / inside.size


def integral(mask: npt.NDArray[np.bool_]) -> Table:
    """Integral image: bool [h, w] -> int32 [h + 1, w + 1], entry (r, c) = number of set pixels above and left."""
    return np.asarray(cv2.integral(mask.view(np.uint8)), dtype=np.int32)


def foreground_share(
    table: Table, x: npt.ArrayLike, y: npt.ArrayLike, width: float, height: float
) -> npt.NDArray[np.float64]:
    """Exact share of foreground in boxes with corner (x, y) and the given size, all in (fractional) mask pixels.

    table: from `integral`. What lies outside the mask counts as background. Same shape as x and y, in [0, 1].
    """
    x, y = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    across, down = [x + width, x, x + width, x], [y + height, y + height, y, y]
    if x.size <= _FEW:  # numpy's calls cost more than the sums
        whole, left, above, both = _sum_to(table, np.stack(across), np.stack(down))
    else:
        whole, left, above, both = (_sum_to(table, *corner) for corner in zip(across, down, strict=True))
    return ((whole - left - above) + both) / (width * height)


def _sum_to(table: Table, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Integral of the mask over [0, x) × [0, y): bilinear in the table, exact for a piecewise constant mask."""
    rows, columns = table.shape
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    column, row = np.minimum(x.astype(np.int64), columns - 2), np.minimum(y.astype(np.int64), rows - 2)
    fx, fy = x - column, y - row
    top = table[row, column] * (1 - fx) + table[row, column + 1] * fx
    bottom = table[row + 1, column] * (1 - fx) + table[row + 1, column + 1] * fx
    return top * (1 - fy) + bottom * fy
