"""Averages over tasks that have a name, so that two of them are of the same tasks; only over complete rows.

| name | tasks |
|---|---|
| midnight-13 | the 13 columns of the Midnight paper (arXiv 2504.05186) |
| eva-board | the 9 of eva's public leaderboard, which leaves BACH out |
| all | every column of the block |

Where a public task has a test split, that one counts and val does not. HEST is one term: the mean of its nine tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eosin.errors import DataError
from eosin.evaluation.leaderboard import Block, Column

ALL = "all"
_TESTED = frozenset({"bracs", "pcam", "pcam-10shot", "camelyon16-small", "panda-small"})
_EVA = ("breakhis", "crc", "gleason", "mhist", "pcam", "camelyon16-small", "panda-small", "consep", "monusac")
_ORGANS = ("idc", "prad", "paad", "skcm", "coad", "read", "ccrcc", "lung", "lymph-idc")
_PARTS = {"hest": tuple(f"hest-{organ}" for organ in _ORGANS)}
NAMED: dict[str, tuple[str, ...]] = {
    "midnight-13": ("pcam-10shot", "bach", "bracs", *_EVA, "hest"),
    "eva-board": _EVA,
}


@dataclass(frozen=True)
class Average:
    """A named average in a block. `values`: model -> mean, of models that have every task.

    `missing`: model -> what it lacks. `columns`: titles of what is averaged; `absent`: tasks that no model has.
    `ranks`: place by value among models with one.
    """

    name: str
    values: dict[str, float]
    missing: dict[str, tuple[str, ...]]
    columns: tuple[str, ...]
    absent: tuple[str, ...]
    ranks: dict[str, int]


def find_averages(words: Sequence[str]) -> list[str]:
    """Averages named by `words` (or comma lists of them), each once. DataError for an unknown one."""
    asked = [word.strip() for entry in words for word in entry.split(",") if word.strip()]
    for word in asked:
        if word not in (*NAMED, ALL):
            raise DataError(f"unknown average {word!r}: {', '.join([*NAMED, ALL])}")
    return list(dict.fromkeys(asked))


def averages_of(block: Block, names: Sequence[str] = ()) -> list[Average]:
    """The averages `names` of a block; without names, those of which some model has every task, and `all`."""
    found = [average_of(block, name) for name in (names or (*NAMED, ALL))]
    return found if names else [average for average in found if average.values and len(average.columns) > 1]


def average_of(block: Block, name: str) -> Average:
    """One average; a score on a part of a public data set does not count."""
    terms, absent = _terms(block, name)
    columns = [column for term in terms for column in term]
    values: dict[str, float] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for model in block.models:
        lacks = [*absent]
        for column in columns:
            entry = column.entries.get(model)
            if entry is None:
                lacks.append(column.title)
            elif name != ALL and entry.row.get("complete") is False:
                lacks.append(f"{column.title} (not the full data set)")
        if lacks or not columns:
            missing[model] = tuple(lacks)
        else:
            means = [np.mean([column.entries[model].mean for column in term]) for term in terms]
            values[model] = float(np.mean(means))
    ranks = {model: 1 + sum(other > value for other in values.values()) for model, value in values.items()}
    return Average(name, values, missing, tuple(column.title for column in columns), tuple(absent), ranks)


def mean_ranks(block: Block) -> dict[str, float]:
    """Mean of the places over all columns, of models that are in every column; ranked among those models alone."""
    full = [name for name in block.models if all(name in column.entries for column in block.columns)]
    places: dict[str, list[int]] = {name: [] for name in full}
    for column in block.columns:
        scores = {name: column.entries[name].mean for name in full}
        for name in full:
            places[name].append(1 + sum(other > scores[name] for other in scores.values()))
    return {name: float(np.mean(own)) for name, own in places.items()}


def _terms(block: Block, name: str) -> tuple[list[list[Column]], list[str]]:
    """What is averaged, each term a column or the parts of a task, and the names of tasks that the block lacks."""
    if name == ALL:
        return [[column] for column in block.columns], []
    terms, absent = [], []
    for task in NAMED[name]:
        term = []
        for part in _PARTS.get(task, (task,)):
            own = [
                column
                for column in block.columns
                if column.task == part and (task not in _TESTED or column.split == "test")
            ]
            if own:
                term.append(own[0])
            else:
                absent.append(f"{part} (on test)" if task in _TESTED else part)
        if term:
            terms.append(term)
    return terms, absent
