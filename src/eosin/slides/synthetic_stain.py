"""From dye to colour: the stain, the glass and the camera of one synthetic slide.

Beer-Lambert: a pixel is glass · 10^-(dye · absorbance), as in Ruifrok and Johnston, "Quantification of
histochemical staining by color deconvolution" (2001). A slide has its own absorbances, strengths and balance
of the two dyes, glass colour, contrast, illumination, focus and JPEG quality.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from eosin.randomness import Words
from eosin.slides.synthetic_field import Array, Map

Pixels = npt.NDArray[np.uint8]

_PEN_INKS = ((1.25, 0.75, 0.15), (1.15, 0.35, 0.95), (1.2, 1.2, 1.15))  # density of blue, green, black
_BAND_PX = 512
_GRAIN_PX = 512


@dataclass(frozen=True)
class Stain:
    """What one slide's laboratory and scanner do. Dyes and pen: optical density (log10) of one unit."""

    haematoxylin: Array  # [3] RGB
    eosin: Array  # [3] RGB
    pen: Array  # [3] RGB
    glass: Array  # [3] RGB in 0..255
    contrast: float  # exponent on transmittance
    tilt: Array  # [2] relative change of light across the image, left to right and top to bottom
    blur_um: float
    grain: float  # sensor noise in grey levels
    jpeg_quality: int


def draw_stain(words: Words) -> Stain:
    """A stain far from any other: the strengths of the two dyes vary by a factor of about 3 independently."""
    haematoxylin = np.array([0.64, 0.72, 0.30]) + words.between(-1, 1, 3) * [0.10, 0.06, 0.09]
    eosin = np.array([0.16, 0.88, 0.45]) + words.between(-1, 1, 3) * [0.11, 0.10, 0.16]
    return Stain(
        haematoxylin=haematoxylin * float(np.exp(words.between(np.log(0.34), np.log(1.05)))),
        eosin=eosin * float(np.exp(words.between(np.log(0.24), np.log(0.75)))),
        pen=np.array(_PEN_INKS[int(words.integers(3))]) * float(words.between(0.7, 1.1)),
        glass=float(words.between(236, 250)) + words.between(-4, 4, 3),
        contrast=float(words.between(0.82, 1.18)),
        tilt=words.between(-0.03, 0.03, 2),
        blur_um=float(words.between(0.0, 0.45)),
        grain=float(words.between(0.8, 2.5)),
        jpeg_quality=70 + int(words.integers(23)),
    )


def develop(haematoxylin: Map, eosin: Map, stain: Stain, mpp: float, words: Words, pen: Map | None = None) -> Pixels:
    """Colours of dye maps [rows, cols] (dye units, negative values count as 0): uint8 RGB [rows, cols, 3].

    `pen` is the cover by ink in 0..1. Works in bands, so that a large slide needs no more than its two maps
    and its pixels.
    """
    rows, cols = haematoxylin.shape
    pixels = np.empty((rows, cols, 3), np.uint8)
    side = min(_GRAIN_PX, max(rows, cols))
    grain = words.uniform(2, side, side).sum(axis=0) - 1  # triangular, one picture repeated
    grain = (grain * 2.45 * stain.grain).astype(np.float32)
    across = 1 + stain.tilt[0] * (np.arange(cols, dtype=np.float32) / max(cols, 1) - 0.5)
    slope = np.float32(-np.log(10) * stain.contrast)
    for first in range(0, rows, _BAND_PX):
        band = slice(first, min(first + _BAND_PX, rows))
        h, e = np.maximum(haematoxylin[band], 0), np.maximum(eosin[band], 0)  # [b, cols]
        down = 1 + stain.tilt[1] * (np.arange(band.start, band.stop, dtype=np.float32) / rows - 0.5)
        light = (down[:, None] * across[None, :]).astype(np.float32)
        noise = np.tile(grain, (1, -(-cols // side)))[: band.stop - band.start, :cols]
        for channel in range(3):
            density = h * np.float32(stain.haematoxylin[channel]) + e * np.float32(stain.eosin[channel])
            if pen is not None:
                density += pen[band] * np.float32(stain.pen[channel])
            grey = np.exp(density * slope) * light * np.float32(stain.glass[channel])
            pixels[band, :, channel] = np.clip(grey + np.roll(noise, 97 * channel, axis=1) + 0.5, 0, 255)
    if stain.blur_um / mpp > 0.2:
        pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), stain.blur_um / mpp), np.uint8)
    return pixels
