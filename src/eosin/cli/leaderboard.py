"""`eosin leaderboard`: many results side by side, on one page that needs no network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def leaderboard(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS…",
            help="Folders or results.json of `eosin eval` and `eosin mil train`; NAME=PATH names its model.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("leaderboard.html"),
    csv: Annotated[Path | None, typer.Option("--csv", help="The same as CSV, a line a result.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Everything on the page as JSON.")] = None,
    eva: Annotated[Path | None, typer.Option("--eva", help="Folder for results in eva's shapes.")] = None,
    average: Annotated[
        list[str] | None,
        typer.Option("--average", help="midnight-13, eva-board, all. Repeat; default: those that are complete."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Show what others printed for the same tasks, marked.")
    ] = True,
) -> None:
    """Compare models: scores with intervals, ranks with ties, named averages, paired tests, charts, one part a task.

    Results of different protocols stand in different tables. Published values are anchors: in no rank or average.
    """
    from eosin.report.leaderboard import write_leaderboard

    page = write_leaderboard(
        results,
        out,
        csv=csv,
        json=json,
        eva=eva,
        average=average or [],
        published=published,
        command=shlex.join(["eosin", *sys.argv[1:]]),
    )
    for path in (csv, json, eva, page):
        if path is not None:
            typer.echo(f"written: {path}")
