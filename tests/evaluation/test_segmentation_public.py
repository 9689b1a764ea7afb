"""The public segmentation tasks, from a small tree in their official layout to results, by both ways of judging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import io

from eosin.evaluation import evaluate
from eosin.evaluation.kinds.kind import Asked
from eosin.evaluation.kinds.segmentation import Segmentation
from eosin.evaluation.protocols import PROTOCOLS
from eosin.evaluation.tasks import open_task
from eosin.evaluation.tasks.masks import IGNORE
from eosin.features import FeatureStore, load_model

POLYGON = (
    '<Annotations><Annotation><Attributes><Attribute Name="Lymphocyte"/></Attributes><Regions><Region><Vertices>'
    '<Vertex X="5" Y="5"/><Vertex X="30" Y="5"/><Vertex X="30" Y="40"/><Vertex X="5" Y="40"/>'
    "</Vertices></Region></Regions></Annotation></Annotations>"
)


def picture(path: Path, height: int, width: int) -> Path:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def consep(root: Path) -> None:
    for folder, stem, count in (("Train", "train", 4), ("Test", "test", 1)):
        for number in range(1, count + 1):
            picture(root / "CoNSeP" / folder / "Images" / f"{stem}_{number}.png", 500, 260)
            types = np.arange(500 * 260, dtype=np.float64).reshape(500, 260) // 5000 % 8
            (root / "CoNSeP" / folder / "Labels").mkdir(exist_ok=True)
            io.savemat(root / "CoNSeP" / folder / "Labels" / f"{stem}_{number}.mat", {"type_map": types})


def monusac(root: Path) -> None:
    for folder, count in (("MoNuSAC_images_and_annotations", 4), ("MoNuSAC Testing Data and Annotations", 1)):
        for number in range(count):
            name = f"TCGA-55-159{number}-01Z-00-DX1"
            file = picture(root / "MoNuSAC" / folder / name / f"{name}_1.tif", 50 + number, 81)
            file.with_suffix(".xml").write_text(POLYGON)


def bcss(root: Path) -> None:
    for site, number in (("A2", 0), ("A2", 1), ("BH", 0), ("OL", 0)):
        name = f"TCGA-{site}-A0C{number}-DX1_xmin18562_ymin56852_MPP-0.2500.png"
        picture(root / "BCSS" / "rgbs_colorNormalized" / name, 460, 500)
        (root / "BCSS" / "masks").mkdir(exist_ok=True)
        Image.fromarray((np.arange(460 * 500).reshape(460, 500) // 4000 % 22).astype(np.uint8)).save(
            root / "BCSS" / "masks" / name
        )


TREES = {"consep": consep, "monusac": monusac, "bcss": bcss}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocols with few steps, in the tasks' own settings too."""
    for name in ("strict", "eva-v2", "midnight"):
        protocol = PROTOCOLS[name].of("segmentation")
        for settings in (protocol.settings, *protocol.tasks.values()):
            monkeypatch.setitem(settings, "steps", [3])
            monkeypatch.setitem(settings, "runs", 2)
            monkeypatch.setitem(settings, "batch", 2)


def _inputs(name: str, protocol: str, tmp_path: Path, encoder: Any) -> Any:
    TREES[name](tmp_path / "data")
    asked = PROTOCOLS[protocol].of("segmentation")
    task = open_task(name, tmp_path / "data", any_count=True)
    store = FeatureStore(tmp_path / "out" / "cache" / "features")
    return Segmentation().inputs(Asked(task, asked, encoder, "it", "key", store, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "protocol", "windows", "side_px"),
    [
        ("consep", "eva-v2", 5 * 2, 250),  # of 500 x 260 px two whole squares; 10 px at the right are dropped
        ("consep", "strict", 5 * 16 * 9, 32),
        ("monusac", "eva-v2", 5, None),
        ("bcss", "eva-v2", 4, 448),
        ("bcss", "strict", 4 * 8 * 8, 64),  # 0.5 µm/px out of files of 0.25
    ],
)
def test_windows_of_each_protocol(name: str, protocol: str, windows: int, side_px: int | None, tmp_path: Path) -> None:
    encoder = load_model("colour")
    encoder.input_size = 32
    found = _inputs(name, protocol, tmp_path, encoder)
    assert len(found.dense.windows) == windows
    assert found.dense.masks.shape == (windows, 32, 32)
    if side_px is not None:
        assert (found.dense.windows.boxes[:, 2:] == side_px).all()
    if name == "monusac":
        assert len(found.fit.windows) == 4 * 40
        assert set(found.fit.windows.image) == {1, 2, 3, 4} or set(found.fit.windows.image) == {0, 1, 2, 3}


def test_classes_of_bcss_as_they_are_and_as_eva_has_them(tmp_path: Path) -> None:
    encoder = load_model("colour")
    true, eva = (_inputs("bcss", name, tmp_path / name, encoder).masks[0] for name in ("strict", "eva-v2"))
    raw = np.arange(460 * 500).reshape(460, 500) // 4000 % 22
    assert set(np.unique(true[raw == 1])) == {1}
    assert set(np.unique(eva[raw == 1])) == {5}
    assert set(np.unique(true[raw == 0])) == {IGNORE}
    assert set(np.unique(eva[raw == 0])) == {0}
    others = raw > 1
    assert np.array_equal(true[others], eva[others])


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", list(TREES))
@pytest.mark.parametrize("protocol", ["strict", "eva-v2", "midnight"])
def test_a_small_tree_is_judged(name: str, protocol: str, tmp_path: Path) -> None:
    TREES[name](tmp_path / "data")
    rows = evaluate(
        "vit_tiny_patch16_224",
        [name],
        protocol,
        tmp_path / "out",
        tmp_path / "data",
        random_init=True,
        input_size=32,
        any_count=True,
    )
    assert rows[0]["metric"] == ("dice" if protocol == "strict" else "dice_per_window")
    assert rows[0]["split"] == "test"
    assert 0 <= rows[0]["mean"] <= 1
    assert len(rows[0]["run_scores"]) == 2
    assert list((tmp_path / "out" / "segmentation" / name / protocol).glob("*/overlays.json"))
