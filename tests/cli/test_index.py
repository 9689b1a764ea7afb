"""`eosin index` as a command: flags, lines, exit codes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from eosin.slides import Cohort

from .command import eosin


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two tiled TIFFs without a scale, a square of tissue in each, and a text file named as a slide."""
    rng = np.random.default_rng(0)
    pixels = np.full((512, 512, 3), 241, np.uint8)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (256, 256)), (0, 0), 4)[..., None] * 200
    pixels[128:384, 128:384] = (np.array([200, 120, 170]) + texture).clip(0, 255)
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, pixels, tile=(64, 64), photometric="rgb", metadata=None)
    (folder / "text.svs").write_text("no slide")
    (tmp_path / "mpp.csv").write_text("slide,mpp\na.tif,2.0\nb.tif,2.0\n")
    return folder


def test_index_with_everything(tmp_path, slides: Path, capfd) -> None:
    (tmp_path / "m.csv").write_text("slide,patient\na.tif,P<1>\nzebra,P2\n")
    (tmp_path / "skip.txt").write_text("# broken copies\nb\n")
    out, page = tmp_path / "out" / "cohort.parquet", tmp_path / "page.html"
    words = [
        "--mpp-csv",
        tmp_path / "mpp.csv",
        "--metadata",
        tmp_path / "m.csv",
        "--exclude",
        tmp_path / "skip.txt",
    ]
    assert eosin("index", slides, "-o", out, *words, "--workers", 1, "--html", page) == 0
    told = capfd.readouterr().err
    assert "2 slides: 1 ok, 1 error" in told
    assert "m.csv: 1 of 2 names match no slide: zebra" in told
    assert Cohort.read(out).usable["patient"].tolist() == ["P<1>"]
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 1
    assert "P&lt;1&gt;" in text
    assert "text.svs" in text
    assert "http" not in text
    assert sorted(path.name for path in out.parent.iterdir()) == ["cohort.parquet"]


def test_exit_codes(tmp_path, slides: Path, capfd) -> None:
    out = tmp_path / "cohort.parquet"
    known = ["-o", out, "--mpp-csv", tmp_path / "mpp.csv", "--workers", 0]
    assert eosin("index", slides, *known) == 0
    capfd.readouterr()
    for words in (
        (slides, *known, "--strict"),
        (slides / "text.svs", *known),
        (slides / "absent.svs", *known),
        (slides, "-o", slides, "--workers", 0),
        (slides, *known, "--exclude", tmp_path / "absent.txt"),
    ):
        assert eosin("index", *words) == 2
        told = capfd.readouterr().err.strip().splitlines()
        assert told[-1].startswith("eosin: ")
        assert len([line for line in told if line.startswith("eosin: ")]) == 1


def test_no_scale_anywhere_is_refused(tmp_path, slides: Path, capfd) -> None:
    assert eosin("index", slides / "a.tif", "-o", tmp_path / "x" / "c.parquet", "--workers", 0) == 2
    assert "a.tif: the file does not say its µm/px; state it with --mpp-csv" in capfd.readouterr().err
