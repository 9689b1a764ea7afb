"""Regression tasks: ridge on principal components as HEST-bench has it, its score, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas
import pytest
from pyarrow import parquet
from scipy.stats import pearsonr
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from eosin.errors import DataError
from eosin.evaluation import PROTOCOLS, evaluate
from eosin.evaluation.folds import folds_of
from eosin.evaluation.judge import judge, row_of
from eosin.evaluation.kinds import KINDS
from eosin.evaluation.probes.ridge import ridge
from eosin.evaluation.scores import SCORES
from eosin.evaluation.statistics import difference_of, interval_of
from eosin.evaluation.tasks import Task

from ..tasks import trees
from .five_tasks import write_spots

Floats = npt.NDArray[np.float32]


def make(patients: int = 4, spots: int = 60, width: int = 40, genes: int = 5, seed: int = 0) -> tuple[Task, Floats]:
    """Spots of `patients` in their own folds, and features of which the genes are noisy sums."""
    drawn = np.random.default_rng(seed)
    count = patients * spots
    x = drawn.normal(size=(count, width)) * np.geomspace(3, 0.1, width)
    y = x @ drawn.normal(size=(width, genes)) + 3 * drawn.normal(size=(count, genes)) + 7
    patient = np.repeat(np.arange(patients), spots)
    task = Task(
        name="spots",
        source=Path("nowhere"),
        samples=x.astype(np.float32),
        ids=np.arange(count).astype(np.str_),
        targets=y.astype(np.float32),
        classes=tuple(f"G{gene}" for gene in range(genes)),
        patient=patient.astype(np.str_),
        kind="regression",
        fold=patient.astype(np.int64),
    )
    return task, x.astype(np.float32)


def reference(task: Task, x: Floats, components: int) -> tuple[list[list[float]], list[list[float]]]:
    """Correlation and R² [folds][genes] as the benchmark's own code computes them, with scikit-learn."""
    assert task.fold is not None
    assert isinstance(task.targets, np.ndarray)
    correlations, shares = [], []
    for fold in np.unique(task.fold):
        train, test = task.fold != fold, task.fold == fold
        scaler, reduce = StandardScaler().fit(x[train]), PCA(components, random_state=1)
        z = reduce.fit_transform(scaler.transform(x[train]))
        model = Ridge(100 / (components * task.targets.shape[1]), fit_intercept=False, solver="lsqr", max_iter=1000)
        model.fit(z.astype(np.float32), task.targets[train])
        said = model.predict(reduce.transform(scaler.transform(x[test])).astype(np.float32))
        truth = task.targets[test]
        correlations.append([pearsonr(truth[:, gene], said[:, gene])[0] for gene in range(truth.shape[1])])
        shares.append(r2_score(truth, said + task.targets[train].mean(axis=0), multioutput="raw_values").tolist())
    return correlations, shares


@pytest.mark.parametrize(("name", "tolerance"), [("strict", 2e-3), ("eva-v2", 1e-6)])
def test_equals_the_benchmark_written_plainly(name: str, tolerance: float) -> None:
    task, x = make()
    protocol = PROTOCOLS[name].of("regression")
    outcome = judge(task, x, PROTOCOLS[name])
    correlations, shares = reference(task, x, 40)
    row = row_of(task, protocol, outcome)
    assert row["mean"] == pytest.approx(np.mean(correlations), abs=tolerance)
    assert row["fold_scores"] == pytest.approx(np.mean(correlations, axis=1).tolist(), abs=tolerance)
    assert list(row["per_target"].values()) == pytest.approx(np.mean(correlations, axis=0).tolist(), abs=tolerance)
    assert row["r2"] == pytest.approx(np.mean(shares), abs=tolerance)
    assert (row["metric"], row["split"], row["runs"], row["resampled"]) == ("pearson", "4-fold", 1, "patient")
    assert row["n_groups"] == row["n_patients"] == 4
    assert row["ci_low"] <= row["mean"] <= row["ci_high"]
    assert row["choices"]["alpha"] == [100 / (40 * 5)] * 4


def test_settings_are_the_benchmarks() -> None:
    settings = PROTOCOLS["eva-v2"].of("regression").settings
    assert settings == {"components": 256, "alpha": None, "pca": "hest", "solver": "hest"}
    assert PROTOCOLS["strict"].of("regression").settings == {**settings, "pca": "exact", "solver": "exact"}
    assert PROTOCOLS["midnight"].of("regression").pooling == "cls+mean"
    off = PROTOCOLS["midnight"].without("hest.lsqr")
    assert off.of("regression").settings["solver"] == "exact"
    assert off.settings == PROTOCOLS["midnight"].settings
    assert off.of("regression").id == off.id == "midnight~hest.lsqr"
    wide = np.random.default_rng(0).normal(size=(400, 300))
    assert ridge(wide, wide[:, :50], wide[:9]).choices == {"alpha": 100 / (256 * 50), "components": 256}


