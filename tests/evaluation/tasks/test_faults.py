"""Faults in the official layouts of slides, masks, spots and centres: each one is one clear line of a check."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from eosin.evaluation.tasks import PUBLIC
from eosin.evaluation.tasks.check import check_public

from .test_public import edit, plant, refused, swap

TRAIN, TEST = "MoNuSAC_images_and_annotations", "MoNuSAC Testing Data and Annotations"
BCSS = "TCGA-{}-A0CM-DX1_xmin18562_ymin56852_MPP-0.2500.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def drop(path: Path) -> None:
    path.unlink()


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "consep, a folder": ("consep", lambda r: (r / "Test/Labels").rename(r / "Test/Label"), "lacks Test/Labels"),
    "consep, labels": (
        "consep",
        lambda r: drop(r / "Train/Labels/train_1.mat"),
        r"no labels: looked for .*train_1\.mat",
    ),
    "consep, corrupt labels": ("consep", lambda r: cut(r / "Train/Labels/train_1.mat"), r"train_1\.mat"),
    "consep, corrupt image": ("consep", lambda r: cut(r / "Test/Images/test_1.png"), r"test_1\.png"),
    "monusac, a folder": ("monusac", lambda r: (r / TEST).rename(r / "Testing"), f"lacks {TEST}"),
    "monusac, annotation": ("monusac", lambda r: drop(next((r / TRAIN).rglob("*.xml"))), r"\.xml"),
    "monusac, corrupt annotation": ("monusac", lambda r: cut(next((r / TRAIN).rglob("*.xml"))), r"\.xml"),
    "monusac, corrupt image": ("monusac", lambda r: cut(next((r / TRAIN).rglob("*.tif"))), r"\.tif"),
    "bcss, a folder": ("bcss", lambda r: (r / "masks").rename(r / "mask"), "lacks masks"),
    "bcss, mask": ("bcss", lambda r: drop(r / "masks" / BCSS.format("BH")), "TCGA-BH-A0CM"),
    "bcss, corrupt mask": ("bcss", lambda r: cut(r / "masks" / BCSS.format("BH")), "TCGA-BH-A0CM"),
    "bcss, image and mask swapped": (
        "bcss",
        lambda r: swap(r / "masks" / BCSS.format("BH"), r / "rgbs_colorNormalized" / BCSS.format("BH")),
        "TCGA-BH-A0CM.*one channel",
    ),
    "camelyon16, a folder": ("camelyon16", lambda r: (r / "testing").rename(r / "test"), "lacks testing"),
    "camelyon16, corrupt slide": ("camelyon16", lambda r: cut(r / "training/normal/normal_001.tif"), "normal_001"),
    "camelyon16, labels of others": (
        "camelyon16",
        lambda r: edit(r / "testing/reference.csv", "test_002", "test_009"),
        "test_00[29]",
    ),
    "panda, labels": ("panda", lambda r: drop(r / "train_with_noisy_labels.csv"), "lacks .*train_with_noisy_labels"),
    "panda, corrupt slide": ("panda", lambda r: cut(r / f"train_images/{3:032x}.tiff"), f"{3:032x}"),
    "panda, labels of others": (
        "panda",
        lambda r: edit(r / "train_with_noisy_labels.csv", "isup_grade", "grade"),
        "column.*isup_grade|isup_grade.*column",
    ),
    "hest, a folder": ("hest-idc", lambda r: (r / "splits").rename(r / "split"), "lacks splits"),
    "hest, tiles": ("hest-idc", lambda r: drop(r / "patches/TENX2.h5"), r"TENX2\.h5"),
    "hest, corrupt counts": ("hest-idc", lambda r: cut(r / "adata/TENX1.h5ad"), r"TENX1\.h5ad"),
    "hest, swapped": ("hest-idc", lambda r: swap(r / "patches/TENX1.h5", r / "adata/TENX1.h5ad"), "TENX1"),
    "hest, gene": ("hest-idc", lambda r: edit(r / "var_50genes.json", "G1", "G9"), "G9"),
    "pathorob, a folder": ("pathorob-camelyon", lambda r: (r / "data").rename(r / "x"), "lacks data|looked for"),
    "pathorob, corrupt": ("pathorob-camelyon", lambda r: cut(next((r / "data").iterdir())), r"\.parquet"),
    "tp53, image": ("tcga-tp53", lambda r: drop(r / "tiles/3.png"), r"1 of 20 files .* first .*3\.png"),
    "tp53, corrupt image": ("tcga-tp53", lambda r: cut(r / "tiles/3.png"), r"3\.png"),
    "tp53, label": ("tcga-tp53", lambda r: edit(r / "tiles.csv", ",mutated", ",mutant"), "label 'mutant'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    name, spoil, said = FAULTS[fault]
    spoil(plant(tmp_path, name))
    (line,) = check_public(PUBLIC[name], tmp_path, any_count=True).broken
    assert "\n" not in line
    assert re.search(said, line), line


@pytest.mark.parametrize("name", [name for name, public in PUBLIC.items() if public.counts])
def test_wrong_counts_are_refused(name: str, tmp_path: Path) -> None:
    """Missing slides of camelyon16 and panda show in nothing else: their lists are of all that there are."""
    plant(tmp_path, name)
    assert re.search(r"samples, expected \d+.*--any-count", refused(name, tmp_path, any_count=False))
