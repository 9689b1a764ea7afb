"""`eosin report RUN`: the page of a training run, at any time, also while it trains."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN…",
            help="Run folder, or that of a quickstart, a study or `mil train`; several of `mil train` are compared.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; RUN/report.html without.")] = None,
    model: Annotated[Path | None, typer.Option(help="Exported model, for patch-token and neighbour pictures.")] = None,
    results: Annotated[Path | None, typer.Option(help="Folder with the results.json of `eosin eval`.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="Cohort file, for the table of slides.")] = None,
) -> None:
    """Write one self-contained HTML page of a run: curves, tiles, views, patch tokens, neighbours, probe.

    A quickstart's model, results and cohort are found beside its run; for other runs name them.
    """
    from eosin.cli.quickstart import SYNTHETIC, SYNTHETIC_CAPTION
    from eosin.errors import DataError
    from eosin.report import write_run_report, write_study_report

    run = runs[0]
    if all((folder / "predictions.csv").is_file() for folder in runs):
        from eosin.report.mil_page import write_mil_page

        typer.echo(write_mil_page(runs, out, command=shlex.join(["eosin", *sys.argv[1:]])))
        return
    if len(runs) > 1:
        raise DataError("several folders on one page: only those of `eosin mil train`; give -o and such folders")
    if (run / "study.json").is_file():
        typer.echo(write_study_report(run, out))
        return
    if (run / "run").is_dir():
        run = run / "run"
    if run.name == "run":
        model = model or _existing(run.parent / "model", "config.json")
        results = results or _existing(run.parent / "results", "results.json")
        cohort = cohort or _existing(run.parent, "cohort.parquet", inside=True)
    encoder, random_encoder = _encoders(model)
    page = write_run_report(
        run,
        out or run / "report.html",
        encoder=encoder,
        random_encoder=random_encoder,
        results=_records(results),
        comparisons=_records(results, comparisons=True),
        cohort=_cohort(cohort),
        captions={SYNTHETIC: SYNTHETIC_CAPTION},
    )
    typer.echo(page)


def _existing(folder: Path, file: str, inside: bool = False) -> Path | None:
    """The folder (or with `inside` the file in it), if it has been written by now."""
    if not (folder / file).is_file():
        return None
    return folder / file if inside else folder


def _encoders(model: Path | None) -> tuple[Any, Any]:
    """The exported encoder and its twin with fresh weights."""
    if model is None:
        return None, None
    from eosin.features import load_model

    return load_model(model), load_model(model, random_init=True)


def _cohort(path: Path | None) -> Any:
    if path is None:
        return None
    from eosin.slides import Cohort

    return Cohort.read(path)


def _records(folder: Path | None, comparisons: bool = False) -> list[dict[str, Any]]:
    """Rows of results.json or, where it exists, of comparisons.json."""
    from eosin.evaluation.results import read_results

    if folder is None:
        return []
    if not comparisons:
        return read_results(folder)
    path = folder / "comparisons.json"
    return read_results(path) if path.is_file() else []
