"""The page of a study: table, differences, curves, scatter; hostile names, failed runs, a study on its way."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eosin.errors import DataError
from eosin.report import write_study_report
from eosin.report.study_charts import Axis, Curve, curve_chart
from eosin.runs import RunFolder, append_line

EVIL = "<script>alert(1)</script>"
ARMS = ("kde", EVIL, "none")
PLACES = ("kde", "evil", "none")


def metrics_of(arm: int, seed: int) -> dict[str, float]:
    return {"rankme": 30.0 + 2 * arm + seed, "odcorr": 0.4 - 0.05 * arm + 0.01 * seed, "logreg/cells": 0.5 + 0.1 * arm}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """study.json and metrics.jsonl of three arms and two seeds, as `run_study` writes them; the last run failed."""
    runs: list[dict[str, Any]] = []
    for at, (arm, place) in enumerate(zip(ARMS, PLACES, strict=True)):
        for seed in (0, 1):
            folder = RunFolder(tmp_path / "runs" / place / f"seed_{seed}")
            folder.root.mkdir(parents=True)
            for step in (0, 5, 10):
                row = {"step": step, "rankme": 20.0 + at + seed + step, "knn/cells": 0.5 + step / 100, "lr": 1e-4}
                append_line(folder.metrics, row)
                append_line(folder.metrics, {"step": step, "loss": 9.0 - at - step / 10})
            failed = (at, seed) == (2, 1)
            run = {"arm": arm, "seed": seed, "place": f"{place}/seed_{seed}", "status": "done", "error": None}
            run |= {"device": "cpu", "precision": "fp32", "steps": 10, "metrics": metrics_of(at, seed)}
            runs.append(run | ({"status": "failed", "error": f"diverged {EVIL}", "metrics": {}} if failed else {}))
    interval = {"n": 2, "sd": 0.7071, "ci_low": 24.147, "ci_high": 36.853}
    told = {
        "study": {"name": "terms", "description": f"A {EVIL} question", "base": "quickstart", "seeds": [0, 1]},
        "changes": ["run.batch=8"],
        "reference": "none",
        "arms": [
            {"arm": arm, "changes": {"objective.uniformity": arm}, "steps": 10, "batch": 8, "tiles": 80}
            | {"distinct_tiles": 10 if at == 0 else None, "data": ["12 tiles"], "scales": "0.5"}
            for at, arm in enumerate(ARMS)
        ],
        "watched_tiles": 64,
        "tasks": [{"task": "cells", "n": 90, "classes": ["a", "b"], "unit": "patient", "split": None}],
        "runs": runs,
        "summary": [
            {"arm": arm, "metric": metric, "mean": metrics_of(at, 0)[metric], **interval}
            for at, arm in enumerate(ARMS)
            for metric in ("rankme", "odcorr", "logreg/cells")
        ],
        "differences": [
            {"arm": "kde", "against": "none", "metric": "rankme", "over": "seeds", "n": 1}
            | {"difference": -4.0, "ci_low": -5.0, "ci_high": -3.0, "p": None},
            {"arm": "kde", "against": "none", "metric": "logreg/cells", "over": "seeds", "n": 1}
            | {"difference": -0.2, "ci_low": -0.3, "ci_high": -0.1, "p": None},
            {"arm": "kde", "against": "none", "metric": "logreg/cells", "over": "patient", "n": 40}
            | {"difference": -0.2, "ci_low": -0.41, "ci_high": 0.01, "p": 0.062, "seeds": 1},
        ],
        "correlations": [{"x": "odcorr", "y": "logreg/cells", "rho": -0.9, "n": 5}],
        "baselines": [
            {"model": "colour only", "metric": "logreg/cells", "mean": 0.607, "ci_low": 0.55, "ci_high": 0.65}
            | {"n": 90, "n_patients": 40, "resampled": "patient", "chance": 0.5}
        ],
        "versions": {"eosin": "0.1.0", "torch": "9.9"},
    }
    (tmp_path / "study.json").write_text(json.dumps(told))
    return tmp_path


class Page(HTMLParser):
    """Tags with attributes, table rows as lists of cell texts by section, and all text outside <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.section, self.text = "", ""
        self.rows: dict[str, list[list[str]]] = {}
        self.svgs: dict[str, list[dict[str, int]]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "section":
            self.section = attributes["id"] or ""
        elif tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        elif tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        elif tag == "svg" and attributes.get("role") == "img":
            self.svgs.setdefault(self.section, []).append({})
        elif self.svgs.get(self.section) and "svg" in self.open:
            counts = self.svgs[self.section][-1]
            counts[tag] = counts.get(tag, 0) + 1
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] == "style":
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[self.section][-1][-1] += data


