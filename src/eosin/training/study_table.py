"""What the runs of a study say together: means over seeds with intervals, differences to one arm, rank correlations.

A run is a dict {arm, seed, status, metrics: {name: value}}. Two sources of chance are kept apart: seeds (Student's t
over runs) and test cases (a bootstrap over patients or samples, the runs held fixed). Nothing is corrected for the
number of comparisons. Knows no files but the predictions of `eosin eval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas
from scipy import stats

from eosin.errors import DataError
from eosin.evaluation.protocols import find_protocols
from eosin.evaluation.statistics import paired_difference

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
    """One run on one task by one protocol: samples [n], correct [n] in [0, 1], labels [n], groups [n] or None."""

    samples: npt.NDArray[np.str_]
    correct: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64] | None


def read_judged(predictions: Path) -> dict[str, Judged]:
    """What a predictions.parquet of one model holds, by "protocol/task". Raises DataError where it is damaged."""
    try:
        table = pandas.read_parquet(predictions)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {predictions}: {error}") from error
    found = {}
    for (protocol, task), rows in table.groupby(["protocol", "task"], sort=False):
        unit = next((rows[name] for name in ("patient", "slide") if rows[name].notna().all()), None)
        found[f"{protocol}/{task}"] = Judged(
            rows["sample"].to_numpy(str),
            rows["correct"].to_numpy(float),
            _numbered(rows["label"]),
            None if unit is None else _numbered(unit),
        )
    return found


def _numbered(column: pandas.Series) -> npt.NDArray[np.int64]:
    return np.unique(column.to_numpy(str), return_inverse=True)[1].astype(np.int64)


def case_differences(
    runs: Sequence[Run],
    arms: Sequence[str],
    reference: str,
    judged: Callable[[Run], Mapping[str, Judged]],
    units: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Each arm minus the reference on every probe, over test cases: what another draw of patients would give.

    The correctness of a case is averaged over the seeds that both arms have (balanced accuracy is linear in it), then
    both arms are scored on the same 2,000 resamples. units: what a probe's cases are grouped by, by its name.
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
            found = paired_difference(
                np.mean([run.correct for run in ours], axis=0),
                np.mean([run.correct for run in theirs], axis=0),
                first.labels,
                first.groups,
                protocol.draws,
                protocol.seed,
            )
            rows.append(
                {
                    "arm": arm,
                    "against": reference,
                    "metric": probe,
                    "over": unit,
                    "n": len(first.samples) if first.groups is None else len(np.unique(first.groups)),
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
