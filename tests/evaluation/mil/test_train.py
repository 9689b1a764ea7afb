"""`train_mil` end to end on small bags: what is found, what is kept, what equals training alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.errors import DataError, EosinError, RecipeError, ResumeError
from eosin.evaluation.mil import fit, load_heads, predict_mil, train_mil
from eosin.evaluation.mil.adam import StackedAdam
from eosin.evaluation.mil.bags import make_bags, open_features
from eosin.evaluation.mil.batches import fixed_of, targets_of
from eosin.evaluation.mil.config import make_config
from eosin.evaluation.mil.labels import read_labels
from eosin.evaluation.mil.problems import make_problems
from eosin.objectives.multitask import time_bins
from eosin.randomness import Words

from .conftest import WIDTH, planted, write_h5

Make = Callable[..., tuple[Path, Path]]
SHORT = ["train.epochs=3"]
QUICK = ["train.epochs=8", "train.lr=2e-3", "head.hidden=32", "head.attention=16", "train.schedule=constant"]


def test_attention_finds_what_the_mean_cannot_see(cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(80)
    words = {"protocol": "exaone", "seeds": 2}
    rows = train_mil(features, labels, tmp_path / "abmil", head="abmil", changes=QUICK, **words)
    mean = train_mil(features, labels, tmp_path / "mean", head="mean-linear", changes=["train.epochs=30"], **words)
    assert [row["metric"] for row in rows] == ["auroc", "balanced_accuracy"]
    assert rows[0]["mean"] > 0.95
    assert mean[0]["mean"] < 0.75
    assert rows[0]["n"] == 24
    assert rows[0]["n_patients"] == 12
    assert rows[0]["n_per_class"] == {"wild": 8, "mut": 16}
    assert rows[0]["ci_low"] <= rows[0]["mean"] <= rows[0]["ci_high"]
    heads = load_heads(tmp_path / "abmil")
    bag = planted(1002, True)
    attention = heads.attention(bag)["all"]
    assert attention.sum() == pytest.approx(1, abs=1e-5)
    assert bag[attention.argmax(), :2].max() > 3
    assert heads.scores(bag)["mut"]["mut"] > 0.5 > heads.scores(planted(1000, False))["mut"]["mut"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["clam-sb", "clam-mb"])
def test_clam_finds_it_too(head: str, cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(80)
    changes = ["train.epochs=30", "train.lr=1e-3", "head.hidden=32", "head.attention=16", "head.k=2"]
    rows = train_mil(features, labels, tmp_path / "out", head=head, protocol="exaone", seeds=2, changes=changes)
    assert rows[0]["mean"] > 0.9


def many_tasks(folder: Path) -> tuple[Path, Path]:
    """Four kinds of task on 48 bags of a slide each, every label missing for some."""
    lines = ["slide,patient,mut,grade,age,os_time,os_event"]
    for number in range(48):
        words = Words(number, "many")
        sign = (number % 3) - 1
        write_h5(folder / "f" / f"S{number}.h5", (words.normal(12, 6) + sign).astype(np.float32))
        cells = [
            str(number % 2),
            f"G{number % 3}",
            f"{60.5 + 8 * sign}",
            f"{20 - 9 * sign}",
            "1" if number % 5 else "0",
        ]
        if number % 4 == 0:
            cells[number // 4 % 3] = ""
        if number % 6 == 1:
            cells[3:] = ["", ""]
        lines.append(",".join([f"S{number}", f"P{number}", *cells]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "f", folder / "labels.csv"


@pytest.mark.parametrize("joint", [True, False])
def test_tasks_of_all_kinds_with_missing_labels(joint: bool, tmp_path: Path) -> None:
    features, labels = many_tasks(tmp_path)
    out = tmp_path / "out"
    rows = train_mil(
        features,
        labels,
        out,
        head="mean-linear",
        protocol="5-fold",
        joint=joint,
        changes=["protocol.folds=3", "train.epochs=40", "train.lr=1e-2"],
    )
    found = {(row["task"], row["metric"]): row for row in rows}
    assert set(found) == {
        *(("mut", m) for m in ("auroc", "balanced_accuracy")),
        *(("grade", m) for m in ("auroc", "balanced_accuracy")),
        *(("age", m) for m in ("r2", "pearson")),
        ("os", "c_index"),
    }
    assert found["grade", "auroc"]["mean"] > 0.9
    assert found["age", "pearson"]["mean"] > 0.8
    assert found["os", "c_index"]["mean"] > 0.75
    table = read_labels(labels)
    for task in table.tasks:
        metric = {"regression": "r2", "survival": "c_index"}.get(task.kind, "auroc")
        assert found[task.name, metric]["n"] == int(task.known.sum())
    lines = list(csv.DictReader((out / "predictions.csv").open()))
    tested = [line for line in lines if line["split"] == "test" and line["task"] == "grade"]
    assert len(tested) == found["grade", "auroc"]["n"]
    for line in tested:
        assert sum(float(line[f"p_G{k}"]) for k in range(3)) == pytest.approx(1, abs=1e-6)
        assert line["p_0"] == line["value"] == ""
    said = load_heads(out).scores(np.ones((5, 6), dtype=np.float32))
    assert said["age"]["value"] == pytest.approx(68.5, abs=6)
    assert set(said["grade"]) == {"G0", "G1", "G2"}
    assert json.loads((out / "heads" / "config.json").read_text())["tasks"][0]["name"] == "mut"
    card = (out / "heads" / "README.md").read_text()
    assert "| grade | auroc |" in card
    assert "Not a medical device" in card


def test_together_equals_alone(cohort: Make) -> None:
    """Three folds of unequal size in one stack, dropout on, against each by itself."""
    features, labels = cohort(26, columns="")
    config, _ = make_config(
        "clam-sb", "5-fold", changes=[*SHORT, "protocol.folds=3", "train.batch=3", "head.hidden=16"]
    )
    bags = make_bags(open_features(features), read_labels(labels), "slide")
    ((problem, runs),) = make_problems(bags, config, 1)
    assert len({len(run.train) for run in runs}) > 1
    together: list[fit.Fitted] = []
    fit.fit_runs(problem, runs, config, torch.device("cpu"), together.append)
    for run, stacked in zip(runs, together, strict=True):
        alone: list[fit.Fitted] = []
        fit.fit_runs(problem, [run], config, torch.device("cpu"), alone.append)
        for name, value in alone[0].state.items():
            assert torch.allclose(value, stacked.state[name], atol=1e-5), name
        np.testing.assert_allclose(alone[0].test["mut"], stacked.test["mut"], atol=1e-5)
        assert alone[0].best_epoch == stacked.best_epoch


@pytest.mark.parametrize("kind", ["mean-linear", "max-linear"])
def test_bags_pooled_once_train_as_bags_pooled_at_every_visit(kind: str, cohort: Make) -> None:
    features, labels = cohort(26, columns="")
    config, _ = make_config(kind, "5-fold", changes=[*SHORT, "protocol.folds=2", "train.lr=1e-2"])
    ((problem, runs),) = make_problems(make_bags(open_features(features), read_labels(labels), "slide"), config, 1)
    assert problem.read(3).shape == (1, WIDTH)
    assert problem.longest == 1
    found: list[list[fit.Fitted]] = []
    for way in (problem, replace(problem, pool="")):
        found.append([])
        fit.fit_runs(way, runs, config, torch.device("cpu"), found[-1].append)
    for once, always in zip(*found, strict=True):
        np.testing.assert_allclose(once.test["mut"], always.test["mut"], atol=1e-6)
        assert once.test["mut"].any()


def test_time_bins_are_those_of_the_training_bags(tmp_path: Path) -> None:
    """Times of other bags change nothing of what a run learns; its bins hold its own events equally."""
    features, labels = many_tasks(tmp_path)
    config, _ = make_config("mean-linear", "5-fold", changes=[*SHORT, "protocol.folds=2"])
    table = read_labels(labels, ["os"])
    ((problem, runs),) = make_problems(make_bags(open_features(features), table, "slide"), config, 1)
    times = problem.targets["os"][:, 0] + np.linspace(0, 5, len(problem.bags))
    problem.targets["os"][:, 0] = times
    (task,), run = problem.tasks, runs[0]
    before = fixed_of(problem, run, config.train)
    targets = targets_of(problem, [run.train], len(run.train), [before])["os"][0]
    bins = time_bins(targets[:, 0], task.cuts)
    events = np.bincount(bins[targets[:, 1] == 1], minlength=task.outputs)
    assert events.max() - events.min() <= 1
    own = np.searchsorted(before.cuts["os"], times[run.train], side="right")
    np.testing.assert_array_equal(bins, own)
    problem.targets["os"][np.concatenate([run.val, run.test]), 0] *= 100
    assert fixed_of(problem, run, config.train).cuts == before.cuts


@pytest.mark.parametrize("decoupled", [False, True])
def test_stacked_adam_equals_torch_for_each_run(decoupled: bool) -> None:
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stacked = torch.nn.Parameter(start.clone())
    alone = [torch.nn.Parameter(start[k].clone()) for k in range(3)]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimisers = [kind([weight], lr=0.01, weight_decay=0.1) for weight in alone]
    ours = StackedAdam([stacked], 0.1, decoupled)
    rates = torch.full((3,), 0.01, dtype=torch.float64)
    for step in range(8):
        active = torch.tensor([True, step % 2 == 0 or step < 3, step < 5])
        (stacked**2).sum().backward()
        ours.step(rates, active)
        for k in range(3):
            if active[k]:
                optimisers[k].zero_grad()
                (alone[k] ** 2).sum().backward()
                optimisers[k].step()
    assert torch.allclose(stacked, torch.stack(list(alone)), atol=1e-12)


def test_patience_counts_from_the_best_epoch_after_the_given_one() -> None:
    settings = make_config("clam-sb", "5-fold")[0].train
    one = fit._Running.__new__(fit._Running)
    one.best_epoch = 10
    assert not fit._stops(one, 49, settings)
    assert fit._stops(one, 50, settings)
    one.best_epoch = 45
    assert not fit._stops(one, 64, settings)
    assert fit._stops(one, 65, settings)


class Killed(Exception):
    """The machine went away."""


def test_a_killed_call_goes_on(cohort: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = cohort(40)
    out, words = tmp_path / "out", {"head": "abmil", "protocol": "exaone", "seeds": 3}
    changes = ["train.epochs=2", "head.hidden=8", "head.attention=4", "train.stack_gb=1e-6"]  # one run at a time
    whole = train_mil(features, labels, tmp_path / "whole", changes=changes, **words)
    finished, trained = fit._finished, []

    def dies(*parts: object, **named: object) -> fit.Fitted:
        if len(trained) == 2:
            raise Killed
        trained.append(1)
        return finished(*parts, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "_finished", dies)
    with pytest.raises(Killed):
        train_mil(features, labels, out, changes=changes, **words)
    assert len(list((out / "runs").glob("*.safetensors"))) == 2
    assert not (out / "results.json").exists()
    trained.clear()
    rows = train_mil(features, labels, out, changes=changes, **words)
    assert len(trained) == 1
    assert [row["mean"] for row in rows] == [row["mean"] for row in whole]
    assert (out / "predictions.csv").read_text() == (tmp_path / "whole" / "predictions.csv").read_text()
    trained.clear()
    assert train_mil(features, labels, out, changes=changes, **words)[0]["mean"] == whole[0]["mean"]
    assert not trained
    with pytest.raises(ResumeError, match="heads of other settings"):
        train_mil(features, labels, out, changes=[*changes, "train.lr=0.5"], **words)
    labels.write_text(labels.read_text().replace("S0,P0,wild", "S0,P0,mut").replace("S1,P0,wild", "S1,P0,mut"))
    with pytest.raises(ResumeError, match="heads of other labels"):
        train_mil(features, labels, out, changes=changes, **words)
    monkeypatch.undo()
    train_mil(features, labels, out, changes=changes, fresh=True, **words)


def test_groups_against_and_prediction(cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(40)
    words = {"protocol": "exaone", "seeds": 1}
    changes = [*SHORT, "train.balanced=true", "train.class_weights=true", "train.max_tiles=10"]
    patient = train_mil(features, labels, tmp_path / "p", head="mean-linear", group="patient", changes=changes, **words)
    average = train_mil(
        features,
        labels,
        tmp_path / "a",
        head="mean-linear",
        group="average",
        changes=changes,
        against=tmp_path / "p",
        **words,
    )
    assert patient[0]["n"] == average[0]["n"] == 6
    comparisons = json.loads((tmp_path / "a" / "comparisons.json").read_text())
    assert comparisons[0]["difference"] == pytest.approx(average[0]["mean"] - patient[0]["mean"])
    table = list(csv.DictReader(predict_mil(tmp_path / "a", features, tmp_path / "new").open()))
    assert [row["slide"] for row in table] == sorted(path.stem for path in features.iterdir())
    heads = load_heads(tmp_path / "a")
    said = heads.scores(open_features(features).read("S3"))["mut"]
    line = next(row for row in table if row["slide"] == "S3")
    assert float(line["p_mut"]) == pytest.approx(said["mut"], abs=1e-6)
    assert line["predicted"] == max(said, key=said.__getitem__)
    by_patient = list(csv.DictReader(predict_mil(tmp_path / "p", features, tmp_path / "n2", labels=labels).open()))
    assert len(by_patient) == 20
    averaged = list(csv.DictReader(predict_mil(tmp_path / "a", features, tmp_path / "n3", labels=labels).open()))
    scored = {row["slide"]: float(row["p_mut"]) for row in table}
    assert [row["slide"] for row in averaged] == list(dict.fromkeys(f"P{int(name[1:]) // 2}" for name in scored))
    for row in averaged:
        slides = [scored[f"S{2 * int(row['patient'][1:]) + k}"] for k in (0, 1)]
        assert float(row["p_mut"]) == pytest.approx(np.mean(slides), abs=1e-6)
    tiles = heads.tile_scores(planted(5, True))
    assert set(tiles) == {"mut: wild", "mut: mut"}
    assert np.allclose(tiles["mut: wild"] + tiles["mut: mut"], 1, atol=1e-5)
    with pytest.raises(DataError, match=rf"read features \[tiles, {WIDTH}\], not \[3, 5\]"):
        heads.scores(np.ones((3, 5)))


def test_slide_vectors_with_a_linear_head(cohort: Make, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    _, labels = cohort(40)
    vectors = [(Words(n, "v").normal(4) + 2 * ((n // 2) % 2)).tolist() for n in range(40)]
    parquet.write_table(
        pyarrow.table({"slide": [f"S{n}" for n in range(40)], "vector": vectors}), tmp_path / "v.parquet"
    )
    changes = ["train.epochs=40", "train.lr=1e-2"]
    rows = train_mil(tmp_path / "v.parquet", labels, tmp_path / "o", head="linear", protocol="exaone", changes=changes)
    assert rows[0]["mean"] > 0.9
    assert rows[0]["runs"] == 4


def test_the_encoder_that_knew_it_is_flagged(cohort: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = cohort(40)
    said = {"model": "m", "training_tasks": ["mut"], "training_patients": ["P7", "P8", "X"]}
    (features / "embedding.json").write_text(json.dumps(said))
    rows = train_mil(features, labels, tmp_path / "o", head="mean-linear", protocol="exaone", seeds=1, changes=SHORT)
    assert rows[0]["task_in_training"] is True
    assert rows[0]["patients_in_training"] == 2
    heard = capsys.readouterr().err
    assert "task mut was a training task of the encoder" in heard
    assert "2 patients were in the encoder's training, first P7" in heard
    assert "was a training task" in (tmp_path / "o" / "heads" / "README.md").read_text()


def refused(
    features: Path, labels: Path, out: Path, match: str, kind: type[EosinError] = DataError, **words: object
) -> None:
    """The call is refused with one line that matches."""
    settings = {"head": "mean-linear", "protocol": "exaone", "seeds": 1, "changes": SHORT, **words}
    with pytest.raises(kind, match=match) as error:
        train_mil(features, labels, out, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_bad_bags(cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(40)
    good = planted(3, True)
    for tiles, match in (
        (np.where(np.arange(WIDTH) == 2, np.nan, good), "slide S3 .* NaN or infinite features in .* tiles"),
        (good[:0], "S3"),
        (good[:, :5], f"mixed width .*: S0 has {WIDTH}, S3 has 5"),
    ):
        write_h5(features / "S3.h5", tiles.astype(np.float32))
        refused(features, labels, tmp_path / "o", match)
    write_h5(features / "S3.h5", good, encoder="other")
    refused(features, labels, tmp_path / "o", r"several models .*: other, toy \(slide S3\)")
    refused(tmp_path / "none", labels, tmp_path / "o", "is missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", labels, tmp_path / "o", "run `eosin embed` first")
    assert not (tmp_path / "o").exists()


def test_slide_names_of_feature_files(cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(40)
    for file in list(features.iterdir()):
        file.rename(features / f"{file.stem}.svs.h5")
    labels.write_text(labels.read_text().replace("\nS", "\ns"))
    refused(features, labels, tmp_path / "o", "s0 differs from S0 in upper and lower case")
    labels.write_text(labels.read_text().replace("\ns", "\nS"))
    refused(features, labels, tmp_path / "o", "no task called", tasks=["x"])
    assert open_features(features).slides == sorted(f"S{n}" for n in range(40))
    write_h5(features / "S3.h5", planted(3, True))
    refused(features, labels, tmp_path / "o", "hold S3 twice")


def test_labels_of_unknown_slides(cohort: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features, labels = cohort(40)
    labels.write_text(labels.read_text() + "X1,PX,mut,train\nX2,PX,mut,train\n")
    train_mil(features, labels, tmp_path / "o", head="mean-linear", protocol="exaone", seeds=1, changes=SHORT)
    assert "2 of 42 labelled slides have no features" in capsys.readouterr().err
    labels.write_text(labels.read_text().replace("\nS", "\nY"))
    refused(features, labels, tmp_path / "o", "42 of 42 labelled slides have no features .* slide names must agree")


def test_other_refusals(cohort: Make, tmp_path: Path) -> None:
    features, labels = cohort(40)
    out = tmp_path / "o"
    refused(features, labels, out, "no task called 'mutt'; is 'mut' meant", tasks=["mutt"])
    refused(features, labels, out, "unknown head 'clam'; is 'clam-", RecipeError, head="clam")
    refused(features, labels, out, "unknown key lrr", RecipeError, changes=["train.lrr=1"])
    refused(features, labels, out, "head linear reads one vector a slide", head="linear")
    refused(features, labels, out, "setting hiden", RecipeError, head="abmil", changes=["head.hiden=3"])
    refused(features, labels, out, "cannot compare with .*none", against=tmp_path / "none")
    labels.write_text(labels.read_text().replace("S1,P0,wild,train", "S1,P0,wild,test"))
    refused(features, labels, out, "1 patients are on both sides of the given split, first P0")
    labels.write_text(labels.read_text().replace("S1,P0,wild,test", "S1,P0,mut,train"))
    refused(features, labels, out, "slides of patient P0 have different labels", group="patient")
    refused(features, labels, out, "slides of patient P0 have different labels", group="average")
    assert not out.exists()


def test_cox_trains_on_joint_bags(tmp_path: Path) -> None:
    lines = ["slide,patient,os_time,os_event,split"]
    for number in range(70):
        sign = number % 3 - 1
        write_h5(tmp_path / "f" / f"S{number}.h5", (Words(number, "cox").normal(5, 4) + sign).astype(np.float32))
        split = "test" if number >= 50 else "train"
        lines.append(f"S{number},P{number},{20 - 9 * sign + number / 70},{int(number % 5 > 0)},{split}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    changes = ["train.survival=cox", "train.batch=32", "train.epochs=40", "train.lr=1e-2"]
    words = {"head": "mean-linear", "protocol": "exaone", "seeds": 2}
    place = tmp_path / "f", tmp_path / "labels.csv"
    rows = train_mil(*place, tmp_path / "o", changes=changes, **words)
    assert rows[0]["mean"] > 0.7
    assert rows[0]["n_per_class"] == {"event": 16, "censored": 4}
    refused(*place, tmp_path / "p", "compares bags: set train.batch to 32", changes=changes[:1])
    refused(*place, tmp_path / "p", "needs 32 training bags", changes=[*changes, "protocol.val_share=0.5"])
    header, *rest = lines
    more = [f"{header},t", *(f"{line},{n % 2}" for n, line in enumerate(rest))]
    more[3] = "S2,P2,,,train,0"
    place[1].write_text("\n".join(more))
    refused(*place, tmp_path / "p", "1 bags of fold 1 have no survival label", changes=changes, joint=True)


@pytest.mark.slow
def test_from_slides_to_scores(tmp_path: Path) -> None:
    """Synthetic slides, colour features, heads, and a cohort that predict embeds by itself."""
    from eosin.features.embed import embed_slides
    from eosin.slides import Cohort
    from eosin.slides.synthetic import write_slides

    paths = write_slides(tmp_path / "slides", count=12, size_px=512, workers=1)
    cohort = Cohort.index(paths, tmp_path / "cohort.parquet", workers=0)
    embed_slides("colour", cohort, tmp_path / "features", mpp=1.0, size=48, workers=0)
    names = cohort.usable["slide_id"].tolist()
    lines = ["slide,patient,t,split"]
    lines += [f"{name},{name},{n % 2},{'test' if n >= 8 else 'train'}" for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    words = {"head": "abmil", "protocol": "exaone", "seeds": 1, "changes": SHORT}
    rows = train_mil(tmp_path / "features", tmp_path / "labels.csv", tmp_path / "heads", **words)
    assert (rows[0]["model"], rows[0]["mpp"]) == ("colour", 1.0)
    direct = predict_mil(tmp_path / "heads", tmp_path / "features", tmp_path / "a")
    embedded = predict_mil(tmp_path / "heads", tmp_path / "cohort.parquet", tmp_path / "b")
    assert direct.read_text() == embedded.read_text()
    write_h5(tmp_path / "other" / "X.h5", np.zeros((3, 6), dtype=np.float32), encoder="other")
    with pytest.raises(DataError, match="features of model other, the heads were trained on those of colour"):
        predict_mil(tmp_path / "heads", tmp_path / "other", tmp_path / "c")
