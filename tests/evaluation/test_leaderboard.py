"""Results side by side: tests between models, Holm, ranks, averages, names, refusals, exports."""

from __future__ import annotations

import csv
import io
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from eosin.errors import DataError
from eosin.evaluation.eva_export import write_eva
from eosin.evaluation.leaderboard import Block, Column, Entry, read_board
from eosin.evaluation.leaderboard_averages import average_of, averages_of, find_averages, mean_ranks
from eosin.evaluation.leaderboard_files import COLUMNS, board_csv, board_json
from eosin.evaluation.leaderboard_names import short_names
from eosin.evaluation.leaderboard_pairs import Pair, holm, ranks_of
from eosin.evaluation.leaderboard_rows import leaks_of
from eosin.evaluation.leaderboard_sizes import size_of, sizes_of
from eosin.evaluation.protocols import PROTOCOLS
from eosin.evaluation.published import anchors_of, published
from eosin.evaluation.statistics import Difference, interval, paired_difference
from eosin.features import export_model
from eosin.models import EncoderConfig, ViT

CLASSES = ["a", "b", "c"]


def write_results(
    folder: Path,
    model: str,
    correct: np.ndarray,
    labels: np.ndarray,
    task: str = "tiles",
    patients: np.ndarray | None = None,
    order: np.ndarray | None = None,
    **changes: Any,
) -> Path:
    """A folder as `eosin eval` leaves it, for one model on one task; `order`: of the samples in the file."""
    order = np.arange(len(labels)) if order is None else order
    groups = None if patients is None else np.unique(patients, return_inverse=True)[1]
    value, low, high = interval(correct, labels, groups)
    counts = [[0] * len(CLASSES) for _ in CLASSES]
    for label, right in zip(labels, correct, strict=True):
        counts[label][label if right > 0.5 else (label + 1) % len(CLASSES)] += 1
    row = {
        "task": task,
        "split": "test",
        "metric": "balanced_accuracy",
        "mean": value,
        "run_sd": None,
        "runs": 1,
        "ci_low": low,
        "ci_high": high,
        "n": len(labels),
        "n_patients": None,
        "chance": 1 / len(CLASSES),
        "resampled": "sample" if patients is None else "patient",
        "shared_groups": 0,
        "confusion": counts,
        "protocol": "knn",
        "protocol_hash": PROTOCOLS["knn"].hash,
        "model": model,
        "model_hash": f"hash-{model}",
        "per_class": dict.fromkeys(CLASSES, 0.5),
        "seconds": 1.0,
        "version": "0.1",
        "complete": True,
        **changes,
    }
    text, count = pyarrow.string(), len(labels)
    scores = np.eye(len(CLASSES))[labels] * correct[:, None] + 0.1
    ids = np.array([f"s{n}" for n in range(count)])
    columns = {
        "task": pyarrow.array([task] * count, text),
        "protocol": pyarrow.array([row["protocol"]] * count, text),
        "model": pyarrow.array([model] * count, text),
        "sample": pyarrow.array(ids[order].tolist(), text),
        "patient": pyarrow.array([None] * count if patients is None else patients[order].tolist(), text),
        "slide": pyarrow.array([None] * count, text),
        "label": pyarrow.array(np.array(CLASSES)[labels][order].tolist(), text),
        "predicted": pyarrow.array(np.array(CLASSES)[labels][order].tolist(), text),
        "correct": pyarrow.array(correct[order]),
        "classes": pyarrow.array([CLASSES] * count, pyarrow.list_(text)),
        "scores": pyarrow.array(scores[order].tolist(), pyarrow.list_(pyarrow.float64())),
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps([row]))
    parquet.write_table(pyarrow.table(columns), folder / "predictions.parquet")
    return folder


