"""report.html of one heatmap: the slide coloured, the most and least attended tiles, how to open it in QuPath."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosin import figures
from eosin.files import PathLike, write_text
from eosin.report.heatmap_paint import colours
from eosin.report.heatmap_values import Values
from eosin.report.mil_charts import round_ticks
from eosin.report.page import Html, Section, duration, element, figure, number, picture, render_page, table

_STOPS = 24  # of the legend's gradient
_BINS = 40
_EVEN = 0.99  # of all tiles: attention on so many is as good as even
_LOGARITHMIC_FROM = 20  # largest value over smallest
PICTURE_PX = 1400


class HeatmapFiles:
    """Paths in the output folder."""

    def __init__(self, root: PathLike) -> None:
        self.root = Path(root)
        self.overlay = self.root / "heatmap.png"
        self.grid = self.root / "grid.png"
        self.sheet = self.root / "tiles.png"
        self.ome = self.root / "heatmap.ome.tif"
        self.geojson = self.root / "heatmap.geojson"
        self.csv = self.root / "heatmap.csv"
        self.summary = self.root / "heatmap.json"
        self.report = self.root / "report.html"


class Shown(NamedTuple):
    """All that the page shows: what heatmap.json says, values, pictures of the slide, tiles with their numbers."""

    summary: dict[str, Any]
    values: Values
    overlay: figures.Image
    grid: figures.Image
    others: list[tuple[str, figures.Image]]
    most: list[tuple[int, figures.Image]]
    least: list[tuple[int, figures.Image]]


def tile_words(values: Values, number: int) -> str:
    """What is written under a tile: its value, and its percentile where that is what is coloured."""
    raw = float(values.raw[number])
    text = f"{raw:.3f}" if 0.1 <= raw < 10 or values.what == "score" else f"{raw:.3g}"
    text += "×" if values.what == "attention" else ""
    return f"{text} · {100 * float(values.shade[number]):.1f} %" if values.scale == "percentile" else text


def write_heatmap_page(files: HeatmapFiles, shown: Shown) -> Path:
    """Write the page beside the files that it describes; returns its path. One file, no network."""
    summary, values = shown.summary, shown.values
    sections = [
        _map_section(shown),
        _spread_section(summary, values),
        _tiles_section(shown),
        _scores_section(summary),
        _others_section(shown),
        _files_section(files, summary, values),
        _origin_section(summary),
    ]
    title = f"{summary['slide']} · {values.title}"
    write_text(files.report, render_page(f"{title} · eosin heatmap", _header(summary, values), sections, {}))
    return files.report


def _header(summary: dict[str, Any], values: Values) -> Html:
    width, height = summary["slide_px"]
    mpp_x, mpp_y = summary["slide_mpp"]
    facts = [
        ("Shown", values.title),
        ("Head", summary["head"]),
        ("Encoder", summary["model"]),
        ("Tiles", f"{number(summary['tiles'], 9)}{', overlapping' if summary['overlap'] else ''}"),
        ("Tile", f"{summary['tile_px']} px at {summary['tile_mpp']:.4g} µm/px"),
        ("Slide", f"{width:,} × {height:,} px, {width * mpp_x / 1000:.1f} × {height * mpp_y / 1000:.1f} mm"),
        ("Written in", duration(summary["seconds"])),
    ]
    entries = [element("div", element("dt", key), element("dd", str(value))) for key, value in facts if value]
    return element(
        "header",
        element("h1", str(summary["slide"])),
        element("p", f"heatmap · page written {time.strftime('%Y-%m-%d %H:%M %Z')}", class_="status"),
        element("dl", entries, class_="facts"),
    )


def _map_section(shown: Shown) -> Section:
    values = shown.values
    averaged = (
        " Where tiles overlap, a place has the mean of all tiles that cover it." if shown.summary["overlap"] else ""
    )
    how = (
        f"Colour is the {values.meaning}. Tissue under a tile is shown in grey, so hue is the value's alone; tissue in "
        f"its own colours was given no tile.{averaged}"
    )
    if values.what == "attention":
        how += " Attention is how much the head weighed a tile, not a proof of what decided."
    tissue = figure(picture(shown.overlay, f"Slide with {values.title} as colour", PICTURE_PX), "over the tissue")
    grid = figure(
        picture(shown.grid, f"{values.title} as colour, without the tissue", PICTURE_PX, lossless=True),
        "values alone; grey: no tile",
    )
    portrait = shown.overlay.shape[0] > 0.8 * shown.overlay.shape[1]
    columns = "1fr 1fr" if portrait else "1fr"
    pair = element(
        "div", tissue, grid, style=f"display:grid;grid-template-columns:{columns};gap:1rem;align-items:start"
    )
    return Section("map", "Map", how, [*_other_name(shown.summary), _legend(values), pair])


def _other_name(summary: dict[str, Any]) -> list[Html]:
    """A warning where the features say that they are of a slide of another name."""
    name, stem = str(summary.get("features_of") or ""), Path(str(summary["slide"])).stem
    if not name or stem in (name, Path(name).stem) or name.startswith(f"{stem}-"):
        return []
    words = f"The features say that they are of {name}. If that is another slide, this map means nothing."
    return [element("p", words, class_="note bad")]


def _legend(values: Values) -> Html:
    """The colours with their numbers, as SVG in the page's own ink."""
    table_ = colours(np.linspace(0, 1, _STOPS))
    stops = [
        element("stop", offset=f"{n / (_STOPS - 1):.4f}", stop_color="rgb({},{},{})".format(*colour))
        for n, colour in enumerate(table_.tolist())
    ]
    parts = [
        element("linearGradient", stops, id="legend-colours"),
        element("rect", x=10, y=4, width=400, height=14, fill="url(#legend-colours)"),
    ]
    for shade in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = 10 + 400 * shade
        parts.append(element("line", x1=x, x2=x, y1=18, y2=22, stroke="var(--soft)"))
        parts.append(
            element("text", values.tick(shade), x=x, y=34, class_="axis", text_anchor="middle", style="font-size:12px")
        )
    return element(
        "svg",
        parts,
        viewBox="0 0 420 40",
        role="img",
        aria_label=f"Legend: {values.meaning}",
        style="width:26rem;max-width:100%",
    )


