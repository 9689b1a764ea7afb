"""Who is ahead on a task, and is it shown: paired bootstrap of every two models on the same samples, Holm's
correction over all pairs, ranks with the places that the data leave open.

Results of `eosin eval`: the task's metric on resamples that all models of a column share (`statistics.resample`), so
that a difference equals `statistics.difference_of`. Of `eosin mil train`: `mil.intervals.compare`. Holm: Scand. J.
Statist. 6, 1979.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.leaderboard_samples import Said
from eosin.evaluation.scores import SCORES
from eosin.evaluation.statistics import DRAWS, Difference, bootstrap_p, group_count, is_shown, resample

if TYPE_CHECKING:
    from eosin.evaluation.leaderboard import Entry

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
LEVEL = 0.95
NO_PREDICTIONS = "no predictions that belong to the result"


class Pair(NamedTuple):
    """First minus second; p is of this pair alone, `p_holm` after Holm over all pairs of the column.

    Without a test `difference` has NaN ends and `reason` says why.
    """

    first: str
    second: str
    difference: Difference
    p_holm: float
    reason: str = ""

    @property
    def shown(self) -> bool:
        """Whether the pair by itself shows a difference (`statistics.is_shown`)."""
        return is_shown(self.difference.low, self.difference.high, self.difference.p)


class Rank(NamedTuple):
    """`place` by score (equal scores share it); `low`..`high`: places that the intervals of differences leave open.

    `tied`: models from which no difference is shown. Without any test low and high are 1 and the number of models.
    """

    place: int
    low: int
    high: int
    tied: tuple[str, ...]
    tested: bool


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p-values, in the order given; a NaN stays one and does not count.

    The k-th smallest of m is multiplied by m - k + 1, made at least as large as the one before it, at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    scaled = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0) if len(order) else scaled
    return [float(value) for value in adjusted]


def column_pairs(entries: Sequence[Entry], metric: str) -> list[Pair]:
    """All pairs of a column, the better one first; `entries` come best first."""
    draws: dict[int, Floats] = {}
    differences: list[tuple[Entry, Entry, Difference, str]] = []
    if entries and metric in SCORES and all(e.said is None or not e.said.runs for e in entries):
        draws = _shared_draws(entries, metric)
    for (i, first), (j, second) in combinations(enumerate(entries), 2):
        value, reason = first.mean - second.mean, ""
        found = Difference(value, np.nan, np.nan, np.nan)
        if first.said is None or second.said is None:
            reason = NO_PREDICTIONS
        elif first.said.runs and second.said.runs:
            found, reason = _slide_difference(first, second, metric, found)
        elif metric not in SCORES:
            reason = f"no paired test of {metric}"
        elif i in draws and j in draws:
            found = _difference(value, draws[i] - draws[j], group_count(first.said.groups, len(first.said.ids)))
        else:
            reason = "not the same samples, or one patient alone"
        differences.append((first, second, found, reason))
    adjusted = holm([found.p for _, _, found, _ in differences])
    return [
        Pair(first.model, second.model, found, p, reason)
        for (first, second, found, reason), p in zip(differences, adjusted, strict=True)
    ]


def ranks_of(means: dict[str, float], pairs: Sequence[Pair]) -> dict[str, Rank]:
    """Rank of each model of a column by its mean, with the places that are open.

    A model can be no better than 1 + the number that are shown to be ahead of it, and no worse than the number of all
    less those shown to be behind it.
    """
    ahead, behind = dict.fromkeys(means, 0), dict.fromkeys(means, 0)
    tied: dict[str, list[str]] = {name: [] for name in means}
    tested = dict.fromkeys(means, len(means) == 1)
    for pair in pairs:
        known = not np.isnan(pair.difference.low)
        for name in (pair.first, pair.second):
            tested[name] |= known
        if pair.shown:
            better, worse = (pair.first, pair.second) if pair.difference.low > 0 else (pair.second, pair.first)
            ahead[worse] += 1
            behind[better] += 1
        elif known:
            tied[pair.first].append(pair.second)
            tied[pair.second].append(pair.first)
    ranks = {}
    for name, mean in means.items():
        place = 1 + sum(other > mean for other in means.values())
        ranks[name] = Rank(place, 1 + ahead[name], len(means) - behind[name], tuple(tied[name]), tested[name])
    return ranks


def _shared_draws(entries: Sequence[Entry], metric: str) -> dict[int, Floats]:
    """Resampled scores [draws] by number of entry, all on the samples and resamples of the first that has any."""
    first = next((entry.said for entry in entries if entry.said is not None), None)
    if first is None or (first.groups is not None and len(np.unique(first.groups)) < 2):
        return {}
    found: dict[int, Floats] = {}
    for number, entry in enumerate(entries):
        rows = None if entry.said is None else first.order_of(entry.said)
        if entry.said is not None and rows is not None and _resampled_alike(first, entry.said, rows):
            found[number] = entry.said.statistics[:, rows]
    groups = None if first.groups is None else np.unique(first.groups, return_inverse=True)[1].astype(np.int64)
    draws, seed = _resampling(entries[0].row)
    drawn = resample(np.concatenate(list(found.values())), SCORES[metric], first.part, groups, draws, seed)
    ends = np.cumsum([len(statistics) for statistics in found.values()])[:-1]
    return {number: own.mean(axis=0) for number, own in zip(found, np.split(drawn, ends), strict=True)}


def _resampled_alike(first: Said, other: Said, rows: Ints) -> bool:
    """Whether parts and groups of the same samples are the same."""
    if not np.array_equal(first.part, other.part[rows]):
        return False
    if first.groups is None or other.groups is None:
        return first.groups is other.groups
    return np.array_equal(first.groups, other.groups[rows])


def _resampling(row: dict[str, Any]) -> tuple[int, int]:
    """Draws and seed of a row's protocol, as its own intervals have them."""
    from eosin.evaluation.protocols import find_protocols

    try:
        known = find_protocols(str(row["protocol"]))[0].of(str(row.get("kind") or "classification"))
    except DataError:
        return DRAWS, 0
    return (known.draws, known.seed) if known.hash == row["protocol_hash"] else (DRAWS, 0)


def _difference(value: float, drawn: Floats, groups: int) -> Difference:
    """The difference with its percentile interval and two-sided p, as `statistics.difference_of` has them."""
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(value, float(low), float(high), bootstrap_p(drawn, groups))


def _slide_difference(first: Entry, second: Entry, metric: str, none: Difference) -> tuple[Difference, str]:
    from eosin.evaluation.mil.intervals import compare
    from eosin.evaluation.mil.scores import SCORES

    score = SCORES.get(str(first.row.get("kind")), {}).get(metric)
    if score is None or first.said is None or second.said is None:
        return none, f"no paired test of {metric}"
    try:
        found = compare(score, first.said.runs, second.said.runs, *_slide_resampling(first.folder))
    except DataError as error:
        return none, str(error)
    return found, "" if np.isfinite(found.low) else "one patient alone"


def _slide_resampling(folder: Path) -> tuple[int, int]:
    """Draws and seed of a folder of heads."""
    try:
        told = json.loads((folder / "heads" / "config.json").read_text(encoding="utf-8")).get("protocol") or {}
        return int(told.get("draws", DRAWS)), int(told.get("split_seed", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return DRAWS, 0
