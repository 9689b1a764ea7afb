"""`eosin study`: a grid of runs becomes one table and one page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from eosin.errors import RecipeError, TrainingStopped


def study(
    file: Annotated[
        str, typer.Argument(metavar="FILE|NAME|list", help="A .yaml file, or a shipped name; `list` prints the names.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write; the same command again goes on.")
    ] = None,
    cohort: Annotated[
        list[str] | None, typer.Option("--cohort", help="FILE from `eosin index`, or NAME=FILE:weight. Repeat.")
    ] = None,
    tiles: Annotated[
        list[str] | None, typer.Option("--tiles", help="Folder or glob of tiles cut already, or DIR:weight. Repeat.")
    ] = None,
    mpp: Annotated[float | None, typer.Option("--mpp", help="µm/px that the --tiles have.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="Slides to use, e.g. \"site == 'A'\".")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of every run: run.batch=64. Repeat.")
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="NAME=PATH of labelled tiles, beside the file's. Repeat.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, list the runs and their tiles, write nothing.")
    ] = False,
) -> None:
    """Train the runs of a study one after another, probe them alike, and compare them with intervals."""
    if file == "list":
        from eosin.training.study_file import shipped_studies

        for name, description in shipped_studies().items():
            typer.echo(f"{name:20s} {description}")
        return
    if dry_run:
        from eosin.training.study_plan import Words, describe_study, plan_study

        words = Words(cohort or [], tiles or [], mpp, where, device)
        typer.echo(describe_study(plan_study(file, words, changes or [], probe or [])))
        return
    if out is None:
        raise RecipeError("give the study's folder with -o")
    from eosin.report import write_study_report
    from eosin.training import run_study

    told = run_study(
        file,
        out,
        cohort=cohort or [],
        tiles=tiles or [],
        mpp=mpp,
        where=where,
        set=changes or [],
        probe=probe or [],
        device=device,
    )
    page = write_study_report(out, command=shlex.join(["eosin", *sys.argv[1:]]))
    typer.echo(page)
    _refuse_failed(told["runs"], page)


def _refuse_failed(runs: list[dict[str, Any]], page: Path) -> None:
    """Raises TrainingStopped, one line, where runs of a study have failed."""
    if failed := [run for run in runs if run["status"] == "failed"]:
        first = failed[0]
        raise TrainingStopped(
            f"{len(failed)} of {len(runs)} runs failed, first {first['arm']}, seed {first['seed']}: {first['error']}; "
            f"the others are in {page}"
        )
