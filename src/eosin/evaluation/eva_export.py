"""Results in the shapes that eva writes: one results.json a model and task, and one table a protocol.

    DIR/PROTOCOL/MODEL/TASK/results.json   {"metrics": {"val": [{"val/MulticlassAccuracy": {mean, stdev, …}}], …}}
    DIR/PROTOCOL.csv                        model,bach,...,patch_camelyon,patch_camelyon/test

The shapes are those of eva 0.4.5 (its session recorder and its leaderboard table); numbers are ours. Cross-validated
results have no place there and are left out.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from eosin.evaluation.leaderboard import Block, Board, Column
from eosin.evaluation.leaderboard_rows import Row, classes_of
from eosin.evaluation.tasks.manifest import EVA_NAMES, TEST_IS_VAL
from eosin.files import PathLike, check_writable, write_json, write_text

TASKS = {ours: theirs for theirs, ours in EVA_NAMES.items()}
"""Our name of a task -> eva's, where they differ."""
_METRICS = {"dice_per_window": "MonaiDiceScore", "pearson": "PearsonCorrCoef"}
_MORE = {"accuracy": "Accuracy", "macro_f1": "F1Score", "auroc": "AUROC"}


def write_eva(board: Board, folder: PathLike) -> tuple[list[Path], int]:
    """Write all results but those of `eosin mil train`; returns the files, and how many results were left out: those,
    and cross-validated ones.
    """
    root = check_writable(folder)
    written: list[Path] = []
    left_out = sum(
        len(column.entries) for block in board.blocks for column in block.columns if not _stage(block, column)
    )
    for block in board.blocks:
        columns = [column for column in block.columns if _stage(block, column)]
        if not columns:
            continue
        place = plain(block.title)
        for name in block.models:
            metrics: dict[str, dict[str, list[Any]]] = {}
            for column in columns:
                if name in column.entries:
                    told = metrics.setdefault(eva_task(column.task), {"val": [], "test": []})
                    stage = _stage(block, column)
                    told[stage] = [{**(told[stage] or [{}])[0], **eva_metrics(column.entries[name].row, stage)}]
            for task, told in metrics.items():
                written.append(root / place / plain(name) / plain(task) / "results.json")
                write_json(written[-1], {"metrics": told})
        written.append(root / f"{place}.csv")
        write_text(written[-1], _table(block, columns))
    return written, left_out


def eva_task(task: str) -> str:
    """eva's name of a task."""
    return TASKS.get(task, task.replace("-", "_"))


def eva_metrics(row: Row, stage: str) -> dict[str, dict[str, Any]]:
    """The metrics of one result under eva's names: {"val/MulticlassAccuracy": {mean, stdev, values}}.

    `values` are the runs' where the result has them, else the mean alone. Accuracy, F1, AUROC are of the merged runs.
    """
    two = len(classes_of(row)) == 2
    kind = "Binary" if two else "Multiclass"
    main = ("BinaryBalancedAccuracy" if two else "MulticlassAccuracy") if row["metric"] == "balanced_accuracy" else None
    main = main or _METRICS.get(str(row["metric"])) or str(row["metric"])
    values = [float(value) for value in row.get("run_scores") or [row["mean"]]]
    spread = row.get("run_sd")
    found = {f"{stage}/{main}": {"mean": row["mean"], "stdev": spread if spread is not None else 0, "values": values}}
    for key, name in _MORE.items():
        # What eva calls MulticlassAccuracy is the mean over classes; plain accuracy has no name there.
        if row.get(key) is not None and (two or key != "accuracy"):
            found[f"{stage}/{kind}{name}"] = {"mean": row[key], "stdev": 0, "values": [row[key]]}
    return dict(sorted(found.items()))


def plain(words: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._~-]+", "_", words).strip("_.") or "_"


def _stage(block: Block, column: Column) -> str:
    if block.kind == "mil" or column.split not in ("val", "test"):
        return ""
    return "val" if column.task in TEST_IS_VAL else column.split


def _table(block: Block, columns: list[Column]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [eva_task(c.task) + ("/test" if _stage(block, c) == "test" else "") for c in columns]
    writer.writerow(["model", *heads])
    for name in block.models:
        cells = [c.entries[name].mean if name in c.entries else None for c in columns]
        writer.writerow([name, *("" if value is None else f"{value:.4f}" for value in cells)])
    return text.getvalue()
