"""Polygons to pixels and back, exactly: a pixel is inside where its centre is, an outline runs along pixel edges."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.foreground_tidy import Mask

Ring = npt.NDArray[np.float64]  # [n, 2] x, y
Corners = npt.NDArray[np.int64]  # [n, 2] x, y, first one not repeated

_CROSSINGS = 1 << 21
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def shade(mask: Mask, rings: Sequence[Ring], value: bool) -> None:
    """Set to `value` the pixels of `mask` [h, w] whose centre lies inside `rings`, in px of the mask.

    Inside is what an odd number of rings surrounds (even-odd rule), so the holes of a polygon are its other
    rings. Parts beyond the mask are left out.
    """
    corners = np.concatenate(rings)
    left, top = np.floor(corners.min(axis=0)).clip(0).astype(np.int64)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)), mask.shape[::-1]).astype(np.int64)
    if right <= left or bottom <= top:
        return
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    for ring in rings:
        _cross(toggles, ring - (left, top))
    inside = np.bitwise_xor.accumulate(toggles & 1, axis=1)[:, :-1] > 0
    mask[top:bottom, left:right][inside] = value


def _cross(toggles: npt.NDArray[np.uint8], ring: Ring) -> None:
    """Count, at the first pixel centre right of it, each crossing of the ring with the middle of a row of pixels.

    Counts wrap at 256, which leaves them odd or even.
    """
    rows, columns = toggles.shape
    start, end = ring, np.roll(ring, -1, axis=0)
    first = np.ceil(np.minimum(start[:, 1], end[:, 1]) - 0.5).clip(0, rows).astype(np.int64)
    last = np.ceil(np.maximum(start[:, 1], end[:, 1]) - 0.5).clip(0, rows).astype(np.int64)
    crossing = last > first
    start, end, first, last = start[crossing], end[crossing], first[crossing], last[crossing]
    ends = np.cumsum(last - first)
    done = 0
    while done < len(ends):  # in parts: memory stays small where long edges are many
        before = int(ends[done - 1]) if done else 0
        stop = max(int(np.searchsorted(ends, before + _CROSSINGS, "right")), done + 1)
        part = slice(done, stop)
        counts = (last - first)[part]
        edge = np.repeat(np.arange(done, stop), counts)
        row = first[edge] + np.arange(len(edge)) - np.repeat(ends[part] - counts - before, counts)
        along = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        x = start[edge, 0] + along * (end[edge, 0] - start[edge, 0])
        np.add.at(toggles, (row, np.ceil(x - 0.5).clip(0, columns - 1).astype(np.int64)), np.uint8(1))
        done = stop


def outlines(mask: Mask) -> list[list[Corners]]:
    """Pieces of a mask (pixels that share a side) as polygons: the outline, then the holes, along pixel edges.

    Corners are in px of the mask, whole numbers; no ring touches itself.
    """
    _, pieces = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    shells: dict[int, list[Corners]] = {}
    holes: dict[int, list[Corners]] = {}
    for ring in _rings(mask):
        (x, y), (next_x, next_y) = ring[0].tolist(), ring[1].tolist()
        # the tissue lies to the right of the way along the ring
        column = x if next_x > x or next_y < y else x - 1
        row = y if next_x > x or next_y > y else y - 1
        across, down = ring[:, 0], ring[:, 1]
        area = int((across * np.roll(down, -1) - np.roll(across, -1) * down).sum())
        (shells if area > 0 else holes).setdefault(int(pieces[row, column]), []).append(ring)
    return [[*shells[piece], *holes.get(piece, [])] for piece in sorted(shells)]


def _rings(mask: Mask) -> list[Corners]:
    """All outlines of a mask as corners, tissue on the right hand; cut in two where one would touch itself."""
    stride = mask.shape[1] + 1
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:], padded[1:, 1:]  # [h + 1, w + 1] around each vertex
    above_left, below_left = padded[:-1, :-1], padded[1:, :-1]
    ways = (below & ~above) << _RIGHT | (below_left & ~below) << _DOWN  # edges that leave a vertex, as bits
    ways = ways | (above_left & ~below_left) << _LEFT | (above & ~above_left) << _UP
    leaving = ways.astype(np.uint8).ravel().tobytes()
    steps = (1, stride, -1, -stride)
    done = bytearray(len(leaving))
    found: list[list[int]] = []
    for start in np.flatnonzero(below & ~above).tolist():
        if done[start]:
            continue
        vertex, way, ring, seen = start, _RIGHT, [start], {start: 0}
        while True:
            if way == _RIGHT:
                done[vertex] = 1
            vertex += steps[way]
            # right, straight on, left: around one pixel first, so that pieces that share a corner stay two
            turn = next(turn for turn in (1, 0, 3) if leaving[vertex] >> (way + turn) % 4 & 1)
            way = (way + turn) % 4
            if vertex == start and way == _RIGHT:
                break
            if turn == 0:
                continue
            if vertex in seen:
                cut = seen[vertex]
                found.append(ring[cut:])
                for corner in ring[cut + 1 :]:
                    del seen[corner]
                del ring[cut + 1 :]
            else:
                seen[vertex] = len(ring)
                ring.append(vertex)
        found.append(ring)
    return [np.stack(np.divmod(np.array(ring), stride)[::-1], axis=1) for ring in found if len(ring) > 2]
