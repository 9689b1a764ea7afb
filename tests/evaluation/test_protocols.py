"""Protocols as data: eva's published tables, switches, and what each protocol lets a probe see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation import PROTOCOLS, find_protocols
from eosin.evaluation.folds import folds_of
from eosin.evaluation.judge import judge, row_of
from eosin.evaluation.probes.decisions import Scorer, decide, probabilities
from eosin.evaluation.probes.linear_fit import LinearSettings
from eosin.evaluation.probes.schedules import lr_factors
from eosin.evaluation.protocols import FAMILIES, SWITCHES, Protocol
from eosin.evaluation.tasks import Task

LINEAR = ("strict", "eva-v2", "eva-v1", "midnight")

# Training samples of eva's tile tasks and the patience that its configuration files have (0.4.5).
EVA_PATIENCE = {
    "bach": (268, 1250),
    "bracs": (3657, 167),
    "breakhis": (1132, 500),
    "crc": (100_000, 7),
    "gleason": (15_303, 42),
    "mhist": (2175, 278),
    "pcam": (262_144, 3),
    "unitopatho": (6270, 100),
}


def how(protocol: str, task: str = "mine") -> LinearSettings:
    return LinearSettings(**PROTOCOLS[protocol].settings_for(task))


def make(splits: dict[str, int], classes: int = 3, seed: int = 0, **more: Any) -> tuple[Task, np.ndarray[Any, Any]]:
    """A task of Gaussian features, so many samples a split, and the features."""
    drawn = np.random.default_rng(seed)
    split = np.concatenate([np.full(count, name) for name, count in splits.items()])
    labels = np.arange(len(split)) % classes
    x = (drawn.normal(size=(len(split), 8)) + np.random.default_rng(9).normal(size=(classes, 8))[labels]).astype("f")
    task = Task(
        name=more.pop("name", "mine"),
        source=Path("mine"),
        samples=x,
        ids=np.array([str(number) for number in range(len(split))]),
        targets=labels.astype(np.int64),
        classes=tuple("abcdefgh"[:classes]),
        split=None if set(splits) == {"all"} else split,
        **more,
    )
    return task, x


@pytest.mark.parametrize("task", EVA_PATIENCE)
def test_eva_v2_has_evas_patience_and_the_rule_gives_it(task: str) -> None:
    count, patience = EVA_PATIENCE[task]
    assert how("eva-v2", task).patience_for(count) == patience
    assert how("eva-v2").patience_for(count) == patience


def test_settings_of_the_eva_protocols() -> None:
    v2, v1, midnight = how("eva-v2"), how("eva-v1"), how("midnight")
    assert (v2.lr, v2.weight_decay, v2.batch, v2.steps, v2.runs) == ([3e-4], [0.01], 256, 12_500, 5)
    assert (v2.optimizer, v2.schedule, v2.per, v2.checkpoint) == ("adamw", "third-first", "epoch", "best")
    assert (v1.lr, v1.weight_decay, v1.optimizer, v1.momentum) == ([0.000625], [0.0], "sgd", 0.9)
    assert (v1.monitor_for(2), v1.monitor_for(4), v2.monitor_for(2)) == ("accuracy", "eva_accuracy", "eva_accuracy")
    assert (how("eva-v1", "pcam").batch, how("eva-v1", "pcam").lr, how("eva-v1", "pcam").patience) == (4096, [0.01], 9)
    assert (midnight.patience_for(268), midnight.schedule, midnight.per) == (None, "cosine", "epoch")
    assert PROTOCOLS["midnight"].pooling == "cls+mean"
    shots = how("eva-v2", "pcam-10shot")
    assert (shots.runs, shots.patience, shots.check_every, shots.min_delta) == (50, 125, 10, 1e-4)
    assert (how("midnight", "pcam-10shot").runs, how("midnight", "pcam-10shot").patience) == (50, 9)
    strict = how("strict")
    assert (strict.checkpoint, strict.schedule, strict.per, strict.runs) == ("last", "cosine", "step", 5)
    assert len(strict.lr) * len(strict.weight_decay) > 1


def test_schedules_are_torchs() -> None:
    """lr at each step as torch has it when the scheduler is stepped by epoch, or by step."""
    for schedule, kind in (
        ("third-first", torch.optim.lr_scheduler.ConstantLR),
        ("cosine", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)),
    ):
        for per, size in (("epoch", 7), ("step", 7)):
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            scheduler = kind(optimizer)
            expected = []
            for step in range(1, 121):
                expected.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                if per == "step" or step % size == 0:
                    scheduler.step()
            np.testing.assert_allclose(lr_factors(schedule, per, 120, size), expected, atol=1e-12)  # type: ignore[arg-type]
    # What eva's cosine does in practice: after all 1,389 epochs of MHIST it has lost 3 %.
    assert lr_factors("cosine", "epoch", 12_500, 9)[-1] == pytest.approx(0.9699, abs=1e-4)
    assert lr_factors("cosine", "step", 12_500, 9)[-1] < 1e-7


def test_every_switch_is_on_and_can_be_put_off() -> None:
    used = {
        name for protocol in PROTOCOLS.values() for one in (protocol, *protocol.kinds.values()) for name in one.switches
    }
    assert used == set(SWITCHES)
    for protocol in (PROTOCOLS[name] for name in LINEAR):
        for name in protocol.switches:
            assert all(protocol.settings[key] == value for key, value in SWITCHES[name].on.items())
            without = protocol.without(name)
            assert all(without.settings[key] == value for key, value in SWITCHES[name].off.items())
            assert without.hash != protocol.hash
            LinearSettings(**without.settings)
    (one,) = find_protocols("eva-v2~eva.weight_decay~eva.third_first")
    assert (one.settings["weight_decay"], one.settings["schedule"]) == ([0.0], "constant")
    assert one.id == "eva-v2~eva.weight_decay~eva.third_first"
    assert PROTOCOLS["strict"].switches == ()
    with pytest.raises(DataError, match=r"no switch 'eva\.bcss'"):
        find_protocols("eva-v2~eva.bcss")
    with pytest.raises(DataError, match="strict, eva-v2"):
        find_protocols("eva-v3")


def test_the_page_lists_every_protocol_and_switch() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name in (*SWITCHES, *(name for name in PROTOCOLS if not name.startswith("simpleshot")), *FAMILIES):
        assert f"| `{name}` |" in page


def test_hash_names_every_setting_and_old_protocols_keep_theirs() -> None:
    assert len({protocol.hash for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    base = PROTOCOLS["eva-v2"]
    changed = Protocol(**{**base.__dict__, "tasks": {**base.tasks, "bach": {"patience": 1}}})
    assert changed.hash != base.hash
    assert Protocol(**{**base.__dict__, "pooling": "cls+mean"}).hash != base.hash
    # Results that people have stay comparable.
    known = {
        "knn": "b5b512c8f004645e",
        "strict": "4a4c704efd42b0d4",
        "eva-v2": "fecee94d0eb84ff2",
        "eva-v1": "315d587c57a60717",
        "midnight": "c58599335a765d9a",
        "logreg": "539c58bc27f3c0c1",
    }
    assert {name: PROTOCOLS[name].hash for name in known} == known


def test_each_kind_has_a_protocol_of_its_own() -> None:
    strict = PROTOCOLS["strict"]
    assert set(strict.kinds) == {"slide", "segmentation", "regression", "robustness"}
    hashes = {strict.hash, *(own.hash for own in strict.kinds.values())}
    assert len(hashes) == 5
    for kind, own in strict.kinds.items():
        assert (own.id, own.kind, own.kinds) == ("strict", kind, {})
        assert strict.of(kind) is own.of(kind) is own
    assert strict.of("classification") is strict
    for name in ("knn", "simpleshot-4", "logreg", "eva-v1"):
        assert PROTOCOLS[name].kinds == {}
        with pytest.raises(DataError, match=f"{name} does not judge regression tasks; these do: strict, eva-v2"):
            PROTOCOLS[name].of("regression")


def test_who_sees_which_split() -> None:
    three, _ = make({"train": 60, "val": 30, "test": 30})
    two, _ = make({"train": 60, "test": 30})
    none, _ = make({"all": 60})
    for name in ("eva-v2", "eva-v1", "midnight"):
        (fold,) = folds_of(three, PROTOCOLS[name])
        assert fold.watch is not None
        assert set(three.split[fold.watch]) == {"val"}  # type: ignore[index]
        assert set(three.split[fold.test]) == {"test"}  # type: ignore[index]
        (fold,) = folds_of(two, PROTOCOLS[name])
        assert fold.watch is not None
        assert (fold.watch == fold.test).all()
        honest = PROTOCOLS[name].without("eva.choose_on_reported")
        (fold,) = folds_of(two, honest)
        assert fold.watch is not None
        parts = [set(rows.tolist()) for rows in (fold.train, fold.watch, fold.test)]
        assert not (parts[0] & parts[1])
        assert not (parts[0] & parts[2])
        assert not (parts[1] & parts[2])
        assert sum(map(len, parts)) == 90
        assert all(fold.watch is not None for fold in folds_of(none, PROTOCOLS[name]))
    for task in (three, two, none):
        for fold in folds_of(task, PROTOCOLS["strict"]):
            assert fold.watch is None
            used = set(np.concatenate([np.concatenate(pair) for pair in fold.inner]).tolist())
            assert not used & set(fold.test.tolist())


def test_eva_reports_val_of_tasks_that_it_reports_on_val() -> None:
    task, x = make({"train": 60, "val": 30, "test": 45}, switches=("eva.report_val",))
    fast = {**PROTOCOLS["eva-v2"].settings, "steps": 5}
    eva = Protocol(**{**PROTOCOLS["eva-v2"].__dict__, "settings": fast})
    row = row_of(task, eva, judge(task, x, eva))
    assert (row["split"], row["n"], row["settings"]["steps"]) == ("val", 30, 5)
    honest = eva.without("eva.report_val")
    row = row_of(task, honest, judge(task, x, honest))
    assert (row["split"], row["n"]) == ("test", 45)


@pytest.mark.parametrize("name", LINEAR)
def test_each_protocol_judges_with_and_without_a_split(name: str) -> None:
    protocol = PROTOCOLS[name]
    quick = Protocol(**{**protocol.__dict__, "settings": {**protocol.settings, "steps": 60, "runs": 3}, "draws": 200})
    for splits, classes in (({"train": 90, "val": 30, "test": 60}, 3), ({"all": 80}, 2)):
        task, x = make(splits, classes)
        outcome = judge(task, x, quick)
        row = row_of(task, quick, outcome)
        assert row["runs"] == 3
        assert row["run_sd"] is not None
        assert row["mean"] == pytest.approx(float(outcome.run_scores.mean()), abs=1e-12)
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]
        expected = [metrics.balanced_accuracy_score(task.labels[outcome.rows], outcome.tables["predicted"])]
        assert np.mean(expected) == pytest.approx(row["mean"], abs=0.1)
        assert len(row["choices"]["lr" if name == "strict" else "best_step"]) == (1 if task.split is not None else 5)


def test_strict_does_not_see_test_labels() -> None:
    """Other test labels, same predictions; eva-v2, which chooses on them, changes."""
    task, x = make({"train": 90, "test": 60}, seed=1)
    wrong, _ = make({"train": 90, "test": 60}, seed=1)
    assert isinstance(wrong.targets, np.ndarray)
    wrong.targets[90:] = wrong.targets[90:][::-1]
    for name, changes in (("strict", False), ("eva-v2", True)):
        protocol = PROTOCOLS[name]
        settings = {**protocol.settings, "steps": 60, "lr": [1e-2] if changes else [1e-3, 1e-2]}
        quick = Protocol(**{**protocol.__dict__, "settings": settings})
        differ = (judge(task, x, quick).tables["scores"] != judge(wrong, x, quick).tables["scores"]).any()
        assert bool(differ) == changes


def test_ten_shot_task_draws_anew_each_run() -> None:
    task, x = make({"train": 400, "val": 60, "test": 60}, 2, name="pcam-10shot", shots=10)
    protocol = PROTOCOLS["eva-v2"]
    quick = Protocol(**{**protocol.__dict__, "settings": {**protocol.settings, "steps": 40, "lr": [1e-2]}})
    outcome = judge(task, x, quick)
    assert outcome.run_scores.shape == (50,)
    assert len(np.unique(outcome.run_scores)) > 5
    strict = PROTOCOLS["strict"]
    quick = Protocol(**{**strict.__dict__, "settings": {**strict.settings, "steps": 20, "runs": 4}})
    assert judge(task, x, quick).run_scores.shape == (4,)


@pytest.mark.parametrize("name", ["knn", "logreg"])
def test_other_probes_run_on_fifty_draws_of_a_ten_shot_task(name: str) -> None:
    task, x = make({"train": 400, "val": 60, "test": 60}, 2, shots=10)
    protocol = PROTOCOLS[name]
    settings = {**protocol.settings, **({"grid": [0.1]} if name == "logreg" else {})}
    outcome = judge(task, x, Protocol(**{**protocol.__dict__, "settings": settings}))
    assert outcome.run_scores.shape == (50,)
    assert outcome.run_scores.std() > 0.005
    full, _ = make({"train": 400, "val": 60, "test": 60}, 2)
    assert judge(full, x, protocol).run_scores.mean() > outcome.run_scores.mean()
    assert judge(task, x, PROTOCOLS["simpleshot-4"]).run_scores.shape == (1000,)


def test_logits_taken_for_probabilities() -> None:
    """Two sets of logits with one order: a batch inside [0, 1] is cut at .5, any other at 0."""
    inside = torch.tensor([0.1, 0.2, 0.6, 0.9])[:, None]
    outside = torch.tensor([0.1, 0.2, 0.6, 1.1])[:, None]
    assert decide(inside, "eva-batches").tolist() == [0, 0, 1, 1]
    assert decide(outside, "eva-batches").tolist() == [1, 1, 1, 1]
    assert decide(inside, "zero").tolist() == [1, 1, 1, 1]
    both = torch.cat([inside, outside])
    assert decide(both, "eva-batches", batch=4).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert decide(both[None].repeat(3, 1, 1), "eva-batches", batch=4)[2].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(probabilities(inside)[:, 1], inside[:, 0].double().sigmoid())


def test_scores_are_scikit_learns_and_evas() -> None:
    drawn = np.random.default_rng(0)
    labels, predicted = drawn.integers(0, 4, 200), drawn.integers(0, 4, (6, 200))
    known = torch.from_numpy(labels)
    for monitor, theirs in (
        ("balanced_accuracy", metrics.balanced_accuracy_score),
        ("eva_accuracy", metrics.balanced_accuracy_score),
        ("accuracy", metrics.accuracy_score),
    ):
        found = Scorer(known, 4, monitor)(torch.from_numpy(predicted))  # type: ignore[arg-type]
        np.testing.assert_allclose(found, [theirs(labels, row) for row in predicted], atol=1e-6)
    # Class 2 has no samples: our mean is over 0, 1; eva's counts it once something is predicted as it.
    known, told = torch.tensor([0, 0, 1, 1]), torch.tensor([[0, 0, 1, 1], [0, 2, 1, 1]])
    assert Scorer(known, 3)(told).tolist() == [1.0, 0.75]
    assert Scorer(known, 3, "eva_accuracy")(told).tolist() == [1.0, 0.5]
    assert math.isclose(float(Scorer(known, 3, "accuracy")(told)[1]), 0.75)
