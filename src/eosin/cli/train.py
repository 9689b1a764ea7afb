"""`eosin train`: a recipe and slides become a run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from eosin.errors import RecipeError


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name from `eosin recipes list`, or a .yaml file.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder; the same command again resumes.")] = None,
    cohort: Annotated[
        list[str] | None,
        typer.Option("--cohort", help="FILE from `eosin index`, or NAME=FILE:weight. Repeat."),
    ] = None,
    tiles: Annotated[
        list[str] | None,
        typer.Option("--tiles", help="Folder or glob of tiles cut already, or DIR:weight. Repeat."),
    ] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="µm/px that the --tiles have.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="Slides to use, e.g. \"site == 'A'\".")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change a value: run.batch=64. Repeat.")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Weights to start from: FILE, export, RUN, zoo or timm name.")
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            help="Task to judge the run on as it learns: NAME=PATH, or a public one by name. Repeat. How: --set"
            " run.probe_protocol=knn,logreg.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder that holds the public tasks of --probe.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run and what it costs, write nothing.")
    ] = False,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="With --dry-run: reckon with this GPU, e.g. H100, A100, RTX4090.")
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="With --dry-run: reckon with so many GPUs.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what the run folder holds and start anew.")] = False,
    accept_changed: Annotated[
        bool, typer.Option("--accept-changed", help="Resume although recipe or slides have changed.")
    ] = False,
) -> None:
    """Train an encoder on your slides; kill it and run it again, and it goes on exactly."""
    changes = [*([f"start={start}"] if start is not None else []), *(changes or [])]
    if dry_run:
        from eosin.training.dry_run import describe

        typer.echo(describe(recipe, cohort or [], tiles or [], mpp, where, changes, gpu, gpus or 1))
        return
    folder = _run_folder(out, gpu, gpus)
    from eosin.training import train as run
    from eosin.training.stopping import StoppedWhenComplete

    # What came when all was done asks for no more than to go.
    with suppress(StoppedWhenComplete):
        run(
            recipe,
            folder,
            cohort=cohort or [],
            tiles=tiles or [],
            mpp=mpp,
            where=where,
            set=changes,
            probe=probe or [],
            data=data,
            device=device,
            fresh=fresh,
            accept_changed=accept_changed,
        )
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"written: {folder}")


def _run_folder(out: Path | None, gpu: str | None, gpus: int | None) -> Path:
    """Where a run goes. Raises RecipeError for words that fit a dry run only."""
    if gpu is not None or gpus is not None:
        raise RecipeError("--gpu and --gpus are for --dry-run; a run takes the GPU it finds, or torchrun's several")
    if out is None:
        raise RecipeError("give the run folder with -o")
    return out
