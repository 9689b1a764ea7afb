"""Probes in training: the numbers of `eosin eval` on the same encoder, every refusal in one line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from eosin.errors import DataError
from eosin.evaluation import evaluate
from eosin.evaluation.protocols import find_protocols
from eosin.features import export_model, load_model
from eosin.features.encoder import Encoder
from eosin.models import EncoderConfig, ViT
from eosin.report.curves import curves_section
from eosin.training import load_recipe, train
from eosin.training.probes import measure_probes, open_probes, shortened

from .conftest import TINY


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """72 images of three classes in train and test that differ in brightness; a table with patients beside them."""
    random = np.random.default_rng(1)
    lines = ["file,label,split,patient"]
    for number in range(72):
        label, split = "abc"[number % 3], "train" if number < 45 else "test"
        low = 40 * (number % 3)
        image = random.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)
        (tmp_path / "tiles").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "tiles" / f"{number}.png"), image)
        lines.append(f"tiles/{number}.png,{label},{split},p{number // 3}")
    (tmp_path / "tiles.csv").write_text("\n".join(lines))
    return tmp_path / "tiles.csv"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An exported ViT too small to be good for anything."""
    torch.manual_seed(0)
    config = EncoderConfig(width=24, depth=1, heads=2, patch=8, grid=4)
    half = [0.5, 0.5, 0.5]
    return export_model(ViT(config), tmp_path / "model", input_size=32, mean=half, std=half, pooling="cls", info={})


@pytest.fixture
def encoder(model: Path) -> Encoder:
    return load_model(model)


def test_numbers_are_those_of_eval(tiles: Path, model: Path, encoder: Encoder, tmp_path: Path) -> None:
    names = "knn,simpleshot-4,logreg"
    rows = evaluate(str(model), [f"mine={tiles}"], names, tmp_path / "out", device="cpu")
    probes = open_probes([f"mine={tiles}"], None, names, 100_000)
    found = measure_probes(probes, encoder)
    assert found.keys() == {f"{name}{end}" for name in names.split(",") for end in ("", "_low", "_high")}
    for row in rows:
        for end, key in (("", "mean"), ("_low", "ci_low"), ("_high", "ci_high")):
            assert found[f"{row['protocol']}{end}"] == pytest.approx(row[key], abs=1e-12), row["protocol"]


def test_few_steps_are_in_the_name(tiles: Path, encoder: Encoder) -> None:
    strict = find_protocols("strict")[0]
    few = shortened(strict, 50)
    assert (few.id, few.settings["steps"]) == ("strict-50", 50)
    assert few.hash != strict.hash
    assert shortened(strict, 2_500).hash == strict.hash
    knn = find_protocols("knn")[0]
    assert shortened(knn, 1) == knn
    found = measure_probes(open_probes([f"mine={tiles}"], None, "strict", 20), encoder)
    assert found.keys() == {"strict-20", "strict-20_low", "strict-20_high"}
    assert found["strict-20_low"] <= found["strict-20"] <= found["strict-20_high"]