def made(seed: int, share: float, count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Labels that are the same for all seeds, and which samples a model got right."""
    labels = np.arange(count) % len(CLASSES)
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64), labels


def block_of(scores: dict[str, dict[str, float]], splits: dict[str, str] | None = None, **row: Any) -> Block:
    """A block with scores[task][model] and nothing else."""
    columns = []
    for task, means in scores.items():
        split = (splits or {}).get(task, "val")
        entries = {m: Entry(m, {"mean": v, "split": split, **row}, Path(), None) for m, v in means.items()}
        columns.append(Column(task, "balanced_accuracy", split, entries, [], ranks_of(means, []), task))
    return Block("eval", "eva-v2", "h", columns)


def plain_holm(p: list[float]) -> list[float]:
    """Holm's definition: an adjusted p is the smallest level at which stepping down still rejects."""
    found = []
    for own in range(len(p)):
        levels = sorted({min(1.0, (len(p) - k) * value) for k in range(len(p)) for value in p} | {1.0})

        def rejects(level: float, own: int = own) -> bool:
            for step, number in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
                if p[number] * (len(p) - step) > level:
                    return False
                if number == own:
                    return True
            return False

        found.append(next((level for level in levels if rejects(level)), 1.0))
    return found


def test_holm_is_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(…, "holm")
    rng = np.random.default_rng(0)
    for _ in range(30):
        p = (rng.random(rng.integers(1, 7)) ** 3).tolist()
        assert holm(p) == pytest.approx(plain_holm(p), abs=1e-12)
    assert holm([0.5, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    with_gap = holm([0.01, np.nan, 0.02])
    assert np.isnan(with_gap[1])
    assert [with_gap[0], with_gap[2]] == pytest.approx(holm([0.01, 0.02]))


@pytest.mark.parametrize("by_patient", [False, True])
def test_differences_are_paired_on_the_same_samples(tmp_path: Path, by_patient: bool) -> None:
    patients = np.array([f"p{n % 17}" for n in range(90)]) if by_patient else None
    order = np.random.default_rng(9).permutation(90)
    folders = []
    for seed, share in ((1, 0.8), (2, 0.6), (3, 0.75)):
        correct, labels = made(seed, share)
        shuffled = order if seed == 2 else None
        folders.append(write_results(tmp_path / f"m{seed}", f"m{seed}", correct, labels, "tiles", patients, shuffled))
    (column,) = read_board(folders).blocks[0].columns
    groups = None if patients is None else np.unique(patients, return_inverse=True)[1].astype(np.int64)
    assert len(column.pairs) == 3
    for pair in column.pairs:
        first, labels = made(int(pair.first[1]), {"m1": 0.8, "m2": 0.6, "m3": 0.75}[pair.first])
        second, _ = made(int(pair.second[1]), {"m1": 0.8, "m2": 0.6, "m3": 0.75}[pair.second])
        knn = PROTOCOLS["knn"]
        # The resamples are of the first model's order of samples, which is the task's own for all folders but one.
        expected = paired_difference(first, second, labels, groups, knn.draws, knn.seed)
        assert pair.difference == pytest.approx(expected, abs=1e-12)
        assert pair.reason == ""
    assert [pair.p_holm for pair in column.pairs] == pytest.approx(holm([pair.difference.p for pair in column.pairs]))


def test_without_fitting_predictions_nothing_is_tested(tmp_path: Path) -> None:
    correct, labels = made(1, 0.8)
    other, _ = made(2, 0.6)
    one = write_results(tmp_path / "one", "one", correct, labels)
    two = write_results(tmp_path / "two", "two", other, labels)
    (two / "predictions.parquet").unlink()
    (pair,) = read_board([one, two]).blocks[0].columns[0].pairs
    assert "no predictions" in pair.reason
    assert np.isnan(pair.p_holm)
    assert not pair.shown
    stale = write_results(tmp_path / "three", "two", other, labels, mean=0.9)
    (pair,) = read_board([one, stale]).blocks[0].columns[0].pairs
    assert "no predictions that belong" in pair.reason
    (two / "predictions.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"predictions\.parquet is damaged"):
        read_board([one, two])


def test_ranks_say_which_places_are_open() -> None:
    def pair(first: str, second: str, low: float, high: float) -> Pair:
        return Pair(first, second, Difference(0.0, low, high, 0.5 if low <= 0 <= high else 0.01), 0.5)

    means = {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.3}
    pairs = [pair("a", "b", -0.1, 0.2), pair("a", "c", 0.01, 0.2), pair("a", "d", 0.3, 0.7)]
    pairs += [pair("b", "c", -0.1, 0.1), pair("b", "d", 0.3, 0.6), pair("c", "d", 0.2, 0.6)]
    ranks = ranks_of(means, pairs)
    assert [(ranks[n].place, ranks[n].low, ranks[n].high) for n in "abcd"] == [
        *[(1, 1, 2), (2, 1, 3), (2, 2, 3), (4, 4, 4)]
    ]
    assert ranks["b"].tied == ("a", "c")
    assert ranks["d"].tied == ()
    few = Pair("a", "b", Difference(0.1, 0.05, 0.15, 0.25), 0.25)  # three patients: an interval that is too narrow
    assert not few.shown
    assert ranks_of(means, [few])["a"].tied == ("b",)
    untested = ranks_of(means, [pair("a", "b", np.nan, np.nan)])
    assert not untested["a"].tested
    assert (untested["a"].low, untested["a"].high) == (1, 4)


def test_averages_are_of_complete_rows_only() -> None:
    block = block_of({"x": {"m": 0.5, "k": 0.7}, "y": {"m": 0.7}, "z": {"m": 0.9, "k": 0.4}})
    everything = average_of(block, "all")
    assert everything.values == pytest.approx({"m": 0.7})
    assert everything.missing == {"k": ("y",)}
    assert mean_ranks(block) == {"m": 1.0}
    board = average_of(block, "eva-board")
    assert board.values == {}
    assert "pcam (on test)" in board.missing["m"]
    assert [average.name for average in averages_of(block)] == ["all"]
    assert find_averages(["all,eva-board", "all"]) == ["all", "eva-board"]
    with pytest.raises(DataError, match=r"'mine': midnight-13, eva-board, all"):
        find_averages(["mine"])


@pytest.mark.parametrize("name", ["eva-board", "midnight"])
def test_named_averages_rebuild_what_was_printed(name: str) -> None:
    source = published()[name]
    scores: dict[str, dict[str, float]] = {}
    splits: dict[str, str] = {}
    for place, told in enumerate(source.columns):
        if told.split == "test" or told.task not in scores:
            parts = ["hest"] if told.task != "hest" else [f"hest-{n}" for n in HEST]
            for task in parts if told.task == "hest" else [told.task]:
                scores[task] = {model: row[place] for model, row in source.models.items() if row[place] is not None}
                splits[task] = told.split
    average = average_of(block_of(scores, splits, complete=True), source.average)
    assert average.absent == ()
    for model, printed in source.averages.items():
        assert average.values[model] == pytest.approx(printed, abs=6e-4)
    partial = average_of(block_of(scores, splits, complete=False), source.average)
    assert partial.values == {}


HEST = ("idc", "prad", "paad", "skcm", "coad", "read", "ccrcc", "lung", "lymph-idc")


def test_anchors_need_the_same_task_split_and_count() -> None:
    block = block_of({"bach": {"m": 0.5}}, n=132)
    anchors = anchors_of(block, block.columns[0])
    assert {anchor.source for anchor in anchors} == {"eva-board"}
    assert anchors[0] == ("mahmoodlab/uni2-h", 0.915, "eva-board", True)
    block.columns[0].entries["m"].row["n"] = 100
    assert anchors_of(block, block.columns[0]) == []
    assert anchors_of(block_of({"mine": {"m": 0.5}}, n=132), block_of({"mine": {"m": 0.5}}).columns[0]) == []
    other = block_of({"bach": {"m": 0.5}}, n=132)
    other.protocol = "strict"
    found = anchors_of(other, other.columns[0])
    assert {anchor.source for anchor in found} == {"eva-board", "midnight", "eva-v1"}
    assert not any(anchor.same_protocol for anchor in found)


def test_protocols_are_blocks_and_models_are_known_by_their_weights(tmp_path: Path) -> None:
    correct, labels = made(1, 0.7)
    view = {"pooling": "cls", "input_size": 224}
    folders = [
        write_results(tmp_path / "a", "runs/x/model", correct, labels, model_hash="w1", transform=view),
        write_results(tmp_path / "b", "old/y/model", made(2, 0.6)[0], labels, model_hash="w2", transform=view),
        write_results(tmp_path / "c", "moved/model", correct, labels, "more", model_hash="w1", transform=view),
        write_results(tmp_path / "d", "x/model", correct, labels, protocol_hash="other", model_hash="w1"),
    ]
    board = read_board(folders)
    assert [(block.title, len(block.columns)) for block in board.blocks] == [
        *[(f"knn ({PROTOCOLS['knn'].hash[:8]})", 2), ("knn (other)", 1)]
    ]
    assert list(board.models) == ["x/model", "y/model"]
    assert board.blocks[0].models[0] == "x/model"  # it has both tasks
    again = {**view, "pooling": "cls+mean"}
    folders[1] = write_results(tmp_path / "e", "runs/x/model", correct, labels, model_hash="w1", transform=again)
    assert list(read_board(folders[:2]).models) == ["model · cls 224 px", "model · cls+mean 224 px"]
    assert short_names(["a/b/c", "d/c", "e"]) == {"a/b/c": "b/c", "d/c": "d/c", "e": "e"}


def test_features_take_the_name_of_their_folder_or_a_given_one(tmp_path: Path) -> None:
    correct, labels = made(1, 0.7)
    one = write_results(tmp_path / "uni", "features", correct, labels, model_hash="f1")
    two = write_results(tmp_path / "phikon", "features", made(2, 0.5)[0], labels, model_hash="f2")
    more = write_results(tmp_path / "uni-more", "features", correct, labels, "more", model_hash="f3")
    assert list(read_board([one, two]).models) == ["uni", "phikon"]
    board = read_board([f"UNI={one}", two, f"UNI={more}"])
    assert list(board.models) == ["UNI", "phikon"]
    assert board.blocks[0].models == ["UNI", "phikon"]
    (one / "results.json").write_text(json.dumps([*_rows(one), {**_rows(two)[0], "model": "another"}]))
    with pytest.raises(DataError, match="several models"):
        read_board([f"UNI={one}"])


def _rows(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())


def test_one_name_for_different_tasks_is_refused(tmp_path: Path) -> None:
    correct, labels = made(1, 0.7)
    one = write_results(tmp_path / "one", "m1", correct, labels)
    short = write_results(tmp_path / "short", "m2", correct[:60], labels[:60])
    with pytest.raises(
        DataError, match=r"task tiles: /.* and /.* judge different things under one name \((90|60) and (60|90) samples"
    ):
        read_board([one, short])
    named = write_results(tmp_path / "named", "m2", correct, labels, per_class=dict.fromkeys("xyz", 0.5))
    with pytest.raises(DataError, match=r"classes (a, b, c and x, y, z|x, y, z and a, b, c)"):
        read_board([one, named])
    swapped = write_results(tmp_path / "swapped", "m2", correct, (labels + 1) % 3)
    with pytest.raises(DataError, match="the same samples with other labels"):
        read_board([one, swapped])
    folds = write_results(tmp_path / "folds", "m2", correct, labels, split="5-fold")
    with pytest.raises(DataError, match="test and 5-fold"):
        read_board([one, folds])
    again = write_results(tmp_path / "again", "m1", made(2, 0.6)[0], labels)
    with pytest.raises(DataError, match="two scores by one protocol"):
        read_board([one, again])
    assert len(read_board([one, one, tmp_path / "one" / "results.json"]).folders) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "has no results"),
        ('{"task": 1}', "not a list of results"),
        ("[[1]]", "not a list of results"),
        ('[{"task": "t"}]', "result 1 has no metric"),
        ('[{"task": "t", "metric": "m", "mean": "x", "model": "m", "protocol": "p", "protocol_hash": "h"}]', "'x'"),
        ('[{"task": "t", "metric": "m", "mean": null, "model": "m", "protocol": "p", "protocol_hash": "h"}]', "empty"),
    ],
)
def test_bad_results_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=said) as caught:
        read_board([tmp_path])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_results_is_one_line(tmp_path: Path) -> None:
    for given, said in (([], "no results given"), ([tmp_path], "no results.json in"), ([tmp_path / "x"], "no such")):
        with pytest.raises(DataError, match=said):
            read_board(given)


