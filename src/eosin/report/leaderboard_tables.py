"""The tables of a leaderboard page: models against tasks, averages, what others published, conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eosin.evaluation.leaderboard import Block, Board, Column, Entry
from eosin.evaluation.leaderboard_averages import ALL, NAMED, Average, mean_ranks
from eosin.evaluation.leaderboard_pairs import LEVEL, Rank
from eosin.evaluation.leaderboard_rows import leaks_of
from eosin.evaluation.published import Anchor, anchors_of, published, source_words
from eosin.report.leaderboard_charts import short_number
from eosin.report.mil_tables import fixed
from eosin.report.page import Child, Html, Section, duration, element, joined, number, table
from eosin.report.study_charts import named_arm

METRICS = {
    "auroc": "AUROC",
    "balanced_accuracy": "balanced accuracy",
    "c_index": "C-index",
    "dice": "Dice",
    "dice_per_image": "Dice per image",
    "dice_per_window": "Dice per window",
    "iou": "IoU",
    "pearson": "Pearson's r",
    "r2": "R²",
    "robustness_index": "robustness index",
}
_SMALL = "soft small"


def metric_words(metric: str) -> str:
    """A metric as a reader says it."""
    return METRICS.get(metric, metric.replace("_", " "))


def metric_title(metric: str) -> str:
    """The same at the start of a line."""
    words = metric_words(metric)
    return words[:1].upper() + words[1:]


def rank_words(rank: Rank) -> str:
    """A rank, with the places that are open.

    >>> rank_words(Rank(2, 1, 3, ("a",), True)), rank_words(Rank(2, 1, 4, (), False))
    ('1–3', '2?')
    """
    if not rank.tested:
        return f"{rank.place}?"
    return str(rank.low) if rank.low == rank.high else f"{rank.low}–{rank.high}"


def interval_words(low: object, high: object) -> str:
    """The ends of an interval; "no interval" without."""
    ends = fixed(low), fixed(high)
    return "no interval" if "–" in ends else f"{ends[0]} – {ends[1]}"


def table_section(board: Board, averages: Mapping[int, Sequence[Average]], arms: Mapping[str, int]) -> Section:
    """Models against tasks: one table a block."""
    body: list[Html] = []
    for number_, block in enumerate(board.blocks):
        if len(board.blocks) > 1:
            body.append(element("h3", block.title))
        body.append(_block_table(block, averages[number_], arms))
        body += [_average_note(average) for average in averages[number_]]
    how = (
        f"Score, places that the data leave open, {LEVEL:.0%} interval over samples (or patients), ± sd of runs. "
        "Places: from 1 + the models shown to be ahead, to all less those shown to be behind; shown = the interval of "
        "the paired difference on the same samples leaves out 0. So 1–3 is a tie of three places, not a win. Bold: "
        "nobody is shown to be ahead. A ? means that no paired test could be made."
    )
    return Section("table", "Table", how, body)


def _block_table(block: Block, averages: Sequence[Average], arms: Mapping[str, int]) -> Html:
    shown = [average for average in averages if average.values]
    ranks = mean_ranks(block) if len(block.columns) > 1 else {}
    head: list[Child] = ["model", *(f"mean of {len(a.columns)} ({a.name})" for a in shown)]
    head += ["mean rank"] if ranks else []
    head += [_column_head(column) for column in block.columns]
    lines: list[list[Child]] = []
    for name in block.models:
        line: list[Child] = [named_arm(arms[name], name)]
        line += [
            joined(element("b", fixed(a.values[name])), element("span", f" {a.ranks[name]}.", class_=_SMALL))
            if name in a.values
            else "–"
            for a in shown
        ]
        line += [f"{ranks[name]:.1f}" if name in ranks else "–"] if ranks else []
        lines.append([*line, *(_cell(column, name) for column in block.columns)])
    chances = ["" if column.chance is None else fixed(column.chance) for column in block.columns]
    if any(chances):
        empty: list[Child] = [""] * (len(head) - 1 - len(chances))
        soft = [element("span", chance, class_="soft") for chance in chances]
        lines.append([element("span", "guessing", class_="soft"), *empty, *soft])
    return table(head, lines, numeric=tuple(range(1, len(head))), compact=True)


def _column_head(column: Column) -> Html:
    count = f", n {number(column.n, 9)}" if column.n is not None else ""
    words = element("span", metric_words(column.metric), class_="small")
    return joined(element("b", column.title), element("br"), words, element("br"), f"{column.split}{count}")


def _cell(column: Column, name: str) -> Child:
    entry = column.entries.get(name)
    if entry is None:
        return "–"
    rank = column.ranks[name]
    first = rank.low == 1 if rank.tested else rank.place == 1
    told = f"place {rank.place} by score"
    if rank.tied:
        told += f"; no difference shown from {', '.join(rank.tied)}"
    mean = fixed(entry.mean)
    parts = [
        element("b", mean) if first else joined(mean),
        element("span", f" {rank_words(rank)}", class_=_SMALL, title=told),
        element("br"),
        element("span", interval_words(entry.row.get("ci_low"), entry.row.get("ci_high")), class_=_SMALL),
    ]
    if isinstance(entry.row.get("run_sd"), int | float):
        parts += [element("br"), element("span", f"± {fixed(entry.row['run_sd'])}", class_=_SMALL)]
    if leaks := leaks_of(entry.row):
        parts += [element("br"), element("span", "leak", class_="bad small", title="; ".join(leaks))]
    return joined(parts)


def _average_note(average: Average) -> Html:
    """What an average is of, and who is not in it for want of which task."""
    words = f"{average.name}: mean of {', '.join(average.columns)}." if average.columns else f"{average.name}:"
    groups: dict[tuple[str, ...], list[str]] = {}
    for model, lacks in average.missing.items():
        groups.setdefault(lacks, []).append(model)
    everybody = not average.values
    for lacks, models in groups.items():
        who = "nobody has it" if everybody and len(groups) == 1 else f"not for {', '.join(models)}"
        words += f" {who[0].upper()}{who[1:]}: missing {', '.join(lacks) or 'all tasks'}."
    return element("p", words, class_="how small")


def published_section(board: Board) -> Section:
    """Published values of the tasks on the page, a table a block and source, apart from what was measured."""
    body: list[Html] = []
    shown: set[tuple[str, bool, tuple[str, ...]]] = set()
    for block in board.blocks:
        anchors = {column.title: anchors_of(block, column) for column in block.columns}
        for source in dict.fromkeys(anchor.source for found in anchors.values() for anchor in found):
            same = any(a.same_protocol for found in anchors.values() for a in found if a.source == source)
            columns = [title for title, found in anchors.items() if any(a.source == source for a in found)]
            # The same values beside several protocols are printed once.
            if (source, same, tuple(columns)) not in shown:
                shown.add((source, same, tuple(columns)))
                body += _source_table(block, anchors, source, columns, same)
    how = (
        "Printed by others, not measured here: other code, often other tiles and embeddings, and no intervals. Anchors "
        "for the eye; they are in no rank, average or test of this page."
    )
    missing = "nothing is published for these tasks, splits and numbers of samples."
    return Section("published", "Published values", how, body, missing)


def _source_table(
    block: Block, anchors: Mapping[str, list[Anchor]], source: str, columns: Sequence[str], same: bool
) -> list[Html]:
    """Models against columns of one source; the mean as printed where the block has that average's tasks."""
    values = {title: {a.model: a.value for a in anchors[title] if a.source == source} for title in columns}
    models = list(dict.fromkeys(model for own in values.values() for model in own))
    told = published().get(source)
    means = told.averages if told is not None and told.average and len(columns) > 1 else {}
    models.sort(key=lambda model: -means.get(model, max((own.get(model, 0) for own in values.values()), default=0)))
    head = ["model (published)", *columns]
    head += [f"{told.average} as printed"] if told is not None and means else []
    lines = [
        [model, *(fixed(values[t].get(model)) for t in columns), *([fixed(means.get(model))] if means else [])]
        for model in models
    ]
    kind = (
        f"eosin's {block.protocol} rebuilds its protocol" if same else "another protocol than that of the results here"
    )
    grid = table(head, lines, numeric=tuple(range(1, len(head))), compact=True)
    words = element("p", f"{source_words(source)}. Published; {kind}.", class_="how", style="margin-top:1.4rem")
    return [words, grid if len(lines) <= 6 else element("details", element("summary", f"{len(lines)} models"), grid)]


