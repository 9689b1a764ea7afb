"""Tiles of a slide as coloured pictures: values averaged on a raster, colours, legend, the tiles themselves.

A raster is aligned with the slide's top-left corner, so a picture of it lies over the slide at a constant
factor. Where tiles overlap, a pixel has the mean of all tiles that cover it. Knows no heads and writes no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin import figures
from eosin.errors import DataError
from eosin.report.heatmap_values import Floats, Values
from eosin.slides.reader import Slide

Array = npt.NDArray[np.int64]
COLOUR_MAP = "viridis"
OPACITY = 0.75
_BAND_PIXELS = 1 << 24
_NO_TILE = (236, 234, 236)
_INK, _PAPER = (35, 32, 42), (255, 255, 255)


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of a slide lie.

    coords: int64 [N, 2], level-0 px (x, y) of top-left corners. side: level-0 px of a tile along x and y. size_px and
    mpp: what the encoder was shown.
    """

    coords: Array
    side: tuple[float, float]
    size_px: int
    mpp: float

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def overlap(self) -> bool:
        """Whether tiles of one row or column are closer to each other than they are wide."""
        steps = [np.diff(np.unique(self.coords[:, axis])) for axis in (0, 1)]
        return any(len(step) > 0 and step.min() < math.floor(side) for step, side in zip(steps, self.side, strict=True))


def paint(tiles: Tiles, values: Floats, pitch: tuple[float, float], shape: tuple[int, int], top: int = 0) -> Floats:
    """Mean of the values [N] of the tiles over each pixel: float32 of `shape` [h, w], NaN where there is no tile.

    `pitch`: level-0 px a raster pixel, along x and y. `top`: the raster row that comes first, so that a large
    raster can be painted in bands. Tile edges go to the nearest raster edge, a tile is at least one pixel.

    Costs N + h·w: corners are marked with plus and minus, and running sums along both axes spread them.
    """
    height, width = shape
    edges = []
    for axis, (length, first) in enumerate(((width, 0), (height, top))):
        # Corners were rounded to whole px: whole sides that round up leave no slit between neighbours.
        start = tiles.coords[:, axis].astype(np.float64)
        low = np.round(start / pitch[axis]).astype(np.int64)
        high = np.maximum(
            np.round((start + math.ceil(tiles.side[axis] - 1e-6)) / pitch[axis]).astype(np.int64), low + 1
        )
        edges += [np.clip(low - first, 0, length), np.clip(high - first, 0, length)]
    left, right, upper, lower = edges
    inside = (right > left) & (lower > upper)
    left, right, upper, lower = left[inside], right[inside], upper[inside], lower[inside]
    value = np.asarray(values, np.float64)[inside]
    row = width + 1
    places = np.concatenate([upper * row + left, lower * row + right, upper * row + right, lower * row + left])
    signs = np.repeat([1.0, 1.0, -1.0, -1.0], len(value))

    def spread(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        marked = np.bincount(places, weights, minlength=(height + 1) * row).reshape(height + 1, row)
        return marked.cumsum(axis=0).cumsum(axis=1)[:height, :width]

    count = np.round(spread(signs))
    total = spread(signs * np.tile(value, 4))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


@cache
def _table() -> figures.Image:
    from matplotlib import colormaps

    return np.round(np.asarray(colormaps[COLOUR_MAP](np.arange(256)))[:, :3] * 255).astype(np.uint8)


def colours(shade: npt.NDArray[np.floating]) -> figures.Image:
    """Shades 0 to 1 of any shape [...] as colours: uint8 [..., 3]; NaN as a light grey that is not in the map."""
    known = np.isfinite(shade)
    index = np.round(np.clip(np.where(known, shade, 0), 0, 1) * 255).astype(np.uint8)
    return np.where(known[..., None], _table()[index], np.array(_NO_TILE, np.uint8)).astype(np.uint8)


def overlay(pixels: figures.Image, shade: Floats, opacity: float = OPACITY) -> figures.Image:
    """Colours laid over tissue [h, w, 3]; without a tile (NaN) the tissue stays as it is.

    Under a tile the tissue is turned grey, so that hue is the value's alone. Opacity 0 leaves the grey tissue, 1 the
    colour.
    """
    import cv2

    known = np.isfinite(shade)
    if not known.any():
        return pixels
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) / 255
    colour = colours(shade).astype(np.float32)
    # The tissue's darkness goes through the colour (multiplied), a share of it beside (mixed).
    drawn = opacity * colour * (0.45 + 0.55 * grey) + (1 - opacity) * 255 * grey
    return np.where(known[..., None], np.clip(drawn + 0.5, 0, 255).astype(np.uint8), pixels)


