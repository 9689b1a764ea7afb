"""The page of a leaderboard: what it says and draws, published values apart, the whole way from `eosin eval`."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eosin.cli.eval import eval_
from eosin.cli.leaderboard import leaderboard
from eosin.errors import DataError, OutputError
from eosin.evaluation import evaluate
from eosin.evaluation.leaderboard import read_board
from eosin.evaluation.mil.folder import read_predictions
from eosin.evaluation.mil.intervals import compare
from eosin.evaluation.mil.scores import SCORES
from eosin.models.slide_task import SlideTask
from eosin.report.leaderboard import write_leaderboard
from eosin.report.leaderboard_charts import log_ticks, roc_points, short_number
from eosin.report.leaderboard_tables import rank_words

from .mil_folder import write_mil_folder

TWO = ["wild", "mut"]


class _Balanced(HTMLParser):
    """Fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _parsed(page: Path) -> tuple[str, str]:
    """Markup and plain text of a page that stands by itself."""
    markup = page.read_text(encoding="utf-8")
    parser = _Balanced()
    parser.feed(markup)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert "<script" not in markup
    assert not re.search(r"(src|href)=\"(?!#|data:)", markup)
    return markup, " ".join(" ".join(parser.text).split())


def _section(markup: str, key: str) -> str:
    return markup.split(f'<section id="{key}"')[1].split("</section>")[0]