def conditions_section(board: Board, command: str) -> Section:
    """Where every result is from."""
    lines: list[list[Child]] = []
    for block in board.blocks:
        for name in block.models:
            own = [c.entries[name] for c in block.columns if name in c.entries]
            hashes = dict.fromkeys(str(entry.row["protocol_hash"])[:12] for entry in own)
            lines.append([block.title, ", ".join(hashes), name, *_origin(own)])
    head = ["protocol", "protocol hash", "model", "model hash", "input", "tasks", "fitting", "version", "folder"]
    body: list[Html] = [element("pre", element("code", command))] if command else []
    body.append(
        table(head, [[_code(c) if n in (1, 3, 8) else c for n, c in enumerate(line)] for line in lines], (5, 6))
    )
    how = (
        "A table holds one protocol, which has a hash for each kind of task; the model hash is of the weights. "
        f"Averages by name: {', '.join([*NAMED, ALL])}."
    )
    return Section("conditions", "Conditions", how, body)


def _origin(entries: Sequence[Entry]) -> list[str]:
    rows = [entry.row for entry in entries]

    def told(key: str) -> str:
        return ", ".join(dict.fromkeys(str(row[key]) for row in rows if row.get(key)))

    views = dict.fromkeys(
        f"{t.get('pooling') or ''} {t['input_size']} px" if t.get("input_size") else str(t.get("pooling") or "")
        for row in rows
        if isinstance(t := row.get("transform"), dict)
    )
    seconds = sum(row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float))
    hashes = ", ".join(dict.fromkeys(str(row["model_hash"])[:12] for row in rows if row.get("model_hash")))
    folders = ", ".join(dict.fromkeys(entry.folder.name for entry in entries))
    return [hashes or "–", ", ".join(views) or "–", str(len(rows)), duration(seconds), told("version") or "–", folders]


def _code(text: Child) -> Html:
    return element("span", text, class_="code")


def sizes_words(parameters: int | None, slides: int | None, tiles: int | None) -> str:
    """Parameters, slides and tiles seen in one line; empty where none is known."""
    told = ((parameters, "parameters"), (slides, "slides"), (tiles, "tiles seen"))
    return ", ".join(f"{short_number(count)} {word}" for count, word in told if count)
