"""The default foreground rule: a colour threshold in optical density, relative to the slide's own glass.

The colour of bare glass is estimated on each slide from what is bright and flat, density is taken relative to it
(Beer-Lambert; so a warm lamp, a tint or a dim scan do not count), and what is thresholded is how much the
absorption of the three channels differs: stains have colour, dust and shadows have none. Otsu's threshold (IEEE
Trans. SMC 9, 1979), bounded, says what is stained beyond doubt; a quarter of it, bounded, is enough for pale tissue in
rough surroundings or inside other tissue, while a smooth haze of stain on the glass is left out. Black ink and ink
that absorbs red most are dropped. Then gaps are closed, specks dropped and small holes filled, sizes in µm.

It does not know out-of-focus tissue, folds, or red ink, nor very pale tissue that fills a picture without any glass.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.foreground_tidy import Mask, close_gaps, gap_px, tidy
from eosin.slides.resample import Pixels

Floats = npt.NDArray[np.float32]

FLAT_UM = 104.0
FLAT_GREYS = 1.5
GREENLESS = 22
TINTED = 12
ROUGH_UM = 20.0
HAZE_ROUGHNESS = 0.07
LEAST_COLOUR = 0.015
FAINT_COLOUR = 0.06
STAINED_COLOUR = 0.15
SMOOTH_COLOUR = 0.1
INK_RIM_UM = 24.0

_SMOOTH_UM = 10.0
_FLAT_SMOOTH_UM = 16.0
_WHITE = np.array([245.0, 245.0, 245.0], np.float32)


def density_foreground(pixels: Pixels, mpp: float, red_most_is_ink: bool = True) -> Mask:
    """The rule on an overview: uint8 RGB [h, w, 3] at `mpp` µm/px to bool [h, w].

    red_most_is_ink: leave out what is dense and absorbs red most, as blue and green pens do and no dye of H&E or
    of diaminobenzidine with haematoxylin does. False for stains that do: aniline blue, Alcian blue, Luxol fast blue.
    """
    known = (pixels.max(axis=2) > 0) & (pixels.min(axis=2) < 255)  # pure black and white are padding
    glass, glass_like = glass_colour(pixels, known, mpp)
    table = -np.log(np.maximum(np.arange(256), 1)[:, None] / glass)  # [256, 3]
    density = cv2.LUT(pixels, table.astype(np.float32)[None])  # [h, w, 3]
    density[~known] = 0.0
    density = cv2.GaussianBlur(density, (0, 0), max(_SMOOTH_UM / mpp, 0.5))
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    highest = np.maximum(np.maximum(red, green), blue)
    colour = highest - np.minimum(np.minimum(red, green), blue)
    ink = _ink(density, colour, highest, mpp, red_most_is_ink)
    faint, stained = _thresholds(colour, known & ~ink, glass_like)
    tissue = (colour > max(stained, SMOOTH_COLOUR)) | ((colour > faint) & (_roughness(colour, mpp) > HAZE_ROUGHNESS))
    tissue = _with_coloured_holes(tissue, (colour > faint) & known & ~ink, mpp) & known & ~ink
    return tidy(tissue, colour > stained, mpp)


def any_stain_foreground(pixels: Pixels, mpp: float) -> Mask:
    """The rule without the test of hue, for stains that absorb red most; keeps blue and green pen."""
    return density_foreground(pixels, mpp, red_most_is_ink=False)


def glass_colour(pixels: Pixels, known: Mask, mpp: float) -> tuple[Floats, Mask]:
    """Colour of bare glass, float32 [3], and the pixels that have it: bright, of little colour, flat, all alike.

    Glass may be yellow under a warm lamp, but not short of green: that is pale tissue.
    It is the brightest peak of their histogram with 30 % of the highest one: pale tissue can outnumber the
    glass. Near-white where fewer than 1 in 500 pixels qualify, or 1 in 50 if they are tinted: a slide full of
    tissue shows no glass, and pale tissue may be flat here and there.
    """
    low, high = pixels.min(axis=2), pixels.max(axis=2)
    bright = known & (low > 150) & (high - low < 40) & (high - pixels[..., 1] < GREENLESS) & _flat(pixels, mpp)
    grey = (pixels.astype(np.uint16).sum(axis=2) // 3).astype(np.int64)
    counts = np.bincount(grey[bright], minlength=256)
    smooth = np.convolve(counts, np.ones(5), "same")
    tops = (smooth >= np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1)) & (smooth >= 0.3 * smooth.max())
    peak = int(np.flatnonzero(tops).max())
    chosen = bright & (np.abs(grey - peak) <= 3)
    if chosen.sum() < known.size / 500:
        return _WHITE, np.zeros_like(known)
    colour = np.median(pixels[chosen], axis=0).astype(np.float32)
    if chosen.sum() < known.size / 50 and np.ptp(colour) > TINTED:
        return _WHITE, np.zeros_like(known)
    return colour, chosen


def _flat(pixels: Pixels, mpp: float) -> Mask:
    """Where grey hardly differs from its surroundings once noise is smoothed: pale tissue has structure."""
    grey = cv2.transform(pixels, np.full((1, 3), 1 / 3)).astype(np.float32) - 128
    grey = cv2.GaussianBlur(grey, (0, 0), max(_FLAT_SMOOTH_UM / mpp, 0.5))
    side = (max(round(FLAT_UM / mpp), 3) | 1,) * 2
    return np.asarray(cv2.blur(grey * grey, side) - cv2.blur(grey, side) ** 2 < FLAT_GREYS**2)


def _thresholds(colour: Floats, known: Mask, glass_like: Mask) -> tuple[float, float]:
    """Colour from which a pixel may be tissue, and from which (Otsu) it is stained beyond doubt."""
    levels = np.clip(colour[known] * 255, 0, 255).astype(np.uint8)
    if levels.size == 0:
        return np.inf, np.inf
    otsu = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 255
    noise = float(np.median(colour[glass_like])) if glass_like.any() else 0.0
    lowest = min(max(LEAST_COLOUR, 4 * noise), 0.08)
    faint = max(min(otsu / 4, FAINT_COLOUR), lowest)
    return faint, max(min(otsu, STAINED_COLOUR), 2 * lowest)


def _with_coloured_holes(tissue: Mask, coloured: Mask, mpp: float) -> Mask:
    """Tissue and what is coloured in its holes: smooth pale parts inside are mucin or stroma, not haze on glass."""
    closed = close_gaps(tissue, gap_px(mpp))
    _, outside, _, _ = cv2.floodFill(np.pad(closed.astype(np.uint8), 1), None, (0, 0), 2)
    return tissue | (coloured & (outside[1:-1, 1:-1] == 0))


def _ink(density: Floats, colour: Floats, highest: Floats, mpp: float, red_most: bool) -> Mask:
    """Marker pen with its soft rim: dense, and without colour (black) or, if asked, absorbing red most (not black)."""
    ink = (highest > 1.0) & (colour < 0.2 * highest)
    if red_most:
        ink |= (density[..., 0] > 1.22 * density[..., 1]) & (colour > 0.5)
    side = 2 * round(INK_RIM_UM / mpp) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.asarray(cv2.dilate(ink.astype(np.uint8), disc) > 0)


def _roughness(colour: Floats, mpp: float) -> Floats:
    """Mean deviation of `colour` from its surroundings, as a share of them: stain that ran has none."""
    sigma = ROUGH_UM / mpp
    around = cv2.GaussianBlur(colour, (0, 0), sigma)
    deviation = cv2.GaussianBlur(np.abs(colour - around), (0, 0), sigma)
    return np.asarray(deviation / np.maximum(around, 0.02))
