"""Exact area resampling of a pixel box with fractional edges: how a slide comes at any µm/px.

Shrinking averages each output pixel's exact footprint, source pixels on its edge counted by their covered
share: what OpenCV calls INTER_AREA, but from a box that may begin between two pixels. It is separable, so
it is one banded matrix an axis. Enlarging (only where a caller allows it) is bilinear. Where the box has
whole edges OpenCV does the same sums. Knows nothing of slides.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Pixels = npt.NDArray[np.uint8]

# A box whose scale differs from 1 by less than this over its whole length is cut, not resampled.
DRIFT_PX = 0.1
_WHOLE = 1e-6


@dataclass(frozen=True)
class Axis:
    """One axis of a box: `size` output pixels of `scale` source pixels each, from source coordinate `start`.

    `first` and `length` are the whole source pixels that have to be read. `cut` says that they are the
    output as they are: scale 1, so stored pixels are handed on unchanged (moved by at most half a pixel)
    instead of interpolated.
    """

    start: float
    scale: float
    size: int
    first: int
    length: int
    cut: bool

    @staticmethod
    def of(start: float, scale: float, size: int) -> Axis:
        """Plan the axis; `scale` is source pixels per output pixel."""
        drift = (scale - 1.0) * size
        if abs(drift) <= DRIFT_PX:
            return Axis(start, scale, size, first=floor(start + drift / 2 + 0.5), length=size, cut=True)
        margin = 0.5 if scale < 1 else 0.0  # bilinear weights reach half a pixel further
        first = floor(start - margin + _WHOLE)
        last = max(ceil(start + scale * size + margin - _WHOLE), first + 1)
        return Axis(start, scale, size, first, last - first, cut=False)

    @property
    def whole(self) -> bool:
        """The box begins and ends on source pixel edges."""
        end = self.start + self.scale * self.size
        return self.cut or (abs(self.start - round(self.start)) < _WHOLE and abs(end - round(end)) < _WHOLE)

    def weights(self) -> csr_array:
        """Banded matrix [size, length] whose rows sum to 1."""
        offset = self.start - self.first
        edges = offset + self.scale * np.arange(self.size + 1)
        if self.scale >= 1:
            low, high = edges[:-1, None], edges[1:, None]
            taps = np.floor(low + _WHOLE).astype(np.int64) + np.arange(ceil(self.scale) + 1)  # [size, K]
            weights = np.clip(np.minimum(taps + 1, high) - np.maximum(taps, low), 0.0, None)
        else:
            centre = (edges[:-1, None] + edges[1:, None]) / 2 - 0.5  # in units of source pixel centres
            taps = np.floor(centre).astype(np.int64) + np.arange(2)
            weights = np.clip(1.0 - np.abs(taps - centre), 0.0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        rows = np.arange(self.size + 1) * taps.shape[1]
        columns = np.clip(taps, 0, self.length - 1)
        return csr_array((weights.ravel().astype(np.float32), columns.ravel(), rows), shape=(self.size, self.length))


def resample(pixels: Pixels, across: Axis, down: Axis) -> Pixels:
    """Resample `pixels` uint8 [down.length, across.length, 3] to uint8 [down.size, across.size, 3]."""
    if across.cut and down.cut:
        return pixels
    if across.whole and down.whole and across.scale >= 1 and down.scale >= 1:
        return np.asarray(cv2.resize(pixels, (across.size, down.size), interpolation=cv2.INTER_AREA))
    rows, columns = pixels.shape[:2]
    values = pixels.astype(np.float32)
    if not down.cut:
        values = (down.weights() @ values.reshape(rows, columns * 3)).reshape(down.size, columns, 3)
    if not across.cut:
        turned = np.ascontiguousarray(values.transpose(1, 0, 2)).reshape(columns, -1)
        values = (across.weights() @ turned).reshape(across.size, -1, 3).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))
