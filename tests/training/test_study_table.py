"""Statistics of studies against scipy and plain sums on known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from eosin.errors import DataError
from eosin.evaluation import evaluate
from eosin.evaluation.outcome import Measure
from eosin.evaluation.statistics import balanced_accuracy
from eosin.training.study_table import (
    Judged,
    case_differences,
    main_rows,
    rank_correlations,
    read_judged,
    seed_differences,
    seed_interval,
    summaries,
    table_csv,
)


def row(arm: str, seed: int, **metrics: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "status": "done", "error": None, "metrics": metrics}


def test_intervals_are_scipys() -> None:
    x = [0.61, 0.58, 0.66, 0.63]
    found = seed_interval(x)
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.n, found.mean, found.sd) == (4, pytest.approx(0.62), pytest.approx(np.std(x, ddof=1)))
    one = seed_interval([0.5])
    assert (one.n, one.mean) == (1, 0.5)
    assert np.isnan([one.sd, one.low, one.high]).all()

    a, b = [1.0, 2.5, 2.0], [0.5, 1.0, 1.9]
    runs = [row(arm, seed, m=v) for arm, values in (("a", a), ("b", b)) for seed, v in enumerate(values)]
    (difference,) = seed_differences(runs, ["a", "b"], "b")
    paired = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference["difference"] == pytest.approx(np.mean(a) - np.mean(b))
    assert (difference["ci_low"], difference["ci_high"]) == (pytest.approx(paired.low), pytest.approx(paired.high))


def test_missing_and_collapsed_values_are_left_out() -> None:
    runs = [row("a", 0, odcorr=float("nan")), row("a", 1, odcorr=0.25), row("b", 0, odcorr=0.5)]
    runs.append({**row("b", 1), "status": "failed", "error": "x"})
    found = {entry["arm"]: entry for entry in summaries(runs, ["a", "b"])}
    assert (found["a"]["n"], found["a"]["mean"], found["b"]["n"]) == (1, 0.25, 1)
    assert seed_differences(runs, ["a", "b"], "b") == []
    table = table_csv(runs, {"a": {"x.y": 1}, "b": {}}).splitlines()
    assert table[:2] == ["arm,seed,status,error,x.y,odcorr", "a,0,done,,1,"]


def test_rank_correlation_of_known_numbers() -> None:
    odcorr, rankme, score = [0.4, 0.3, 0.2, 0.1], [3.0, 1.0, 4.0, 2.0], [0.5, 0.6, 0.7, 0.8]
    runs = [row("a", n, odcorr=x, rankme=y, p=z) for n, (x, y, z) in enumerate(zip(odcorr, rankme, score, strict=True))]
    first, second = rank_correlations(runs, ["p"])
    assert (first["x"], first["rho"], first["n"]) == ("odcorr", pytest.approx(-1.0), 4)
    assert second["rho"] == pytest.approx(stats.spearmanr(rankme, score).statistic)
    assert [entry["rho"] for entry in rank_correlations(runs[:2], ["p"])] == [None, None]


def test_case_differences_average_the_seeds_that_both_arms_have() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0])
    names = np.array([f"s{n}" for n in range(6)])
    hits = {
        ("a", 0): [1, 1, 1, 0, 1, 0],
        ("a", 1): [1, 0, 1, 1, 1, 1],
        ("a", 2): [0, 0, 0, 0, 0, 0],  # the other arm has no seed 2
        ("b", 0): [0, 1, 0, 0, 1, 0],
        ("b", 1): [1, 0, 0, 1, 1, 0],
    }
    runs = [row(arm, seed) for arm, seed in hits]

    def judged(run: dict[str, Any]) -> dict[str, Judged]:
        correct = np.array(hits[run["arm"], run["seed"]], dtype=float)
        statistics = np.stack([correct, np.ones(6)], axis=1)[None]
        score, groups = balanced_accuracy(correct, labels), np.array([0, 0, 1, 1, 2, 2])
        return {"knn/t": Judged(names, Measure("balanced_accuracy", score, np.ones(1), statistics, labels, groups))}

    (found,) = case_differences(runs, ["b", "a"], "b", judged, {"knn/t": "patient"})
    expected = np.mean([[balanced_accuracy(hits[arm, seed], labels) for seed in (0, 1)] for arm in "ab"], axis=1)
    assert found["difference"] == pytest.approx(expected[0] - expected[1])
    assert (found["seeds"], found["n"], found["over"]) == (2, 3, "patient")
    assert found["ci_low"] <= found["difference"] <= found["ci_high"]
    assert found["p"] >= 0.25  # of three patients


def test_scores_of_numbers_are_compared_by_their_own_metric(tmp_path: Path) -> None:
    """Two judged models stand for two arms of one seed: their difference is that of `eosin eval`."""
    values = np.random.default_rng(0)
    rows = ["file,value_a,value_b,patient"]
    for number in range(24):
        Image.fromarray(values.integers(0, 9 * number + 20, (16, 16, 3)).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        rows.append(f"{number}.png,{number},{values.normal():.3f},p{number // 3}")
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    spec = f"t={tmp_path / 't.csv'}"
    evaluate("colour", [spec], "strict", tmp_path / "both", against=["texture"])
    (wanted,) = json.loads((tmp_path / "both" / "comparisons.json").read_text())
    for arm in ("colour", "texture"):
        (scored,) = evaluate(arm, [spec], "strict", tmp_path / arm)
        assert main_rows([scored]) == {"strict/t": scored}
    runs = [row("colour", 0), row("texture", 0)]
    found = case_differences(
        runs, ["colour", "texture"], "texture", lambda run: read_judged(tmp_path / run["arm"]), {"strict/t": "patient"}
    )
    for name in ("difference", "ci_low", "ci_high", "p"):
        assert found[0][name] == pytest.approx(wanted[name])
    (tmp_path / "colour" / "predictions.parquet").unlink()
    with pytest.raises(DataError, match="judge it again"):
        read_judged(tmp_path / "colour")


def test_the_first_of_several_metrics_is_the_main_one() -> None:
    rows = [{"protocol": "strict", "task": "t", "metric": metric} for metric in ("dice", "dice_per_image", "iou")]
    assert main_rows(rows)["strict/t"]["metric"] == "dice"