def _spread_section(summary: dict[str, Any], values: Values) -> Section:
    raw, alarm = values.raw, ""
    if values.what == "attention":
        told = summary["concentration"]
        words = (
            f"The most attended 1 % of tiles ({number(int(told['top_tiles']))}) hold {told['top_share']:.1%} of the "
            f"attention; the largest share is {number(told['largest'], 3)} times an even one. Attention of this "
            f"entropy, spread evenly, would lie on {number(told['effective'], 4)} of {number(len(raw))} tiles."
        )
        how = (
            "Percentiles look alike on every slide; this tells whether the head picks few tiles or hardly prefers any: "
            "if nearly all tiles are near 1, the map's colours are differences of no weight."
        )
        if told["effective"] > _EVEN * len(raw):
            alarm = "The head hardly prefers any tile: what the map shows are differences of next to no weight."
        wide = float(raw.max()) > _LOGARITHMIC_FROM * max(float(raw.min()), 1e-3)
        label = f"attention × number of tiles (1 = even share){', logarithmic' if wide else ''}"
        drawing = _histogram(raw, label, logarithmic=wide)
    else:
        low, middle, high = (number(float(of(raw)), 3) for of in (np.min, np.median, np.max))
        words = f"Scores run from {low} to {high}, median {middle}."
        how = "Each tile is scored as a bag of one, which the head was not trained on: read the order, not the level."
        drawing = _histogram(raw, "score of the tile", logarithmic=False)
    chart = element(
        "figure", element("header", element("b", "Tiles by value")), drawing, class_="chart", style="max-width:34rem"
    )
    warning = [element("p", alarm, class_="note bad")] if alarm else []
    return Section("spread", "How it is spread", how, [element("p", words), *warning, chart])