def test_score_of_sums_is_the_mean_correlation_and_so_is_each_resample() -> None:
    """Folds of two patients: the interval is of scores of resampled spots, worked out plainly."""
    task, x = make(patients=3, spots=30)
    outcome = judge(task, x, PROTOCOLS["strict"])
    measure = outcome.main
    score, part = SCORES["pearson"], measure.part
    assert part is not None
    assert score.moments is not None
    moments = score.moments(measure.statistics, part)
    truth, said = np.split(measure.statistics[0], 2, axis=1)

    def plain(picks: npt.NDArray[np.int64]) -> float:
        folds = []
        for fold in range(3):
            rows = picks[part[picks] == fold]
            genes = [pearsonr(truth[rows, gene], said[rows, gene])[0] for gene in range(5)]
            folds.append((len(rows) / (part == fold).sum(), np.mean(genes)))
        return float(np.average([value for _, value in folds], weights=[weight for weight, _ in folds]))

    drawn = np.random.default_rng(1)
    for picks in (np.arange(90), drawn.integers(0, 90, 90), drawn.integers(0, 90, 90)):
        sums = np.stack([moments[0, picks[part[picks] == fold]].sum(axis=0) for fold in range(3)])
        assert float(score.of_sums(sums)) == pytest.approx(plain(picks), abs=1e-9)
    assert measure.value == pytest.approx(plain(np.arange(90)), abs=1e-9)
    # Each patient is a fold of its own: a resample of patients is one of fold scores.
    by_fold = outcome.tables["by_fold"].mean(axis=1)
    found = interval_of(measure)
    assert by_fold.min() - 1e-9 <= found.low <= found.value <= found.high <= by_fold.max() + 1e-9
    assert difference_of(measure, measure).value == 0.0


def test_a_prediction_that_does_not_vary_correlates_nothing() -> None:
    task, x = make(patients=3, spots=20)
    outcome = judge(task, np.zeros_like(x), PROTOCOLS["strict"])
    assert outcome.main.value == 0.0
    assert interval_of(outcome.main)[1:] == (0.0, 0.0)


def test_given_split_and_own_folds() -> None:
    task, x = make(patients=4)
    split = np.where(np.arange(len(task)) < 180, "train", "test")
    given = Task(**{**task.__dict__, "fold": None, "split": split})
    (fold,) = folds_of(given, PROTOCOLS["strict"].of("regression"))
    assert (len(fold.train), len(fold.test), fold.inner) == (180, 60, [])
    assert judge(given, x, PROTOCOLS["strict"]).split == "test"
    free = Task(**{**task.__dict__, "fold": None})
    folds = folds_of(free, PROTOCOLS["strict"].of("regression"))
    assert len(folds) == 4  # as many as patients
    for fold in folds:
        assert not {*task.groups[fold.train]} & {*task.groups[fold.test]}  # type: ignore[index]


def test_what_cannot_be_judged_is_said_in_one_line() -> None:
    task, _ = make(patients=2, spots=10)
    kind, protocol = KINDS["regression"], PROTOCOLS["strict"].of("regression")
    assert isinstance(task.targets, np.ndarray)
    still = task.targets.copy()
    still[10:, 3] = 2.0
    missing = task.targets.copy()
    missing[4, 2] = np.nan
    alone = np.full(len(task), "one")
    cases = [
        ({"targets": still}, r"G3 does not vary in the training part of fold 0 .10 samples."),
        ({"targets": missing}, "G2 of 4 is no number"),
        ({"patient": alone, "fold": None}, "at least two groups"),
        ({"fold": np.zeros(len(task), dtype=np.int64)}, "all samples lie in one fold"),
    ]
    for changed, said in cases:
        with pytest.raises(DataError, match=said):
            kind.check(Task(**{**task.__dict__, **changed}), protocol)
    with pytest.raises(DataError, match="protocol knn does not judge regression tasks; these do: strict"):
        judge(task, np.zeros((20, 3), dtype=np.float32), PROTOCOLS["knn"])


def test_spots_of_a_table_by_evaluate(tmp_path: Path) -> None:
    """Redness is the one gene, so colour alone finds it; the other is noise."""
    table = write_spots(tmp_path / "spots")
    (row,) = evaluate("colour", [f"spots={table}"], "strict", tmp_path / "out")
    assert row["per_target"]["RED"] > 0.99
    assert abs(row["per_target"]["NOISE"]) < 0.6
    assert (row["kind"], row["chance"], row["resampled"], row["n_groups"], row["n"]) == (
        "regression",
        0.0,
        "slide",
        3,
        36,
    )
    found = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    assert found.metric.unique().tolist() == ["pearson"]
    truth = np.stack(found.truth.to_list())[:, 0]
    assert np.array_equal(truth, pandas.read_csv(table)["value_RED"])
    statistics = np.array([np.concatenate(list(one)) for one in found.statistics])
    assert np.array_equal(statistics[:, :2], np.stack(found.truth.to_list()))
    assert np.array_equal(statistics[:, 2:], np.stack(found.scores.to_list()))
    by_hand = np.mean([pearsonr(part.truth.str[0], part.scores.str[0])[0] for _, part in found.groupby("part")])
    assert row["per_target"]["RED"] == pytest.approx(by_hand)
    with pytest.raises(DataError, match="task spots: protocol knn does not judge regression"):
        evaluate("colour", [f"spots={table}"], "knn", tmp_path / "other")


def test_hest_bench_in_its_own_layout(tmp_path: Path) -> None:
    """Two patients of three spots: what matters is that folds, genes and tiles reach the probe."""
    trees.hest(tmp_path / "hest-bench" / "IDC")
    (row,) = evaluate("colour", ["hest-idc"], "eva-v2", tmp_path / "out", tmp_path)
    assert (row["task"], row["kind"], row["split"], row["n"], row["n_groups"]) == (
        "hest-idc",
        "regression",
        "2-fold",
        6,
        2,
    )
    assert list(row["per_target"]) == ["G0", "G1"]
    assert row["choices"]["components"] == [3, 3]
    assert row["settings"] == {"components": 256, "alpha": None, "pca": "hest", "solver": "hest"}
    assert -1.0 <= row["mean"] <= 1.0
