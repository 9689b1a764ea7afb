"""`eosin embed`: features of all tissue tiles of slides, as h5 files that TRIDENT's and CLAM's tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def embed(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Exported folder, zoo name, timm name, or `colour`.")],
    slides: Annotated[
        list[str], typer.Argument(metavar="COHORT|SLIDE…", help="cohort.parquet, or slide files, folders, patterns.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the features; again = resume.")],
    mpp: Annotated[float | None, typer.Option("--mpp", help="µm/px of the tiles; default: the encoder's.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Side of a tile, px; default: what the encoder sees.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="Distance of tiles, px; default: side by side.")
    ] = None,
    min_foreground: Annotated[
        float, typer.Option("--min-foreground", min=0.0, max=1.0, help="Least share of tissue; 0: any tissue at all.")
    ] = 0.25,
    pooling: Annotated[str | None, typer.Option("--pooling", help="cls, cls+mean or mean.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="File with the weights of MODEL.")] = None,
    random_init: Annotated[bool, typer.Option("--random-init", help="MODEL with random weights.")] = False,
    input_size: Annotated[int | None, typer.Option("--input-size", help="Side that the encoder sees, px.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random weights.")] = 0,
    tokens: Annotated[bool, typer.Option("--tokens", help="Store the patch tokens too, in float16.")] = False,
    clam: Annotated[bool, typer.Option("--clam", help="Also write clam/h5_files and clam/pt_files.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=0, help="Processes that read.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Tiles a forward pass.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or bf16; default: bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    mpp_csv: Annotated[
        Path | None, typer.Option("--mpp-csv", help="CSV slide,mpp for slides that do not say their scale.")
    ] = None,
    where: Annotated[str | None, typer.Option("--where", help="Expression over cohort columns.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop the features that the folder holds.")] = False,
    stage: Annotated[
        str, typer.Option("--stage", help="tile; of an exported pyramid also region or slide: one Parquet table.")
    ] = "tile",
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Embed on a Ray cluster: local, auto, HOST:PORT, ray://…"),
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="I/N", help="Every N-th slide only, e.g. a job of an array.")
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="With the log of Ray itself.")] = False,
) -> None:
    """Embed all tissue tiles of a cohort or of slides: one h5 a slide, resumable, failures in failures.csv.

    Tiles lie on a grid from the top-left of the tissue, at the µm/px and size that the encoder was trained for.
    """
    words = dict(locals())  # each option is the argument of the same name

    from eosin.features.embed import embed_slides

    embed_slides(**words)
