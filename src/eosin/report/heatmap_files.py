"""Files of a heatmap for other programs: a pyramidal OME-TIFF, a GeoJSON of tiles for QuPath, a CSV.

The OME-TIFF begins at the slide's top-left corner and covers the whole slide at a stated µm/px, so it lies over the
slide at a constant factor. It is written in bands, level by level, each level read from the slide anew: memory is one
band of 512 rows whatever the slide's size. GeoJSON follows RFC 7946 with level-0 px as coordinates (QuPath's own
convention) and the properties that QuPath 0.4 and later read.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.files import PathLike, atomic_path
from eosin.progress import progress_bar
from eosin.report.heatmap_paint import OPACITY, Tiles, colours, overlay, paint, pitch_of, read_band
from eosin.report.heatmap_values import Values
from eosin.slides.reader import Slide

OmeKind = Literal["overlay", "score"]
ObjectType = Literal["detection", "annotation"]

TILE_PX = 512
JPEG_QUALITY = 88
BANDS = (0.0, 0.5, 0.8, 0.95, 0.99, 1.0)  # of the shade: classes of tiles in the GeoJSON
_SMALLEST_SIDE = 512
_IDS = uuid.UUID("5f1f3a63-9a0e-4f0b-8f39-3a1c1f2f7d55")  # namespace: a tile has the same id in every run


def check_ome(kind: str) -> None:
    """Raise DataError where `kind` is no kind of OME-TIFF."""
    if kind not in get_args(OmeKind):
        raise DataError(f"{kind!r} is no kind of OME-TIFF; give {' or '.join(get_args(OmeKind))}")


def check_objects(objects: str, share: float) -> None:
    """Raise DataError where `objects` or `share` make no GeoJSON."""
    if objects not in get_args(ObjectType):
        raise DataError(f"{objects!r} are no QuPath objects; give {' or '.join(get_args(ObjectType))}")
    if not 0 < share <= 1:
        raise DataError(f"a share of {share} of the tiles is none; give a number above 0, up to 1")


def write_ome(
    path: PathLike,
    slide: Slide,
    tiles: Tiles,
    values: Values,
    mpp: float,
    kind: OmeKind = "overlay",
    opacity: float = OPACITY,
) -> None:
    """Write the heatmap of a whole slide as a tiled pyramid at `mpp` µm/px, atomically.

    kind "overlay": RGB, colours over grey tissue, JPEG; opens wherever a slide does. kind "score": one float32
    channel, the raw values (NaN where no tile is), lossless; for measuring, in QuPath and in Python.

    Levels below the first are SubIFDs, as OME-TIFF has them, each half the size of the last. Raises DataError for an
    unknown kind, RegionError where `mpp` is finer than the slide, OutputError where the file cannot be written.
    """
    import tifffile

    check_ome(kind)
    levels = _levels(slide, mpp)
    pixels = sum(height * width for height, width in levels)
    size = {"axes": "YXS"} if kind == "overlay" else {"axes": "YX"}
    metadata = {
        **size,
        "Name": f"{slide.path.stem} {values.title}",
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
        "Description": f"{values.title}: {values.meaning}",
        "UUID": str(uuid.uuid5(_IDS, f"{slide.path.name} {values.title} {mpp} {kind}")),
    }
    words: dict[str, object] = {"tile": (TILE_PX, TILE_PX), "resolutionunit": "CENTIMETER"}
    if kind == "overlay":
        words |= {
            "photometric": "rgb",
            "compression": "jpeg",
            "compressionargs": {"level": JPEG_QUALITY},
            "dtype": "u1",
        }
    else:
        words |= {"photometric": "minisblack", "compression": "adobe_deflate", "dtype": "f4"}
    deep = (3,) if kind == "overlay" else ()
    total = sum(math.ceil(height / TILE_PX) for height, _ in levels)
    with (
        progress_bar("OME-TIFF", total, "band") as bar,
        atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, ome=True, bigtiff=pixels * (3 if deep else 4) > 2**31) as file,
    ):
        for number, shape in enumerate(levels):
            scale = mpp * 2**number
            first = (
                {"subifds": len(levels) - 1, "metadata": metadata}
                if number == 0
                else {"subfiletype": 1, "metadata": None}
            )
            resolution = (1e4 / scale, 1e4 / scale)
            bands = _tiles_of(slide, tiles, values, scale, shape, kind, opacity, bar.advance)
            file.write(bands, shape=(*shape, *deep), resolution=resolution, **words, **first)


def _levels(slide: Slide, mpp: float) -> list[tuple[int, int]]:
    """(height, width) of the levels, each the whole slide at twice the µm/px of the last."""
    found: list[tuple[int, int]] = []
    while not found or max(found[-1]) > _SMALLEST_SIDE:
        scale = mpp * 2 ** len(found)
        sides = slide.height * slide.mpp_y / scale, slide.width * slide.mpp_x / scale
        found.append((max(1, math.ceil(sides[0] - 1e-3)), max(1, math.ceil(sides[1] - 1e-3))))
    return found


def _tiles_of(
    slide: Slide,
    tiles: Tiles,
    values: Values,
    mpp: float,
    shape: tuple[int, int],
    kind: OmeKind,
    opacity: float,
    done: Callable[[], None],
) -> Iterator[npt.NDArray[np.generic]]:
    """The TIFF tiles of one level in row-major order; what lies beyond the slide is white or NaN."""
    height, width = shape
    pitch = pitch_of(slide, mpp)
    for top in range(0, height, TILE_PX):
        rows = min(TILE_PX, height - top)
        shown = values.shade if kind == "overlay" else values.raw
        band = paint(tiles, shown, pitch, (rows, width), top)
        if kind == "overlay":
            drawn: npt.NDArray[np.generic] = overlay(read_band(slide, top, width, rows, mpp), band, opacity)
        else:
            drawn = band
        for left in range(0, width, TILE_PX):
            part = drawn[:, left : left + TILE_PX]
            padding = [(0, TILE_PX - part.shape[0]), (0, TILE_PX - part.shape[1]), (0, 0)][: part.ndim]
            fill = 255 if kind == "overlay" else np.nan
            yield np.ascontiguousarray(np.pad(part, padding, constant_values=fill))
        done()


def write_geojson(
    path: PathLike,
    tiles: Tiles,
    values: Values,
    slide_name: str,
    objects: ObjectType = "detection",
    share: float = 1.0,
) -> int:
    """Write tiles as a GeoJSON FeatureCollection, atomically; returns how many.

    A tile is a closed square ring, counter-clockwise in its coordinates (level-0 px), with properties `objectType`,
    `classification` (name and colour of the band of the shown value) and `measurements` (the shown value, its
    percentile, and every branch and class score). `share`: only the tiles with the highest values, 0 < share <= 1.
    """
    check_objects(objects, share)
    count = max(1, round(share * len(tiles)))
    kept = np.sort(np.argsort(-values.raw, kind="stable")[:count])
    classes = [_class(values, band) for band in range(len(BANDS) - 1)]
    band_of = np.clip(np.searchsorted(BANDS, values.shade, side="right") - 1, 0, len(classes) - 1)
    numbers = measurements(values)
    names, columns = list(numbers), [_rounded(column) for column in numbers.values()]
    corners = tiles.coords.tolist()
    wide, high = (round(side, 2) if side % 1 else int(side) for side in tiles.side)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for place, n in enumerate(kept.tolist()):
            x, y = corners[n]
            ring = [[x, y], [x + wide, y], [x + wide, y + high], [x, y + high], [x, y]]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(_IDS, f"{slide_name} {x} {y}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "objectType": objects,
                    "classification": classes[band_of[n]],
                    "measurements": {name: column[n] for name, column in zip(names, columns, strict=True)},
                },
            }
            file.write(json.dumps(feature, ensure_ascii=False))
            file.write(",\n" if place + 1 < len(kept) else "\n")
        file.write("]}\n")
    return len(kept)


def _rounded(column: npt.NDArray[np.floating]) -> list[float]:
    """Six significant digits are what float32 holds; more would only lengthen the file."""
    return [float(f"{value:.6g}") for value in column.tolist()]


def _class(values: Values, band: int) -> dict[str, object]:
    """Name and colour of a band of shades; the colour is that of its middle."""
    low, high = BANDS[band], BANDS[band + 1]
    unit = " %" if values.scale == "percentile" else ""
    name = f"{values.title} {values.tick(low)}–{values.tick(high)}{unit}"
    return {"name": name, "color": colours(np.array((low + high) / 2)).tolist()}


def measurements(values: Values) -> dict[str, npt.NDArray[np.floating]]:
    """Columns of a tile: what is shown, its percentile, then every branch and class score."""
    from eosin.report.heatmap_values import percentiles

    raw = f"{values.title}{' × tiles' if values.what == 'attention' else ''}"
    found: dict[str, npt.NDArray[np.floating]] = {
        raw: values.raw,
        f"{values.title}, percentile": 100 * percentiles(values.raw),
    }
    for name, column in values.others.items():
        shown = f"{name}{' × tiles' if name.startswith('attention') else ''}"
        if not np.array_equal(column, values.raw):
            found[shown] = column
    return found


def write_csv(path: PathLike, tiles: Tiles, values: Values) -> None:
    """Write one row a tile: x, y, width, height (level-0 px), then the columns of `measurements`; atomically."""
    import pandas as pd

    table = pd.DataFrame({"x": tiles.coords[:, 0], "y": tiles.coords[:, 1]})
    table["width"], table["height"] = tiles.side
    for name, column in measurements(values).items():
        table[name] = column
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g")
