"""Pixel checks of benchmarks/slides.py: what eosin reads beside OpenSlide, tifffile and a plain area average.

At the slide's own scale every pixel is OpenSlide's. At a coarser stored level every pixel is the stored one, decoded
tile by tile through tifffile; OpenSlide moves such reads by parts of a pixel, as the variance of the Laplacian shows.
Other scales are within TOLERANCE grey levels of the mean over each pixel's footprint in double precision, taken from
the level that eosin reads.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import openslide
import tifffile

from eosin.slides import open_slide
from eosin.slides.reader import Slide
from eosin.slides.resample import Axis
from eosin.slides.tiff import TiffSlide

TOLERANCE = 0.51  # half a grey level of rounding, and single precision
AREA_SCALES = (0.37, 0.7, 1.9)
SIZE = 256
Place = tuple[int, int]
Verdict = tuple[bool, str]


def check_pixels(path: Path, mpp: float, factors: tuple[int, ...], places: list[Place]) -> list[Verdict]:
    """What holds of one slide at the given level-0 corners of tiles."""
    with open_slide(path, reader="tiff") as slide, openslide.OpenSlide(path) as theirs, tifffile.TiffFile(path) as file:
        found = [_own_scale(slide, theirs, places, mpp)]
        pages = [page for page in file.pages if page.is_tiled]
        for level in range(1, min(len(factors), 4)):
            inside = [place for place in places if max(place) + SIZE * factors[level] < slide.width]
            found.append(_stored(slide, theirs, pages[level], level, mpp * factors[level], inside))
        found += [_area(slide, mpp, wanted, places) for wanted in AREA_SCALES]
        if slide.halved_levels and slide.halved_levels[0].downsample_x < factors[-1]:
            found.append(_halves(slide, path, places))
    return found


def _own_scale(slide: Slide, theirs: openslide.OpenSlide, places: list[Place], mpp: float) -> Verdict:
    worst = 0
    for place in places:
        pixels = np.asarray(theirs.read_region(place, 0, (SIZE, SIZE)))[..., :3]
        worst = max(worst, int(np.abs(slide.region(*place, SIZE, mpp).astype(int) - pixels).max()))
    return worst == 0, f"at {mpp:g} µm/px: largest difference to OpenSlide {worst} ({len(places)} tiles)"


def _stored(
    slide: Slide, theirs: openslide.OpenSlide, page: tifffile.TiffPage, level: int, mpp: float, places: list[Place]
) -> Verdict:
    worst, sharpness = 0, []
    for place in places:
        column, row = (int(np.floor(at / slide.levels[level].downsample_x + 0.5)) for at in place)
        stored = _from_tiles(page, column, row)
        ours = slide.region(*place, SIZE, mpp)
        other = np.asarray(theirs.read_region(place, level, (SIZE, SIZE)))[..., :3]
        worst = max(worst, int(np.abs(ours.astype(int) - stored).max()))
        sharpness.append([_laplacian(pixels) for pixels in (stored, ours, other)])
    kept, ours_mean, other_mean = np.mean(sharpness, axis=0)
    text = (
        f"at {mpp:g} µm/px: largest difference to the stored pixels {worst}; Laplacian variance stored {kept:.0f}, "
        f"eosin {ours_mean:.0f}, OpenSlide {other_mean:.0f} ({len(places)} tiles)"
    )
    return worst == 0 and ours_mean >= other_mean, text


def _from_tiles(page: tifffile.TiffPage, column: int, row: int) -> np.ndarray:
    """SIZE x SIZE px of a level, each stored tile decoded by tifffile."""
    side, across = page.tilewidth, -(-page.imagewidth // page.tilewidth)
    first, top = column // side, row // side
    counts = [(at + SIZE - 1) // side - at // side + 1 for at in (column, row)]
    pixels = np.empty((counts[1] * side, counts[0] * side, 3), np.uint8)
    file = page.parent.filehandle
    for down in range(counts[1]):
        for right in range(counts[0]):
            number = (top + down) * across + first + right
            file.seek(page.dataoffsets[number])
            data = file.read(page.databytecounts[number])
            tile = page.decode(data, number, jpegtables=page.jpegtables)[0]
            pixels[down * side : (down + 1) * side, right * side : (right + 1) * side] = tile[0]
    return pixels[row - top * side :, column - first * side :][:SIZE, :SIZE]


def _laplacian(pixels: np.ndarray) -> float:
    return float(cv2.Laplacian(np.ascontiguousarray(pixels[..., 1]), cv2.CV_64F).var())


def _area(slide: Slide, mpp: float, wanted: float, places: list[Place]) -> Verdict:
    worst = 0.0
    number = slide.level_for(wanted, 1.0)
    level = slide._readable[number]
    for place in places:
        axes = [Axis.of(at / level.downsample_x, wanted / (mpp * level.downsample_x), SIZE) for at in place]
        if any(axis.first + axis.length > level.width for axis in axes):
            continue
        box = slide._read(number, axes[0].first, axes[1].first, axes[0].length, axes[1].length).astype(np.float64)
        across, down = (_shares(axis) for axis in axes)
        mean = np.einsum("yr,rcd,xc->yxd", down, box, across, optimize=True)
        worst = max(worst, float(np.abs(slide.region(*place, SIZE, wanted) - mean).max()))
    text = f"at {wanted:g} µm/px: largest difference to the area average {worst:.3f} (may be {TOLERANCE})"
    return worst <= TOLERANCE, text


def _shares(axis: Axis) -> np.ndarray:
    """How much of each output pixel each source pixel covers: float64 [size, length]."""
    edges = axis.start - axis.first + axis.scale * np.arange(axis.size + 1)
    source = np.arange(axis.length)
    covered = np.minimum(source + 1, edges[1:, None]) - np.maximum(source, edges[:-1, None])
    return np.clip(covered, 0, None) / axis.scale


def _halves(slide: Slide, path: Path, places: list[Place]) -> Verdict:
    """Tiles decoded at half size beside whole ones and the area average."""
    half = slide.mpp * slide.halved_levels[0].downsample_x
    with TiffSlide(path, halve=False) as full:
        even = [(x // 2 * 2, y // 2 * 2) for x, y in places]  # both then begin at the same pixel
        pairs = [[one.region(*place, SIZE, half).astype(float) for one in (slide, full)] for place in even]
    error = np.array([[np.abs(a - b).mean(), ((a - b) ** 2).mean()] for a, b in pairs]).mean(axis=0)
    noise = 10 * np.log10(255**2 / error[1])
    return error[0] < 1.5, f"at {half:g} µm/px, decoded at half size: {error[0]:.2f} grey levels off, {noise:.1f} dB"
