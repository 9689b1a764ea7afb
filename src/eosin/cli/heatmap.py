"""`eosin heatmap`: where on a slide trained heads look, as pictures, for QuPath, and as one page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def heatmap(
    heads: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `eosin mil train`.")],
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="The slide file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; one slide a folder.")],
    features: Annotated[
        Path | None,
        typer.Option("--features", help="h5 of the slide's tiles, or a folder of them; embedded without."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Encoder to embed with; the one that the heads name without.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Embedding: distance of tiles, px; overlapping = smoother.")
    ] = None,
    what: Annotated[str, typer.Option("--what", help="attention, or score: what the head says of each tile.")] = (
        "attention"
    ),
    task: Annotated[str | None, typer.Option("--task", help="Task, where the heads have several.")] = None,
    branch: Annotated[
        str | None, typer.Option("--branch", help="Branch or class; the predicted class without.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option("--scale", help="percentile (attention) or raw (score); colours over the values.")
    ] = None,
    mpp: Annotated[float, typer.Option("--mpp", min=0.05, max=200.0, help="µm/px of the OME-TIFF.")] = 4.0,
    ome: Annotated[
        str, typer.Option("--ome", help="overlay: RGB over grey tissue; score: float32 values, to measure on.")
    ] = "overlay",
    objects: Annotated[
        str, typer.Option("--objects", help="detection or annotation: what QuPath makes of a tile.")
    ] = "detection",
    share: Annotated[
        float, typer.Option("--share", help="GeoJSON: share of the tiles with the highest values; 1 = all.")
    ] = 1.0,
    opacity: Annotated[float, typer.Option("--opacity", help="Of the colours over the tissue, 0 to 1.")] = 0.75,
    mpp_csv: Annotated[
        Path | None, typer.Option("--mpp-csv", help="CSV slide,mpp where the slide does not say its scale.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
) -> None:
    """Draw attention or class scores of trained heads over a slide.

    Writes heatmap.png, grid.png, tiles.png (most and least), heatmap.ome.tif (pyramid), heatmap.geojson (QuPath),
    heatmap.csv, heatmap.json and report.html.
    """
    from eosin.report.heatmap import HeatmapOptions
    from eosin.report.heatmap import heatmap as draw

    options = HeatmapOptions(what, task, branch, scale, mpp, ome, objects, share, opacity)  # type: ignore[arg-type]
    page = draw(
        heads,
        slide,
        out,
        features=features,
        model=model,
        stride=stride,
        mpp_csv=mpp_csv,
        options=options,
        device=device,
        command=shlex.join(["eosin", *sys.argv[1:]]),
    )
    typer.echo(f"written: {page}")
