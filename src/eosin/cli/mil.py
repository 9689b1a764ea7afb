"""`eosin mil train | predict`: slide-level heads on features, judged by published protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from eosin.errors import DataError

mil = typer.Typer(help="Train and use slide-level heads (CLAM, ABMIL, linear ...) on features.", no_args_is_help=True)


@mil.command()
def train(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="FEATURES LABELS.csv",
            help="Folder of <slide>.h5 (`eosin embed`, TRIDENT, CLAM's h5_files or pt_files), and the label table:"
            " slide, patient[, site, split], one column a task. With --slide-features the table alone.",
        ),
    ],
    head: Annotated[
        str,
        typer.Option("--head", help="clam-sb, clam-mb, abmil, transmil, mean-linear, max-linear or linear."),
    ],
    protocol: Annotated[str, typer.Option("--protocol", help="exaone, 5-fold or hold-out.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; the same command again goes on.")],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Column, shipped task (cptac-brca-tp53 ...) or FILE.yaml. Repeat; all without."),
    ] = None,
    slide_features: Annotated[
        Path | None, typer.Option("--slide-features", help="Parquet table `slide, vector` in place of FEATURES.")
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            "--group",
            help="slide: a bag each; patient: a patient's slides in one bag; average: slides scored, patients judged.",
        ),
    ] = "slide",
    joint: Annotated[bool, typer.Option("--joint", help="One head for all tasks, not one each.")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="4; of 5-fold 1.")] = None,
    folds: Annotated[int | None, typer.Option("--folds", min=2, help="Folds of 5-fold, if not five.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="train.KEY, head.KEY or protocol.KEY, e.g. train.lr=2e-4. Repeat."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Folder of another `mil train`: differences on the same bags.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what the folder holds and start again.")] = False,
) -> None:
    """Train heads on labelled slides; scores with 95 % intervals over patients.

    Writes heads/, results.json, predictions.csv, curves.json, report.html and, with --against, comparisons.json.
    """
    import json

    from eosin.evaluation.mil import train_mil
    from eosin.report.mil_page import write_mil_page

    wanted = 1 if slide_features is not None else 2
    if len(paths) != wanted:
        raise DataError(
            "give LABELS.csv alone with --slide-features"
            if wanted == 1
            else "give FEATURES and LABELS.csv, in this order"
        )
    rows = train_mil(
        slide_features if slide_features is not None else paths[0],
        paths[-1],
        out,
        head=head,
        protocol=protocol,
        tasks=task,
        group=group,
        joint=joint,
        seeds=seeds,
        changes=[*([f"protocol.folds={folds}"] if folds else []), *(changes or [])],
        against=against,
        device=device,
        fresh=fresh,
    )
    comparisons = json.loads((out / "comparisons.json").read_text()) if against is not None else []
    print_scores(rows, comparisons)
    typer.echo(f"written: {write_mil_page(out)}")


@mil.command()
def predict(
    heads: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of `eosin mil train`.")],
    features: Annotated[
        Path, typer.Argument(metavar="FEATURES|COHORT", help="Folder of features, or a cohort to embed.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for predictions.csv and failures.csv.")],
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Table with slide and patient, for heads of patients' bags."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")] = None,
) -> None:
    """Score slides with trained heads: the mean over seeds and folds, and their spread."""
    from eosin.evaluation.mil import predict_mil

    typer.echo(f"written: {predict_mil(heads, features, out, labels=labels, device=device)}")


def print_scores(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    """One table of scores and one of differences, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    first = rows[0]
    table = Table(title=f"{first['head']}, protocol {first['protocol']}, {first['runs']} runs", title_justify="left")
    for name in ("task", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("score", "95 % interval", f"sd of {first['run_sd_over']}", "tested"):
        table.add_column(name, justify="right")
    for row in rows:
        tested = ", ".join(f"{count} {name}" for name, count in row["n_per_class"].items())
        cells = (_number(row["mean"]), _ends(row), _number(row["run_sd"]), tested)
        table.add_row(row["task"], row["metric"], *cells)
    console.print(table)
    if comparisons:
        table = Table(title=f"minus {comparisons[0]['against']}", title_justify="left")
        for name in ("task", "metric"):
            table.add_column(name, overflow="fold")
        for name in ("difference", "95 % interval", "p"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in comparisons:
            p = "" if row["p"] is None else f"{row['p']:.4f}"
            table.add_row(row["task"], row["metric"], f"{row['difference']:+.3f}", _ends(row, "+"), p)
        console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _ends(row: dict[str, Any], sign: str = "") -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "none" if low is None or low != low else f"{low:{sign}.3f} to {high:{sign}.3f}"
