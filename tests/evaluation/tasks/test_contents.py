"""What public tasks make of masks, slides, expression and centres: values that the small trees are known to hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eosin.errors import DataError
from eosin.evaluation.tasks import open_task
from eosin.evaluation.tasks.masks import IGNORE
from eosin.evaluation.tasks.public import bcss, camelyon16, panda, tcga_tp53
from eosin.evaluation.tasks.slides import SlideFiles

from . import trees


def small(name: str, root: Path):  # type: ignore[no-untyped-def]
    folder, write, _ = trees.TREES[name]
    write(root / folder)
    return open_task(name, root, any_count=True)


def test_consep_merges_its_types(tmp_path: Path) -> None:
    task = small("consep", tmp_path)
    np.testing.assert_array_equal(task.targets[0][0], [0, 1, 2, 3, 3, 4, 4, 4])


def test_monusac_fills_polygons(tmp_path: Path) -> None:
    task = small("monusac", tmp_path)
    mask = task.targets[0]
    assert mask.shape == task.samples[0].shape[:2] == (12, 12)
    expected = np.zeros((12, 12), dtype=np.uint8)
    expected[1:5, 1:5], expected[3:7, 3:7], expected[8:11, 8:11] = 1, 2, IGNORE
    np.testing.assert_array_equal(mask, expected)
    xml = task.targets.paths[0]
    xml.write_text(xml.read_text()[:80])
    with pytest.raises(DataError, match="cannot read the annotations"):
        _ = task.targets[0]


def test_bcss_groups_and_what_eva_makes_of_tumour(tmp_path: Path) -> None:
    task = small("bcss", tmp_path)
    assert task.split.tolist() == ["train", "val", "test"]
    classes = np.array([*task.classes, *[""] * 249, "ignored"])
    by_value = dict(zip(range(22), classes[task.targets[0].ravel()[:22]], strict=True))
    assert {value for value, name in by_value.items() if name == "tumor"} == {1, 19, 20}
    assert {value for value, name in by_value.items() if name == "inflammatory"} == {3, 10, 11}
    assert (by_value[0], by_value[2], by_value[4], by_value[13]) == ("ignored", "stroma", "necrosis", "other")
    assert {value for value in bcss.VALUES if bcss.VALUES[value] != bcss.EVA_VALUES[value]} == {1}


def test_camelyon_slides(tmp_path: Path) -> None:
    task = small("camelyon16-small", tmp_path)
    assert isinstance(task.samples, SlideFiles)
    assert (task.samples.mpp, task.samples.tiles) == (0.25, 1000)
    found = dict(zip(task.slide, zip(task.split, task.labels, strict=True), strict=True))
    assert found["normal_010"] == ("val", 0)
    assert found["tumor_002"] == ("train", 1)
    assert found["test_001"] == ("test", 1)
    assert len(camelyon16.VAL) == 54


def test_panda_leaves_noisy_labels_out(tmp_path: Path) -> None:
    task = small("panda", tmp_path)
    assert len(task) == 24
    # Slides of each grade among the 9,555 whose label is not noisy.
    grades = [str(grade) for grade, count in enumerate((2603, 2399, 1209, 1118, 1124, 1102)) for _ in range(count)]
    split = np.array(panda.split_of(grades, (0.7, 0.15, 0.15)))
    assert [int((split == name).sum()) for name in ("train", "val", "test")] == [6686, 1430, 1439]
    split = np.array(panda.split_of(grades, (0.1, 0.05, 0.05)))
    assert [int((split == name).sum()) for name in ("train", "val", "test")] == [952, 475, 475]


def test_hest_orders_spots_and_genes_as_the_tiles(tmp_path: Path) -> None:
    task = small("hest-idc", tmp_path)
    counts = np.arange(12).reshape(4, 3)[[3, 0, 1]][:, [1, 2]]
    np.testing.assert_allclose(task.targets, np.log1p(np.concatenate([counts, 2 * counts])), rtol=1e-6)
    assert task.fold.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.ids[0] == "TENX1/s3"
    assert task.images is not None
    assert task.images[5].shape == (9, 9, 3)
    root = tmp_path / "hest-bench" / "IDC"
    (root / "var_50genes.json").write_text('{"genes": ["G0", "G7"]}')
    with pytest.raises(DataError, match="lacks 1 of 2 genes, first G7"):
        open_task("hest-idc", tmp_path)
    (root / "splits" / "test_1.csv").write_bytes((root / "splits" / "test_0.csv").read_bytes())
    with pytest.raises(DataError, match="TENX1 is tested in two folds"):
        open_task("hest-idc", tmp_path)


def test_pathorob_reads_the_listed_tiles(tmp_path: Path) -> None:
    task = small("pathorob-tcga", tmp_path)
    assert task.images is not None
    assert (len(task), task.images[6].shape) == (7, (8, 8, 3))
    assert task.site[1] == "Cureline"
    assert task.split[:2].tolist() == ["train", "test"]
    pictures = [trees.Image.open(tmp_path / "scratch" / f"{n}.png") for n in range(7)]
    for row in (6, 0, 3):
        np.testing.assert_array_equal(task.images[row], np.asarray(pictures[row]))


def test_tp53_keeps_patients_whole(tmp_path: Path) -> None:
    patients = [f"TCGA-AA-{number:04}" for number in range(4000)]
    shares = np.unique([tcga_tp53.split_of(patient) for patient in patients], return_counts=True)
    assert dict(zip(*shares, strict=True)) == pytest.approx({"train": 2800, "val": 600, "test": 600}, rel=0.1)
    task = small("tcga-tp53", tmp_path)
    assert task.group_name == "patient"
    table = tmp_path / "tcga_tp53" / "tiles.csv"
    table.write_text(table.read_text() + "\ntiles/1.png,TCGA-A0-1000-02Z,mutated\n")
    with pytest.raises(DataError, match="patient TCGA-A0-1000 has two labels"):
        open_task("tcga-tp53", tmp_path)
