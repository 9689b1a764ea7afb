"""A leaderboard of tasks of several kinds: every metric tested as the evaluation itself tests it, pictures beside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eosin.evaluation import evaluate
from eosin.evaluation.kept import kept_features, kept_task
from eosin.evaluation.kinds.segmentation_pictures import write_label_maps
from eosin.evaluation.leaderboard import Board, read_board
from eosin.evaluation.leaderboard_files import board_json
from eosin.evaluation.leaderboard_rows import chance_of
from eosin.evaluation.tasks import open_task
from eosin.report.leaderboard import write_leaderboard
from eosin.report.leaderboard_neighbours import nearest, queries_of
from eosin.report.leaderboard_overlays import overlays


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of 24 patients with a class of three and two numbers, in train and test."""
    folder = tmp_path_factory.mktemp("tiles")
    random = np.random.default_rng(1)
    classes, numbers = ["file,label,split,patient"], ["file,value_a,value_b,split,patient"]
    for n in range(96):
        low = 30 * (n % 3)
        image = random.integers(low, low + 120, (24, 24, 3), dtype=np.uint8)
        image[:, :, 1] //= 1 + n % 2
        cv2.imwrite(str(folder / f"{n}.png"), image)
        split = "train" if n < 60 else "test"
        classes.append(f"{n}.png,{'abc'[n % 3]},{split},p{n // 4}")
        green, noise = image[:, :, 1].mean(), random.normal()
        numbers.append(f"{n}.png,{green + 8 * noise:.3f},{image.mean() + 9 * random.normal():.3f},{split},p{n // 4}")
    (folder / "classes.csv").write_text("\n".join(classes))
    (folder / "numbers.csv").write_text("\n".join(numbers))
    return folder


