"""BRACS: breast, regions of interest in seven classes (Brancati et al., Database 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.evaluation.tasks.layout import PublicTask, Row, files_in


def read(root: Path) -> Iterator[Row]:
    """SPLIT/CLASS/BRACS_264_N_1.png: the slide is BRACS_264."""
    for split in ("train", "val", "test"):
        for file in files_in(root / split, "*/*.png"):
            yield Row(file, file.parent.name, split, slide="_".join(file.stem.split("_")[:2]))


TASK = PublicTask(
    name="bracs",
    about="breast regions: normal, benign, hyperplasia, flat atypia, atypical hyperplasia, in situ, invasive",
    classes=("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC"),
    counts={"train": 3657, "val": 312, "test": 570},
    folders=("BRACS_RoI/latest_version", "latest_version", "BRACS_RoI"),
    marks=("train", "val", "test"),
    read=read,
    layout=("train/0_N/BRACS_280_N_2.png", "val/1_PB/BRACS_265_PB_7.png", "test/6_IC/…"),
    source="https://www.bracs.icar.cnr.it/download/",
    licence="CC BY-NC 4.0",
    scale="of many sizes, 0.25 µm/px",
    get=("ask for access, then download the folder BRACS_RoI/latest_version (52 GB)",),
    notes=("slides are known by file name, patients are not: intervals are over slides",),
)
