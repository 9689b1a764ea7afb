"""report.html of `eosin mil train`: scores with intervals, bars, radar, ROC, confusion, counts, training curves, leaks.

One folder, or several side by side (heads or encoders). Published values of the shipped tasks are drawn apart and named
as what they are: from other slides, splits and pipelines. Shows what was written; scores come from results.json.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from eosin.errors import DataError
from eosin.files import PathLike, write_text
from eosin.report.mil_charts import Bar, BarGroup, bar_chart, diamond
from eosin.report.mil_curves import confusion_section, curves_section, outcome_section, roc_section
from eosin.report.mil_radar import radar_chart
from eosin.report.mil_runs import MilRun, Row, mean_auroc, name_arms, read_mil_run, tasks_with
from eosin.report.mil_tables import (
    conditions_section,
    counts_section,
    differences_section,
    leaks_of,
    published_table,
    reproduce_section,
    scores_section,
)
from eosin.report.page import Html, Section, element, number, render_page
from eosin.report.study_charts import colour

METRICS = {
    "auroc": "AUROC",
    "balanced_accuracy": "Balanced accuracy",
    "c_index": "C-index",
    "r2": "R²",
    "pearson": "Pearson's r",
}
_CHANCE = {"auroc": 0.5, "c_index": 0.5}
ANCHOR = "EXAONE Path 2.0"
_ENDS = ("ci_low", "ci_high")
_LEAST_RADAR = 3


def write_mil_page(folders: PathLike | Sequence[PathLike], out: PathLike | None = None, *, command: str = "") -> Path:
    """Write the page of one folder of `eosin mil train`, or of several side by side; returns its path.

    One file that needs no other file and no network. `out`: the page, or a folder for report.html; FOLDER/report.html
    without, which only one folder can have. `command`: what made it. Raises DataError where a folder has no results,
    OutputError where the page cannot be written.
    """
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    if not given or (len(given) > 1 and out is None):
        raise DataError("give the folders to compare, and with -o the page to write" if given else "no folder given")
    runs = [read_mil_run(folder) for folder in given]
    name_arms(runs)
    legend = arm_legend(runs)
    sections = [
        _bars_section(runs, legend),
        _radar_section(runs, legend),
        scores_section(runs),
        differences_section(runs),
        roc_section(runs, legend),
        confusion_section(runs),
        outcome_section(runs, legend),
        counts_section(runs),
        curves_section(runs, legend),
        conditions_section(runs),
        reproduce_section(runs, command),
    ]
    title = "Slide-level heads" if len(runs) > 1 else f"{runs[0].head} on {Path(runs[0].model).name or 'features'}"
    page = render_page(f"{title} · eosin mil", _header(runs, title), sections, {})
    target = Path(given[0]) / "report.html" if out is None else Path(out)
    if target.is_dir() or not target.suffix:
        target = target / "report.html"
    write_text(target, page)
    return target


def arm_legend(runs: Sequence[MilRun]) -> Html:
    """Colours and names of the runs; empty for one."""
    if len(runs) < 2:
        return Html("")
    items = []
    for run in runs:
        box = element("rect", x=1, y=2, width=26, height=10, rx=1.5, fill=colour(run.arm), fill_opacity=0.7)
        drawn = element("svg", box, viewBox="0 0 28 14", class_="swatch", aria_hidden="true")
        items.append(element("span", drawn, f" {run.name}", class_="arm"))
    return element("p", items, class_="legend")


def _header(runs: Sequence[MilRun], title: str) -> Html:
    first = [run.results[0] for run in runs]

    def told(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in first if row.get(key)))

    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    facts = [
        ("Heads", ", ".join(dict.fromkeys(run.head for run in runs))),
        ("Encoders", ", ".join(dict.fromkeys(run.model for run in runs if run.model))),
        ("Protocol", told("protocol")),
        ("Tasks", number(len(tasks)) if len(tasks) > 3 else ", ".join(tasks)),
        ("Runs a task", ", ".join(dict.fromkeys(_runs_text(row) for row in first))),
        ("Version", told("version")),
    ]
    entries = [
        element("div", element("dt", key), element("dd", value), class_="wide" if len(value) > 48 else None)
        for key, value in facts
        if value
    ]
    warnings = list(dict.fromkeys(text for run in runs for text in leaks_of(run)))
    return element(
        "header",
        element("h1", title),
        element("p", f"eosin mil train · page written {time.strftime('%Y-%m-%d %H:%M %Z')}", class_="status"),
        element("dl", entries, class_="facts"),
        element("div", [element("p", text, class_="note bad") for text in warnings], style="margin-top:1.4rem"),
    )


def _runs_text(row: Row) -> str:
    runs = row.get("runs")
    return number(len(runs)) if isinstance(runs, list) else number(runs) if isinstance(runs, int) else ""


def _bars_section(runs: Sequence[MilRun], legend: Html) -> Section:
    body: list[Html] = []
    for metric, title in METRICS.items():
        groups = [group for task in tasks_with(runs, metric) if (group := _group(runs, task, metric)).bars]
        if not groups:
            continue
        body.append(element("h3", title))
        drawing = bar_chart(groups, _chance(runs, groups, metric), f"{title} by task with 95 % intervals")
        body.append(element("figure", drawing, class_="chart", style="max-width:62rem"))
        if any(group.published for group in groups):
            body += [_diamond_note(), published_table(runs, groups)]
    how = (
        "A bar is the mean over seeds or folds, from chance to the score; the whisker is the 95 % interval over "
        "patients, a dot is one run. Bars whose whiskers cross chance have shown nothing."
    )
    return Section("bars", "Scores over tasks", how, [legend, *body] if body else [], "no scores that can be drawn.")


def _chance(runs: Sequence[MilRun], groups: Sequence[BarGroup], metric: str) -> float | None:
    """What guessing gives, where it is the same for all tasks shown."""
    if metric != "balanced_accuracy":
        return _CHANCE.get(metric)
    counts = {len(run.classes(group.task)) for group in groups for run in runs if group.task in run.tasks}
    return 1 / counts.pop() if len(counts) == 1 and min(counts) > 1 else None


def _group(runs: Sequence[MilRun], task: str, metric: str) -> BarGroup:
    bars = []
    for run in runs:
        row = run.row(task, metric)
        if row is not None and isinstance(row.get("mean"), int | float):
            known = [float(value) for value in row.get("run_scores") or [] if isinstance(value, int | float)]
            low, high = (float(row[key]) if isinstance(row.get(key), int | float) else None for key in _ENDS)
            bars.append(Bar(run.arm, run.name, float(row["mean"]), low, high, known if len(known) > 1 else ()))
    return BarGroup(task, bars, published_scores(task, metric))


def published_scores(task: str, metric: str) -> dict[str, float]:
    """What others published for a shipped task, by model; none for other tasks."""
    from eosin.evaluation.mil.task_files import shipped_task_files

    found = shipped_task_files().get(task)
    if found is None or found.published is None or found.published.metric != metric:
        return {}
    return dict(found.published.scores)


def _diamond_note() -> Html:
    mark = element("svg", diamond(14, 7), viewBox="0 0 28 14", class_="swatch", aria_hidden="true")
    words = (
        " published (EXAONE Path 2.0, arXiv 2507.06639, Table 1): other slides, splits and pipeline, so an anchor for "
        "the eye, not a comparison. Point at a diamond for its model."
    )
    return element("p", mark, words, class_="how", style="margin-top:.7rem")


def _radar_section(runs: Sequence[MilRun], legend: Html) -> Section:
    full = [task for task in tasks_with(runs, "auroc") if all(mean_auroc(run, task) is not None for run in runs)]
    if len(full) < _LEAST_RADAR:
        missing = f"a radar needs AUROC of at least {_LEAST_RADAR} tasks in every folder."
        return Section("radar", "Radar", missing=missing)
    polygons = [(run.arm, [mean_auroc(run, task) or 0.0 for task in full]) for run in runs]
    known = [published_scores(task, "auroc") for task in full]
    band = ([min(k.values()) for k in known], [max(k.values()) for k in known]) if all(known) else None
    anchor = [k[ANCHOR] for k in known] if all(ANCHOR in k for k in known) else None
    drawing = radar_chart(full, polygons, band, anchor, "AUROC by task as a radar")
    words = "AUROC from the centre to 1 at the rim; the dashed ring is chance."
    if band is not None:
        words += f" Grey: range of the published models, dashed grey: {ANCHOR} (published; other slides and pipeline)."
    figure = element("figure", drawing, class_="chart", style="max-width:44rem")
    return Section("radar", "Radar", words, [legend, figure])
