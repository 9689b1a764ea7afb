"""One section a task of a leaderboard: table, bars with anchors, recalls, ROC, confusion, overlays, neighbours,
differences with Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.leaderboard import Block, Column, Entry
from eosin.evaluation.leaderboard_pairs import LEVEL, Pair
from eosin.evaluation.leaderboard_rows import class_counts, is_number, leaks_of
from eosin.evaluation.published import anchors_of
from eosin.report.leaderboard_charts import roc_points
from eosin.report.leaderboard_neighbours import neighbours
from eosin.report.leaderboard_overlays import overlays
from eosin.report.leaderboard_tables import interval_words, metric_title, metric_words, rank_words
from eosin.report.mil_charts import Bar, BarGroup, Line, bar_chart, confusion_table, diamond, line_chart
from eosin.report.mil_runs import MilRun, confusion_of, read_mil_run, roc_of
from eosin.report.mil_tables import fixed
from eosin.report.page import Child, Html, Section, element, joined, number, table
from eosin.report.study_charts import named_arm

SHOWN_ROC = 8  # models a chart
SHOWN_CLASSES = 9  # ROC charts a task
SHOWN_CONFUSION = 3  # more are folded away
SHOWN_PAIRS = 10
_WIDE = "max-width:62rem"
SHOWN_PARTS = 30  # classes in a table
_NAMED_TIES = 3
_CLASSED = frozenset({"balanced_accuracy", "auroc", "accuracy"})
_MORE = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}


def task_section(
    key: str, block: Block, column: Column, arms: Mapping[str, int], named: bool, anchors: bool, near: bool
) -> Section:
    """The section of one column. `named`: the page has several protocols. `anchors`: show published values. `near`:
    show nearest neighbours, which are the same whatever the protocol.
    """
    title = f"{column.title} · {block.title}" if named else column.title
    body = [_results(column, arms), _bars(block, column, arms, anchors)]
    body += [*_recalls(column, arms), *_roc(column, arms), *_confusion(column)]
    body += [*overlays(column), *(neighbours(column, arms) if near else [])]
    body += _differences(column)
    how = f"{metric_title(column.metric)} on {column.split}, {number(column.n, 9)} samples."
    return Section(key, title, how, body)


def _results(column: Column, arms: Mapping[str, int]) -> Html:
    """A line a model, columns that say nothing left out."""
    entries = list(column.entries.values())
    cells: dict[str, list[str]] = {
        metric_words(column.metric): [fixed(entry.mean) for entry in entries],
        f"{LEVEL:.0%} interval": [interval_words(e.row.get("ci_low"), e.row.get("ci_high")) for e in entries],
        "sd of runs": [fixed(entry.row.get("run_sd")) for entry in entries],
        "runs": [_runs(entry.row) for entry in entries],
        "patients": [number(entry.row.get("n_patients"), 9) for entry in entries],
    }
    cells |= {name: [fixed(e.row.get(key)) for e in entries] for key, name in _MORE.items() if key != column.metric}
    told = [{str(row["metric"]): row.get("mean") for row in entry.more} for entry in entries]
    for metric in dict.fromkeys(metric for own in told for metric in own):
        cells[metric_words(metric)] = [fixed(own.get(metric)) for own in told]
    cells = {name: own for name, own in cells.items() if set(own) != {"–"}}
    lines: list[list[Child]] = []
    for n, entry in enumerate(entries):
        model = joined(named_arm(arms[entry.model], entry.model), *_notes(column, entry))
        lines.append([rank_words(column.ranks[entry.model]), model, *(own[n] for own in cells.values())])
    head = ["place", "model", *cells]
    return table(head, lines, numeric=(0, *range(2, len(head))), compact=True)


def _notes(column: Column, entry: Entry) -> list[Html]:
    """What is to be said of a result under the model's name: leaks, and who is not told apart from it."""
    parts: list[Html] = []
    for text in leaks_of(entry.row):
        parts += [element("br"), element("span", text, class_="bad small")]
    if tied := column.ranks[entry.model].tied:
        who = ", ".join(tied) if len(tied) <= _NAMED_TIES else f"{len(tied)} models"
        words = f"no difference shown from {who}"
        parts += [element("br"), element("span", words, class_="soft small", title=", ".join(tied))]
    return parts


def _runs(row: dict[str, Any]) -> str:
    runs = row.get("runs")
    return number(len(runs)) if isinstance(runs, list) else number(runs, 9)