def test_the_page_says_what_the_study_found(study: Path) -> None:
    page = Page(write_study_report(study, command="eosin study terms.yaml -o out"))
    assert page.open == []
    head, kde, *_ = page.rows["table"]
    assert [cell.strip() for cell in head] == ["arm", "runs", "RankMe", "ODCorr", "cells, logreg"]
    assert [cell.strip() for cell in kde[:3]] == ["kde", "2", "30.00 ± 0.71[24.15, 36.85]"]
    assert [row[0].strip() for row in page.rows["table"][1:]] == [*ARMS, "colour only", "chance"]
    assert page.rows["table"][-2][-1] == "0.607[0.550, 0.650]"
    assert page.rows["table"][3][1] == "1"
    head, first, _, second = page.rows["differences"]
    assert [head[0], first[0].strip()] == ["minus none", "kde"]
    assert first[1:] == ["−4.000", "−5.000 to −3.000 (1 seeds)", "lower"]
    assert second[3:] == ["−0.410 to +0.010 (40 patients)", "0.062", "no difference shown"]
    conditions = page.rows["conditions"]
    assert [cell.strip() for cell in conditions[1][:4]] == [
        "kde",
        "objective.uniformity: kde",
        "10 × 8",
        "80, 10 distinct",
    ]
    assert ["cells", "90", "a, b", "all, by cross-validation", "patients"] in conditions
    assert "5 of 6 runs finished, 1 failed" in page.text
    assert "measured at its end on the same 64 tiles, drawn from what the arm 'none' may see" in page.text
    assert "rho −0.900, n 5" in page.text
    assert "eosin study terms.yaml -o out" in page.text
    assert page.rows["runs"][-1][2] == f"failed: diverged {EVIL}"


def test_curves_have_a_line_and_a_band_an_arm_and_scatters_a_mark_a_run(study: Path) -> None:
    page = Page(write_study_report(study))
    assert len(page.svgs["curves"]) == 3  # RankMe, k-NN, loss; not the schedule
    assert all(counts["polyline"] == 3 for counts in page.svgs["curves"])
    marks = page.svgs["scatter"][0]
    assert marks["title"] == 5  # finished runs
    dots = page.svgs["dots"]
    assert [counts["title"] for counts in dots] == [5, 5, 6]  # and the line of colour only
    for words in ("k-NN while training: cells", "Loss", "RankMe"):
        assert words in page.text


def test_one_file_that_fetches_nothing_and_runs_nothing(study: Path) -> None:
    page = Page(write_study_report(study, study / "elsewhere.html"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base"}
    links = [value or "" for _, given in page.tags for key, value in given.items() if key in ("src", "href", "srcset")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert EVIL in page.text
    assert not re.search(r"https?://", (study / "elsewhere.html").read_text())
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))


def test_a_study_on_its_way_has_a_page_too(study: Path) -> None:
    told = json.loads((study / "study.json").read_text())
    for part in ("summary", "differences", "correlations", "baselines"):
        del told[part]
    for run in told["runs"][2:]:
        run |= {"status": "waiting", "metrics": {}}
    (study / "study.json").write_text(json.dumps(told))
    page = Page(write_study_report(study))
    assert "2 of 6 runs finished, 4 not run yet" in page.text
    assert "no run has finished yet" in page.text
    assert "curves" in page.svgs


def test_no_study_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no study in .*; give the folder that `eosin study -o` wrote"):
        write_study_report(tmp_path)
    for text in ("{}", "[1", '{"study": 3}'):
        (tmp_path / "study.json").write_text(text)
        with pytest.raises(DataError, match="is not a study"):
            write_study_report(tmp_path)


def test_a_curve_is_drawn_where_its_values_are() -> None:
    drawing = curve_chart([Curve(0, [0, 10], [1.0, 3.0], [0.5, 2.0], [1.5, 4.0])], "a")
    x, y = Axis([0, 10], 44, 318), Axis([0.5, 4.0], 164, 10)
    assert f'points="{x.at(0)},{y.at(1.0)} {x.at(10)},{y.at(3.0)}"' in drawing
    band = f"{x.at(0)},{y.at(1.5)} {x.at(10)},{y.at(4.0)} {x.at(10)},{y.at(2.0)} {x.at(0)},{y.at(0.5)}"
    assert f'points="{band}"' in drawing
    assert y.at(4.0) < y.at(0.5)
    assert x.at(10) - x.at(5) == pytest.approx(x.at(5) - x.at(0), abs=0.02)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([0.0, 10.0], ["0", "2", "4", "6", "8", "10"]), ([0.101, 0.119], ["0.105", "0.110", "0.115"]), ([5.0], ["4.8"])],
)
def test_ticks_are_round(values: list[float], ticks: list[str]) -> None:
    axis = Axis(values, 0, 100)
    assert {*ticks} <= {axis.text(tick) for tick in axis.ticks}
    assert all(0 <= axis.at(value) <= 100 for value in [*values, *axis.ticks])