def test_leaks_are_said() -> None:
    row = {"task_in_training": True, "patients_in_training": 2, "shared_groups": 3, "resampled": "patient"}
    assert leaks_of({**row, "complete": False}) == [
        *["trained on labels of this task", "2 of its patients were in training"],
        *["3 patients in train and test", "not the full data set"],
    ]
    assert leaks_of({"task_in_training": False, "patients_in_training": 0, "complete": True}) == []


def test_data_files_hold_what_the_page_shows(tmp_path: Path) -> None:
    folders = []
    for seed, share in ((1, 0.9), (2, 0.5)):
        correct, labels = made(seed, share)
        folders.append(write_results(tmp_path / f"m{seed}", f"m{seed}", correct, labels, run_scores=[0.5, 0.7]))
    board = read_board(folders)
    lines = list(csv.DictReader(io.StringIO(board_csv(board))))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["model"], line["rank"], line["rank_low"], line["rank_high"]) for line in lines] == [
        *[("m1", "1", "1", "1"), ("m2", "2", "2", "2")]
    ]
    averages = {0: averages_of(board.blocks[0], ["all"])}
    told = json.loads(json.dumps(board_json(board, averages, sizes_of(board), published=True)))
    (block,) = told["blocks"]
    assert block["averages"][0]["values"] == {name: e.mean for name, e in board.blocks[0].columns[0].entries.items()}
    assert block["pairs"][0]["p_holm"] == block["pairs"][0]["p"]
    assert block["published"] == []


