"""heatmap: where on a slide trained heads look, or what they say of each tile, as pictures and files.

Features come from heatmap_features.py, values from the heads (heatmap_values.py), pictures from heatmap_paint.py, files
for QuPath and others from heatmap_files.py, the page from heatmap_page.py. Label and macro images are never read. What
attention shows is what the head weighed, which is not a proof of what decided.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eosin import figures
from eosin.errors import DataError, OutputError, SlideError
from eosin.files import PathLike, check_writable, write_bytes, write_json
from eosin.provenance import versions
from eosin.report.heatmap_features import check_model, embedded, feature_file, open_scaled, tiles_of
from eosin.report.heatmap_files import (
    ObjectType,
    OmeKind,
    check_objects,
    check_ome,
    write_csv,
    write_geojson,
    write_ome,
)
from eosin.report.heatmap_page import HeatmapFiles, Shown, tile_words, write_heatmap_page
from eosin.report.heatmap_paint import (
    OPACITY,
    Tiles,
    colours,
    most_and_least,
    overlay,
    paint,
    pitch_of,
    read_tiles,
    tile_sheet,
    with_legend,
)
from eosin.report.heatmap_values import Floats, Heads, Values, concentration, percentiles, values_of
from eosin.slides import Slide
from eosin.slides.uri import is_uri

OVERVIEW_PX = 2000
OME_MPP = 4.0
SHOWN_TILES = 16
SHEET_COLUMNS = 8
_SMALL_PX = 700


@dataclass(frozen=True)
class HeatmapOptions:
    """What is drawn, and how.

    what ("attention" | "score"), task, branch, scale ("percentile" | "raw"): see `values_of`. mpp: µm/px of the
    OME-TIFF, not finer than the slide; ome: "overlay" (RGB) or "score" (float32 values). objects, share: of the
    GeoJSON, see `write_geojson`. opacity: of the colours, 0 to 1.
    """

    what: str = "attention"
    task: str | None = None
    branch: str | None = None
    scale: str | None = None
    mpp: float = OME_MPP
    ome: OmeKind = "overlay"
    objects: ObjectType = "detection"
    share: float = 1.0
    opacity: float = OPACITY

    def __post_init__(self) -> None:
        """DataError for a word or number that nothing can be drawn with, before anything is read or written."""
        if not 0 <= self.opacity <= 1:
            raise DataError(f"opacity {self.opacity} is outside 0 to 1")
        check_ome(self.ome)
        check_objects(self.objects, self.share)


def heatmap(
    heads_dir: PathLike,
    slide: PathLike,
    out: PathLike,
    *,
    features: PathLike | None = None,
    model: str | None = None,
    stride: int | None = None,
    mpp_csv: PathLike | None = None,
    options: HeatmapOptions | None = None,
    device: str | None = None,
    command: str = "",
) -> Path:
    """Draw the heatmap of one slide into the folder `out`; returns the path of its page.

    Args:
        heads_dir: folder of `eosin mil train`.
        slide: the slide file; mpp_csv: CSV slide,mpp where the file does not say its µm/px.
        features: h5 of its tiles (ours, TRIDENT's, CLAM's), or a folder of them. Without it the slide is embedded into
            `out`/features with `model` (without that, the model that the heads name) and `stride`.
        command: what made it, for the page.

    Raises:
        DataError: features of another slide or another model, no such branch, heads without attention.
        SlideError, OutputError: the slide cannot be read, `out` cannot be written or holds another slide's heatmap.
    """
    from eosin.evaluation.mil import load_heads
    from eosin.features.extract import find_device
    from eosin.features.h5 import read_features

    started = time.perf_counter()
    chosen = options or HeatmapOptions()
    if not is_uri(slide) and not Path(slide).exists():
        raise SlideError(f"{slide}: no such slide")
    files = HeatmapFiles(check_writable(out))
    _refuse_other_slide(files, Path(slide).name)
    heads = load_heads(heads_dir, find_device(device))
    if features is not None:
        source = feature_file(features, slide)
    else:
        open_scaled(slide, mpp_csv, {}).close()  # an unreadable slide is told before an encoder is loaded
        source = embedded(heads, Path(slide), files.root / "features", model, stride, mpp_csv, device)
    found = read_features(source)
    check_model(heads, found.attributes, source)
    with open_scaled(slide, mpp_csv, found.attributes, source) as opened:
        tiles = tiles_of(found.coords, found.attributes, opened, source)
        values = values_of(heads, found.features, chosen.what, chosen.task, chosen.branch, chosen.scale)
        told: dict[str, Any] = {
            "heads": str(heads_dir),
            "features": str(source),
            "features_of": found.attributes.get("name"),
            "scores": slide_scores(heads, found.features),
        }
        told |= {key: heads.info.get(key) for key in ("head", "model", "model_hash")} | {"command": command}
        return draw_heatmap(values, tiles, opened, files, chosen, told, started)


def draw_heatmap(
    values: Values,
    tiles: Tiles,
    slide: Slide,
    files: HeatmapFiles,
    options: HeatmapOptions,
    told: dict[str, Any],
    started: float,
) -> Path:
    """Write every file of a heatmap whose values are known; the path of its page. `told`: where they are from."""
    mpp = max(options.mpp, slide.mpp)
    summary = {
        "slide": slide.path.name,
        **told,
        "what": values.what,
        "branch": values.name,
        "scale": values.scale,
        "meaning": values.meaning,
        "tiles": len(tiles),
        "tile_px": tiles.size_px,
        "tile_mpp": tiles.mpp,
        "tile_level0_px": list(tiles.side),
        "overlap": tiles.overlap,
        "slide_px": [slide.width, slide.height],
        "slide_mpp": [slide.mpp_x, slide.mpp_y],
        "concentration": concentration(values.raw) if values.what == "attention" else None,
        "ome": options.ome,
        "ome_mpp": mpp,
        "versions": versions(),
    }
    shown = _pictures(summary, values, tiles, slide, files, options.opacity)
    write_ome(files.ome, slide, tiles, values, mpp, options.ome, options.opacity)
    summary["geojson_tiles"] = write_geojson(
        files.geojson, tiles, values, slide.path.name, options.objects, options.share
    )
    write_csv(files.csv, tiles, values)
    summary["seconds"] = time.perf_counter() - started
    write_json(files.summary, summary)
    return write_heatmap_page(files, shown)


def _pictures(
    summary: dict[str, Any], values: Values, tiles: Tiles, slide: Slide, files: HeatmapFiles, opacity: float
) -> Shown:
    """Draw and write the PNGs; returns what the page needs."""
    tissue, mpp = slide.overview(OVERVIEW_PX)
    shade = paint(tiles, values.shade, pitch_of(slide, mpp), tissue.shape[:2])
    drawn, grid = overlay(tissue, shade, opacity), colours(shade)
    write_bytes(files.overlay, figures.png(with_legend(drawn, values, mpp, slide.path.name)))
    write_bytes(files.grid, figures.png(with_legend(grid, values, mpp, slide.path.name)))
    most, least = (
        list(zip(numbers, read_tiles(slide, tiles, numbers), strict=True))
        for numbers in most_and_least(tiles, values.raw, SHOWN_TILES)
    )
    title = f"{slide.path.name}: {values.title}, tiles of {tiles.size_px} px at {tiles.mpp:g} µm/px"
    write_bytes(files.sheet, figures.png(_sheet(values, title, most, least)))
    return Shown(summary, values, drawn, grid, _other_branches(values, tiles, slide, opacity), most, least)


def _sheet(values: Values, title: str, *groups: Sequence[tuple[int, figures.Image]]) -> figures.Image:
    rows = [
        (heading, [image for _, image in group], [tile_words(values, number) for number, _ in group])
        for heading, group in zip(("highest", "lowest"), groups, strict=True)
        if group
    ]
    return tile_sheet(rows, SHEET_COLUMNS, title)


def _other_branches(values: Values, tiles: Tiles, slide: Slide, opacity: float) -> list[tuple[str, figures.Image]]:
    """Small overlays of what else of the same kind the heads give."""
    tissue, mpp = slide.overview(_SMALL_PX)
    found = []
    for name, raw in values.others.items():
        if name.startswith(values.what) and name != values.key:
            shade = paint(tiles, _shade_like(values, raw), pitch_of(slide, mpp), tissue.shape[:2])
            found.append((name, overlay(tissue, shade, opacity)))
    return found


def _shade_like(values: Values, raw: Floats) -> Floats:
    """Another branch on the scale of the one that is shown."""
    if values.scale == "percentile":
        return percentiles(raw)
    return np.clip((raw - values.low) / (values.high - values.low), 0, 1).astype(np.float32)


def slide_scores(heads: Heads, features: Any) -> dict[str, dict[str, float]]:
    """What the heads say of the whole slide: task -> class -> probability (or "value", "risk")."""
    return {task: {name: float(v) for name, v in said.items()} for task, said in heads.scores(features).items()}


def _refuse_other_slide(files: HeatmapFiles, name: str) -> None:
    if not files.summary.is_file():
        return
    try:
        there = json.loads(files.summary.read_text(encoding="utf-8")).get("slide")
    except (OSError, ValueError, AttributeError):
        return
    if there != name:
        raise OutputError(f"{files.root} holds the heatmap of {there}; give another -o")
