"""Exact area resampling of a pixel box with fractional edges: how a slide comes at any µm/px.

Shrinking averages each output pixel's exact footprint, source pixels on its edge counted by their covered
share: what OpenCV calls INTER_AREA, but from a box that may begin between two pixels. It is separable, so it is
one banded sparse matrix an axis, in single precision: the work is one multiplication per source value and axis.
The result is within 0.51 grey levels of the same average in double precision. Enlarging (only where a caller
allows it) is bilinear. Knows nothing of slides.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from math import ceil, floor
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

try:
    from scipy.sparse._sparsetools import csr_matvecs
except ImportError:  # it is private; the public product gives the same numbers, in fresh memory each time
    csr_matvecs = None

Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]

# A box whose scale differs from 1 by less than this over its whole length is cut, not resampled.
DRIFT_PX = 0.1
_WHOLE = 1e-6
_KEPT_PIXELS = 4096  # weights of axes up to this long are kept for the next region
_KEPT_FLOATS = 1 << 21  # a buffer of up to 8 MB is used again by the next region: fresh memory costs more than the sums
_PART_VALUES = 1 << 19  # values of the source taken at a time, which bounds the memory

_kept = threading.local()


class Axis(NamedTuple):
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
    def factor(self) -> int:
        """Source pixels per output pixel where both their edges always meet, else 0."""
        whole = round(self.scale)
        meets = abs(self.scale - whole) * self.size < _WHOLE and abs(self.start - round(self.start)) < _WHOLE
        return whole if meets and not self.cut else 0


def resample(pixels: Pixels, across: Axis, down: Axis) -> Pixels:
    """Resample `pixels` uint8 [down.length, across.length, 3] to uint8 [down.size, across.size, 3]."""
    if pixels.shape != (down.length, across.length, 3):
        raise ValueError(f"pixels of shape {pixels.shape} for a box of {down.length}x{across.length}")
    if across.cut and down.cut:
        return pixels
    if 2 <= across.factor == down.factor:  # the same sums, and OpenCV has a quick way to them
        return np.asarray(cv2.resize(pixels, (across.size, down.size), interpolation=cv2.INTER_AREA))
    columns = None if across.cut else _matrices(across)
    parts = []
    for first, last, rows in _row_parts(across, down):
        source = pixels[first:last].reshape(last - first, -1)
        values = _buffer("source", *source.shape)
        np.copyto(values, source)
        if rows is not None:
            values = _averaged(rows, values, "rows")
        if columns is None:
            parts.append(cv2.convertScaleAbs(values).reshape(len(values), across.size, 3))
        else:  # columns as rows: turned, averaged, turned back
            turned = _buffer("turned", across.length, len(values) * 3)
            cv2.transpose(values.reshape(len(values), -1, 3), turned.reshape(across.length, -1, 3))
            made = cv2.convertScaleAbs(_averaged(columns[0], turned, "columns"))
            parts.append(cv2.transpose(made.reshape(across.size, len(values), 3)))
    return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


def _averaged(part: _Part, source: _Floats, name: str) -> _Floats:
    """Output rows, float32 [n, m], of source rows [last - first, m]; in the buffer of that name."""
    count = len(part.ends) - 1
    if csr_matvecs is None:
        return np.asarray(csr_matrix((part.weights, part.numbers, part.ends), (count, len(source))) @ source)
    made = _buffer(name, count, source.shape[1])
    made.fill(0.0)
    csr_matvecs(count, *source.shape, part.ends, part.numbers, part.weights, source.ravel(), made.ravel())
    return made


def _buffer(name: str, rows: int, columns: int) -> _Floats:
    """Uninitialised float32 [rows, columns], of memory that this thread used before under that name."""
    size = rows * columns
    held: _Floats | None = getattr(_kept, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.float32)
        if size <= _KEPT_FLOATS:
            setattr(_kept, name, held)
    return held[:size].reshape(rows, columns)


class _Part(NamedTuple):
    """Some output pixels: the source pixels that they are made of, and their weights as a sparse matrix by rows.

    Output pixel i has the weights `ends[i]` to `ends[i + 1]`, of source pixels `first` + numbers.
    """

    first: int
    last: int
    ends: npt.NDArray[np.int32]
    numbers: npt.NDArray[np.int32]
    weights: _Floats


def _row_parts(across: Axis, down: Axis) -> list[tuple[int, int, _Part | None]]:
    """Output rows in parts whose source, rows first … last - 1, fits into a bounded piece of memory; None: cut out."""
    most = max(int(_PART_VALUES / (max(down.scale, 1.0) * across.length * 3)), 1)
    if down.cut:
        return [(top, min(top + most, down.size), None) for top in range(0, down.size, most)]
    return [(part.first, part.last, part) for part in _matrices(down, most)]


def _matrices(axis: Axis, most: int | None = None) -> tuple[_Part, ...]:
    """The axis as banded matrices of at most `most` output pixels each; rows sum to 1."""
    make = _made_before if axis.size * max(axis.scale, 1.0) <= _KEPT_PIXELS else _made_before.__wrapped__
    return make(axis.start - axis.first, axis.scale, axis.size, axis.length, most or axis.size)


@lru_cache(maxsize=64)  # whole level-0 positions have few fractions, and making the weights takes as long as using them
def _made_before(offset: float, scale: float, size: int, length: int, most: int) -> tuple[_Part, ...]:
    """`offset`: where the first output pixel begins, in source pixels of the `length` that were read."""
    edges = offset + scale * np.arange(size + 1)
    taps = min(ceil(scale) + (1 if scale >= 1 else 2), length)
    begin = np.floor(edges[:-1] + (_WHOLE - (0.5 if scale < 1 else 0.0)))
    np.clip(begin, 0, length - taps, out=begin)
    low, high, source = (edges[:-1] - begin)[:, None], (edges[1:] - begin)[:, None], np.arange(taps)
    if scale >= 1:
        weights = np.maximum(np.minimum(high, source + 1) - np.maximum(low, source), 0.0) / scale
    else:
        weights = np.maximum(1.0 - np.abs(source - ((low + high) / 2 - 0.5)), 0.0)  # from pixel centre to centre
        weights /= weights.sum(axis=1, keepdims=True)
    used = weights > 0  # a footprint often ends before the last of its places
    numbers = begin.astype(np.int32)[:, None] + np.arange(taps, dtype=np.int32)
    parts = []
    for top in range(0, size, most):
        rows = slice(top, min(top + most, size))
        first, last = int(numbers[rows][0, 0]), int(numbers[rows][-1, -1]) + 1
        ends = np.concatenate([[0], np.cumsum(used[rows].sum(axis=1))]).astype(np.int32)
        chosen = used[rows]
        parts.append(
            _Part(first, last, ends, numbers[rows][chosen] - np.int32(first), weights[rows][chosen].astype(np.float32))
        )
    return tuple(parts)
