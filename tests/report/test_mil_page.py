"""The page of slide-level heads: what it says, what it draws, what it refuses."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from eosin.errors import DataError
from eosin.report.mil_page import published_scores, write_mil_page
from eosin.report.mil_runs import confusion_of, kaplan_meier, read_mil_run, roc_of

from .mil_folder import SIX, write_mil_folder

TWO = ["wild", "mut"]


class _Balanced(HTMLParser):
    """Fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _parsed(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids)
    assert "http://" not in text
    assert "<script" not in text
    return text


def test_one_folder_with_every_kind_of_task(tmp_path: Path) -> None:
    tasks = {"msi": ["MSS", "MSI"], "<b>subtype": ["a<b", "b", "c"]}
    flags = {"task_in_training": True, "patients_in_training": 3}
    folder = write_mil_folder(tmp_path / "m", tasks, survival="os", regression="til", flags=flags)
    text = _parsed(write_mil_page(folder, command="eosin mil train a & b"))
    for section in ("bars", "scores", "roc", "confusion", "outcome", "counts", "curves", "conditions", "reproduce"):
        assert f'<section id="{section}"' in text, section
    assert '<section id="radar"' not in text  # two AUROC tasks
    assert "was trained on labels of this task" in text
    assert "3 of the patients were among the images" in text
    assert "&lt;b&gt;subtype" in text
    assert "<b>subtype" not in text
    assert "eosin mil train a &amp; b" in text
    assert "published" not in text.split('<section id="conditions"')[0].split("page written")[0]
    for row in json.loads((folder / "results.json").read_text()):
        assert f"{row['mean']:.3f}" in text


def test_several_folders_are_compared_with_anchors(tmp_path: Path) -> None:
    six = dict.fromkeys(SIX, TWO)
    runs = [write_mil_folder(tmp_path / head, six, head=head, bags=12, seeds=2) for head in ("clam-sb", "abmil")]
    page = write_mil_page(runs, tmp_path / "all.html")
    text = _parsed(page)
    assert page == tmp_path / "all.html"
    assert '<section id="radar"' in text
    assert "other slides, splits and pipeline" in text
    for value in published_scores("cptac-ccrcc-bap1", "auroc").values():
        assert f"{value:.3f}" in text
    assert text.count(", published</title>") == 42  # seven models on six tasks
    assert "mean of 6" in text
    assert "0.790" in text
    with pytest.raises(DataError, match="-o"):
        write_mil_page(runs)


def test_anchors_are_those_that_were_printed() -> None:
    assert published_scores("cptac-coad-kras", "auroc") == {
        "TITAN": 0.764,
        "PRISM": 0.744,
        "CHIEF": 0.699,
        "Prov-GigaPath": 0.815,
        "UNI2-h": 0.943,
        "EXAONE Path 1.0": 0.767,
        "EXAONE Path 2.0": 0.912,
    }
    means = np.mean([list(published_scores(task, "auroc").values()) for task in SIX], axis=0)
    assert np.round(means, 3).tolist() == [0.759, 0.770, 0.689, 0.704, 0.768, 0.722, 0.790]
    assert published_scores("my-task", "auroc") == published_scores("cptac-coad-kras", "c_index") == {}


def test_roc_has_the_area_of_its_runs(tmp_path: Path) -> None:
    run = read_mil_run(write_mil_folder(tmp_path / "m", {"t": TWO}, bags=200, signal=0.8))
    table = run.tested("t")
    roc = roc_of(table, "mut")
    assert roc is not None
    assert len(roc.runs) == 4
    areas = [np.trapezoid(y, x) for x, y in roc.runs]
    expected = [roc_auc_score(own["label"] == "mut", own["p_mut"]) for _, own in table.groupby("seed")]
    assert areas == pytest.approx(expected, abs=1e-12)
    assert np.trapezoid(roc.mean, roc.x) == pytest.approx(np.mean(expected), abs=0.01)
    assert (np.diff(roc.mean) >= -1e-12).all()
    assert roc.mean[0] == 0
    assert roc.mean[-1] == 1
    assert roc_of(table[table["label"] == "mut"], "mut") is None


def test_confusion_averages_runs_and_counts_a_bag_once() -> None:
    rows = [("a", "x", 0.9), ("a", "x", 0.2), ("b", "x", 0.1), ("b", "x", 0.2), ("c", "y", 0.3), ("c", "y", 0.6)]
    table = pd.DataFrame([{"slide": s, "label": label, "p_x": p, "p_y": 1 - p} for s, label, p in rows])
    assert confusion_of(table, ["x", "y"]).tolist() == [[1, 1], [0, 1]]
    assert confusion_of(table, ["x", "z"]) is None


def test_kaplan_meier_by_hand() -> None:
    x, y = kaplan_meier(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.0, 0.0]))
    assert x.tolist() == [0, 1, 1, 2, 2, 3]
    assert y == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5])


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="eosin mil train"):
        write_mil_page(tmp_path)
    folder = write_mil_folder(tmp_path / "m", {"t": TWO})
    (folder / "predictions.csv").unlink()
    (folder / "curves.json").write_text("{")
    text = _parsed(write_mil_page(folder))
    assert "curves.json cannot be read" in text
    assert '<section id="roc"' not in text
    assert "<b>ROC</b>" in text
    (folder / "results.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="damaged"):
        write_mil_page(folder)
