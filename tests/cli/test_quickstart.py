"""The whole way, on procedural slides and on real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest
import timm
import torch

import eosin
from eosin.slides import Cohort

from .command import eosin as command

SHORT = ("--set", "run.minutes=null", "--set", "run.steps=6", "--set", "run.monitor_tiles=32", "--set", "run.workers=0")


@pytest.mark.slow
def test_procedural_slides(tmp_path: Path) -> None:
    assert command("quickstart", "-o", tmp_path / "q", *SHORT) == 0
    folder = tmp_path / "q"
    for name in ("cohort.parquet", "run", "model", "results/results.json", "report.html"):
        assert (folder / name).exists()
    rows = json.loads((folder / "results" / "results.json").read_text())
    assert {row["task"] for row in rows} == {"synthetic-tissue"}
    assert len({row["model_hash"] for row in rows}) == 4  # trained, random-init, colour, texture
    page = (folder / "report.html").read_text()
    assert "Synthetic probe" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_real_slides(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "mpp.csv").write_text("slide,mpp\nC2.jpg,0.687\nC3.jpg,0.687\n")
    slides = [word for name in ("slides", "her2st_patientC") for word in ("--slides", shared_data / name)]
    words = (*slides, "--mpp-csv", tmp_path / "mpp.csv", "-o", tmp_path / "q", *SHORT)
    assert command("quickstart", *words) == 0
    cohort = Cohort.read(tmp_path / "q" / "cohort.parquet")
    table = cohort.table.set_index("slide_id")
    assert table.loc["TCGA-CR-7395-01A-01-TS1", "status"] == "error"
    assert "--mpp-csv" in table.loc["TCGA-CR-7395-01A-01-TS1", "error"]
    assert set(cohort.usable["slide_id"]) == {"CMU-1-Small-Region", "1065626", "C2", "C3"}
    encoder = eosin.load_model(str(tmp_path / "q" / "model"))
    pixels = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)
    network = timm.create_model(f"local-dir:{tmp_path / 'q' / 'model'}", pretrained=True).eval()
    with torch.no_grad():
        tokens = network.forward_features((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
    assert torch.allclose(encoder.embed(pixels), expected, atol=1e-4)
    assert not pandas.isna(cohort.usable["tissue_mm2"]).any()