def test_eva_shapes(tmp_path: Path) -> None:
    correct, labels = made(1, 0.7)
    told = {"run_scores": [0.5, 0.7], "run_sd": 0.1, "accuracy": 0.6, "auroc": 0.8}
    folders = [write_results(tmp_path / "p", "x/m", correct, labels, "pcam", split="test", **told)]
    folders += [write_results(tmp_path / "v", "x/m", correct, labels, "mhist", split="test")]
    folders += [write_results(tmp_path / "f", "x/m", correct, labels, "mine", split="5-fold")]
    board = read_board(folders)
    written, left_out = write_eva(board, tmp_path / "eva")
    assert left_out == 1
    read = json.loads((tmp_path / "eva" / "knn" / "m" / "patch_camelyon" / "results.json").read_text())
    assert set(read) == {"metrics"}
    assert read["metrics"]["val"] == []
    mean = float(np.mean([correct[labels == c].mean() for c in range(3)]))
    assert read["metrics"]["test"] == [
        {
            "test/MulticlassAUROC": {"mean": 0.8, "stdev": 0, "values": [0.8]},
            "test/MulticlassAccuracy": {"mean": pytest.approx(mean), "stdev": 0.1, "values": [0.5, 0.7]},
        }
    ]
    lines = (tmp_path / "eva" / "knn.csv").read_text().splitlines()
    assert lines[0] == "model,patch_camelyon/test,mhist"  # what eva calls val of MHIST is its test split
    assert lines[1] == f"m,{mean:.4f},{mean:.4f}"
    assert len(written) == 3


