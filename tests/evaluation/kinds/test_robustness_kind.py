"""Robustness as a kind of task: known answers through `evaluate`, and intervals over slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eosin.errors import DataError
from eosin.evaluation import PROTOCOLS, evaluate
from eosin.evaluation import protocols as protocol_module
from eosin.evaluation.judge import judge, rows_of
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.robustness import performance_drop, robustness_index, two_site_design
from eosin.evaluation.scores import mean_drop
from eosin.evaluation.statistics import interval_of
from eosin.evaluation.tasks import Task

from .five_tasks import quick, write_centres

CLASSES = ("normal", "tumor")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol with a design for five slides of each site and class, and few repeats."""
    monkeypatch.setitem(protocol_module.PROTOCOLS, "strict", quick())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("class_step", "site_step", "index"), [(40, 0, 1.0), (0, 40, 0.0)])
def test_known_answers(tmp_path: Path, class_step: int, site_step: int, index: float) -> None:
    """14 neighbours: 12 of the own class and site lie on other slides, so the others are not of both."""
    root = tmp_path / "data"
    write_centres(root / "PathoROB-camelyon", class_step, site_step)
    rows = evaluate("colour", ["pathorob-camelyon"], "strict", tmp_path / "out", root, any_count=True)
    assert [row["metric"] for row in rows] == [
        "robustness_index",
        "performance_drop_inside",
        "performance_drop_outside",
    ]
    found = {row["metric"]: row for row in rows}
    first = found["robustness_index"]
    assert (first["mean"], first["ci_low"], first["ci_high"]) == (index, index, index)
    assert (first["n"], first["n_groups"], first["resampled"], first["chance"]) == (60, 20, "slide", None)
    assert sum(first["neighbours"].values()) == 60 * 14
    outside = found["performance_drop_outside"]
    assert (outside["n"], outside["n_groups"], outside["runs"]) == (30, 10, 2)
    if index == 1.0:  # the class is plain to see: nothing is lost whatever the sites do
        assert [row["mean"] for row in rows] == [1.0, 0.0, 0.0]
        assert outside["outside_accuracy"] == [1.0, 1.0]
    assert (tmp_path / "out" / "tasks.json").is_file()
    with pytest.raises(DataError, match="knn does not judge robustness"):
        evaluate("colour", ["pathorob-camelyon"], "knn", tmp_path / "knn", root, any_count=True)


def make(seed: int = 0) -> tuple[Task, np.ndarray]:
    """Features in which class and site both speak, three sites, two classes, nine slides of each."""
    drawn = np.random.default_rng(seed)
    site, label, slide, _ = (index.ravel() for index in np.indices((3, 2, 9, 4)))
    z = drawn.normal(size=(len(label), 12))
    z[np.arange(len(label)), label] += 2.0
    z[np.arange(len(label)), 4 + site] += 2.0
    task = Task(
        name="own",
        source=Path("nowhere"),
        samples=z.astype(np.float32),
        ids=np.arange(len(label)).astype(np.str_),
        targets=label.astype(np.int64),
        classes=CLASSES,
        split=np.where(site == 2, "test", "train"),
        slide=((site * 2 + label) * 9 + slide).astype(np.str_),
        site=site.astype(np.str_),
        kind="robustness",
    )
    return task, z.astype(np.float32)


def test_rows_are_the_measures_and_resampled_sums_the_same_formula() -> None:
    task, x = make()
    own = PROTOCOLS["strict"].of("robustness")
    settings = {"k": 20, "repeats": 2, "design": ["two sites", 2]}
    protocol = Protocol(**{**own.__dict__, "settings": settings, "draws": 400})
    outcome = judge(task, x, protocol)
    index, inside, outside = rows_of(task, protocol, outcome)
    slides, sites = (np.unique(ids, return_inverse=True)[1] for ids in (task.slide, task.site))  # type: ignore[arg-type]
    known = task.split == "train"
    expected = robustness_index(x[known], task.labels[known], sites[known], slides[known], 20)
    assert index["mean"] == pytest.approx(expected.robustness)
    assert index["neighbours"] == expected._asdict()
    drop = performance_drop(x, task.labels, sites, slides, ~known, two_site_design(2, 2), 2)
    assert (inside["mean"], outside["mean"]) == (drop.inside_drop, drop.outside_drop)
    assert inside["inside_accuracy"] == pytest.approx(drop.inside.mean(axis=1).tolist())
    assert inside["run_sd"] == pytest.approx(np.std(inside["run_scores"], ddof=1))
    assert np.mean(inside["run_scores"]) == pytest.approx(drop.inside_drop)
    for measure, row in zip(outcome.measures, (index, inside, outside), strict=True):
        found = interval_of(measure, 400)
        assert found.low < measure.value < found.high
        assert (row["ci_low"], row["ci_high"]) == (found.low, found.high)
    # All samples once, part by part, give each repeat's drop again.
    measure = outcome.measures[2]
    assert measure.part is not None
    sums = np.stack([measure.statistics[:, measure.part == label].sum(axis=1) for label in (0, 1)], axis=1)
    np.testing.assert_allclose(mean_drop(sums), measure.run_scores, atol=1e-12)


def test_too_few_slides_are_refused_before_work() -> None:
    task, x = make()
    own = PROTOCOLS["strict"].of("robustness")
    for settings, said in (
        ({"k": 99, "repeats": 1, "design": None}, None),
        ({"k": 200, "repeats": 1, "design": None}, "200 neighbours asked for"),
        ({"k": 9, "repeats": 1, "design": ["two sites", 7]}, "16 slides of each site and class are needed"),
        ({"k": 9, "repeats": 1, "design": ["four sites"]}, "the design has 4 x 4"),
    ):
        protocol = Protocol(**{**own.__dict__, "settings": settings})
        if said is None:
            assert len(judge(task, x, protocol).measures) == 1
            continue
        with pytest.raises(DataError, match=said):
            from eosin.evaluation.kinds import KINDS

            KINDS["robustness"].check(task, protocol)