def _features(folder: Path, task: str, signal: float, seed: int, classes: int = 3, patients: bool = False) -> Path:
    """Features of `classes` clusters, 60 for training and 60 for test; the samples are the same for all seeds."""
    fixed, noise = np.random.default_rng(classes), np.random.default_rng(seed)
    labels = np.arange(120) % classes
    centres = fixed.normal(size=(classes, 6))
    x = signal * centres[labels] + noise.normal(size=(120, 6))
    more: dict[str, Any] = {"patient": np.array([f"p{n // 6}" for n in range(120)])} if patients else {}
    folder.mkdir(parents=True, exist_ok=True)
    split = np.array(["train"] * 60 + ["test"] * 60)
    path = folder / f"{task}.npz"
    np.savez(path, features=x.astype(np.float32), labels=np.array(["x<y", "b", "c", "d"])[labels], split=split, **more)
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three models on three tasks by two protocols, as `eosin eval --features` leaves them; one task is missing."""
    root = tmp_path_factory.mktemp("judged")
    named = []
    for seed, (name, signal) in enumerate((("strong", 1.6), ("close", 1.5), ("<weak>", 0.2))):
        for task, classes, patients in (("colon", 3, True), ("cells", 4, False), ("msi", 2, False)):
            if (seed, task) == (2, "msi"):
                continue
            path = _features(root / f"f{seed}", task, signal, seed, classes, patients)
            out = root / f"r{seed}-{task}"
            evaluate(None, [], "knn,simpleshot-4", out, features=path)
            named.append(f"{name}={out}")
    rows = json.loads((root / "r2-colon" / "results.json").read_text())
    for row in rows:
        row["patients_in_training"] = 3
    (root / "r2-colon" / "results.json").write_text(json.dumps(rows))
    return named


def test_the_page_has_every_part(judged: list[str], tmp_path: Path) -> None:
    files = {"csv": tmp_path / "b.csv", "json": tmp_path / "b.json", "eva": tmp_path / "eva"}
    page = write_leaderboard(judged, tmp_path / "page.html", command="eosin leaderboard a & b", **files)
    markup, text = _parsed(page)
    board = read_board(judged)
    assert [block.title for block in board.blocks] == ["knn", "simpleshot-4"]
    for key in ("table", "bars", "radar", "conditions", *(f"task-{n}" for n in range(6))):
        assert f'<section id="{key}"' in markup, key
    table = _section(markup, "table")
    for _, column, entry in board.rows():
        assert f"{entry.mean:.3f}" in table
        rank = column.ranks[entry.model]
        assert rank_words(rank) in table
        assert f"{entry.row['ci_low']:.3f} – {entry.row['ci_high']:.3f}" in table
    assert "&lt;weak&gt;" in markup
    assert "<weak>" not in markup
    assert "Not for <weak>: missing msi." in text
    assert "<weak>, colon: 3 of its patients were in training" in text
    assert table.count(">leak<") == 2
    for word in ("Recall of each class", "ROC", "Confusion", "Paired differences", "p (Holm)", "guessing"):
        assert word in text, word
    assert "eosin leaderboard a & b" in text
    assert "nothing is published for these tasks" in text
    for path in files.values():
        assert path.exists()


def test_close_models_are_a_tie_and_a_weak_one_is_behind(judged: list[str]) -> None:
    (column,) = (c for c in read_board(judged).blocks[0].columns if c.task == "colon")
    assert set(column.ranks["strong"].tied) == {"close"}
    assert (column.ranks["strong"].low, column.ranks["strong"].high) == (1, 2)
    assert (column.ranks["<weak>"].low, column.ranks["<weak>"].high) == (3, 3)
    assert {entry.row["resampled"] for entry in column.entries.values()} == {"patient"}


def test_differences_are_those_that_eval_wrote(tmp_path: Path) -> None:
    """The pair of two models of one call is the comparison that the call itself wrote."""
    images = _tiny_images(tmp_path / "tiny")
    out = tmp_path / "out"
    evaluate("colour", [f"tiny={images}"], "knn", out, against=[_tiny_model(tmp_path)])
    (told,) = json.loads((out / "comparisons.json").read_text())
    (pair,) = read_board([out]).blocks[0].columns[0].pairs
    sign = 1 if pair.first == "colour" else -1
    ends = (told["ci_low"], told["ci_high"])
    assert sign * pair.difference.value == pytest.approx(told["difference"], abs=1e-12)
    assert (pair.difference.low, pair.difference.high) == pytest.approx(
        ends if sign == 1 else (-ends[1], -ends[0]), abs=1e-12
    )
    assert pair.difference.p == pytest.approx(told["p"])


def test_published_values_stay_apart(judged: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bach"
    evaluate(None, [], "knn", out, features=_features(tmp_path / "f", "mine", 1.0, 0, 4))
    row = {**json.loads((out / "results.json").read_text())[0], "task": "bach", "split": "val", "n": 132}
    row |= {"protocol": "eva-v2", "protocol_hash": "v2", "model": "kaiko/vits16", "model_hash": "k"}
    (out / "results.json").write_text(json.dumps([row]))
    markup, text = _parsed(write_leaderboard([out], tmp_path / "page.html", json=tmp_path / "b.json"))
    assert "0.915" in _section(markup, "published")
    assert "eosin's eva-v2 rebuilds its protocol" in text
    assert "Midnight-92k" not in markup  # another protocol's table
    assert "0.915, published</title>" in _section(markup, "task-0")
    assert "uni2-h" not in _section(markup, "table")
    told = json.loads((tmp_path / "b.json").read_text())["blocks"][0]
    assert {entry["model"] for entry in told["results"]} == {"vits16"}
    assert max(entry["value"] for entry in told["published"]) == 0.915
    assert told["mean_ranks"] == {"vits16": 1.0}
    assert "21.7 M parameters, 29 k slides" in text
    without, _ = _parsed(write_leaderboard([out], tmp_path / "without.html", published=False))
    assert "0.915" not in without


def test_slide_level_heads_stand_beside_tiles(judged: list[str], tmp_path: Path) -> None:
    told = {"kind": "binary", "classes": TWO}
    tasks = {"cptac-coad-kras": TWO}
    heads = []
    for head, signal in (("abmil", 1.8), ("clam-sb", 0.1)):
        # The labels of a folder follow from its head's name; the same ones are needed to compare.
        folder = write_mil_folder(tmp_path / head, tasks, head="abmil", signal=signal, bags=60, flags=told)
        rows = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps([{**row, "head": head} for row in rows]))
        heads.append(folder)
    board = read_board([*heads, judged[0]])
    assert [(block.kind, block.title) for block in board.blocks] == [
        *[("mil", "slide-level, exaone"), ("eval", "knn"), ("eval", "simpleshot-4")]
    ]
    (column,) = board.blocks[0].columns
    assert (column.metric, [row["metric"] for row in column.entries["vits16 · abmil"].more]) == (
        *("auroc", ["balanced_accuracy"]),
    )
    (pair,) = column.pairs
    task = SlideTask("cptac-coad-kras", "binary", ("wild", "mut"))
    runs = [read_predictions(folder, task) for folder in heads]
    assert pair.difference[1:] == pytest.approx(compare(SCORES["binary"]["auroc"], *runs, 2000, 0)[1:])
    assert pair.shown
    markup, text = _parsed(write_leaderboard([*heads, judged[0]], tmp_path))
    section = _section(markup, "task-0")
    assert "0.943, published</title>" in section
    assert "true / predicted" in section
    assert "wild" in section
    assert "vits16 · abmil" in text


def test_curves_and_axes() -> None:
    rng = np.random.default_rng(0)
    positive, scores = rng.random(3000) < 0.3, rng.normal(size=3000)
    found = roc_points(positive, scores + positive)
    assert found is not None
    x, y, area = found
    assert len(x) <= 201
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(area, abs=2e-3)
    assert roc_points(np.ones(3, bool), np.arange(3.0)) is None
    assert log_ticks(4e6, 1.5e9) == [1e7, 3e7, 1e8, 3e8, 1e9]
    assert log_ticks(15, 60) == [20, 50]
    assert [short_number(v) for v in (12, 29_000, 1.14e9)] == ["12", "29 k", "1.14 G"]


def test_refusals_are_one_line(judged: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown average 'best'"):
        write_leaderboard(judged, tmp_path, average=["best"])
    with pytest.raises(OutputError, match=r"leaderboard\.html"):
        write_leaderboard(judged, tmp_path / "page.csv")
    with pytest.raises(DataError, match="no results"):
        write_leaderboard([], tmp_path)
    assert not list(tmp_path.iterdir())


def _tiny_images(root: Path) -> Path:
    """Class folders of 16 px pictures, two classes that differ a little in colour."""
    import cv2

    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 24)):
        for label, shift in (("dark", 0), ("light", 30)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for n in range(count):
                cv2.imwrite(
                    str(folder / f"{n}.png"), rng.integers(60 + shift, 200 + shift, (16, 16, 3), dtype=np.uint8)
                )
    return root


def _tiny_model(root: Path) -> Path:
    from eosin.features import export_model
    from eosin.models import EncoderConfig, ViT

    vit = ViT(EncoderConfig(width=24, depth=1, heads=2, patch=8, grid=2))
    half = [0.5, 0.5, 0.5]
    return export_model(vit, root / "model", input_size=16, mean=half, std=half)


@pytest.mark.slow
def test_from_eval_of_timm_models_to_the_page(tmp_path: Path) -> None:
    images = _tiny_images(tmp_path / "tiny")
    app = typer.Typer()
    app.command("eval")(eval_)
    app.command("leaderboard")(leaderboard)
    runner = CliRunner()
    outs = []
    for model in ("test_vit", "test_resnet"):
        outs.append(str(tmp_path / model))
        call = ["eval", model, "--random-init", "--tasks", f"tiny={images}", "--protocol", "knn,logreg"]
        done = runner.invoke(app, [*call, "--input-size", "32", "-o", outs[-1]], catch_exceptions=False)
        assert done.exit_code == 0
    page = tmp_path / "page.html"
    done = runner.invoke(app, ["leaderboard", *outs, "-o", str(page), "--csv", str(tmp_path / "b.csv")])
    assert done.exit_code == 0, done.output
    assert f"written: {page}" in done.output
    _, text = _parsed(page)
    for word in (
        "test_vit (random init)",
        "test_resnet (random init)",
        "tiny · knn",
        "tiny · logreg",
        "dark",
        "parameters",
    ):
        assert word in text, word
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 5
