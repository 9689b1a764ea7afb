"""The tables of a MIL page: scores, differences, published values, counts, conditions, leaks in plain words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eosin.evaluation.statistics import is_shown
from eosin.marks import MARKS, leaves
from eosin.report.mil_charts import BarGroup
from eosin.report.mil_runs import MilRun, Row
from eosin.report.page import Child, Html, Section, duration, element, number, table

_NAMES = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "c_index": "C-index",
    "r2": "R²",
    "pearson": "Pearson's r",
}


def fixed(value: object, sign: bool = False) -> str:
    """Three decimals, "–" for what is no number.

    >>> fixed(0.5), fixed(-0.25, sign=True), fixed(None)
    ('0.500', '−0.250', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return "–"
    return (f"{value:+.3f}" if sign else f"{value:.3f}").replace("-", "−")


def scores_section(runs: Sequence[MilRun]) -> Section:
    """Every row of results.json: one table for one run, a table a task for several."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.tasks))
    head = ["metric", "mean", "95 % interval", "sd of runs", "test bags", "patients", "bags per class"]
    body: list[Html] = []
    if len(runs) == 1:
        lines = [[task, *_score_cells(row)] for task in tasks for row in runs[0].rows(task)]
        body += [table(["task", *head], lines, numeric=(2, 3, 4, 5, 6), compact=True)] if lines else []
    else:
        for task in tasks:
            lines = [[run.name, *_score_cells(row)] for run in runs for row in run.rows(task)]
            body += [table(["run", *head], lines, numeric=(2, 3, 4, 5, 6), caption=task, compact=True)] if lines else []
    how = (
        "Mean over seeds or folds on the test split; the interval is a bootstrap over patients, sd of runs is the "
        "spread of training alone. With few bags of a class the interval, not the mean, is the result."
    )
    return Section("scores", "Table", how, body, "results.json has no rows of the test split.")


def _score_cells(row: Row) -> list[Child]:
    limits = f"{fixed(row.get('ci_low'))} – {fixed(row.get('ci_high'))}"
    patients = number(row.get("n_patients")) if row.get("n_patients") else ""
    cells: list[Child] = [
        _NAMES.get(row["metric"], str(row["metric"])),
        fixed(row.get("mean")),
        limits,
        fixed(row.get("run_sd")),
    ]
    return [*cells, number(row.get("n")), patients, classes_text(row.get("n_per_class"))]


def classes_text(counts: Any) -> str:
    """Counts by class in a line: of test, or of train and test where both are told."""
    if not isinstance(counts, dict) or not counts:
        return ""
    if all(isinstance(value, dict) for value in counts.values()):
        return "; ".join(f"{split} {classes_text(inner)}" for split, inner in counts.items() if inner)
    return " : ".join(f"{name} {number(value)}" for name, value in counts.items())


def leaks_of(run: MilRun) -> list[str]:
    """What makes scores look better than they are, in plain words, tasks of one reason together."""
    found: dict[str, list[str]] = {}
    for row in run.results:
        model = row.get("model") or "the encoder"
        if row.get("task_in_training"):
            reason = (
                f"{model} was trained on labels of this task, so the score says how well they were learnt, not how "
                "well the encoder carries over to a new task."
            )
            found.setdefault(reason, []).append(str(row["task"]))
        if seen := row.get("patients_in_training"):
            count = len(seen) if isinstance(seen, list) else seen
            told = number(count) if isinstance(count, int) and not isinstance(count, bool) else "some"
            reason = (
                f"{told} of the patients were among the images that {model} was trained on; the score may be too high."
            )
            found.setdefault(reason, []).append(str(row["task"]))
    return [f"{', '.join(dict.fromkeys(tasks))}: {reason}" for reason, tasks in found.items()]


def published_table(runs: Sequence[MilRun], groups: Sequence[BarGroup]) -> Html:
    """Published values of each task beside the runs, and their mean where every task has them."""
    known = [group for group in groups if group.published]
    models = list(dict.fromkeys(model for group in known for model in group.published))
    rows: list[list[Child]] = []
    for group in known:
        own = {bar.arm: bar.mean for bar in group.bars}
        rows.append(
            [group.task, *(fixed(own.get(run.arm)) for run in runs), *(fixed(group.published.get(m)) for m in models)]
        )
    if len(known) > 1:
        own_means = [_mean_of([{bar.arm: bar.mean for bar in g.bars}.get(run.arm) for g in known]) for run in runs]
        means = [_mean_of([g.published.get(m) for g in known]) for m in models]
        rows.append([element("b", f"mean of {len(known)}"), *(fixed(v) for v in own_means), *(fixed(v) for v in means)])
    head = ["task", *(run.name for run in runs), *(f"{model} (published)" for model in models)]
    drawn = table(head, rows, numeric=tuple(range(1, len(head))), compact=True)
    return element("details", element("summary", "Published values as a table"), drawn)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) and known else None


def differences_section(runs: Sequence[MilRun]) -> Section:
    """Paired differences that were written, comparisons.json of every folder."""
    lines: list[list[Child]] = []
    for run in runs:
        for pair in _comparisons(run):
            low, high, p = pair.get("ci_low"), pair.get("ci_high"), pair.get("p")
            names = f"{run.name} − {_other(runs, str(pair.get('against', '')))}"
            chance = "–" if not isinstance(p, int | float) else "< 0.001" if p < 0.001 else f"{p:.3f}"
            told: Child = ""
            if isinstance(low, int | float) and isinstance(high, int | float):
                shown = "shown" if is_shown(low, high, p) else "no difference shown"
                told = element("span", shown, class_="good" if shown == "shown" else "soft")
            limits = f"{fixed(low, True)} to {fixed(high, True)}"
            metric = str(pair.get("metric", ""))
            lines.append(
                [
                    str(pair.get("task", "")),
                    _NAMES.get(metric, metric),
                    names,
                    fixed(pair.get("difference"), True),
                    limits,
                    chance,
                    told,
                ]
            )
    head = ["task", "metric", "difference", "value", "95 % interval", "p", ""]
    how = "Both on the same test bags and the same resamples of patients; not corrected for the number of comparisons."
    body = [table(head, lines, numeric=(3, 4, 5), compact=True)] if lines else []
    return Section(
        "differences",
        "Paired differences",
        how,
        body,
        "comparisons.json is written by `eosin mil train --against DIR`.",
    )


def _other(runs: Sequence[MilRun], folder: str) -> str:
    """The name of the run in `folder`, where it is on the page; else the folder."""
    return next((run.name for run in runs if run.folder.resolve() == Path(folder).resolve()), folder)


def _comparisons(run: MilRun) -> list[Row]:
    try:
        found = json.loads((run.folder / "comparisons.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def counts_section(runs: Sequence[MilRun]) -> Section:
    """Bags of each class, in training and test."""
    lines: list[list[Child]] = []
    for run in runs:
        for task in run.tasks:
            row = run.rows(task)[0] if run.rows(task) else {}
            test, train = row.get("n_per_class") or {}, row.get("n_train") or {}
            for name in dict.fromkeys([*train, *test]):
                cells: list[Child] = [task, name, number(train.get(name)), number(test.get(name))]
                lines.append([run.name, *cells] if len(runs) > 1 else cells)
            if told := row.get("counts_differ"):
                lines.append(
                    [*([run.name] if len(runs) > 1 else []), task, element("span", str(told), class_="bad"), "", ""]
                )
    head = [*(["run"] if len(runs) > 1 else []), "task", "class", "training and validation", "test"]
    body = [table(head, lines, numeric=(len(head) - 2, len(head) - 1), compact=True)] if lines else []
    how = (
        "How many bags stand behind a score (training: of the first fold). With fewer than some ten of the rarer class "
        "a score hardly says anything."
    )
    return Section("counts", "Bags per class", how, body, "results.json has no counts.")


def conditions_section(runs: Sequence[MilRun]) -> Section:
    """What each run was made with."""
    keys = ("head", "model", "model_hash", "protocol", "protocol_hash", "cohort_hash", "version", "seconds")
    lines: list[list[Child]] = []
    for key in keys:
        values = [run.results[0].get(key) for run in runs]
        if any(value not in (None, "") for value in values):
            shown = [
                duration(v)
                if key == "seconds" and isinstance(v, int | float)
                else str(v if v not in (None, "") else "–")
                for v in values
            ]
            lines.append([key.replace("_", " "), *(element("span", text, class_="code") for text in shown)])
    problems = [element("p", f"{run.name}: {text}", class_="bad") for run in runs for text in run.problems]
    hashes = {run.results[0].get("protocol_hash") for run in runs}
    if len(hashes) > 1:
        problems.append(
            element(
                "p", "The protocols differ, so scores of different runs are of different test bags.", class_="note bad"
            )
        )
    head = ["", *(run.name for run in runs)]
    how = "Runs are comparable where everything but the one thing in question is equal."
    return Section("conditions", "Conditions", how, [*problems, table(head, lines)])


def reproduce_section(runs: Sequence[MilRun], command: str) -> Section:
    """The command and every setting of the heads."""
    body: list[Html] = [element("p", "Written by"), element("pre", element("code", command))] if command else []
    for run in runs:
        marks = run.config.get("marks") or {}
        settings = {key: run.config[key] for key in ("settings", "train", "protocol") if run.config.get(key)}
        rows = [[_code(key), _code(str(value)), _mark(marks, key)] for key, value in leaves(settings).items()]
        if rows:
            summary = element("summary", f"Settings of {run.name}")
            body.append(element("details", summary, table(["key", "value", "mark"], rows)))
    how = "Every setting in force, as heads/config.json has it."
    return Section(
        "reproduce", "How to reproduce", how, body, "heads/config.json was not found and no command was given."
    )


def _code(text: str) -> Html:
    return element("span", text, class_="code")


def _mark(marks: dict[str, str], key: str) -> Html:
    """Where a value is from; settings of the head are marked as head.KEY."""
    mark = marks.get(key) or marks.get(key.replace("settings.", "head.", 1)) or ""
    return element("span", mark, class_="mark", title=MARKS.get(mark)) if mark else Html("")
