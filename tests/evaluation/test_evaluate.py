"""evaluate() end to end on real images and features: scores, files, resume, comparisons."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from pyarrow import parquet
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from eosin.errors import DataError, ResumeError
from eosin.evaluation import evaluate
from eosin.evaluation.evaluate import _outcome, pooling_of
from eosin.evaluation.folds import folds_of
from eosin.evaluation.kinds import Asked
from eosin.evaluation.protocols import PROTOCOLS, find_protocols
from eosin.evaluation.results import ResultsFolder
from eosin.evaluation.tasks import open_task
from eosin.features import FeatureStore, export_model, load_model
from eosin.models import EncoderConfig, ViT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ViT too small to be good for anything."""
    config = EncoderConfig(width=24, depth=1, heads=2, patch=8, grid=4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    info = {"recipe_hash": "abc", "training": {"tasks": ["colon5"], "patients": ["3"]}}
    half = [0.5, 0.5, 0.5]
    return export_model(ViT(config), folder, input_size=32, mean=half, std=half, pooling="cls+mean", info=info)


@pytest.fixture
def colon(shared_data: Path, tmp_path: Path) -> Path:
    """Class folders with a part of the real colon tiles: 12 train, 6 val a class, three classes."""
    for split, count in (("train", 12), ("val", 6)):
        for label in ("AC", "H", "S"):
            target = tmp_path / "colon" / split / label
            target.mkdir(parents=True)
            for source in sorted((shared_data / "colon5_tiles" / split / label).iterdir())[:count]:
                (target / source.name).write_bytes(source.read_bytes())
    return tmp_path / "colon"


@pytest.fixture
def cells(shared_data: Path, tmp_path: Path) -> Path:
    """Real nuclei of 12 patients, about 50 each, with their cell type."""
    folder = shared_data / "crc_cells_27px"
    table = pandas.read_csv(folder / "cells.csv")
    rows = np.concatenate([part.index[:50] for _, part in table[table.patient_id <= 12].groupby("patient_id")])
    with np.load(folder / "cells.npz") as archive:
        images = archive["images"][rows]
    chosen = table.loc[rows]
    labels, patients = chosen.cell_type.to_numpy(np.str_), chosen.patient_id.to_numpy()
    np.savez(tmp_path / "cells.npz", images=images, labels=labels, patient=patients)
    return tmp_path / "cells.npz"


@pytest.fixture
def kather(shared_data: Path, tmp_path: Path) -> Path:
    with np.load(shared_data / "kather2016_texture_features" / "features.npz") as archive:
        x = archive["features"][::6]
        scaled = (x - x.mean(0)) / x.std(0)
        np.savez(
            tmp_path / "kather.npz",
            features=scaled,
            labels=archive["labels"][::6],
            class_names=archive["class_names"],
        )
    return tmp_path / "kather.npz"


def test_features_alone_are_cross_validated_as_scikit_learn_would(kather: Path, tmp_path: Path) -> None:
    (row,) = evaluate(None, [], "knn", tmp_path / "out", features=kather)
    task = open_task(f"kather={kather}")
    predicted = np.empty(len(task), dtype=np.int64)
    for fold in folds_of(task, PROTOCOLS["knn"]):
        plain = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        plain.fit(task.features[fold.train], task.labels[fold.train])  # type: ignore[index]
        predicted[fold.test] = plain.predict(task.features[fold.test])  # type: ignore[index]
    assert row["mean"] == pytest.approx(balanced_accuracy_score(task.labels, predicted), abs=0.003)
    assert (row["split"], row["n"], row["model"], row["task"]) == ("5-fold", len(task), "features", "kather")
    assert row["ci_low"] < row["mean"] < row["ci_high"]
    assert row["chance"] == pytest.approx(1 / 8)


def test_patients_are_kept_whole_and_resampled_whole(cells: Path, tmp_path: Path) -> None:
    (row,) = evaluate("colour", [f"cells={cells}"], "logreg", tmp_path / "out")
    assert (row["resampled"], row["n_patients"], row["n"], row["split"]) == (
        "patient",
        12,
        row["n"],
        "5-fold",
    )
    assert row["mean"] > 0.3
    assert len(row["choices"]["C"]) == 5
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    assert table.patient.nunique() == 12
    assert balanced_accuracy_score(table.label, table.predicted) == pytest.approx(row["mean"])
    best = [classes[int(np.argmax(scores))] for classes, scores in zip(table.classes, table.scores, strict=True)]
    assert best == table.predicted.tolist()


def test_rows_baselines_and_comparisons(model: Path, colon: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = [f"colon5={colon}", f"cells={cells}"]
    rows = evaluate(str(model), tasks, "knn,simpleshot-4", out, baselines=True)
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(rows))
    names = [str(model), f"{model} (random init)", "colour", "texture"]
    assert [(r["model"], r["task"], r["protocol"]) for r in rows] == [
        (m, t, p) for m in names for t in ("colon5", "cells") for p in ("knn", "simpleshot-4")
    ]
    first = rows[0]
    assert (first["recipe_hash"], first["task_in_training"], first["split"]) == ("abc", True, "val")
    assert first["transform"]["pooling"] == "cls+mean"
    assert rows[4]["recipe_hash"] is None
    assert not rows[4]["task_in_training"]
    assert [row["patients_in_training"] for row in rows[:4]] == [0, 0, 1, 1]
    assert (rows[1]["runs"], first["run_sd"]) == (1000, None)
    assert rows[1]["run_sd"] > 0

    comparisons = json.loads((out / "comparisons.json").read_text())
    assert len(comparisons) == 3 * 2 * 2
    means = {(r["model"], r["task"], r["protocol"]): r["mean"] for r in rows}
    for entry in comparisons:
        key = entry["task"], entry["protocol"]
        assert entry["difference"] == pytest.approx(means[names[0], *key] - means[entry["against"], *key])
        assert entry["ci_low"] <= entry["difference"] <= entry["ci_high"]
        assert 0 < entry["p"] <= 1
    table = parquet.read_table(out / "predictions.parquet").to_pandas()
    for (name, task, protocol), part in table.groupby(["model", "task", "protocol"]):
        recall = part.groupby("label").correct.mean().mean()
        assert recall == pytest.approx(means[name, task, protocol])


def test_a_failed_call_goes_on_and_a_repeated_one_is_instant(
    model: Path, colon: Path, cells: Path, tmp_path: Path
) -> None:
    out, tasks = tmp_path / "out", [f"cells={cells}", f"colon={colon}"]
    broken = next((colon / "val" / "S").iterdir())
    whole = broken.read_bytes()
    broken.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=broken.name):
        evaluate(model, tasks, "knn,logreg", out)
    assert not (out / "results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("[!.]*") if path.is_file()}
    assert sorted(path.suffix for path in done) == [".json", ".npy", ".npz", ".npz"]
    # The broken file changes, so its hash is taken again.
    done = {path: time for path, time in done.items() if path.suffix != ".json"}
    broken.write_bytes(whole)
    rows = evaluate(model, tasks, "knn,logreg", out)
    assert len(rows) == 4
    assert {path: path.stat().st_mtime_ns for path in done} == done
    kept = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*") if path.is_file()}
    again = evaluate(model, tasks, "knn,logreg", out)
    assert {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("*") if path.is_file()} == kept
    assert [(r["mean"], r["ci_low"], r["seconds"]) for r in again] == [
        (r["mean"], r["ci_low"], r["seconds"]) for r in rows
    ]


def test_results_are_not_dropped_silently(cells: Path, tmp_path: Path) -> None:
    out, task = tmp_path / "out", f"cells={cells}"
    evaluate("colour", [task], "knn,simpleshot-1", out)
    with pytest.raises(ResumeError, match="not asked for now"):
        evaluate("colour", [task], "knn", out)
    assert len(evaluate("colour", [task], "knn,simpleshot-1,simpleshot-4", out)) == 3
    assert len(evaluate("colour", [task], "knn", out, fresh=True)) == 1


def test_another_model_under_the_same_name_is_refused(model: Path, cells: Path, tmp_path: Path) -> None:
    encoder = load_model(model)
    evaluate(encoder, [f"cells={cells}"], "knn", tmp_path / "out")
    other = load_model(model, random_init=True)
    with pytest.raises(ResumeError, match="other weights"):
        evaluate(other, [f"cells={cells}"], "knn", tmp_path / "out")


def test_bad_calls_are_refused_before_work(model: Path, colon: Path, kather: Path, tmp_path: Path) -> None:
    task, out = f"colon={colon}", tmp_path / "out"
    cases = [
        ((None, [], "knn"), {}, "nothing to judge"),
        (("colour", [task], "knn"), {"features": kather}, "one or the other"),
        (("colour", [f"k={kather}"], "knn"), {}, "use --features"),
        (("colour", [task, task], "knn"), {}, "two tasks are called colon"),
        (("colour", [task], "knn"), {"device": "cuda:99"}, "no device 'cuda:99'"),
        (("colour", [task], "svm"), {}, "unknown protocol 'svm'"),
        (("colour", [task], "knn"), {"against": ["colour"]}, "given twice"),
        ((load_model("colour"), [task], "knn"), {"baselines": True}, "by name or folder"),
    ]
    for words, options, said in cases:
        with pytest.raises(DataError, match=said):
            evaluate(*words, out, **options)
    assert not out.exists()


def test_what_a_model_was_trained_on_is_said(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(cells) as archive:
        arrays = dict(archive)
    slides = np.array([f"s{patient}" for patient in arrays["patient"]])
    np.savez(tmp_path / "known.npz", slide=slides, **arrays)
    colour = load_model("colour")
    colour.info = {"training": {"tasks": [], "patients": ["3", 4, "99"], "slides": ["s5"]}}
    (row,) = evaluate(colour, [f"known={tmp_path / 'known.npz'}"], "knn", tmp_path / "out")
    assert (row["task_in_training"], row["patients_in_training"], row["slides_in_training"]) == (False, 2, 1)
    told = "task known: colour was trained on 2 of its patients and 1 of its slides: a leak"
    assert told in capsys.readouterr().err
    (row,) = evaluate("colour", [f"known={tmp_path / 'known.npz'}"], "knn", tmp_path / "clean")
    assert (row["patients_in_training"], row["slides_in_training"]) == (0, 0)
    assert "a leak" not in capsys.readouterr().err


def test_rows_have_what_a_leaderboard_needs(cells: Path, tmp_path: Path) -> None:
    (row,) = evaluate("colour", [f"cells={cells}"], "simpleshot-1", tmp_path / "out")
    assert len(row["run_scores"]) == row["runs"] == 1000
    assert np.mean(row["run_scores"]) == pytest.approx(row["mean"])
    assert row["label_hash"] == open_task(f"cells={cells}").label_hash()
    kept = np.load(tmp_path / "out" / "cache" / "features" / f"{row['features_key']}.npy")
    assert len(kept) == row["n"]
    (opened,) = json.loads((tmp_path / "out" / "tasks.json").read_text()).values()
    assert open_task(**opened).label_hash() == row["label_hash"]
    table = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    assert table.metric.unique().tolist() == ["balanced_accuracy"]
    assert table.statistics.isna().all()


def test_a_patient_on_both_sides_is_reported(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(cells) as archive:
        arrays = dict(archive)
    half = np.where(np.arange(len(arrays["labels"])) % 2, "train", "test")
    np.savez(tmp_path / "leak.npz", split=half, **arrays)
    (row,) = evaluate("colour", [f"leak={tmp_path / 'leak.npz'}"], "knn", tmp_path / "out")
    assert (row["shared_groups"], row["split"]) == (12, "test")
    assert "12 patients are in train and in test" in capsys.readouterr().err


def test_few_patients_of_the_reported_split_are_said(
    kather: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many patients train, two are reported: the interval is over two."""
    with np.load(kather) as archive:
        arrays = dict(archive)
    rows = np.arange(len(arrays["labels"]))
    split = np.where(rows % 5 == 0, "test", "train")
    patient = np.where(split == "test", rows % 2, 10 + rows % 30)
    np.savez(tmp_path / "few.npz", split=split, patient=patient, **arrays)
    (row,) = evaluate(None, [], "knn", tmp_path / "out", features=tmp_path / "few.npz")
    assert (row["n_patients"], row["shared_groups"]) == (2, 0)
    assert "task few: 2 patients only" in capsys.readouterr().err


def test_the_same_samples_under_the_name_of_another_task_are_judged_by_its_settings(
    kather: Path, tmp_path: Path
) -> None:
    """Kept outcomes are not shared by tasks that a protocol treats differently."""
    with np.load(kather) as archive:
        few = np.concatenate([np.flatnonzero(archive["labels"] == label)[:9] for label in (0, 1)])
        x, y = archive["features"][few], archive["labels"][few]
    split = np.resize(["train", "train", "val"], len(few))
    quick = replace(PROTOCOLS["eva-v2"], settings={**PROTOCOLS["eva-v2"].settings, "steps": 4})
    folder = ResultsFolder(tmp_path / "out")
    runs = []
    for name in ("mine", "pcam-10shot"):
        np.savez(tmp_path / f"{name}.npz", features=x, labels=y, split=split)
        task = replace(open_task(f"mine={tmp_path / f'{name}.npz'}"), name=name)
        asked = Asked(task, quick, None, "features", task.content_hash(), FeatureStore(folder.features), CPU)
        runs.append(len(_outcome(folder, asked).run_scores))
    assert runs == [5, 50]


@pytest.mark.parametrize(
    ("split", "said"),
    [(None, "give splits train, val and test"), (["train", "train", "test"], "give a val split")],
)
def test_what_choices_need_is_said_where_one_patient_trains(tmp_path: Path, split: list[str] | None, said: str) -> None:
    patient = np.resize(["a", "a", "b"], 24)
    arrays = {} if split is None else {"split": np.resize(split, 24)}
    np.savez(tmp_path / "t.npz", features=np.eye(24), labels=np.repeat([0, 1], 12), patient=patient, **arrays)
    with pytest.raises(DataError, match=f"choosing settings inside a training part needs at least two .*{said}"):
        evaluate(None, [], "strict", tmp_path / "out", features=tmp_path / "t.npz")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    from eosin.errors import OutputError

    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="locked"):
        evaluate("colour", ["a=nowhere"], "knn", tmp_path / "locked" / "out")


def test_a_protocol_sets_the_pooling_unless_two_differ() -> None:
    assert pooling_of(find_protocols("logreg,knn")) is None
    assert pooling_of(find_protocols("midnight,logreg")) == "cls+mean"
    with pytest.raises(DataError, match="one protocol at a time"):
        pooling_of(find_protocols("midnight,eva-v2"))
