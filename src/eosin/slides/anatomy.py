"""What a slide file is made of, for people: where its scale comes from, how its levels are stored, what a scale costs.

Nothing here is used to read tiles; `eosin doctor` shows it. Only what describes the pyramid is looked at: label and
macro images are neither read nor named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import openslide
import tifffile

from eosin.errors import SlideError
from eosin.slides.openslide import detect_vendor
from eosin.slides.reader import SAME_SCALE, TIFF_VENDORS, Slide, open_slide
from eosin.slides.tiff import NotThisReader, TiffSlide
from eosin.slides.tiff_codecs import JPEG, JPEG_2000, YCC
from eosin.slides.tiff_index import TiffIndex, TiffLevel, read_index
from eosin.slides.tiff_source import FileBytes

HALVED_WORK = 0.68
"""Work of decoding a JPEG tile at half its size, as a share of decoding it whole (0.60 to 0.75, see tiff.py)."""

NEAR_MISS = 1.06
USUAL_MPP = (0.08, 1.3)  # level 0 of a scanner: 100x to 10x
GLASS_MM = (80.0, 55.0)  # a slide is 75 x 25 mm, large ones 75 x 50 mm
_CODECS = {1: "none", 5: "LZW", 7: "JPEG", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 50000: "Zstandard"}
_SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}


@dataclass(frozen=True)
class StoredLevel:
    """One stored level. mpp: µm a px; tile: width and height in px, None where unknown; bits: stored bits a pixel."""

    number: int
    width: int
    height: int
    mpp: float
    tile: tuple[int, int] | None
    compression: str
    subsampling: str
    bits: float | None


@dataclass(frozen=True)
class Serving:
    """What the reader does for a tile at `mpp`: reads `read_mpp` from level `level`, and how much work that is.

    halved: JPEG tiles of the level are decoded at half size. touched: stored tiles that a tile anywhere lies on, on
    average (NaN where the level is not stored in tiles). cost: decoding work over that of a level stored at `mpp`
    with tiles of the same size, 1 = nothing is missing; NaN where the slide is coarser than `mpp`. near_miss: µm/px
    of a stored level that is too coarse by less than NEAR_MISS, so that a finer one has to be read.
    """

    mpp: float
    level: int | None
    read_mpp: float
    halved: bool
    touched: float
    cost: float
    near_miss: float | None


@dataclass(frozen=True)
class Anatomy:
    """What a file says of itself. doubts: why its µm/px may be wrong, in words; power: the objective's, e.g. 40."""

    vendor: str
    reader: str
    why_reader: str
    mpp_source: str
    doubts: tuple[str, ...]
    power: float | None
    levels: tuple[StoredLevel, ...]


def anatomy(slide: Slide, stated_mpp: float | None = None, forced_reader: str | None = None) -> Anatomy:
    """Describe an open slide; `stated_mpp` is what the user said its µm per level-0 px are, if anything."""
    properties = _properties(Path(slide.path))
    return Anatomy(
        vendor=slide.vendor,
        reader=slide.reader,
        why_reader=_why_reader(slide, forced_reader),
        mpp_source=_mpp_source(slide, stated_mpp, properties),
        doubts=tuple(_doubts(slide, stated_mpp, power := objective_power(properties))),
        power=power,
        levels=tuple(_stored_levels(slide)),
    )


def serving(slide: Slide, mpp: float, size_px: int, max_upsample: float = 1.0) -> Serving:
    """How the slide gives tiles of `size_px` px at `mpp` µm/px."""
    if slide.mpp > mpp * max(max_upsample, 1.0) * (1 + SAME_SCALE):
        return Serving(mpp, None, math.nan, False, math.nan, math.nan, None)
    number, levels = slide.level_for(mpp, max_upsample), (*slide.levels, *slide.halved_levels)
    halved = number >= len(slide.levels)
    chosen, tile = levels[number], slide.tile_size(number)
    stored = [own * down for own, down in ((slide.mpp_x, chosen.downsample_x), (slide.mpp_y, chosen.downsample_y))]
    spans = [size_px * mpp / own for own in stored]
    touched = math.prod(_touched(span, side) for span, side in zip(spans, tile, strict=True))
    pixels = touched * math.prod(tile)
    full = 2 if halved else 1  # the tile as it is stored
    ideal = math.prod(_touched(size_px, side * full) * side * full for side in tile)
    cost = pixels * (4 * HALVED_WORK if halved else 1.0) / ideal
    coarser = [max(slide.mpp_x * level.downsample_x, slide.mpp_y * level.downsample_y) for level in slide.levels]
    missed = [own for own in coarser if mpp * (1 + SAME_SCALE) < own <= mpp * NEAR_MISS and own > max(stored)]
    near_miss = min(missed) if missed and max(stored) < mpp / NEAR_MISS else None
    return Serving(mpp, number, max(stored), halved, math.nan if tile == (1, 1) else touched, cost, near_miss)


