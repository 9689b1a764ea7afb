"""Two foreground rules on HSV saturation, for comparison with work that used them: `clam` and `otsu`.

Both call coloured what differs from grey, so both depend on the glass: on warm glass `clam` takes the glass
as well. The default rule (foreground_density.py) does not.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from eosin.slides.foreground_tidy import Mask, close_gaps, tidy
from eosin.slides.resample import Pixels

CLAM_SATURATION = 8
CLAM_MEDIAN_PX = 7
CLAM_CLOSE_PX = 4
CLAM_TILE_UM = 128.0  # the unit of CLAM's areas: a tile of 512 px at 0.25 µm/px
CLAM_PIECE_TILES = 16
CLAM_HOLE_TILES = 4
CLAM_HOLES = 8

OTSU_MEDIAN_PX = 7
OTSU_APART = 4.0


def clam_foreground(pixels: Pixels, mpp: float) -> Mask:
    """Saturation over 8 after a median filter, closed; pieces and holes by area, the largest 8 holes a piece.

    The segmentation that Lu et al., "Data-efficient and weakly supervised computational pathology on
    whole-slide images" (2021), describe, with their settings for TCGA and areas in tiles of 128 µm.

    Args:
        pixels: uint8 RGB [h, w, 3] at `mpp` µm/px. The filters' sides are px, meant for about 8 µm/px.
        mpp: scales the areas.
    """
    coloured = _saturation(pixels, CLAM_MEDIAN_PX) > CLAM_SATURATION
    closed = close_gaps(coloured, CLAM_CLOSE_PX)
    tile_px = (CLAM_TILE_UM / mpp) ** 2
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(closed.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] > CLAM_PIECE_TILES * tile_px
    keep[0] = False
    filled = np.asarray(keep[pieces])
    return filled | _small_holes(pieces, keep, CLAM_HOLE_TILES * tile_px)


def otsu_foreground(pixels: Pixels, mpp: float) -> Mask:
    """Otsu's threshold on median-filtered saturation, then the default rule's closing and areas.

    Nothing where the two classes of N. Otsu, "A threshold selection method from gray-level histograms"
    (1979), lie less than 4 of 255 apart: bare glass.

    Args:
        pixels: uint8 RGB [h, w, 3] at `mpp` µm/px.
    """
    saturation = _saturation(pixels, OTSU_MEDIAN_PX)
    _, above = cv2.threshold(saturation, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    coloured = above > 0
    apart = saturation[coloured].mean() - saturation[~coloured].mean() if 0 < coloured.mean() < 1 else 0.0
    if apart < OTSU_APART:
        return np.zeros(coloured.shape, bool)
    return tidy(coloured, coloured, mpp)


def _saturation(pixels: Pixels, median_px: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.medianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[..., 1], median_px), np.uint8)


def _small_holes(pieces: npt.NDArray[np.int32], keep: npt.NDArray[np.bool_], least_px: float) -> Mask:
    """Holes of kept pieces that are filled: those below `least_px`, and all but the largest `CLAM_HOLES` of a piece."""
    padded = np.pad((pieces == 0).astype(np.uint8), 1, constant_values=1)
    count, holes, stats, _ = cv2.connectedComponentsWithStats(padded, connectivity=4)
    numbers, first = np.unique(holes, return_index=True)
    rows, columns = np.divmod(first, holes.shape[1])
    piece_of = np.zeros(count, np.int64)  # above a hole's first pixel lies its piece
    piece_of[numbers] = np.pad(pieces, 1)[np.maximum(rows - 1, 0), columns]
    fill = np.zeros(count, bool)
    area = stats[:, cv2.CC_STAT_AREA]
    is_hole = keep[piece_of]
    is_hole[[0, holes[0, 0]]] = False  # tissue, and what lies outside
    for piece in np.unique(piece_of[is_hole]):
        own = np.flatnonzero(is_hole & (piece_of == piece))
        by_size = own[np.argsort(-area[own], kind="stable")]
        fill[by_size[CLAM_HOLES:]] = True
        fill[own[area[own] <= least_px]] = True
    return np.asarray(fill[holes][1:-1, 1:-1])