def test_nothing_is_left_in_the_encoder_or_the_folder(
    tiles: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probes = open_probes([f"x={tiles}", f"y={tiles}"], None, "knn", 200)
    before = sorted(tmp_path.rglob("*"))
    first = measure_probes(probes, encoder)
    assert sorted(tmp_path.rglob("*")) == before
    assert first["knn/x"] == first["knn/y"]
    assert "knn_low/x" in first
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    assert measure_probes(probes, encoder) != first


def test_a_run_logs_its_probes(tiles: Path, tiles_folder: Path, tmp_path: Path) -> None:
    changes = [*TINY, "run.steps=1", "run.monitor_every=1", "run.probe_protocol=knn,logreg"]
    words = {"tiles": [str(tiles_folder)], "mpp": 0.5, "device": "cpu"}
    with pytest.raises(DataError, match="found nothing there"):
        train("quickstart", tmp_path / "run", probe=["mine=nowhere"], set=changes, **words)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    run = train("quickstart", tmp_path / "run", probe=[f"mine={tiles}"], set=changes, **words)  # type: ignore[arg-type]
    rows = [row for row in run.read_metrics() if "rankme" in row]
    assert [row["step"] for row in rows] == [0, 1]
    for row in rows:
        assert row["knn_low"] <= row["knn"] <= row["knn_high"]
        assert {"logreg", "logreg_low", "logreg_high"} <= row.keys()
    page = "".join(curves_section(run.read_metrics()).body)
    assert page.count('id="curve-knn"') == 1
    assert "band: 95 % interval" in page
    # How a run is looked at is no part of what it learns.
    other = load_recipe("quickstart", [*TINY, "run.probe_protocol=strict", "run.probe_steps=9"])[0]
    assert other.hash == load_recipe("quickstart", TINY)[0].hash


def test_public_tasks_lie_below_data(tmp_path: Path, encoder: Encoder) -> None:
    random = np.random.default_rng(1)
    for label in ("Benign", "InSitu", "Invasive", "Normal"):
        letter = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}[label]
        folder = tmp_path / "bach" / "ICIAR2018_BACH_Challenge" / "Photos" / label
        folder.mkdir(parents=True)
        for number in range(1, 101, 3):
            image = random.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f"{letter}{number:03d}.tif"), image)
    with pytest.raises(DataError, match="expected 268"):
        open_probes(["bach"], tmp_path, "knn", 200)
    (probe,) = open_probes(["bach"], tmp_path, "knn", 200, any_count=True)
    assert measure_probes([probe], encoder)["knn"] <= 1
    with pytest.raises(DataError, match="--data ROOT"):
        open_probes(["bach"], None, "knn", 200)


def test_every_kind_of_images_is_judged(tiles: Path, encoder: Encoder, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    for number in range(8):
        part = tmp_path / "dense" / ("train" if number < 6 else "test")
        for name in ("images", "masks"):
            (part / name).mkdir(parents=True, exist_ok=True)
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8 * (number % 3) :, :16] = 1
        image = random.integers(0, 120, (32, 32, 3), dtype=np.uint8) + 120 * mask[..., None]
        cv2.imwrite(str(part / "images" / f"{number}.png"), image)
        cv2.imwrite(str(part / "masks" / f"{number}.png"), mask)
    rows = [f"tiles/{n}.png,{n % 3 + 0.1 * random.normal():.3f},{'train' if n < 45 else 'test'}" for n in range(72)]
    (tmp_path / "numbers.csv").write_text("\n".join(["file,value,split", *rows]))
    specs = [f"dense={tmp_path / 'dense'}", f"numbers={tmp_path / 'numbers.csv'}", f"tiles={tiles}"]
    found = measure_probes(open_probes(specs, None, "knn,strict", 10), encoder)
    # k-NN judges classes alone; a ridge has no steps to cut short.
    assert {name for name in found if "_" not in name} == {
        *("strict-10/dense", "strict/numbers", "knn/tiles", "strict-10/tiles")
    }
    assert 0 <= found["strict-10/dense"] <= 1
    assert found["strict_low/numbers"] <= found["strict/numbers"] <= found["strict_high/numbers"]


def test_what_cannot_be_probed_is_one_line(tiles: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.ones((8, 2), dtype=np.float32), labels=np.arange(8) % 2)
    folder = tmp_path / "dense"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            image = np.full((16, 16) if name == "masks" else (16, 16, 3), number % 2, dtype=np.uint8)
            image[:4] = 1
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    for specs, protocol, words in (
        ([f"f={tmp_path / 'f.npz'}"], "knn", "holds features"),
        ([f"x={tiles}", f"x={tiles}"], "knn", "two probes are called x"),
        ([f"x={tiles}"], "best", "unknown protocol"),
        (["x"], "knn", "NAME=PATH"),
        ([f"x={tmp_path / 'none'}"], "knn", "found nothing there"),
        ([f"d={folder}"], "knn", "probe d: protocol knn does not judge segmentation"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            open_probes(specs, None, protocol, 200)
        assert "\n" not in str(caught.value)