@pytest.fixture(scope="module")
def judged(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colour and texture on both tasks, by protocols that judge them."""
    out = tmp_path_factory.mktemp("judged") / "r"
    specs = [f"classes={tiles / 'classes.csv'}"]
    evaluate("colour", specs, "knn,logreg", out / "classes", against=["texture"], device="cpu")
    evaluate(
        "colour", [f"numbers={tiles / 'numbers.csv'}"], "strict", out / "numbers", against=["texture"], device="cpu"
    )
    return out


def folders(judged: Path) -> list[Path]:
    return [judged / "classes", judged / "numbers"]


def test_every_metric_is_tested_as_the_evaluation_does(judged: Path) -> None:
    compared = [row for one in folders(judged) for row in json.loads((one / "comparisons.json").read_text())]
    board = read_board(folders(judged))
    found = 0
    for block in board.blocks:
        for column in block.columns:
            (pair,) = column.pairs
            assert pair.reason == ""
            (told,) = [
                row
                for row in compared
                if (row["task"], row["protocol"], row["metric"]) == (column.task, block.protocol, column.metric)
            ]
            sign = 1 if pair.first == told["model"] else -1
            ends = sorted(sign * told[key] for key in ("ci_low", "ci_high"))
            assert pair.difference.value == pytest.approx(sign * told["difference"], abs=1e-12)
            assert [pair.difference.low, pair.difference.high] == pytest.approx(ends, abs=1e-12)
            assert pair.difference.p == pytest.approx(told["p"], abs=1e-12)
            found += 1
    assert found == 3
    assert {column.metric for block in board.blocks for column in block.columns} == {"balanced_accuracy", "pearson"}


def test_predictions_of_another_call_are_not_tested(judged: Path, tmp_path: Path) -> None:
    copied = tmp_path / "numbers"
    copied.mkdir()
    rows = json.loads((judged / "numbers" / "results.json").read_text())
    rows[0]["mean"] += 0.01
    (copied / "results.json").write_text(json.dumps(rows))
    (copied / "predictions.parquet").write_bytes((judged / "numbers" / "predictions.parquet").read_bytes())
    (pair,) = read_board([copied]).blocks[0].columns[0].pairs
    assert "no predictions that belong" in pair.reason


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of results with other words in every row."""
    rows = json.loads((source / "results.json").read_text())
    target.mkdir()
    (target / "results.json").write_text(json.dumps([{**row, **changes} for row in rows]))
    return target


def test_one_protocol_is_one_table_with_a_hash_for_each_kind(judged: Path, tmp_path: Path) -> None:
    classes = rewritten(judged / "classes", tmp_path / "a", protocol="strict", protocol_hash="aaaa")
    rows = json.loads((classes / "results.json").read_text())
    (classes / "results.json").write_text(json.dumps([row for row in rows if row["settings"].get("k")]))
    board = read_board([classes, judged / "numbers"])
    (block,) = board.blocks
    assert (block.title, [column.task for column in block.columns]) == ("strict", ["classes", "numbers"])
    assert [column.chance for column in block.columns] == [pytest.approx(1 / 3), 0.0]
    assert block.columns[1].parts == ["a", "b"]
    assert block.columns[1].classes == []
    twice = rewritten(classes, tmp_path / "b", protocol_hash="bbbb")
    blocks = read_board([classes, twice, judged / "numbers"]).blocks
    assert len(blocks) == 3
    assert all(re.fullmatch(r"strict \(\w{4,8}\)", block.title) for block in blocks)


def test_guessing_is_known_of_every_metric() -> None:
    assert chance_of({"metric": "auroc", "chance": None}) == 0.5
    assert chance_of({"metric": "pearson"}) == 0.0
    assert chance_of({"metric": "dice", "chance": None}) is None
    assert chance_of({"metric": "balanced_accuracy", "chance": 0.25}) == 0.25


def section(page: Path, key: str) -> str:
    return page.read_text(encoding="utf-8").split(f'<section id="{key}"')[1].split("</section>")[0]


def test_neighbours_are_those_of_the_kept_features(judged: Path, tmp_path: Path) -> None:
    page = write_leaderboard(folders(judged), tmp_path / "page.html")
    first, second, third = (section(page, f"task-{n}") for n in range(3))
    assert first.count("data:image/jpeg") == 2 * 6 * 7
    assert "Nearest neighbours" not in second + third  # once a task
    assert "Pearson&#x27;s r of each target" in third
    board = read_board(folders(judged))
    entry = board.blocks[0].columns[0].entries["colour"]
    task = kept_task(entry.folder, "classes")
    features = kept_features(entry.folder, entry.row, len(task))
    assert features is not None
    queries = queries_of(task)
    assert len(queries) == 6
    assert sorted(task.labels[queries].tolist()) == [0, 0, 1, 1, 2, 2]
    assert task.split is not None
    assert task.patient is not None
    for query, (rows, cosines) in zip(queries.tolist(), nearest(task, features, queries), strict=True):
        assert task.split[query] == "test"
        plain = []
        for row in range(len(task)):
            if task.split[row] == "train" and task.patient[row] != task.patient[query]:
                x, y = features[row], features[query]
                plain.append((-float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), row))
        best = sorted(plain)[:6]
        np.testing.assert_allclose(cosines, [-cosine for cosine, _ in best], atol=1e-5)
        assert set(rows.tolist()) <= {row for cosine, row in plain if cosine <= best[-1][0] + 1e-5}
    (entry.folder / "tasks.json").rename(entry.folder / "away.json")
    try:
        assert "Nearest neighbours" not in section(write_leaderboard(folders(judged), page), "task-0")
    finally:
        (entry.folder / "away.json").rename(entry.folder / "tasks.json")


def test_queries_are_few_and_of_the_reported_part(tiles: Path) -> None:
    task = open_task(f"x={tiles / 'classes.csv'}")
    assert queries_of(task, 2).tolist() == queries_of(task, 2).tolist()
    assert len(queries_of(task, 2)) == 2
    assert len(set(task.labels[queries_of(task, 2)].tolist())) == 2
    assert set(task.split[queries_of(task, 9)].tolist()) == {"test"}  # type: ignore[index]


