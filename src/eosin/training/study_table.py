"""What the runs of a study say together: means over seeds with intervals, differences to one arm, rank correlations.

A run is a dict {arm, seed, status, metrics: {name: value}}. Two sources of chance are kept apart: seeds (Student's t
over runs) and test cases (a bootstrap over patients or samples, the runs held fixed). Nothing is corrected for the
number of comparisons. Knows no files but the results of `eosin eval`, of tasks of any kind by their main metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas
from scipy import stats

from eosin.errors import DataError
from eosin.evaluation.leaderboard_samples import samples_of
from eosin.evaluation.outcome import Measure
from eosin.evaluation.protocols import find_protocols
from eosin.evaluation.results import read_results
from eosin.evaluation.statistics import difference_of, group_count

Run = dict[str, Any]
LABEL_FREE = ("rankme", "odcorr", "uniformity")


class SeedInterval(NamedTuple):
    """Mean over n seeds, standard deviation and two-sided t-interval of the mean; NaN where n is too small."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def seed_interval(values: npt.ArrayLike, level: float = 0.95) -> SeedInterval:
    """mean ± t(n − 1) · sd / √n of `values` [n]: what another draw of seeds would give, if seeds are near normal."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2:
        return SeedInterval(n, float(x.mean()) if n else math.nan, math.nan, math.nan, math.nan)
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return SeedInterval(n, mean, sd, mean - half, mean + half)


def metric_names(runs: Iterable[Run]) -> list[str]:
    """Metrics of the runs that are done, in order of first appearance."""
    return list(dict.fromkeys(name for run in runs for name in run["metrics"]))


def values_of(runs: Iterable[Run], arm: str, metric: str) -> dict[int, float]:
    """Finite values of a metric by seed, of an arm's runs that are done."""
    found = {run["seed"]: run["metrics"].get(metric) for run in runs if run["arm"] == arm and run["status"] == "done"}
    return {seed: float(value) for seed, value in found.items() if value is not None and math.isfinite(value)}


def summaries(runs: Sequence[Run], arms: Sequence[str]) -> list[dict[str, Any]]:
    """One row an arm and metric: {arm, metric, n, mean, sd, ci_low, ci_high} over seeds."""
    rows = []
    for arm in arms:
        for metric in metric_names(runs):
            found = seed_interval(list(values_of(runs, arm, metric).values()))
            rows.append({"arm": arm, "metric": metric, **_interval(found)})
    return rows


def _interval(found: SeedInterval) -> dict[str, Any]:
    return {"n": found.n, "mean": found.mean, "sd": found.sd, "ci_low": found.low, "ci_high": found.high}


def seed_differences(runs: Sequence[Run], arms: Sequence[str], reference: str) -> list[dict[str, Any]]:
    """Each arm minus the reference, paired by seed: runs of one seed start alike and see the same tile numbers."""
    rows = []
    for arm in (name for name in arms if name != reference):
        for metric in metric_names(runs):
            ours, theirs = values_of(runs, arm, metric), values_of(runs, reference, metric)
            found = seed_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
            if found.n == 0:
                continue
            rows.append(
                {
                    "arm": arm,
                    "against": reference,
                    "metric": metric,
                    "over": "seeds",
                    "n": found.n,
                    "difference": found.mean,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "p": None,
                }
            )
    return rows


class Judged(NamedTuple):
    """One run on one task by one protocol: its samples [n] in order, and its main score on them."""

    samples: npt.NDArray[np.str_]
    measure: Measure