def _bars(block: Block, column: Column, arms: Mapping[str, int], anchors: bool) -> Html:
    groups = [BarGroup(entry.model, [bar_of(entry, arms)], {}) for entry in column.entries.values()]
    found = anchors_of(block, column) if anchors else []
    if found:
        groups.append(BarGroup("published", [], {f"{a.model}, {a.source}": a.value for a in found}))
    drawing = bar_chart(groups, column.chance, f"{column.title}: scores with intervals")
    parts: list[Html] = [wide_chart(drawing)]
    if found:
        mark = element("svg", diamond(14, 7), viewBox="0 0 28 14", class_="swatch", aria_hidden="true")
        same = "by the same protocol" if found[0].same_protocol else "by another protocol"
        link = element("a", "which and by whom", href="#published")
        words = (f" published, not measured here, {same}: ", link, ". Point at a diamond for its model.")
        parts.append(element("p", mark, *words, class_="how", style="margin-top:.7rem"))
    return joined(parts)


def wide_chart(drawing: Html) -> Html:
    """Bars in a frame; a narrow screen scrolls them, so that words stay readable."""
    inner = element("div", drawing, style="min-width:36rem")
    return element("figure", element("div", inner, class_="scroll", style="margin:0"), class_="chart", style=_WIDE)


def bar_of(entry: Entry, arms: Mapping[str, int]) -> Bar:
    """An entry as a bar with its interval and, where the result has them, its runs."""
    row = entry.row
    low, high = (float(row[key]) if is_number(row.get(key)) else None for key in ("ci_low", "ci_high"))
    runs = [float(value) for value in row.get("run_scores") or [] if is_number(value)]
    return Bar(arms[entry.model], entry.model, entry.mean, low, high, runs[:50] if len(runs) > 1 else ())


def _recalls(column: Column, arms: Mapping[str, int]) -> list[Html]:
    """Share of each class that was found (or its own score), a line a model."""
    classes = column.parts
    lines: list[list[Child]] = []
    for entry in column.entries.values():
        recalls = recalls_of(column, entry)
        if recalls is not None and len(recalls) == len(classes):
            lines.append([named_arm(arms[entry.model], entry.model), *(fixed(value) for value in recalls)])
    if not lines or len(classes) > SHOWN_PARTS:
        return []
    counts = class_counts(next(iter(column.entries.values())).row)
    heads: list[Child] = list(classes)
    if counts is not None and len(counts) == len(classes):
        heads = [f"{name} ({number(count, 9)})" for name, count in zip(classes, counts, strict=True)]
    # Without classes of samples, parts are of the score itself: Dice of a class of pixels, correlation of a gene.
    metric = "recall" if column.metric in _CLASSED else "dice" if column.kind == "segmentation" else column.metric
    head = [f"{metric_words(metric)} of", *heads]
    return [
        element("h3", f"{metric_title(metric)} of each {'class' if column.classes else 'target'}"),
        table(head, lines, tuple(range(1, len(head))), compact=True),
    ]


def recalls_of(column: Column, entry: Entry) -> list[float | None] | None:
    """Recall of each class, None for one without samples; None where the result does not say."""
    told = entry.row.get("per_class") or entry.row.get("per_target")
    if isinstance(told, dict):
        return [value if is_number(value) else None for value in told.values()]
    counts = confusion_counts(column, entry)
    if counts is None:
        return None
    return [float(row[n]) / row.sum() if row.sum() else None for n, row in enumerate(counts)]


def confusion_counts(column: Column, entry: Entry) -> npt.NDArray[np.int64] | None:
    """Counts [true, predicted]; of slides by probabilities averaged over runs. None where they are not known."""
    told = entry.row.get("confusion")
    if isinstance(told, list):
        counts = np.asarray(told, dtype=np.int64)
        return counts if counts.shape == (len(column.classes),) * 2 else None
    run = _mil_run(entry)
    return None if run is None else confusion_of(run.tested(column.task), column.classes)


def _confusion(column: Column) -> list[Html]:
    tables = []
    unit = ", pixels" if column.kind == "segmentation" else ""
    for entry in column.entries.values():
        counts = confusion_counts(column, entry)
        if counts is not None:
            tables.append(confusion_table(counts, column.classes, f"{entry.model}{unit}"))
    if not tables:
        return []
    style = "display:flex;flex-wrap:wrap;gap:1.2rem 2.4rem"
    parts = [element("h3", "Confusion"), element("div", tables[:SHOWN_CONFUSION], style=style)]
    if rest := tables[SHOWN_CONFUSION:]:
        folded = element("div", rest, style=f"{style};margin-top:.8rem")
        parts.append(
            element("details", element("summary", f"{len(rest)} more models"), folded, style="margin-top:.6rem")
        )
    return parts


