"""Sections of a MIL page that are drawn from predictions and curves: ROC, confusion, regression, survival, training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eosin.report.mil_charts import Line, confusion_table, line_chart, scatter
from eosin.report.mil_runs import MilRun, confusion_of, kaplan_meier, mean_auroc, roc_of, tasks_with
from eosin.report.page import Html, Section, element

_SHOWN_CURVES = 24  # training curves a chart
_FEW_CURVES = 4  # so many are drawn strong


def roc_section(runs: Sequence[MilRun], legend: Html) -> Section:
    """ROC curves of every task and, of several classes, of each against the rest."""
    charts = []
    for task in tasks_with(runs, "auroc"):
        classes = next((run.classes(task) for run in runs if run.classes(task)), [])
        for positive in classes[1:] if len(classes) == 2 else classes:
            lines = []
            for run in runs:
                roc = roc_of(run.tested(task), positive)
                if roc is not None:
                    lines += [Line(run.arm, x, y, thin=True) for x, y in roc.runs if len(roc.runs) > 1]
                    lines.append(Line(run.arm, roc.x, roc.mean, run.name, dash=run.arm // 8))
            if lines:
                name = f"ROC of {task}, {positive}"
                frame = line_chart(lines, name, "false positive rate", "true positive rate", (0, 1), (0, 1), True, True)
                two = len(classes) == 2
                title = task if two else f"{task}: {positive} or not"
                charts.append(_chart(title, frame, f"positive: {positive}", _area(runs, task) if two else ""))
    how = (
        "A thin line is one seed or fold on the test bags, the thick one their mean at equal false positive rates; its "
        "area is close to, not the same as, the mean AUROC of the table."
    )
    body = [legend, element("div", charts, class_="charts")] if charts else []
    return Section("roc", "ROC", how, body, "predictions.csv has no class probabilities of test bags.")


def _area(runs: Sequence[MilRun], task: str) -> str:
    return f"AUROC {mean_auroc(runs[0], task):.3f}" if len(runs) == 1 and mean_auroc(runs[0], task) is not None else ""


def _chart(title: str, drawing: Html, caption: str, value: str = "") -> Html:
    head = element("header", element("b", title), element("span", value, class_="number") if value else "")
    return element("figure", head, drawing, element("figcaption", caption) if caption else "", class_="chart")


def confusion_section(runs: Sequence[MilRun]) -> Section:
    """Counts of test bags by true and predicted class."""
    tables = []
    for task in dict.fromkeys(task for run in runs for task in run.tasks):
        for run in runs:
            classes = run.classes(task)
            counts = confusion_of(run.tested(task), classes)
            if counts is not None:
                tables.append(confusion_table(counts, classes, f"{task} · {run.name}" if len(runs) > 1 else task))
    how = (
        "Test bags by true and by most probable class, probabilities averaged over seeds; shares are of the row. Where "
        "one class is rare, most bags may fall into the other at a good AUROC: the cut at ½ is not a chosen one."
    )
    style = "display:flex;flex-wrap:wrap;gap:1.2rem 2.4rem"
    body = [element("div", tables, style=style)] if tables else []
    return Section("confusion", "Confusion", how, body, "predictions.csv has no class probabilities of test bags.")


def outcome_section(runs: Sequence[MilRun], legend: Html) -> Section:
    """Predicted against true values, and survival of two risk groups."""
    charts = []
    for task in tasks_with(runs, "r2"):
        points = []
        for run in runs:
            table = run.tested(task)
            if {"value", "label"} <= set(table.columns):
                known = table.assign(label=table["label"].astype(float)).dropna(subset=["value", "label"])
                points += [(run.arm, float(r.label), float(r.value), run.name) for r in known.itertuples()]
        if points:
            charts.append(_chart(task, scatter(points, f"{task}: predicted against true", "true", "predicted"), ""))
    for task in tasks_with(runs, "c_index"):
        charts += [chart for run in runs if (chart := _survival_chart(run, task, len(runs) > 1)) is not None]
    how = "Regression: predicted against true, dashed where equal. Survival: test bags, split at the median risk."
    body = [legend, element("div", charts, class_="charts")] if charts else []
    return Section("outcome", "Regression and survival", how, body, "no task of that kind.")


def _survival_chart(run: MilRun, task: str, named: bool) -> Html | None:
    table = run.tested(task)
    if not {"risk", "time", "event"} <= set(table.columns):
        return None
    bag = "slide" if "slide" in table and table["slide"].notna().all() else "patient"
    merged = table.dropna(subset=["risk", "time", "event"]).groupby(bag)[["risk", "time", "event"]].mean()
    high = merged["risk"] > merged["risk"].median()
    if merged.empty or high.all() or not high.any():
        return None
    lines = []
    for dash, (words, chosen) in enumerate((("risk up to the median", ~high), ("higher risk", high))):
        part = merged[chosen]
        x, y = kaplan_meier(part["time"].to_numpy(float), part["event"].to_numpy(float))
        lines.append(Line(run.arm, x, y, f"{words}, {len(part)} bags", dash=dash))
    most = float(merged["time"].max())
    frame = line_chart(lines, f"{task}: survival by predicted risk", "time", "without event", (0, most), (0, 1))
    title = f"{task} · {run.name}" if named else task
    return _chart(title, frame, "solid: risk up to the median, dashed: above (Kaplan-Meier)")


def curves_section(runs: Sequence[MilRun], legend: Html) -> Section:
    """Losses by epoch."""
    charts = []
    for run in runs:
        for (task, quantity), lines in curves_of(run.curves).items():
            shown = [
                Line(run.arm, x, y, f"{name}, {part}", thin=len(lines) > _FEW_CURVES, dash=0 if part == "train" else 1)
                for name, part, x, y in lines[: 2 * _SHOWN_CURVES]
            ]
            values = [v for line in shown for v in line.y if np.isfinite(v)]
            if values:
                most = max(max(line.x, default=1) for line in shown)
                low, high = min(values), max(values)
                pad = 0.05 * (high - low) or 0.5
                ranges = ((1 if most > 1 else 0, most), (low - pad, high + pad))
                title = " · ".join(filter(None, (task, run.name if len(runs) > 1 else "", quantity)))
                charts.append(_chart(title, line_chart(shown, f"{title} by epoch", "epoch", quantity, *ranges), ""))
    how = (
        "A line is one seed or fold: solid training, dashed validation bags. Validation rising while training falls is "
        "overfitting; the epoch of the lowest validation loss is kept."
    )
    body = [legend, element("div", charts, class_="charts")] if charts else []
    return Section("curves", "Training curves", how, body, "curves.json has no curve.")


CurveLine = tuple[str, str, list[float], list[float]]


def curves_of(curves: Any) -> dict[tuple[str, str], list[CurveLine]]:
    """Training curves by task and quantity: (run, "train" | "val", epochs, values).

    curves.json: a list of runs {task, seed, fold, epochs: [{epoch, train, val}]}; `train` and `val` are losses.
    """
    found: dict[tuple[str, str], list[CurveLine]] = {}
    for run in curves if isinstance(curves, list) else []:
        rows = run.get("epochs") or []
        name = f"seed {run.get('seed', 0)}, fold {run.get('fold', 0)}"
        for part in ("train", "val"):
            known = [row for row in rows if isinstance(row.get(part), int | float)]
            if known:
                points = [float(row["epoch"]) for row in known], [float(row[part]) for row in known]
                found.setdefault((str(run.get("task", "")), "loss"), []).append((name, part, *points))
    return found
