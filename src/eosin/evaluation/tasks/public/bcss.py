"""BCSS: breast tissue in five regions (Amgad et al., Bioinformatics 2019), grouped as the challenge's baseline does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in
from eosin.evaluation.tasks.masks import IGNORE, Masks

CLASSES = ("outside_roi", "tumor", "stroma", "inflammatory", "necrosis", "other")
VAL = ("BH", "C8", "A8", "A1", "E9")
TEST = ("OL", "LL", "E2", "EW", "GM", "S3")
# Of the 22 values of a mask file: 19 angioinvasion and 20 DCIS are tumour, 10 plasma cells and 11 other
# infiltrates inflammatory; what lies outside of the region counts nowhere.
_GROUPS = {1: (1, 19, 20), 2: (2,), 3: (3, 10, 11), 4: (4,)}
VALUES = {
    **dict.fromkeys(range(22), 5),
    **{value: group for group, values in _GROUPS.items() for value in values},
    0: IGNORE,
}
EVA_VALUES = {**VALUES, 1: 5}
"""What eva maps: tumour itself, the value 1, becomes `other`."""


def read(root: Path) -> Iterator[Row]:
    """rgbs_colorNormalized/TCGA-A2-A0CM-DX1_xmin…_MPP-0.2500.png with the mask of the same name in masks."""
    for file in files_in(root, "rgbs_colorNormalized/*.png"):
        mask = root / "masks" / file.name
        if not mask.is_file():
            raise DataError(f"task bcss: {file} has no mask: looked for {mask}")
        site = file.name.split("-")[1]
        split = "test" if site in TEST else "val" if site in VAL else "train"
        yield Row(file, split=split, patient=file.name[:12], slide=file.name.partition("_")[0], site=site, mask=mask)


TASK = PublicTask(
    name="bcss",
    about="breast regions: tumour, stroma, inflammatory, necrosis, other",
    kind="segmentation",
    classes=CLASSES,
    counts={"train": 76, "val": 30, "test": 45},
    folders=("BCSS", "0_Public-data-Amgad2019_0.25MPP"),
    marks=("rgbs_colorNormalized", "masks"),
    read=read,
    masks=lambda paths: Masks(paths, len(CLASSES), values=VALUES),
    layout=("rgbs_colorNormalized/TCGA-A2-A0CM-DX1_xmin18562_ymin56852_MPP-0.2500.png", "masks/(the same name)"),
    source="https://github.com/PathologyDataScience/BCSS",
    licence="CC0 1.0",
    scale="regions of many sizes, 0.25 µm/px",
    get=("follow the repository's download link, at 0.25 µm/px",),
    switches={"eva.bcss_classes": "tumour (value 1) is mapped to other; only angioinvasion and DCIS remain tumour"},
    notes=("split by institute, so train, val and test share none",),
)