def _roc(column: Column, arms: Mapping[str, int]) -> list[Html]:
    """A chart a class (two classes: one), a line a model."""
    classes = column.classes
    shown = list(column.entries.values())[:SHOWN_ROC]
    charts = []
    for positive in (classes[1:] if len(classes) == 2 else classes)[:SHOWN_CLASSES]:
        lines = [line for entry in shown if (line := _roc_line(column, entry, positive, arms)) is not None]
        if lines:
            label = f"ROC of {column.title}, {positive}"
            frame = line_chart(lines, label, "false positive rate", "true positive rate", (0, 1), (0, 1), True, True)
            head = element("header", element("b", positive if len(classes) == 2 else f"{positive} or not"))
            best = element("figcaption", "; ".join(line.name for line in lines[:3]))
            charts.append(element("figure", head, frame, best, class_="chart"))
    if not charts:
        return []
    words = "ROC" + (f", the {SHOWN_ROC} best models" if len(column.entries) > SHOWN_ROC else "")
    words += f", the first {SHOWN_CLASSES} of {len(classes)} classes" if len(classes) > SHOWN_CLASSES else ""
    return [element("h3", words), element("div", charts, class_="charts")]


def _roc_line(column: Column, entry: Entry, positive: str, arms: Mapping[str, int]) -> Line | None:
    arm = arms[entry.model]
    if entry.said is not None and entry.said.scores.size and positive in entry.said.classes:
        scores = entry.said.scores[:, entry.said.classes.index(positive)]
        found = roc_points(entry.said.labels == positive, scores)
        if found is None:
            return None
        return Line(arm, found[0], found[1], f"{entry.model}: area {found[2]:.3f}", dash=arm // 8)
    run = _mil_run(entry)
    roc = None if run is None else roc_of(run.tested(column.task), positive)
    return None if roc is None else Line(arm, roc.x, roc.mean, entry.model, dash=arm // 8)


def _mil_run(entry: Entry) -> MilRun | None:
    return _read_run(entry.folder) if entry.row.get("head") else None


@lru_cache(maxsize=32)
def _read_run(folder: Path) -> MilRun | None:
    try:
        return read_mil_run(folder)
    except DataError:
        return None


def _differences(column: Column) -> list[Html]:
    if not column.pairs:
        return []
    tested = [pair for pair in column.pairs if not np.isnan(pair.difference.low)]
    why = list(dict.fromkeys(pair.reason for pair in column.pairs if pair.reason))
    parts = [element("h3", "Paired differences")]
    if tested:
        grid = table(
            ["difference", "value", f"{LEVEL:.0%} interval", "p", "p (Holm)", ""],
            _pairs(tested),
            (1, 2, 3, 4),
            compact=True,
        )
        folded = element("details", element("summary", f"{len(tested)} pairs"), grid)
        parts += [element("p", _how(tested), class_="how"), grid if len(tested) <= SHOWN_PAIRS else folded]
    if why:
        untested = len(column.pairs) - len(tested)
        parts.append(element("p", f"{untested} pairs without a test: {'; '.join(why)}.", class_="how"))
    return parts


def _how(tested: Sequence[Pair]) -> str:
    clear = sum(pair.p_holm < 1 - LEVEL for pair in tested)
    return (
        "On the same samples and the same resamples of them (of patients where they are known). p (Holm) is corrected "
        f"for {len(tested)} {'pair' if len(tested) == 1 else 'pairs'} of models; {clear} below {1 - LEVEL:.2f}."
    )


def _pairs(pairs: Sequence[Pair]) -> list[list[Child]]:
    lines: list[list[Child]] = []
    for pair in pairs:
        value, low, high, p = pair.difference
        clear = pair.p_holm < 1 - LEVEL
        words = "shown" if clear else "shown for this pair alone" if pair.shown else "no difference shown"
        told = element("span", words, class_="good" if clear else "soft")
        ends = f"{fixed(low, True)} to {fixed(high, True)}"
        lines.append([f"{pair.first} − {pair.second}", fixed(value, True), ends, _p(p), _p(pair.p_holm), told])
    return lines


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
