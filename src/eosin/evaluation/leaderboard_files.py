"""A leaderboard as data: CSV with a line a result, JSON with everything that the page shows.

Published values are in a list of their own in the JSON, and in the CSV not at all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from eosin.evaluation.leaderboard import Block, Board, Column, Entry
from eosin.evaluation.leaderboard_averages import Average, mean_ranks
from eosin.evaluation.leaderboard_pairs import Pair
from eosin.evaluation.leaderboard_rows import leaks_of
from eosin.evaluation.leaderboard_sizes import Size
from eosin.evaluation.published import Anchor, anchors_of, source_words

_OF_ROW = ("mean", "run_sd", "ci_low", "ci_high", "n", "n_patients", "runs", "chance", "resampled")
COLUMNS = (
    *("protocol", "protocol_hash", "task", "split", "metric", "model", "model_word", "model_hash", "head"),
    *_OF_ROW,
    *("rank", "rank_low", "rank_high", "no_difference_shown_from", "leaks", "folder"),
)


def board_csv(board: Board) -> str:
    """One line a result: scores, interval, rank with open places, leaks."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for block, column, entry in board.rows():
        row = _result(block, column, entry)
        words = {key: "; ".join(row[key]) for key in ("no_difference_shown_from", "leaks")}
        writer.writerow({**{key: "" if row[key] is None else row[key] for key in COLUMNS}, **words})
    return text.getvalue()


def board_json(
    board: Board, averages: Mapping[int, Sequence[Average]], sizes: Mapping[str, Size], published: bool
) -> dict[str, Any]:
    """Everything: `averages` by number of the block."""
    return {
        "models": {name: {"word": word, **sizes[name]._asdict()} for name, word in board.models.items()},
        "blocks": [
            {
                "title": block.title,
                "kind": block.kind,
                "protocol": block.protocol,
                "protocol_hash": block.protocol_hash,
                "results": [
                    _result(block, column, entry) for column in block.columns for entry in column.entries.values()
                ],
                "pairs": [_pair(column, pair) for column in block.columns for pair in column.pairs],
                "averages": [_average(average) for average in averages[number]],
                "mean_ranks": mean_ranks(block),
                "published": [_anchor(c, a) for c in block.columns for a in anchors_of(block, c)] if published else [],
            }
            for number, block in enumerate(board.blocks)
        ],
    }


def _result(block: Block, column: Column, entry: Entry) -> dict[str, Any]:
    rank = column.ranks[entry.model]
    return {
        "protocol": block.protocol,
        "protocol_hash": block.protocol_hash,
        "task": column.task,
        "split": column.split,
        "metric": column.metric,
        "model": entry.model,
        "model_word": entry.row["model"],
        "model_hash": entry.row.get("model_hash"),
        "head": entry.row.get("head"),
        **{key: entry.row.get(key) for key in _OF_ROW},
        "rank": rank.place,
        "rank_low": rank.low if rank.tested else None,
        "rank_high": rank.high if rank.tested else None,
        "no_difference_shown_from": list(rank.tied),
        "leaks": leaks_of(entry.row),
        "folder": str(entry.folder),
        "kind": entry.row.get("kind"),
        "further": [{key: row.get(key) for key in ("metric", "mean", "ci_low", "ci_high")} for row in entry.more],
    }


def _pair(column: Column, pair: Pair) -> dict[str, Any]:
    return {
        "task": column.task,
        "split": column.split,
        "metric": column.metric,
        "first": pair.first,
        "second": pair.second,
        "difference": pair.difference.value,
        "ci_low": pair.difference.low,
        "ci_high": pair.difference.high,
        "p": pair.difference.p,
        "p_holm": pair.p_holm,
        "reason": pair.reason,
    }


def _average(average: Average) -> dict[str, Any]:
    missing = {model: list(lacks) for model, lacks in average.missing.items()}
    return {"name": average.name, "columns": list(average.columns), "values": average.values, "missing": missing}


def _anchor(column: Column, anchor: Anchor) -> dict[str, Any]:
    told = {"task": column.task, "split": column.split, "metric": column.metric, "model": anchor.model}
    source = {"source": source_words(anchor.source), "same_protocol": anchor.same_protocol}
    return {**told, "value": anchor.value, **source}
