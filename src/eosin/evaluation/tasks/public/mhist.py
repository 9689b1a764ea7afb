"""MHIST: colorectal polyps, hyperplastic or sessile serrated (Wei et al., AIME 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.evaluation.tasks.layout import PublicTask, Row, read_csv, refuse_missing


def read(root: Path) -> Iterator[Row]:
    """images/NAME and annotations.csv, one row an image."""
    columns = ("Image Name", "Majority Vote Label", "Partition")
    table = read_csv(root / "annotations.csv", *columns)
    files = [root / "images" / name for name in table["Image Name"]]
    refuse_missing(root / "annotations.csv", files)
    for file, label, split in zip(files, table["Majority Vote Label"], table["Partition"], strict=True):
        yield Row(file, label, split)


TASK = PublicTask(
    name="mhist",
    about="colorectal polyps: sessile serrated adenoma, hyperplastic polyp",
    classes=("SSA", "HP"),
    counts={"train": 2_175, "test": 977},
    folders=("MHIST",),
    marks=("images", "annotations.csv"),
    read=read,
    layout=("annotations.csv (Image Name, Majority Vote Label, Partition)", "images/MHIST_aaa.png"),
    source="https://bmirds.github.io/MHIST/#accessing-dataset",
    licence="research use agreement of Dartmouth-Hitchcock",
    scale="224 x 224 px, 2.0 µm/px (8x averaged down from 40x)",
    get=("fill in the form; unpack images.zip beside annotations.csv",),
    switches={
        "eva.test_is_val": "the official test split is what eva calls val",
        "eva.choose_on_reported": "the best checkpoint is chosen on it as well",
    },
    notes=("patients and slides are not named: intervals are over images",),
)
