"""`eosin embed` as a command: flags, lines, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eosin.features.h5 import read_features
from eosin.slides.synthetic import write_slides

from .command import eosin


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), count=1, size_px=1024, workers=1)[0]


def test_embed_slides_and_again(slide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "features"
    words = ["embed", "vit_tiny_patch16_224", slide, "-o", out, "--random-init", "--input-size", 32, "--mpp", 1.0]
    words += ["--size", 64, "--stride", 32, "--min-foreground", 0, "--pooling", "mean", "--workers", 0, "--clam"]
    assert eosin(*words) == 0
    assert "1 slide embedded, " in capfd.readouterr().err.splitlines()[-1]
    found = read_features(out / f"{slide.stem}.h5")
    assert (found.attributes["overlap"], found.attributes["stride"], found.attributes["pooling"]) == (32, 32, "mean")
    assert (out / "clam/pt_files" / f"{slide.stem}.pt").is_file()
    assert json.loads((out / "embedding.json").read_text())["model"] == "vit_tiny_patch16_224"
    assert eosin(*words) == 0
    assert "0 slides embedded (1 were there), 0 tiles, 0 failures" in capfd.readouterr().err
    assert eosin(*words, "--precision", "bf16", "--device", "cpu") == 2
    assert "holds features with precision fp32, not bf16" in capfd.readouterr().err
    assert eosin(*words[:-3], "--fresh", "--device", "cpu") == 0


def test_refusals_are_one_line(slide: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("colour", slide, "-o", tmp_path / "a"), "give --mpp"),
        (("colour", tmp_path / "none.parquet", "-o", tmp_path / "a", "--mpp", 1), "no such cohort file"),
        (("colour", tmp_path / "none.svs", "-o", tmp_path / "a", "--mpp", 1), "no such file or folder"),
        (("colour", slide, "--mpp", 1), "Missing option"),
    ):
        assert eosin("embed", *words) == 2
        told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("eosin: ")]
        assert len(told) == 1
        assert said in told[0]
