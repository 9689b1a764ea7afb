"""`eosin doctor` as a command: plain text, JSON, a page, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from .command import eosin


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    """A tiled TIFF without a scale, a square of tissue in it; mpp.csv beside it states 1 µm/px."""
    rng = np.random.default_rng(0)
    pixels = np.full((1024, 1024, 3), 241, np.uint8)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (768, 768)), (0, 0), 4)[..., None] * 200
    pixels[128:896, 128:896] = (np.array([200, 120, 170]) + texture).clip(0, 255)
    folder = tmp_path_factory.mktemp("doctor")
    tifffile.imwrite(folder / "a.tif", pixels, tile=(128, 128), photometric="rgb", metadata=None)
    cv2.imwrite(str(folder / "b.png"), pixels[..., ::-1])
    (folder / "mpp.csv").write_text("slide,mpp\na.tif,1.0\nb.png,1.0\n")
    return folder / "a.tif"


def test_text_into_a_pipe_is_plain(slide: Path, capfd) -> None:
    mpp = slide.parent / "mpp.csv"
    assert eosin("doctor", slide, "--mpp-csv", mpp, "--seconds", 0.1, "--recipe", "kaiko-vits16", "--gpu", "H100") == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out
    assert not set("│┃━─┏╭") & set(out)
    for words in ("1 µm/px by --mpp-csv", "fast path", "estimate, not measured", "Problems"):
        assert words in out


def test_a_plain_image_as_json_and_page(slide: Path, tmp_path: Path, capfd) -> None:
    page = tmp_path / "new" / "page.html"
    words = ("--mpp-csv", slide.parent / "mpp.csv", "--seconds", 0.1, "--json", "-o", page)
    assert eosin("doctor", slide.parent / "b.png", *words) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["slides"][0]["anatomy"]["reader"] == "image"
    assert [one["serving"]["level"] is None for one in told["slides"][0]["scales"]] == [True, True, False, False]
    assert any("plain image" in problem["what"] for problem in told["problems"])
    assert page.read_text().startswith("<!doctype html>")


def test_exit_codes(slide: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "cut.tif").write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no cohort")
    mpp = ("--mpp-csv", slide.parent / "mpp.csv")
    for words, named in (
        ((slide,), "a.tif: the file does not say its µm/px"),
        ((tmp_path / "absent.svs",), "absent.svs"),
        ((tmp_path / "empty.svs",), "empty.svs: empty file"),
        ((tmp_path / "cut.tif",), "cut.tif"),
        ((tmp_path / "c.parquet",), "c.parquet"),
        ((slide, *mpp, "--gpu", "H100"), "--recipe"),
        ((slide, *mpp, "--recipe", "kaiko-vits16", "--gpu", "Voodoo"), "Voodoo"),
        ((slide, *mpp, "--recipe", "absent"), "absent"),
        ((slide, *mpp, "--reader", "tiff"), "--reader"),
        ((slide, *mpp, "-o", tmp_path), "is a folder"),
    ):
        assert eosin("doctor", *words) == 2
        told = capfd.readouterr()
        lines = told.err.strip().splitlines()
        assert len(lines) == 1
        assert named in lines[0]
        assert told.out == ""