def _histogram(raw: np.ndarray, label: str, logarithmic: bool) -> Html:
    """Counts of tiles over their values; values of 0 stand in the lowest bin of a logarithmic one."""
    width, height, left, bottom = 520, 170, 46, 34
    shown = np.asarray(raw, np.float64)
    if logarithmic:
        shown = np.log10(np.maximum(shown, 1e-3))
    low, high = float(shown.min()), float(shown.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(shown, bins=_BINS, range=(low, high))
    most = int(counts.max())
    wide = (width - left - 10) / _BINS
    parts = [element("line", x1=left, x2=width - 10, y1=height - bottom, y2=height - bottom, stroke="var(--soft)")]
    for n, count in enumerate(counts.tolist()):
        if count:
            tall = max(1.0, (height - bottom - 12) * count / most)
            words = element("title", f"{number(count, 9)} tiles")
            box = {"x": round(left + n * wide, 2), "y": round(height - bottom - tall, 2)}
            parts.append(
                element("rect", words, **box, width=round(wide - 1, 2), height=round(tall, 2), fill="var(--accent)")
            )
    for value in _ticks(low, high, logarithmic):
        x = left + (value - low) / (high - low) * (width - left - 10)
        text = number(10**value, 2) if logarithmic else number(value, 3)
        parts.append(element("text", text, x=round(x, 1), y=height - bottom + 13, class_="axis", text_anchor="middle"))
    parts.append(element("text", number(most, 9), x=left - 5, y=16, class_="axis", text_anchor="end"))
    parts.append(element("text", "0", x=left - 5, y=height - bottom + 3, class_="axis", text_anchor="end"))
    parts.append(element("text", label, x=(left + width) / 2, y=height - 5, class_="axis", text_anchor="middle"))
    return element("svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=f"Histogram: {label}")


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        values = [math.log10(factor) + power for power in range(-3, 7) for factor in (1, 2, 5)]
        inside = [value for value in values if low <= value <= high]
        return inside if len(inside) <= 10 else [value for value in inside if abs(value - round(value)) < 1e-9]
    return round_ticks(low, high)


def _tiles_section(shown: Shown) -> Section:
    values = shown.values
    body: list[Html] = []
    for heading, group in (("Highest", shown.most), ("Lowest", shown.least)):
        if group:
            cells = [
                figure(picture(image, f"Tile, {tile_words(values, n)}", 256), tile_words(values, n))
                for n, image in group
            ]
            body += [element("h3", heading), element("div", cells, class_="tiles")]
    unit = "times an even share, then the percentile" if values.what == "attention" else "the score"
    how = (
        f"Tiles as the encoder saw them, at {shown.summary['tile_mpp']:.4g} µm/px, none of which overlaps another. "
        f"Under each: {unit}. The highest should share a tissue that a pathologist can name; ink, folds or blur among "
        "them say that the head learnt something else."
    )
    return Section("tiles", "Most and least" + (" attended" if values.what == "attention" else ""), how, body)


def _scores_section(summary: dict[str, Any]) -> Section:
    rows = [[task, name, number(value, 3)] for task, said in summary["scores"].items() for name, value in said.items()]
    how = "What the heads say of the whole slide, mean over their seeds or folds."
    body = [table(["task", "class", "score"], rows, numeric=(2,), compact=True)] if rows else []
    return Section("scores", "Prediction", how, body, "the heads give no score.")


def _others_section(shown: Shown) -> Section:
    cells = [figure(picture(image, name, 700), name) for name, image in shown.others]
    how = "The other branches of the same heads, on the same scale."
    body = [element("div", cells, class_="charts")] if cells else []
    return Section("branches", "Other branches", how, body, "the heads have one branch.")


def _files_section(files: HeatmapFiles, summary: dict[str, Any], values: Values) -> Section:
    factor = summary["ome_mpp"] / summary["slide_mpp"][0]
    kind = "RGB over grey tissue" if summary["ome"] == "overlay" else "one float32 channel of raw values"
    rows = [
        [
            files.geojson.name,
            f"{number(summary['geojson_tiles'], 9)} tiles in level-0 px; drag it onto the open slide in QuPath, then "
            "Measure › Show measurement maps, or colour by class",
        ],
        [
            files.ome.name,
            f"pyramid at {summary['ome_mpp']:.4g} µm/px ({factor:.4g} slide px a pixel, same top-left corner), {kind}",
        ],
        [files.csv.name, "one row a tile: position, value, percentile, every branch and class"],
        [files.overlay.name, "over the tissue, with legend"],
        [files.grid.name, "values alone, with legend"],
        [files.sheet.name, "most and least, pixel by pixel"],
        [files.summary.name, "all settings and hashes"],
    ]
    lines = [[element("span", name, class_="code"), text] for name, text in rows]
    return Section("files", "Files", "Beside this page.", [table(["file", "what it holds"], lines)])


def _origin_section(summary: dict[str, Any]) -> Section:
    rows = [
        ["heads", summary["heads"]],
        ["features", summary["features"]],
        ["model hash", str(summary["model_hash"] or "–")],
        ["versions", ", ".join(f"{key} {summary['versions'][key]}" for key in ("eosin", "torch", "python"))],
    ]
    body = [element("pre", element("code", summary["command"]))] if summary["command"] else []
    lines = [[key, element("span", value, class_="code")] for key, value in rows]
    return Section("reproduce", "How to reproduce", "", [*body, table(["", ""], lines)])
