"""Who is ahead on a task, and is it shown: paired bootstrap of every two models on the same samples, Holm's
correction over all pairs, ranks with the places that the data leave open.

Tiles: balanced accuracy on resamples that all models of a column share (`statistics.bootstrap`), so that a difference
equals `statistics.paired_difference`. Slides: `mil.intervals.compare`. Holm: Scand. J. Statist. 6, 1979.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.statistics import DRAWS, Difference, balanced_accuracy, bootstrap

if TYPE_CHECKING:
    from eosin.evaluation.leaderboard import Entry
    from eosin.evaluation.mil.intervals import Predicted

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
_SAME = 1e-6  # a score and the one of its predictions
NO_PREDICTIONS = "no predictions that belong to the result"


@dataclass(frozen=True, eq=False)
class Said:
    """What a model said of the n judged samples: ids, labels [n] (words), share of runs that were right [n].

    `groups`: what is resampled as a whole, [n] words or None. `scores` [n, C] in the order of `classes`. `runs`: of
    slides, the predictions of every run; the other fields are then empty.
    """

    ids: npt.NDArray[np.str_]
    labels: npt.NDArray[np.str_]
    correct: Floats
    groups: npt.NDArray[np.str_] | None
    classes: tuple[str, ...]
    scores: Floats
    runs: tuple[Predicted, ...] = ()

    def order_of(self, other: Said) -> npt.NDArray[np.int64] | None:
        """Rows of `other` in the order of these samples; None where they are not the same samples, each once."""
        mine, theirs = np.argsort(self.ids, kind="stable"), np.argsort(other.ids, kind="stable")
        if len(mine) != len(theirs) or not np.array_equal(self.ids[mine], other.ids[theirs]):
            return None
        if len(np.unique(self.ids)) != len(self.ids):
            return None if not np.array_equal(self.ids, other.ids) else np.arange(len(self.ids))
        rows = np.empty(len(mine), dtype=np.int64)
        rows[mine] = theirs
        return rows

    def other_labels(self, other: Said) -> bool:
        """Whether the same samples carry other labels in `other`."""
        if self.runs or other.runs:
            return False
        rows = self.order_of(other)
        return rows is not None and not np.array_equal(self.labels, other.labels[rows])


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
        """Whether the interval of the difference lies on one side of 0."""
        return self.difference.low > 0 or self.difference.high < 0


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


def column_pairs(entries: Sequence[Entry], metric: str, protocol_hash: str) -> list[Pair]:
    """All pairs of a column, the better one first; `entries` come best first."""
    draws: dict[int, Floats] = {}
    differences: list[tuple[Entry, Entry, Difference, str]] = []
    if entries and metric == "balanced_accuracy" and all(e.said is None or not e.said.runs for e in entries):
        draws = _shared_draws(entries, protocol_hash)
    for (i, first), (j, second) in combinations(enumerate(entries), 2):
        value, reason = first.mean - second.mean, ""
        found = Difference(value, np.nan, np.nan, np.nan)
        if first.said is None or second.said is None:
            reason = NO_PREDICTIONS
        elif first.said.runs and second.said.runs:
            found, reason = _slide_difference(first, second, metric, found)
        elif metric != "balanced_accuracy":
            reason = f"no paired test of {metric}"
        elif i in draws and j in draws:
            found = _difference(value, draws[i] - draws[j])
        else:
            reason = "not the same samples, or one patient alone"
        differences.append((first, second, found, reason))
    adjusted = holm([found.p for _, _, found, _ in differences])
    return [
        Pair(first.model, second.model, found, p, reason)
        for (first, second, found, reason), p in zip(differences, adjusted, strict=True)
    ]


def ranks_of(means: dict[str, float], pairs: Sequence[Pair], lower_is_better: bool = False) -> dict[str, Rank]:
    """Rank of each model of a column by its mean, with the places that are open.

    A model can be no better than 1 + the number that are shown to be ahead of it, and no worse than the number of all
    less those shown to be behind it.
    """
    sign = -1.0 if lower_is_better else 1.0
    ahead, behind = dict.fromkeys(means, 0), dict.fromkeys(means, 0)
    tied: dict[str, list[str]] = {name: [] for name in means}
    tested = dict.fromkeys(means, len(means) == 1)
    for pair in pairs:
        known = not np.isnan(pair.difference.low)
        for name in (pair.first, pair.second):
            tested[name] |= known
        if pair.shown:
            lead = pair.difference.low > 0 if sign > 0 else pair.difference.high < 0
            better, worse = (pair.first, pair.second) if lead else (pair.second, pair.first)
            ahead[worse] += 1
            behind[better] += 1
        elif known:
            tied[pair.first].append(pair.second)
            tied[pair.second].append(pair.first)
    ranks = {}
    for name, mean in means.items():
        place = 1 + sum(sign * other > sign * mean for other in means.values())
        ranks[name] = Rank(place, 1 + ahead[name], len(means) - behind[name], tuple(tied[name]), tested[name])
    return ranks


def samples_of(folder: Path, row: dict[str, Any], kind: str) -> Said | None:
    """What predictions.parquet or predictions.csv of the folder has of a row; None without.

    DataError where the file is there and damaged.
    """
    return _slides_of(folder, row) if kind == "mil" else _tiles_of(folder, row)


@lru_cache(maxsize=4)
def _table(path: Path, written: float) -> Any:
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _tiles_of(folder: Path, row: dict[str, Any]) -> Said | None:
    from pyarrow import compute

    path = folder / "predictions.parquet"
    if not path.is_file():
        return None
    table = _table(path, path.stat().st_mtime)
    needed = {"task", "protocol", "model", "sample", "label", "correct", "classes", "scores"}
    if not needed <= set(table.column_names):
        return None
    wanted = [compute.equal(table[key], str(row[key])) for key in ("task", "protocol", "model")]
    own = table.filter(compute.and_(compute.and_(wanted[0], wanted[1]), wanted[2]))
    if own.num_rows == 0 or own.num_rows != row.get("n") or own["correct"].null_count or own["label"].null_count:
        return None
    by = row.get("resampled")
    groups = own[by] if by in ("patient", "slide") and by in table.column_names else None
    if by in ("patient", "slide") and (groups is None or groups.null_count):
        return None
    ids = np.asarray(own["sample"].to_pylist(), dtype=np.str_)
    labels = np.asarray(own["label"].to_pylist(), dtype=np.str_)
    correct = own["correct"].to_numpy().astype(np.float64)
    if row["metric"] == "balanced_accuracy":
        score = balanced_accuracy(correct, np.unique(labels, return_inverse=True)[1].astype(np.int64))
        if abs(score - float(row["mean"] or 0)) > _SAME:
            return None
    return Said(
        ids=ids,
        labels=labels,
        correct=correct,
        groups=None if groups is None else np.asarray(groups.to_pylist(), dtype=np.str_),
        classes=tuple(own["classes"][0].as_py() or ()),
        scores=np.asarray(own["scores"].to_pylist(), dtype=np.float64),
    )


def _slides_of(folder: Path, row: dict[str, Any]) -> Said | None:
    from eosin.evaluation.mil.folder import read_predictions
    from eosin.models.slide_task import SlideTask

    if not (folder / "predictions.csv").is_file() or not row.get("kind"):
        return None
    task = SlideTask(str(row["task"]), row["kind"], tuple(row.get("classes") or ()))
    runs = tuple(read_predictions(folder, task))
    nothing = np.empty(0, dtype=np.str_)
    return Said(nothing, nothing, np.empty(0), None, task.classes, np.empty((0, 0)), runs)


def _shared_draws(entries: Sequence[Entry], protocol_hash: str) -> dict[int, Floats]:
    """Resampled scores [draws] by number of entry, all on the samples and resamples of the first that has any."""
    first = next((entry.said for entry in entries if entry.said is not None), None)
    if first is None or (first.groups is not None and len(np.unique(first.groups)) < 2):
        return {}
    hits: dict[int, Floats] = {}
    for number, entry in enumerate(entries):
        rows = None if entry.said is None else first.order_of(entry.said)
        if entry.said is not None and rows is not None and _same_groups(first, entry.said, rows):
            hits[number] = entry.said.correct[rows]
    labels = np.unique(first.labels, return_inverse=True)[1].astype(np.int64)
    groups = None if first.groups is None else np.unique(first.groups, return_inverse=True)[1].astype(np.int64)
    count, seed = _resampling(str(entries[0].row["protocol"]), protocol_hash)
    drawn = bootstrap(np.stack(list(hits.values())), labels, groups, count, seed)
    return dict(zip(hits, drawn, strict=True))


def _same_groups(first: Said, other: Said, rows: npt.NDArray[np.int64]) -> bool:
    if first.groups is None or other.groups is None:
        return first.groups is other.groups
    return np.array_equal(first.groups, other.groups[rows])


def _resampling(protocol: str, protocol_hash: str) -> tuple[int, int]:
    """Draws and seed of a protocol, as its own intervals have them."""
    from eosin.evaluation.protocols import find_protocols

    try:
        known = find_protocols(protocol)[0]
    except DataError:
        return DRAWS, 0
    return (known.draws, known.seed) if known.hash == protocol_hash else (DRAWS, 0)


def _difference(value: float, drawn: Floats) -> Difference:
    """The difference with its percentile interval and two-sided p, as `statistics.paired_difference` has them."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Difference(value, float(low), float(high), min(1.0, 2.0 * (tail + 1) / (len(drawn) + 1)))


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
