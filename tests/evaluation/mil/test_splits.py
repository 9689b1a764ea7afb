"""Splits over many random tables: patients and sites whole, labels balanced, everything reproducible."""

from __future__ import annotations

import numpy as np
import pytest

from eosin.errors import DataError
from eosin.evaluation.mil.splits import ProtocolConfig, Subjects, plan_runs, spread
from eosin.randomness import Words


def table(number: int, patients: int = 60, tasks: int = 2, missing: float = 0.2, sites: int | None = None) -> Subjects:
    """A random table: 1 to 4 slides a patient, labels by patient, some missing."""
    words = Words(number, "table")
    slides = 1 + words.integers(4, patients)
    owner = np.repeat(np.arange(patients), slides)
    strata = words.integers(2 + number % 3, patients, tasks)
    strata[words.chance(missing, patients, tasks)] = -1
    strata[:6] = np.arange(6)[:, None] % (2 + number % 3)
    home = words.integers(sites or 1, patients)
    split = np.where(words.chance(0.7, patients), "train", "test")
    return Subjects(
        tuple(f"P{n}" for n in owner),
        tuple(f"S{n}" for n in home[owner]) if sites else None,
        tuple(split[owner]),
        strata[owner],
        tuple(f"t{n}" for n in range(tasks)),
        ("binary",) * tasks,
    )


@pytest.mark.parametrize("number", range(25))
@pytest.mark.parametrize("name", ["exaone", "5-fold", "hold-out"])
def test_no_patient_is_on_two_sides(name: str, number: int) -> None:
    subjects = table(number, patients=90)
    config = ProtocolConfig(name=name)  # type: ignore[arg-type]
    runs = plan_runs(config, subjects, 3)
    patients = np.asarray(subjects.patients)
    for run in runs:
        parts = [set(patients[rows]) for rows in (run.train, run.val, run.test)]
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
        rows = np.concatenate([run.train, run.val, run.test])
        assert len(rows) == len(set(rows.tolist())) == len(patients)
    if name == "5-fold":
        for seed in range(3):
            tested = np.concatenate([run.test for run in runs if run.seed == seed])
            assert sorted(tested.tolist()) == list(range(len(patients)))
    if name == "exaone":
        assert all(set(np.asarray(subjects.split)[run.test]) == {"test"} for run in runs)
        assert not np.array_equal(runs[0].val, runs[1].val)
    again = plan_runs(config, subjects, 3)
    assert all(
        np.array_equal(a, b)
        for one, two in zip(runs, again, strict=True)
        for a, b in zip(one[2:], two[2:], strict=True)
    )


@pytest.mark.parametrize("number", range(25))
def test_sites_stay_whole(number: int) -> None:
    subjects = table(number, patients=150, sites=20, missing=0.0)
    runs = plan_runs(ProtocolConfig(name="5-fold"), subjects, 1)
    sites = np.asarray(subjects.sites)
    for run in runs:
        assert not set(sites[run.test]) & set(sites[np.concatenate([run.train, run.val])])


@pytest.mark.parametrize("number", range(25))
def test_labels_are_spread_by_share(number: int) -> None:
    words = Words(number, "labels")
    labels = words.integers(4, 101)
    labels[labels == 3] = 0
    patients = tuple(f"P{n}" for n in range(101))
    fold = spread(patients, labels[:, None], [0.2] * 5, words)
    for label in np.unique(labels):
        counts = np.bincount(fold[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    part = spread(patients, labels[:, None], (0.7, 0.1, 0.2), words)
    for label in np.unique(labels):
        counts = np.bincount(part[labels == label], minlength=3)
        assert np.abs(counts - np.array([0.7, 0.1, 0.2]) * counts.sum()).max() < 1.5


@pytest.mark.parametrize("number", range(10))
def test_several_tasks_with_missing_labels_stay_balanced(number: int) -> None:
    words = Words(number, "several")
    labels = words.integers(2, 200, 3)
    labels[words.chance(0.5, 200, 3)] = -1
    fold = spread([str(n) for n in range(200)], labels, [0.2] * 5, words)
    for task in labels.T:
        for label in (0, 1):
            counts = np.bincount(fold[task == label], minlength=5)
            assert counts.max() - counts.min() <= 4
    assert np.bincount(fold, minlength=5).min() >= 30


def simple(labels: list[int], sites: list[str] | None = None, split: list[str] | None = None) -> Subjects:
    """A slide a patient, one task."""
    names = tuple(f"P{n}" for n in range(len(labels)))
    return Subjects(names, sites, tuple(split or ()), np.array(labels)[:, None], ("mut",), ("binary",))


def test_refusals() -> None:
    given, five = ProtocolConfig(name="exaone"), ProtocolConfig(name="5-fold")
    with pytest.raises(DataError, match="needs the published division in a column `split`"):
        plan_runs(given, simple([0, 1] * 10), 1)
    both = simple([0, 1] * 10, split=["train", "test"] * 10)._replace(patients=("P0", "P0", *map(str, range(18))))
    with pytest.raises(DataError, match="1 patients are on both sides of the given split, first P0"):
        plan_runs(given, both, 1)
    with pytest.raises(DataError, match="one class only in test"):
        plan_runs(given, simple([0, 1, 0, 1, 0, 1, 0, 0], split=["train"] * 6 + ["test"] * 2), 1)
    with pytest.raises(DataError, match=r"fold . has one class only in test"):
        plan_runs(five, simple([0] * 20 + [1] * 3), 1)
    with pytest.raises(DataError, match="a class occurs at 2 of 6 sites and 5 folds must each test it"):
        plan_runs(five, simple([0, 1, 0, 0, 0, 0] * 5 + [1] * 2, [f"s{n}" for n in range(6)] * 5 + ["s0"] * 2), 1)
    with pytest.raises(DataError, match="5 folds need at least as many patients, found 4"):
        plan_runs(five, simple([0, 1, 0, 1]), 1)
    mixed = simple([0, 1] * 10, [f"s{n % 5}" for n in range(20)])._replace(patients=("P",) * 20)
    with pytest.raises(DataError, match="patient P has slides of sites s0"):
        plan_runs(five, mixed, 1)
