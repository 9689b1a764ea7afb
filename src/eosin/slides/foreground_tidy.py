"""What foreground rules share: closing gaps, dropping specks, filling holes, in µm."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

CLOSE_UM = 40.0
SPECK_MM2 = 0.01
HOLE_MM2 = 0.02


def tidy(tissue: Mask, seeds: Mask, mpp: float) -> Mask:
    """Close gaps, drop specks and parts without a seed, fill small holes. bool [h, w] at `mpp` µm/px."""
    kept = _larger(close_gaps(tissue, gap_px(mpp)), SPECK_MM2 * 1e6 / mpp**2, seeds)
    return ~_larger(~kept, HOLE_MM2 * 1e6 / mpp**2, ~kept)


def gap_px(mpp: float) -> int:
    """Side of the disc that closes gaps, an odd number of px of `mpp`."""
    return max(round(CLOSE_UM / mpp), 1) | 1


def close_gaps(mask: Mask, side_px: int) -> Mask:
    """Closing with a disc of `side_px`; beyond the border lies nothing."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px))
    padded = np.pad(mask.astype(np.uint8), side_px)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)[side_px:-side_px, side_px:-side_px]
    return np.asarray(closed > 0)


def _larger(mask: Mask, least_px: float, seeds: Mask) -> Mask:
    """Only the connected parts of at least `least_px` pixels that hold a seed."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep &= np.bincount(labels[seeds], minlength=len(stats)) > 0
    keep[0] = False
    return np.asarray(keep[labels])