def _touched(span: float, side: int) -> float:
    """Tiles of `side` px that a span of px at a random whole place lies on, on average along one axis."""
    return (span + side - 1) / side


def objective_power(properties: Mapping[str, str]) -> float | None:
    """The objective that OpenSlide names, e.g. 40; None where the file does not say one."""
    try:
        power = float(properties.get("openslide.objective-power", "nan"))
    except ValueError:
        return None
    return power if 1 <= power <= 200 else None


def hint_of_power(path: Path) -> str:
    """What the objective of a slide without a scale suggests, in words; "" where it names none."""
    power = objective_power(_properties(path))
    if power is None:
        return ""
    return f" (its objective is {power:g}x: mostly about {10 / power:.3g} µm/px, but scanners differ by 10 %)"


def _properties(path: Path) -> Mapping[str, str]:
    if not path.is_file():
        return {}
    try:
        if detect_vendor(path) is None:
            return {}
        with openslide.OpenSlide(path) as handle:
            return dict(handle.properties)
    except (openslide.OpenSlideError, OSError):
        return {}


def _why_reader(slide: Slide, forced: str | None) -> str:
    if slide.reader == "tiff":
        return "tiled TIFF: compressed tiles are read and decoded directly (fast path)"
    if slide.reader == "image":
        return "no slide format that OpenSlide knows: a plain image, decoded whole and held in memory"
    if forced == "openslide":
        return "OpenSlide was asked for"
    if slide.vendor not in TIFF_VENDORS:
        return f"{slide.vendor} files are read by OpenSlide only"
    try:
        source = FileBytes(slide.path)
        try:
            read_index(source)
        finally:
            source.close()
    except (NotThisReader, SlideError) as error:
        return f"a TIFF, but not for the fast path: {error}"
    return "the fast path opens it and then fails to read it; OpenSlide forgives more"


def _mpp_source(slide: Slide, stated: float | None, properties: Mapping[str, str]) -> str:
    if stated is not None:
        return "--mpp-csv"
    if slide.reader == "image":
        return "TIFF resolution tags"
    if slide.vendor == "ome-tiff":
        return "OME-XML, PhysicalSizeX" if "PhysicalSizeX" in _description(slide.path) else "TIFF resolution tags"
    if slide.vendor == "generic-tiff":
        return "TIFF resolution tags"
    known = {"aperio": "Aperio's image description, MPP", "philips": "Philips' description, DICOM_PIXEL_SPACING"}
    return known.get(slide.vendor) or ("openslide.mpp-x" if "openslide.mpp-x" in properties else "the file")


def _description(path: Path) -> str:
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.description
    except Exception:  # tifffile raises whatever a broken tag leads to
        return ""


def _doubts(slide: Slide, stated: float | None, power: float | None) -> list[str]:
    found = []
    mpp, low, high = slide.mpp, *USUAL_MPP
    if not low <= mpp <= high:
        found.append(f"level 0 of a scanner has {low:g} to {high:g} µm/px, this one {mpp:.4g}")
    if power and not 0.7 < mpp * power / 10 < 1.4:
        found.append(f"the objective is {power:g}x, which is about {10 / power:.3g} µm/px, not {mpp:.4g}")
    sides = sorted((slide.width * slide.mpp_x / 1000, slide.height * slide.mpp_y / 1000), reverse=True)
    if sides[0] > GLASS_MM[0] or sides[1] > GLASS_MM[1]:
        found.append(f"it would be {sides[0]:.0f} x {sides[1]:.0f} mm, larger than a glass slide")
    if abs(slide.mpp_x / slide.mpp_y - 1) > 0.01:
        found.append(f"pixels are not square ({slide.mpp_x:.4g} x {slide.mpp_y:.4g} µm); they are resampled to square")
    if stated is not None and (own := _own_mpp(slide)) and abs(stated / own - 1) > 0.05:
        found.append(f"--mpp-csv says {stated:g} µm/px, the file itself {own:.4g}")
    return found