@pytest.fixture
def segmented(tmp_path: Path) -> Board:
    """Results of two models on images with masks, and label maps as the judge keeps them."""
    random = np.random.default_rng(2)
    for n in range(4):
        for name in ("images", "masks"):
            (tmp_path / "cells" / name).mkdir(parents=True, exist_ok=True)
        image, mask = random.integers(0, 256, (40, 60, 3), dtype=np.uint8), np.zeros((40, 60), dtype=np.uint8)
        mask[5:20, 10 * n : 10 * n + 12] = 1 + n % 2
        cv2.imwrite(str(tmp_path / "cells" / "images" / f"<{n}>.png"), image)
        cv2.imwrite(str(tmp_path / "cells" / "masks" / f"<{n}>.png"), mask)
    task = open_task(f"cells={tmp_path / 'cells'}")
    found = []
    for number, model in enumerate(("good", "poor")):
        out = tmp_path / model
        row = {
            "task": "cells",
            "kind": "segmentation",
            "split": "5-fold",
            "metric": "dice",
            "mean": 0.9 - 0.3 * number,
            "ci_low": 0.2,
            "ci_high": 0.95,
            "n": 4,
            "protocol": "strict",
            "protocol_hash": "h",
            "model": model,
            "model_hash": f"m{number}",
            "per_class": {"0": 0.9, "1": 0.5, "2": None},
            "chance": None,
            "confusion": [[90, 5, 5], [5, 20, 0], [0, 0, 30]],
        }
        maps = {row_: np.roll(np.asarray(task.targets[row_]), 3 * number, axis=1) for row_ in range(4)}  # type: ignore[index]
        write_label_maps(out / "segmentation" / "cells" / "strict" / f"m{number}", task, maps)
        (out / "results.json").write_text(json.dumps([row, {**row, "metric": "iou", "mean": 0.4}]))
        found.append(out)
    return read_board(found)


def test_label_maps_lie_over_their_images(segmented: Board, tmp_path: Path) -> None:
    page = write_leaderboard([tmp_path / "good", tmp_path / "poor"], tmp_path / "page.html")
    body = section(page, "task-0")
    assert body.count("<img ") == 4 * 4  # image, truth, two models, of four images
    assert "&lt;2&gt;.png" in body
    assert "Dice of each class" in body
    assert "good, pixels" in body
    assert "<3>" not in body
    (column,) = segmented.blocks[0].columns
    assert [row["metric"] for row in column.entries["good"].more] == ["iou"]
    assert column.chance is None
    assert "no predictions" in column.pairs[0].reason
    told = board_json(segmented, {0: []}, {"good": _none(), "poor": _none()}, False)
    assert told["blocks"][0]["results"][0]["further"][0]["mean"] == 0.4


def _none() -> Any:
    from eosin.evaluation.leaderboard_sizes import Size

    return Size(None, None)


def test_missing_and_damaged_label_maps_are_left_out(segmented: Board, tmp_path: Path) -> None:
    (column,) = segmented.blocks[0].columns
    folder = tmp_path / "good" / "segmentation" / "cells" / "strict" / "m0"
    (folder / "00_prediction.png").write_bytes(b"no picture")
    (folder / "01_truth.png").unlink()
    body = "".join(overlays(column))
    assert body.count("<img ") == 2 * 4
    (tmp_path / "cells" / "images" / "<2>.png").unlink()
    body = "".join(overlays(column))
    assert body.count("<img ") == 3 + 4  # without its image a map stands alone
    (folder / "overlays.json").write_text("{}")
    body = "".join(overlays(column))
    assert "good" not in body
    (tmp_path / "poor" / "segmentation" / "cells" / "strict" / "m1" / "overlays.json").unlink()
    assert overlays(column) == []
