"""`eosin report` on the folder that a quickstart leaves, and on a run that has nothing yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import typer
from typer.testing import CliRunner

from eosin.cli.report import report
from eosin.features.export import export_model
from eosin.models import EncoderConfig, ViT
from eosin.runs import RunFolder

app = typer.Typer()
app.command()(report)


def test_quickstart_folder_is_found_by_its_layout(run: RunFolder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = ViT(EncoderConfig(width=48, depth=1, heads=3, patch=16, grid=4))
    half = [0.5, 0.5, 0.5]
    export_model(vit, tmp_path / "model", input_size=64, mean=half, std=half)
    (tmp_path / "results").mkdir()
    row = {"task": "mine", "metric": "balanced_accuracy", "model": "colour", "mean": 0.5, "chance": 0.25}
    (tmp_path / "results" / "results.json").write_text(json.dumps([row]))
    found = CliRunner().invoke(app, [str(tmp_path), "-o", str(tmp_path / "page.html")])
    assert found.exit_code == 0, found.output
    assert found.output.strip() == str(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for section in ("patches", "neighbours", "probe"):
        assert f'<section id="{section}"' in page
    assert "random-init" in page
    assert "colour-only" in page


def test_run_without_anything_gives_a_page_inside_it(run: RunFolder) -> None:
    shutil.rmtree(run.pictures)
    run.metrics.unlink()
    found = CliRunner().invoke(app, [str(run.root)])
    assert found.exit_code == 0, found.output
    assert "Nothing has been logged yet" in run.report.read_text()