def _font(size_px: int) -> Any:
    """DejaVu Sans, which matplotlib brings along and which has the letters of any class name."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size_px)


def read_band(slide: Slide, top_px: int, width: int, rows: int, mpp: float) -> figures.Image:
    """Rows of the whole slide at `mpp` µm/px from row `top_px` on: uint8 [rows, width, 3].

    Read in strips, so that a slide without a pyramid costs no more memory than one with.
    """
    fine = [level.downsample_x for level in slide.levels if slide.mpp * level.downsample_x <= mpp * 1.001]
    stored = mpp / (slide.mpp * max(fine, default=1.0))  # stored px a wanted px
    strip = max(1, int(_BAND_PIXELS / (width * stored**2)))
    parts = [
        slide.region(0, (top_px + first) * mpp / slide.mpp_y, (width, min(strip, rows - first)), mpp)
        for first in range(0, rows, strip)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def pitch_of(slide: Slide, mpp: float) -> tuple[float, float]:
    """Level-0 px of the slide a pixel of `mpp` µm, along x and y."""
    return mpp / slide.mpp_x, mpp / slide.mpp_y


def most_and_least(tiles: Tiles, raw: Floats, count: int) -> tuple[list[int], list[int]]:
    """Numbers of the `count` tiles with the highest and with the lowest values, none of which overlaps another.

    Equal values go by position (row, then column). No tile is in both lists.
    """
    order = np.lexsort((tiles.coords[:, 0], tiles.coords[:, 1], -raw))
    chosen: list[int] = []

    def pick(candidates: npt.NDArray[np.int64], most: int) -> list[int]:
        found: list[int] = []
        for number in candidates:
            if len(found) == most:
                break
            gap = np.abs(tiles.coords[chosen] - tiles.coords[number]) if chosen else np.zeros((0, 2))
            if not ((gap[:, 0] < math.floor(tiles.side[0])) & (gap[:, 1] < math.floor(tiles.side[1]))).any():
                chosen.append(int(number))
                found.append(int(number))
        return found

    half = min(count, max(1, len(tiles) // 2)) if len(tiles) > 1 else 1
    highest = pick(order, half)
    return highest, pick(order[::-1], half if len(tiles) > 1 else 0)


def read_tiles(slide: Slide, tiles: Tiles, numbers: Sequence[int]) -> list[figures.Image]:
    """Pixels of tiles at the µm/px and size that the encoder was shown: uint8 [size, size, 3] each."""
    return [slide.region(float(x), float(y), tiles.size_px, tiles.mpp, 4.0) for x, y in tiles.coords[list(numbers)]]


def tile_sheet(
    rows: Sequence[tuple[str, Sequence[figures.Image], Sequence[str]]], columns: int, title: str
) -> figures.Image:
    """Groups of tiles with their words under them, pixel by pixel as read: uint8 [H, W, 3].

    `rows`: (heading, tiles of one size, words of each).
    """
    from PIL import Image, ImageDraw

    side = max((tile.shape[0] for _, tiles, _ in rows for tile in tiles), default=1)
    cell = max(side, 150)
    big, small = _font(19), _font(13)
    heights = [34 + -(-len(tiles) // columns) * (cell + 26) for _, tiles, _ in rows]
    sheet = Image.new("RGB", (20 + columns * (cell + 8), 44 + sum(heights)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((14, 10), title, _INK, big)
    top = 44
    for (heading, tiles, words), height in zip(rows, heights, strict=True):
        pen.text((14, top + 8), heading, _INK, small)
        for number, (tile, word) in enumerate(zip(tiles, words, strict=True)):
            x = 14 + number % columns * (cell + 8)
            y = top + 34 + number // columns * (cell + 26)
            sheet.paste(Image.fromarray(tile), (x, y))
            pen.text((x, y + side + 3), word, _INK, small)
        top += height
    return np.asarray(sheet)


def with_legend(picture: figures.Image, values: Values, mpp: float, name: str) -> figures.Image:
    """The picture of the slide `name` with, below it, the colours, their numbers, what these mean, and a scale bar."""
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    across = max(width, 720)
    sheet = Image.new("RGB", (across, height + 92), _PAPER)
    sheet.paste(Image.fromarray(picture), ((across - width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    font, small = _font(16), _font(13)
    bar = min(360, across // 2)
    top = height + 34
    pen.text((16, height + 8), f"{name}: {values.title}", _INK, font)
    ramp = np.repeat(colours(np.linspace(0, 1, bar))[None], 14, axis=0)
    sheet.paste(Image.fromarray(ramp), (16, top))
    for shade in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = 16 + shade * (bar - 1)
        pen.line((x, top + 14, x, top + 18), _INK)
        pen.text(
            (x, top + 19),
            values.tick(shade),
            _INK,
            small,
            anchor="ma" if 0 < shade < 1 else "la" if not shade else "ra",
        )
    pen.text((16, top + 38), values.meaning, _INK, small)
    length_um = round_length(0.2 * width * mpp)
    long = length_um / mpp
    pen.rectangle((across - 16 - long, top + 8, across - 16, top + 12), _INK)
    words = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    pen.text((across - 16 - long / 2, top - 10), words, _INK, small, anchor="ma")
    return np.asarray(sheet)


def round_length(most_um: float) -> float:
    """The largest of 1, 2, 5 × 10ⁿ µm that is at most `most_um`."""
    power = 10.0 ** math.floor(math.log10(most_um))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= most_um * (1 + 1e-9))


def check_inside(tiles: Tiles, slide: Slide, source: str) -> None:
    """Raise DataError, one line, where a tile lies outside the slide: the features are of another slide."""
    corner = tiles.coords
    limit = np.array([slide.width, slide.height])
    outside = ((corner >= limit) | (corner + np.array(tiles.side) <= 0)).any(axis=1)
    if outside.any():
        x, y = corner[np.argmax(outside)]
        raise DataError(
            f"{source}: {int(outside.sum())} of {len(tiles)} tiles lie outside {slide.path.name} "
            f"({slide.width}x{slide.height} px), the first at ({x}, {y}); the features are of another slide"
        )
