"""`eosin features`: features of tasks as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def features(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Exported folder, zoo or timm name, or `colour`.")],
    tasks: Annotated[
        list[str],
        typer.Option("--tasks", "--task", help="Public tasks by name, or NAME=PATH. Repeat, or a comma list."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the files.")],
    data: Annotated[Path | None, typer.Option("--data", help="Folder that holds the public tasks.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="eva: a manifest and a .pt a sample; npz: one file a task.")
    ] = "eva",
    results: Annotated[
        Path | None, typer.Option("--results", help="Folder of `eosin eval` whose kept features are used.")
    ] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="File with the weights of MODEL.")] = None,
    random_init: Annotated[bool, typer.Option("--random-init", help="MODEL with random weights.")] = False,
    pooling: Annotated[str | None, typer.Option("--pooling", help="cls, cls+mean or mean.")] = None,
    input_size: Annotated[int | None, typer.Option("--input-size", help="Side that the encoder sees, px.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a batch.")] = 64,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that read images.")] = 0,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of random weights.")] = 0,
    any_count: Annotated[
        bool, typer.Option("--any-count", help="Take a public task that has not its known number of images.")
    ] = False,
) -> None:
    """Write the features of tasks so that eva reads them (manifest.csv), or as .npz for `eosin eval --features`."""
    from eosin.evaluation.feature_files import write_features

    written = write_features(
        model,
        [spec for entry in tasks for spec in entry.split(",") if spec],
        out,
        data,
        form=form,
        results=results,
        weights=weights,
        random_init=random_init,
        pooling=pooling,
        input_size=input_size,
        batch=batch,
        workers=workers,
        device=device,
        seed=seed,
        any_count=any_count,
    )
    for path in written:
        typer.echo(f"written: {path}")