def _own_mpp(slide: Slide) -> float | None:
    try:
        with open_slide(slide.path, reader=slide.reader) as again:
            return again.mpp
    except SlideError:
        return None


def _stored_levels(slide: Slide) -> list[StoredLevel]:
    told = _tiff_levels(slide) if isinstance(slide, TiffSlide) else _other_levels(slide)
    found = []
    for number, level in enumerate(slide.levels):
        tile = slide.tile_size(number)
        mpp = max(slide.mpp_x * level.downsample_x, slide.mpp_y * level.downsample_y)
        shape = (level.width, level.height, mpp, None if tile == (1, 1) else tile)
        found.append(StoredLevel(number, *shape, *told.get((level.width, level.height), ("unknown", "", None))))
    return found


Told = dict[tuple[int, int], tuple[str, str, float | None]]
"""By width and height of a level: compression, subsampling, bits a pixel."""


def _tiff_levels(slide: TiffSlide) -> Told:
    found: Told = {}
    for level in TiffIndex.unpack(slide.packed_index()).levels:
        stored = int((level.counts > 0).sum())
        pixels = stored * level.coding.tile_width * level.coding.tile_height
        bits = 8 * int(level.counts.sum()) / pixels if stored else None
        found[level.width, level.height] = _codec(level), _chroma(slide.path, level), bits
    return found


def _codec(level: TiffLevel) -> str:
    code = level.coding.compression
    if code in JPEG_2000:
        return "JPEG 2000"
    name = _CODECS.get(code, f"TIFF {code}")
    return f"{name} YCbCr" if level.coding.photometric == YCC else name


def _chroma(path: Path, level: TiffLevel) -> str:
    """Chroma subsampling of the level's first whole tile: "4:2:0"; "" where it has none or cannot be looked at."""
    if level.coding.compression != JPEG or not path.is_file():
        return ""
    try:
        source = FileBytes(path)
    except SlideError:
        return ""
    try:
        places = zip(level.offsets.tolist(), level.counts.tolist(), strict=True)
        first = next((place for place in places if place[1] and sum(place) <= source.size), None)
        return "" if first is None else chroma_of_jpeg(source.read([first])[0])
    finally:
        source.close()


def chroma_of_jpeg(data: bytes) -> str:
    """Chroma subsampling by the frame header of a JPEG stream: "4:4:4", "4:2:2" …; "" where there is none."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xC2:
            if length < 17:
                return ""  # one component
            factors = data[at + 11]
            return _SUBSAMPLING.get((factors >> 4, factors & 15), f"{factors >> 4}x{factors & 15}")
        at += 2 + length
    return ""


def _other_levels(slide: Slide) -> Told:
    """What tifffile can say of the levels of a TIFF that another reader reads; nothing of other formats."""
    if slide.reader == "image" and len(slide.levels):
        return {(level.width, level.height): _image_level(slide, level.width) for level in slide.levels}
    found: Told = {}
    try:
        with tifffile.TiffFile(slide.path) as file:
            for page in file.pages:
                shape = int(page.imagewidth), int(page.imagelength)
                if page.is_tiled:
                    pixels = math.prod(shape) or 1
                    compression = page.compression.name.replace("APERIO_JP2000_YCBC", "JPEG 2000 (Aperio, YCbCr)")
                    found[shape] = compression, "", 8 * sum(page.databytecounts) / pixels
    except Exception:  # not a TIFF, or one that tifffile cannot read either
        return {}
    return found


def _image_level(slide: Slide, width: int) -> tuple[str, str, float | None]:
    if width != slide.width:
        return "in memory", "", None
    size = slide.path.stat().st_size if slide.path.is_file() else None
    return slide.vendor.upper(), "", None if size is None else 8 * size / (slide.width * slide.height)
