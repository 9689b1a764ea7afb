"""The page of `eosin leaderboard`: many models on many tasks, with intervals, ranks, averages, tests and anchors.

One file that needs no other file and no network. Shows what `evaluation.leaderboard` found; measured and published
values never share a rank, an average or a test.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from eosin.errors import OutputError
from eosin.evaluation.eva_export import write_eva
from eosin.evaluation.leaderboard import Block, Board, Column, read_board
from eosin.evaluation.leaderboard_averages import Average, averages_of, find_averages
from eosin.evaluation.leaderboard_files import board_csv, board_json
from eosin.evaluation.leaderboard_rows import OUT_OF_ONE, leaks_of
from eosin.evaluation.leaderboard_sizes import Size, sizes_of
from eosin.evaluation.published import anchors_of
from eosin.files import PathLike, write_json, write_text
from eosin.report.leaderboard_charts import SizePoint, size_chart
from eosin.report.leaderboard_tables import (
    conditions_section,
    metric_title,
    metric_words,
    published_section,
    sizes_words,
    table_section,
)
from eosin.report.leaderboard_tasks import bar_of, task_section, wide_chart
from eosin.report.mil_charts import BarGroup, bar_chart
from eosin.report.mil_radar import radar_chart
from eosin.report.page import Html, Section, element, number, render_page
from eosin.report.study_charts import named_arm

LEAST_RADAR = 3
SHOWN_RADAR = 8
_OPEN_BARS = 60  # more are folded away
_AXES = {"parameters": "parameters", "slides": "slides seen in training", "tiles": "tiles seen in training"}

Averages = Mapping[int, Sequence[Average]]
Arms = Mapping[str, int]


def write_leaderboard(
    results: Sequence[PathLike],
    out: PathLike,
    *,
    csv: PathLike | None = None,
    json: PathLike | None = None,
    eva: PathLike | None = None,
    average: Sequence[str] = (),
    published: bool = True,
    command: str = "",
) -> Path:
    """Write the page of `results`, folders or results.json files of `eosin eval` and `eosin mil train`; its path.

    `out`: the page, or a folder for leaderboard.html. `csv`, `json`: the same as data. `eva`: a folder for results in
    eva's shapes. `average`: names (midnight-13, eva-board, all); without, those of which some model has every task.
    `published`: show what others printed for the same task, split and number of samples. `command`: what made it.
    Raises DataError for results that cannot stand side by side, OutputError where a file cannot be written.
    """
    names = find_averages([average] if isinstance(average, str) else average)
    given = [results] if isinstance(results, str | Path) else list(results)
    board = read_board(given)
    averages = {number_: averages_of(block, names) for number_, block in enumerate(board.blocks)}
    sizes = sizes_of(board)
    target = Path(out)
    if target.is_dir() or not target.suffix:
        target = target / "leaderboard.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"the page goes into a file like leaderboard.html, not {target}")
    text = render_page(
        "Leaderboard · eosin", _header(board, sizes), _sections(board, averages, sizes, published, command), {}
    )
    if csv is not None:
        write_text(csv, board_csv(board))
    if json is not None:
        write_json(json, board_json(board, averages, sizes, published))
    if eva is not None:
        write_eva(board, eva)
    write_text(target, text)
    return target


def _sections(
    board: Board, averages: Averages, sizes: Mapping[str, Size], published: bool, command: str
) -> list[Section]:
    arms = {name: number_ for number_, name in enumerate(dict.fromkeys(n for b in board.blocks for n in b.models))}
    sections = [
        table_section(board, averages, arms),
        _bars_section(board, arms, published),
        _radar_section(board, arms),
        _size_section(board, averages, sizes, arms),
        published_section(board) if published else Section("published", "Published values", missing="not asked for."),
    ]
    several = len(board.blocks) > 1
    columns = [(block, column) for block in board.blocks for column in block.columns]
    for number_, (block, column) in enumerate(columns):
        near = column.task not in {earlier.task for _, earlier in columns[:number_]}
        sections.append(task_section(f"task-{number_}", block, column, arms, several, published, near))
    return [*sections, conditions_section(board, command)]


def _header(board: Board, sizes: Mapping[str, Size]) -> Html:
    tasks = list(dict.fromkeys(column.task for block in board.blocks for column in block.columns))
    facts = [
        ("Models", number(len(board.models))),
        ("Tasks", number(len(tasks)) if len(tasks) > 3 else ", ".join(tasks)),
        ("Protocols", " · ".join(block.title for block in board.blocks)),
        ("Result folders", number(len(board.folders))),
    ]
    entries = [element("div", element("dt", key), element("dd", value)) for key, value in facts]
    return element(
        "header",
        element("h1", "Leaderboard"),
        element("p", f"eosin leaderboard · page written {time.strftime('%Y-%m-%d %H:%M %Z')}", class_="status"),
        element("dl", entries, class_="facts"),
        element("div", [element("p", text, class_="note bad") for text in _warnings(board)], style="margin-top:1.4rem"),
    )


def _warnings(board: Board) -> list[str]:
    """Leaks in plain words, tasks and models of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for _, column, entry in board.rows():
        for reason in leaks_of(entry.row):
            own = found.setdefault((entry.model, reason), [])
            own += [column.task] if column.task not in own else []
    return [
        f"{model}, {', '.join(tasks)}: {reason}; the score may be too high." for (model, reason), tasks in found.items()
    ]


def _legend(names: Sequence[str], arms: Arms) -> Html:
    return element("p", [named_arm(arms[name], name) for name in names], class_="legend")


