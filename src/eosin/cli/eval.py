"""`eosin eval`: judge an encoder on labelled images, with intervals, beside other encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Exported folder, zoo or timm name, `colour` or `texture`."),
]
_Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results; again = resume.")]
_Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        "--task",
        help="Public tasks by name (`eosin tasks list`), `all` that lie below --data, or your own NAME=PATH:"
        " folder of class folders or of images and masks, table.csv, arrays.npz. Repeat, or a comma list.",
    ),
]
_Protocol = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol",
        help="strict (default): every kind of task. eva-v2, midnight: all but robustness. eva-v1, knn, simpleshot,"
        " logreg: tiles with classes. NAME~SWITCH: without one hidden behaviour. Repeat, or a comma list.",
    ),
]
_Features = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="F.npz with features and labels, an eva manifest, or a folder of slide features with labels.csv, in place"
        " of MODEL and --tasks.",
    ),
]
_Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder that holds the public tasks; relative PATHs are looked for in it as well."),
]
_Against = Annotated[list[str] | None, typer.Option("--against", help="Another MODEL to compare with. Repeat.")]
_Baselines = Annotated[
    bool,
    typer.Option("--baselines", help="Add rows: random weights in the same architecture, colour only, texture only."),
]
_Weights = Annotated[Path | None, typer.Option("--weights", help="File with the weights of MODEL.")]
_RandomInit = Annotated[bool, typer.Option("--random-init", help="MODEL with random weights.")]
_Pooling = Annotated[str | None, typer.Option("--pooling", help="cls, cls+mean or mean.")]
_InputSize = Annotated[int | None, typer.Option("--input-size", help="Side that the encoder sees, px.")]
_Batch = Annotated[int, typer.Option("--batch", min=1, help="Images a batch.")]
_Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that read images.")]
_Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1; default: GPU if any.")]
_Seed = Annotated[int, typer.Option("--seed", help="Of random weights.")]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Drop what the folder holds and start again.")]
_AnyCount = Annotated[
    bool, typer.Option("--any-count", help="Take a public task that has not its known number of images.")
]


def eval_(
    model: _Model = None,
    out: _Out = Path("results"),
    tasks: _Tasks = None,
    protocol: _Protocol = None,
    features: _Features = None,
    data: _Data = None,
    against: _Against = None,
    baselines: _Baselines = False,
    weights: _Weights = None,
    random_init: _RandomInit = False,
    pooling: _Pooling = None,
    input_size: _InputSize = None,
    batch: _Batch = 64,
    workers: _Workers = 0,
    device: _Device = None,
    seed: _Seed = 0,
    fresh: _Fresh = False,
    any_count: _AnyCount = False,
) -> None:
    """Judge an encoder on public tasks or your own: tiles, slides, masks, gene expression, robustness; with intervals.

    A protocol says how. 95 % intervals are bootstrapped over patients or slides where they are known, else over
    samples. Writes results.json, predictions.parquet and, where models are compared, comparisons.json.
    """
    import json

    from eosin.evaluation import evaluate
    from eosin.evaluation.results import ResultsFolder

    rows = evaluate(
        model,
        [spec for entry in tasks or [] for spec in entry.split(",") if spec],
        protocol or ["strict"],
        out,
        data,
        against or [],
        baselines=baselines,
        pooling=pooling,
        input_size=input_size,
        weights=weights,
        random_init=random_init,
        features=features,
        batch=batch,
        workers=workers,
        device=device,
        seed=seed,
        fresh=fresh,
        any_count=any_count,
    )
    folder = ResultsFolder(out)
    print_results(rows, json.loads(folder.comparisons.read_text()))
    typer.echo(f"written: {folder.results}")


METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "dice": "Dice",
    "dice_per_image": "Dice per image",
    "dice_per_window": "Dice per window",
    "iou": "IoU",
    "pearson": "Pearson's r",
    "robustness_index": "robustness index",
    "performance_drop_inside": "average performance drop on the same centres",
    "performance_drop_outside": "average performance drop on other centres",
}
"""Metrics in words; others as they are called in results.json."""
_SAMPLES = {"slide": "slides", "regression": "tiles", "robustness": "tiles"}


def print_results(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    """One table of scores a task and metric, chance in it where there is one, and one of differences, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from eosin.evaluation.leaderboard_names import short_names

    console = Console()
    names = short_names([*(row["model"] for row in rows), *(row["against"] for row in comparisons)])
    for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in rows):
        own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        table = Table(title=_title(own[0]), title_justify="left")
        for name in ("protocol", "model"):
            table.add_column(name, overflow="fold")
        for name in ("score", "95 % interval", "sd of runs"):
            table.add_column(name, justify="right", no_wrap=True)
        for protocol in dict.fromkeys(row["protocol"] for row in own):
            for row in (row for row in own if row["protocol"] == protocol):
                spread = "" if row["run_sd"] is None else f"{row['run_sd']:.3f}"
                table.add_row(protocol, names[row["model"]], f"{row['mean']:.3f}", _ends(row), spread)
            table.add_section()
        if own[0]["chance"] is not None:
            table.add_row("", "chance", f"{own[0]['chance']:.3f}", "", "")
        console.print(table)
    if comparisons:
        several = len({(row["task"], row["metric"]) for row in comparisons}) > len({row["task"] for row in comparisons})
        table = Table(title=f"{names[comparisons[0]['model']]} minus", title_justify="left")
        for name in ("task", "protocol", *(("metric",) if several else ()), "model"):
            table.add_column(name, overflow="fold")
        for name in ("difference", "95 % interval", "p"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in comparisons:
            p = "" if row["p"] is None or row["p"] != row["p"] else f"{row['p']:.4f}"
            difference, ends = f"{row['difference']:+.3f}", _ends(row, "+")
            metric = (METRICS.get(row["metric"], row["metric"]),) if several else ()
            table.add_row(row["task"], row["protocol"], *metric, names[row["against"]], difference, ends, p)
        console.print(table)


def _title(row: dict[str, Any]) -> str:
    over = f"{row['n_patients' if row['resampled'] == 'patient' else 'n_groups']} {row['resampled']}s"
    samples = _SAMPLES.get(row["kind"], "images")
    metric = METRICS.get(row["metric"], row["metric"])
    return f"{row['task']}: {metric} on {row['split']}, {row['n']} {samples}, intervals over {over}"


def _ends(row: dict[str, Any], sign: str = "") -> str:
    low, high = row["ci_low"], row["ci_high"]
    return "none" if low is None or low != low else f"{low:{sign}.3f} to {high:{sign}.3f}"
