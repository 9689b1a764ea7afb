"""Where the tissue is: a bool map of a slide at a coarse µm/px, by a rule without a model.

The rule is a saturation threshold in optical density. The colour of bare glass is estimated on each slide,
density is taken relative to it (Beer-Lambert; so a warm lamp, a tint or a dim scan do not count), and what
is thresholded is how much the absorption of the three channels differs: stains have colour, dust and
shadows have none. Otsu's threshold (IEEE Trans. SMC 9, 1979), bounded, says what is stained beyond doubt; a
quarter of it, bounded, is enough for pale tissue in rough surroundings, while a smooth haze of stain on the
glass is left out. Black ink and ink that absorbs red most are dropped. Then gaps are closed, specks dropped
and small holes filled, sizes in µm.

It does not know out-of-focus tissue, folds, or red ink.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.reader import Slide
from eosin.slides.resample import Pixels

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

FOREGROUND_MPP = 8.0
CLOSE_UM = 40.0
SPECK_MM2 = 0.01
HOLE_MM2 = 0.02
ROUGH_UM = 20.0
HAZE_ROUGHNESS = 0.07
FAINT_COLOUR = 0.06
STAINED_COLOUR = 0.15
SMOOTH_COLOUR = 0.1
INK_RIM_UM = 24.0

_SMOOTH_UM = 10.0
_WHITE = np.array([245.0, 245.0, 245.0], np.float32)


class Foreground(NamedTuple):
    """Tissue of one slide.

    mask: bool [h, w]; pixel (r, c) covers µm [c·mpp, (c+1)·mpp) × [r·mpp, (r+1)·mpp) from the slide's
    top-left corner. mpp: side of a mask pixel in µm.
    """

    mask: Mask
    mpp: float

    @property
    def mm2(self) -> float:
        """Tissue area in mm²."""
        return float(self.mask.sum()) * self.mpp**2 / 1e6


def find_foreground(slide: Slide, mpp: float = FOREGROUND_MPP) -> Foreground:
    """Tissue of `slide` at `mpp` µm/px (coarser where the slide itself is coarser).

    Reads the coarsest level that serves. A slide without tissue gives a mask of False. Raises SlideError
    where the slide cannot be read.
    """
    mpp = max(mpp, slide.mpp)
    return Foreground(tissue_of(slide.whole(mpp), mpp), mpp)


def tissue_of(pixels: Pixels, mpp: float) -> Mask:
    """The rule on an overview: uint8 RGB [h, w, 3] at `mpp` µm/px to bool [h, w]."""
    known = (pixels.max(axis=2) > 0) & (pixels.min(axis=2) < 255)  # pure black and white are padding
    glass, glass_like = glass_colour(pixels, known)
    table = -np.log(np.maximum(np.arange(256), 1)[:, None] / glass)  # [256, 3]
    density = cv2.LUT(pixels, table.astype(np.float32)[None])  # [h, w, 3]
    density[~known] = 0.0
    density = cv2.GaussianBlur(density, (0, 0), max(_SMOOTH_UM / mpp, 0.5))
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    highest = np.maximum(np.maximum(red, green), blue)
    colour = highest - np.minimum(np.minimum(red, green), blue)
    ink = _ink(density, colour, highest, mpp)
    faint, stained = _thresholds(colour, known & ~ink, glass_like)
    tissue = (colour > max(stained, SMOOTH_COLOUR)) | ((colour > faint) & (_roughness(colour, mpp) > HAZE_ROUGHNESS))
    tissue &= known & ~ink
    return _tidy(tissue, colour > stained, mpp)


def glass_colour(pixels: Pixels, known: Mask) -> tuple[Floats, Mask]:
    """Colour of bare glass, float32 [3], and the pixels that have it: bright, of little colour, all alike.

    It is the brightest peak of their histogram with 30 % of the highest one: pale tissue can outnumber the
    glass. Near-white where fewer than 1 in 500 pixels qualify: a slide full of tissue shows no glass.
    """
    low, high = pixels.min(axis=2), pixels.max(axis=2)
    bright = known & (low > 150) & (high - low < 40)
    grey = (pixels.astype(np.uint16).sum(axis=2) // 3).astype(np.int64)
    counts = np.bincount(grey[bright], minlength=256)
    smooth = np.convolve(counts, np.ones(5), "same")
    tops = (smooth >= np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1)) & (smooth >= 0.3 * smooth.max())
    peak = int(np.flatnonzero(tops).max())
    chosen = bright & (np.abs(grey - peak) <= 3)
    if chosen.sum() < known.size / 500:
        return _WHITE, np.zeros_like(known)
    return np.median(pixels[chosen], axis=0).astype(np.float32), chosen


def _thresholds(colour: Floats, known: Mask, glass_like: Mask) -> tuple[float, float]:
    """Colour from which a pixel may be tissue, and from which (Otsu) it is stained beyond doubt."""
    levels = np.clip(colour[known] * 255, 0, 255).astype(np.uint8)
    if levels.size == 0:
        return np.inf, np.inf
    otsu = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 255
    noise = float(np.median(colour[glass_like])) if glass_like.any() else 0.0
    lowest = min(max(0.02, 3 * noise), 0.08)
    faint = max(min(otsu / 4, FAINT_COLOUR), lowest)
    return faint, max(min(otsu, STAINED_COLOUR), faint)


def _ink(density: Floats, colour: Floats, highest: Floats, mpp: float) -> Mask:
    """Marker pen with its soft rim: dense, and without colour (black) or absorbing red most (blue, green)."""
    black = (highest > 1.0) & (colour < 0.2 * highest)
    blue_or_green = (density[..., 0] > 1.22 * density[..., 1]) & (colour > 0.5)
    side = 2 * round(INK_RIM_UM / mpp) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate((black | blue_or_green).astype(np.uint8), disc) > 0)


def _roughness(colour: Floats, mpp: float) -> Floats:
    """Mean deviation of `colour` from its surroundings, as a share of them: stain that ran has none."""
    sigma = ROUGH_UM / mpp
    around = cv2.GaussianBlur(colour, (0, 0), sigma)
    deviation = cv2.GaussianBlur(np.abs(colour - around), (0, 0), sigma)
    return np.asarray(deviation / np.maximum(around, 0.02))


def _tidy(tissue: Mask, stained: Mask, mpp: float) -> Mask:
    """Close gaps, drop specks and parts without a stained pixel, fill small holes."""
    side = max(round(CLOSE_UM / mpp), 1) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    margin = side
    padded = cv2.copyMakeBorder(tissue.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)[margin:-margin, margin:-margin]
    kept = _larger(closed, SPECK_MM2 * 1e6 / mpp**2, stained)
    return np.asarray(_larger((~kept).astype(np.uint8), HOLE_MM2 * 1e6 / mpp**2, ~kept) == 0)


def _larger(mask: npt.NDArray[np.uint8], least_px: float, seeds: Mask) -> Mask:
    """Only the connected parts of at least `least_px` pixels that hold a seed."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep &= np.bincount(labels[seeds], minlength=len(stats)) > 0
    keep[0] = False
    return np.asarray(keep[labels])