def test_sizes_come_from_zoo_export_and_timm(tmp_path: Path) -> None:
    assert size_of("kaiko/vits16")[:2] == (21_665_664, 29_000)
    assert size_of("kaiko/vits16 (random init)")[:2] == (21_665_664, None)
    vit = ViT(EncoderConfig(width=24, depth=1, heads=2, patch=8, grid=4))
    half = [0.5, 0.5, 0.5]
    folder = export_model(vit, tmp_path / "m", input_size=32, mean=half, std=half, pooling="cls")
    assert size_of(str(folder)).slides is None
    config = json.loads((folder / "config.json").read_text())
    config["eosin"]["slides"] = 12
    (folder / "config.json").write_text(json.dumps(config))
    count = sum(value.numel() for name, value in vit.named_parameters() if name != "mask_token")
    assert size_of(str(folder))[:2] == (count, 12)
    assert size_of("resnet18").parameters == 11_176_512
    assert size_of("no such model") == (None, None, "", None)


def test_pairs_cover_each_two_models_once(tmp_path: Path) -> None:
    folders = []
    for seed in range(4):
        correct, labels = made(seed, 0.4 + 0.12 * seed)
        folders.append(write_results(tmp_path / f"m{seed}", f"m{seed}", correct, labels))
    (column,) = read_board(folders).blocks[0].columns
    named = {(pair.first, pair.second) for pair in column.pairs}
    assert len(named) == 6
    assert all((b, a) not in named for a, b in named)
    assert {name for pair in named for name in pair} == {f"m{n}" for n in range(4)}
    means = [column.entries[name].mean for name in column.entries]
    assert means == sorted(means, reverse=True)
    assert {tuple(sorted(pair)) for pair in named} == {tuple(sorted(p)) for p in permutations(column.entries, 2)}