def main_rows(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of results.json of one model by "protocol/task"; of several metrics the task's main one, the first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(f"{row['protocol']}/{row['task']}", row)
    return found


def read_judged(folder: Path) -> dict[str, Judged]:
    """What `eosin eval` said of one model in `folder`, by "protocol/task".

    Raises DataError where the files are damaged or not of one call.
    """
    found = {}
    for name, row in main_rows(read_results(folder)).items():
        said = samples_of(folder, row, "tiles")
        if said is None:
            raise DataError(f"{folder} has no predictions that give the {row['metric']} of {name}; judge it again")
        groups = None if said.groups is None else np.unique(said.groups, return_inverse=True)[1].astype(np.int64)
        scores = np.asarray(row["run_scores"], dtype=np.float64)
        measure = Measure(str(row["metric"]), float(row["mean"]), scores, said.statistics, said.part, groups)
        found[name] = Judged(said.ids, measure)
    return found


def _over_seeds(runs: Sequence[Measure]) -> Measure:
    """The mean of one score over several runs: their statistics lie side by side, as those of a probe's runs do."""
    return replace(
        runs[0],
        value=float(np.mean([run.value for run in runs])),
        run_scores=np.array([run.value for run in runs]),
        statistics=np.concatenate([run.statistics for run in runs]),
    )


def case_differences(
    runs: Sequence[Run],
    arms: Sequence[str],
    reference: str,
    judged: Callable[[Run], Mapping[str, Judged]],
    units: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Each arm minus the reference on every probe, over test cases: what another draw of patients would give.

    Both arms are scored on the same 2,000 resamples, each score averaged over the seeds that both arms have. units:
    what a probe's cases are grouped by, by its name.
    """
    done = {(run["arm"], run["seed"]): judged(run) for run in runs if run["status"] == "done"}
    rows = []
    for arm in (name for name in arms if name != reference):
        seeds = [seed for name, seed in done if name == arm and (reference, seed) in done]
        for probe, unit in units.items() if seeds else ():
            ours, theirs = ([done[name, seed][probe] for seed in seeds] for name in (arm, reference))
            first = ours[0]
            if any(not np.array_equal(first.samples, other.samples) for other in (*ours, *theirs)):
                raise DataError(f"{probe}: runs of the study were judged on different samples")
            protocol = find_protocols(probe.partition("/")[0])[0]
            mine, other = (_over_seeds([run.measure for run in of_arm]) for of_arm in (ours, theirs))
            found = difference_of(mine, other, protocol.draws, protocol.seed)
            rows.append(
                {
                    "arm": arm,
                    "against": reference,
                    "metric": probe,
                    "over": unit,
                    "n": group_count(first.measure.groups, len(first.measure)),
                    "difference": found.value,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "p": found.p,
                    "seeds": len(seeds),
                }
            )
    return rows


def rank_correlations(runs: Sequence[Run], probes: Iterable[str]) -> list[dict[str, Any]]:
    """Spearman's rho of ODCorr and RankMe with each probe over the runs that are done: {x, y, rho, n}.

    Runs of one arm are not independent, so no p-value is given. rho is None below three runs or without variation.
    """
    rows: list[dict[str, Any]] = []
    for probe in probes:
        for name in ("odcorr", "rankme"):
            pairs = [(run["metrics"].get(name), run["metrics"].get(probe)) for run in runs if run["status"] == "done"]
            points = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
            points = points[np.isfinite(points).all(axis=1)]
            varies = len(points) >= 3 and bool((np.ptp(points, axis=0) > 0).all())
            rho = float(stats.spearmanr(points[:, 0], points[:, 1]).statistic) if varies else None
            rows.append({"x": name, "y": probe, "rho": rho, "n": len(points)})
    return rows


def table_csv(runs: Sequence[Run], changes: Mapping[str, Mapping[str, Any]]) -> str:
    """CSV text, a row a run: arm, seed, status, error, the values that the arms set, the metrics."""
    keys = list(dict.fromkeys(key for values in changes.values() for key in values))
    rows = [
        {
            "arm": run["arm"],
            "seed": run["seed"],
            "status": run["status"],
            "error": run["error"] or "",
            **{key: changes[run["arm"]].get(key, "") for key in keys},
            **{name: run["metrics"].get(name) for name in metric_names(runs)},
        }
        for run in runs
    ]
    return pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n")
