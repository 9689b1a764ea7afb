"""The page as a browser takes it: one file, nothing fetched, user text harmless, missing parts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eosin.errors import DataError, OutputError
from eosin.features.baselines import ColourEncoder
from eosin.features.encoder import VitEncoder
from eosin.models import EncoderConfig, ViT
from eosin.report import write_run_report
from eosin.report.run_page import training_seconds
from eosin.runs import ATTENTION, RunFolder
from eosin.slides import Cohort

EVIL = "<script>alert(1)</script>"
RESULTS = [
    {"task": "mine", "metric": "balanced_accuracy", "split": "test", "protocol": "logreg", "model": name}
    | {
        "model_hash": code,
        "mean": mean,
        "ci_low": mean - 0.05,
        "ci_high": mean + 0.05,
        "n": 90,
        "chance": 0.25,
    }
    for name, code, mean in (("out/model", "aaaa", 0.8125), (EVIL, "bbbb", 0.5), ("colour", "cccc", 0.625))
]
COMPARISONS = [
    {
        "task": "mine",
        "metric": "balanced_accuracy",
        "protocol": "logreg",
        "model": "out/model",
        "model_hash": "aaaa",
    }
    | {
        "against": EVIL,
        "against_hash": "bbbb",
        "difference": 0.3125,
        "ci_low": 0.25,
        "ci_high": 0.375,
        "p": 1e-4,
    }
]


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text outside <style>, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

    @property
    def sections(self) -> set[str]:
        return {attributes.get("id") or "" for tag, attributes in self.tags if tag == "section"}


def tiny_encoder() -> VitEncoder:
    torch.manual_seed(0)
    vit = ViT(EncoderConfig(width=48, depth=1, heads=3, patch=16, grid=4)).eval()
    return VitEncoder(vit, name="tiny", width=48, pooling="cls", input_size=64, model_hash="aaaa")


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    """One slide with a purple square on glass, one file that is no slide."""
    pixels = np.full((400, 600, 3), 245, dtype=np.uint8)
    pixels[100:300, 150:400] = (150, 60, 140)
    slides = tmp_path / "slides"
    slides.mkdir()
    cv2.imwrite(str(slides / "a<b>.png"), pixels)
    (slides / "broken.png").write_text("no picture")
    (tmp_path / "mpp.csv").write_text("slide,mpp\na<b>.png,4\nbroken.png,4\n")
    return Cohort.index([slides], tmp_path / "cohort.parquet", mpp_csv=tmp_path / "mpp.csv", workers=0)


def test_full_page_needs_nothing_else(run: RunFolder, cohort: Cohort, tmp_path: Path) -> None:
    path = write_run_report(
        run,
        tmp_path / "report.html",
        encoder=tiny_encoder(),
        random_encoder=ColourEncoder(),
        results=RESULTS,
        comparisons=COMPARISONS,
        cohort=cohort,
        captions={"mine": "A synthetic probe.", "tiles": "Look closely."},
        command=f"eosin train tiny -o '{EVIL}'",
    )
    page = Page(path)
    assert page.open == []
    wanted = {"alarms", "curves", "probe", "tiles", "views", "attention", "patches", "neighbours", "slides"}
    wanted |= {"acceptance", "recipe"}
    assert page.sections == wanted
    assert len(page.ids) == len(set(page.ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, name, target)
        if tag == "img":
            assert attributes["alt"]
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{key}" for key in wanted}
    source = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in source
    assert not re.search(r"@import|url\((?!#)", source)
    assert page.text.count(EVIL) >= 6
    assert path.stat().st_size < 2_000_000


def test_page_says_what_was_measured(run: RunFolder, cohort: Cohort, tmp_path: Path) -> None:
    page = Page(
        write_run_report(
            run,
            tmp_path / "report.html",
            encoder=tiny_encoder(),
            results=RESULTS,
            comparisons=COMPARISONS,
            cohort=cohort,
            captions={"mine": "A synthetic probe."},
        )
    )
    for words in (
        "Step 50 of 100",
        "1 alarm ",
        "RankMe 3 is below 25% of the run's best",
        "last checkpoint at step 50",
        "1111aaaa",
        "torch 9.9",
        "31.5",
        "A synthetic probe.",
        "0.812",
        "colour-only",
        f"trained − {EVIL}",
        "+0.250 to +0.375",
        "trained is better",
        "a<b>",
        "broken.png",
        "the authors' own released files",
    ):
        assert words in page.text, words
    assert "out/model" not in page.text


def test_a_run_that_has_just_begun_gives_reasons(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match="no run folder"):
        write_run_report(tmp_path / "new", tmp_path / "report.html")
    (tmp_path / "new" / "metrics.jsonl").write_text("")
    page = Page(write_run_report(tmp_path / "new", tmp_path / "report.html"))
    assert page.sections == {"missing"}
    titles = (
        "Alarms",
        "Curves",
        "Probe",
        "Tiles",
        "Views",
        "Attention",
        "Patch tokens",
        "Nearest neighbours",
        "Slides",
    )
    for title in titles:
        assert f"{title}: " in page.text
    assert "sample.npz" in page.text


def test_half_written_parts_are_tolerated(run: RunFolder, tmp_path: Path) -> None:
    with open(run.metrics, "ab") as handle:
        handle.write(b'{"step": 60, "loss": 5.')
    whole = (run.pictures / "sample.npz").read_bytes()
    (run.pictures / "sample.npz").write_bytes(whole[: len(whole) // 2])
    for name in ATTENTION:
        whole = (run.pictures / f"{name}.npz").read_bytes()
        (run.pictures / f"{name}.npz").write_bytes(whole[: len(whole) // 2])
    run.alarms.write_text('{"step": 1}\n\x00{"torn"\n{"step": 2}\n')
    run.acceptance.write_bytes(run.acceptance.read_bytes()[:100])
    run.identity.write_text('{"recipe_hash"')
    run.recipe.write_text("name: [tiny")
    page = Page(write_run_report(run, tmp_path / "report.html", encoder=tiny_encoder()))
    assert page.sections == {"curves", "missing"}
    assert "Step 50" in page.text
    assert "sample.npz cannot be read" in page.text
    assert "recipe.yaml line" in page.text


def test_without_encoder_the_pixels_are_still_shown(run: RunFolder, tmp_path: Path) -> None:
    page = Page(write_run_report(run.root, tmp_path / "report.html"))
    assert {"tiles", "views"} < page.sections
    assert not {"patches", "neighbours"} & page.sections
    assert "no encoder was given" in page.text


def test_time_comes_from_the_rate_where_it_is_not_stated() -> None:
    rows = [{"step": 0, "rankme": 1.0}, {"tiles": 100, "img_s": 10.0}, {"tiles": 300, "img_s": 20.0}]
    assert training_seconds(rows) == 20.0
    assert training_seconds([*rows, {"seconds": 99.0}]) == 99.0
    assert training_seconds([]) == 0.0


def test_identity_as_a_run_writes_it(run: RunFolder, tmp_path: Path) -> None:
    known = {"cohort_hash": ["2222bbbb", "3333cccc"], "steps": 50}
    run.identity.write_text(json.dumps(known))
    page = Page(write_run_report(run, tmp_path / "report.html"))
    assert "Step 50 of 50, finished" in page.text
    assert "2222bbbb 3333cccc" in page.text


def test_refuses_with_one_line(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        write_run_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make folder"):
        write_run_report(run, tmp_path / "file" / "report.html")
