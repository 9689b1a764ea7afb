"""`eosin heatmap` with heads that were trained, on a real slide, features from a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from eosin.cli.heatmap import heatmap
from eosin.errors import DataError, OutputError
from eosin.evaluation.mil import train_mil
from eosin.features.h5 import feature_writer
from eosin.slides import open_slide

app = typer.Typer()
app.command()(heatmap)


def _write(path: Path, coords: np.ndarray, features: np.ndarray, **attributes: object) -> None:
    told = {"patch_size": 128, "mpp": 1.0, "model": "m", "model_hash": "a", **attributes}
    with feature_writer(path, coords, told) as writer:
        writer.write("features", np.arange(len(coords)), features.astype(np.float32))


@pytest.fixture
def trained(shared_data: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Heads of two kinds on bags whose label is in their first number; the slide, whose h5 lies with the bags."""
    slide = shared_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(slide) as opened:
        side = 128 / opened.mpp_x
        coords = np.rint([(x * side, y * side) for y in range(10) for x in range(7)]).astype(np.int64)
        size = {"level0_width": opened.width, "level0_height": opened.height}
    rng = np.random.default_rng(0)
    lines = ["slide,patient,t"]
    for n in range(12):
        features = rng.normal(size=(20, 4))
        features[:, 0] += 2 * (n % 2)
        _write(tmp_path / "features" / f"s{n}.h5", coords[:20], features)
        lines.append(f"s{n},p{n},{'yes' if n % 2 else 'no'}")
    _write(tmp_path / "features" / f"{slide.stem}.h5", coords, rng.normal(size=(70, 4)), name=slide.stem, **size)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    for head in ("clam-mb", "mean-linear"):
        changes = ["train.epochs=2", "protocol.draws=10"]
        words = {"head": head, "protocol": "hold-out", "seeds": 1, "changes": changes}
        train_mil(tmp_path / "features", tmp_path / "labels.csv", tmp_path / head, **words)
    return tmp_path, slide


def test_every_file_is_written_and_bad_words_are_one_line(trained: tuple[Path, Path]) -> None:
    root, slide = trained
    words = [str(root / "clam-mb"), str(slide), "-o", str(root / "out"), "--features", str(root / "features")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    names = {path.name for path in (root / "out").iterdir()}
    pictures = {"heatmap.png", "grid.png", "tiles.png", "heatmap.ome.tif"}
    assert names == pictures | {"heatmap.geojson", "heatmap.csv", "heatmap.json", "report.html"}
    told = json.loads((root / "out" / "heatmap.json").read_text())
    assert told["tiles"] == told["geojson_tiles"] == 70
    assert told["branch"] in ("t: no", "t: yes")
    assert told["branch"] == "t: " + max(told["scores"]["t"], key=told["scores"]["t"].get)
    text = (root / "out" / "report.html").read_text()
    assert "<script" not in text
    for section in ("map", "spread", "tiles", "scores", "branches", "files", "reproduce"):
        assert f'<section id="{section}"' in text

    for changed, line in (
        ([*words, "--branch", "maybe"], "'t: no', 't: yes'"),
        ([str(root / "mean-linear"), *words[1:]], "use --what score"),
    ):
        refused = CliRunner().invoke(app, changed)
        assert isinstance(refused.exception, DataError)
        assert line in str(refused.exception)
    scored = CliRunner().invoke(app, [str(root / "mean-linear"), *words[1:], "--what", "score", "--ome", "score"])
    assert scored.exit_code == 0, scored.output
    other = CliRunner().invoke(app, [words[0], str(slide.with_name("1065626.svs")), *words[2:]])
    assert isinstance(other.exception, OutputError)