def _bars_section(board: Board, arms: Arms, published: bool) -> Section:
    body: list[Html] = []
    for block in board.blocks:
        for metric in dict.fromkeys(column.metric for column in block.columns):
            groups = [
                BarGroup(
                    column.title,
                    [bar_of(column.entries[name], arms) for name in block.models if name in column.entries],
                    _diamonds(block, column) if published else {},
                )
                for column in block.columns
                if column.metric == metric
            ]
            title = metric_title(metric)
            words = f"{title} · {block.title}" if len(board.blocks) > 1 else title
            drawing = wide_chart(bar_chart(groups, _chance_of(block, metric), f"{words} by task with intervals"))
            if sum(len(group.bars) for group in groups) > _OPEN_BARS:
                drawing = element("details", element("summary", f"{words}: all bars"), drawing)
            there = [name for name in block.models if any(b.name == name for group in groups for b in group.bars)]
            body += [element("h3", words), _legend(there, arms), drawing]
    how = "Whisker: 95 % interval over samples or patients; dot: one run; diamond: published, by this protocol."
    return Section("bars", "Bars", how, body)


def _chance_of(block: Block, metric: str) -> float | None:
    """What guessing gets in all tasks of a metric; None where it differs."""
    told = {column.chance for column in block.columns if column.metric == metric}
    return told.pop() if len(told) == 1 else None


def _diamonds(block: Block, column: Column) -> dict[str, float]:
    """Published values by the protocol of the block; those of others are in the section of the task."""
    return {f"{a.model}, {a.source}": a.value for a in anchors_of(block, column) if a.same_protocol}


def _radar_section(board: Board, arms: Arms) -> Section:
    body: list[Html] = []
    for block in board.blocks:
        columns, full = _radar_of(block)
        if not full:
            continue
        polygons = [(arms[name], [column.entries[name].mean for column in columns]) for name in full]
        metrics = [column.metric for column in columns]
        usual = max(metrics, key=metrics.count)
        titles = [
            c.title if c.metric == usual or c.title.endswith(c.metric) else f"{c.title}, {metric_words(c.metric)}"
            for c in columns
        ]
        words = metric_title(usual) + ("" if len(set(metrics)) == 1 else ", where no other metric is named")
        words += f" · {block.title}" if len(board.blocks) > 1 else ""
        guessing = [column.chance or 0.0 for column in columns] if all(c.chance is not None for c in columns) else None
        drawing = radar_chart(titles, polygons, None, guessing, f"{words} as a radar, {block.title}")
        figure = element("figure", drawing, class_="chart", style="max-width:44rem")
        body += [element("h3", words), _legend(full, arms), figure]
    how = (
        f"Score to 1 at the rim, models with every task, at most {SHOWN_RADAR}; the dashed ring is 0.5, the dashed "
        "line in grey is guessing, where that is known of every task. Axes of different metrics are not to be compared."
    )
    missing = f"a radar needs {LEAST_RADAR} tasks of one protocol that one model has."
    return Section("radar", "Radar", how, body, missing)


def _radar_of(block: Block) -> tuple[list[Column], list[str]]:
    """Axes and models of a radar: all metrics whose best is 1, else the most common one; no models without enough."""
    whole = [column for column in block.columns if column.metric in OUT_OF_ONE]
    metric = max((c.metric for c in whole), key=[c.metric for c in whole].count, default="")
    for columns in (whole, [column for column in whole if column.metric == metric]):
        full = [name for name in block.models if all(name in column.entries for column in columns)]
        if len(columns) >= LEAST_RADAR and full:
            return columns, full[:SHOWN_RADAR]
    return [], []


def _size_section(board: Board, averages: Averages, sizes: Mapping[str, Size], arms: Arms) -> Section:
    charts: list[Html] = []
    for number_, block in enumerate(board.blocks):
        scores, words = _overall(block, averages[number_])
        title = words + (f" · {block.title}" if len(board.blocks) > 1 else "")
        for key, axis in _AXES.items():
            points = [
                SizePoint(arms[name], float(size), *score, name)
                for name, score in scores.items()
                if (size := getattr(sizes[name], key))
            ]
            if len({point.x for point in points}) > 1:
                drawing = size_chart(points, f"{title} against {axis}", axis, "score")
                head = element("header", element("b", title))
                charts.append(element("figure", head, drawing, class_="chart"))
    known = [
        f"{name}: {told}"
        for name, size in sizes.items()
        if (told := sizes_words(size.parameters, size.slides, size.tiles))
    ]
    unknown = [name for name, size in sizes.items() if not size.slides]
    notes = [element("p", f"{'; '.join(known)}.", class_="how small", style="margin-top:.8rem")] if known else []
    if unknown and len(unknown) < len(sizes):
        notes.append(element("p", f"Slides are not known of {', '.join(unknown)}.", class_="how small"))
    how = (
        "Each point is a model. Sizes are of the zoo, the model's own description or timm's definition; slides and "
        "tiles as the owners state them. Encoders differ in much else, so this is no scaling law."
    )
    style = "display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(26rem,100%),1fr))"
    body = [*([element("div", charts, style=style)] if charts else []), *notes]
    return Section("size", "Score against size", how, body, "no size of any model is known.")


def _overall(
    block: Block, averages: Sequence[Average]
) -> tuple[dict[str, tuple[float, float | None, float | None]], str]:
    """The score that stands for a block: its first average with a value, else its first column; with interval."""
    chosen = next((average for average in averages if average.values and len(average.columns) > 1), None)
    if chosen is not None:
        words = f"mean of {len(chosen.columns)} tasks ({chosen.name})"
        return {name: (value, None, None) for name, value in chosen.values.items()}, words
    column = block.columns[0]
    bars = {name: bar_of(entry, {name: 0}) for name, entry in column.entries.items()}
    return {name: (bar.mean, bar.low, bar.high) for name, bar in bars.items()}, column.title
