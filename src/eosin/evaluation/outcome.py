"""What judging one model on one task by one protocol gives: scores, and all that intervals and differences need.

The same for every kind of task, so that nothing after it (statistics, files, the leaderboard) has to know kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measure:
    """One score of an outcome, with the statistics of the n samples that are resampled for its interval.

    `metric`: its name in results and in scores.SCORES. `value`: the reported score, the mean over runs.
    `run_scores` [R]: of each run. `statistics` [R', n, m]: numbers of each sample whose sums give the score; R' is 1
    where the score is linear in them (they are means over runs then), else R. `part` [n]: statistics are summed within
    parts (classes, folds); None: all are one. `groups` [n]: what is resampled as a whole (patients, slides); None:
    each sample stands alone. `count`: samples that it is about, where they are not the outcome's.
    """

    metric: str
    value: float
    run_scores: Floats
    statistics: Floats
    part: Ints | None = None
    groups: Ints | None = None
    count: int | None = None

    def __len__(self) -> int:
        return self.statistics.shape[1]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a task of N samples was judged to be worth to a model.

    `rows` [n]: numbers of the reported samples in the task, ascending. `split`: what results are about: test, val,
    "5-fold" ... `measures`: the scores, the main one first, a row of results.json each. `tables`: arrays that the
    kind's descriptions and columns need. `choices`: what the probe chose, JSON, a fold each. `seconds`: fitting and
    predicting.
    """

    rows: Ints
    split: str
    measures: tuple[Measure, ...]
    tables: dict[str, npt.NDArray[Any]]
    choices: list[dict[str, Any]]
    seconds: float

    @property
    def main(self) -> Measure:
        """The score that the task is known for."""
        return self.measures[0]

    @property
    def run_scores(self) -> Floats:
        """Main score of each run, [R]."""
        return self.main.run_scores


def merged(choices: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """{setting: [its value in each fold]}."""
    return {key: [choice[key] for choice in choices] for key in (choices[0] if choices else {})}
