"""BACH: breast, four classes of 2048 x 1536 px microscopy images (Aresta et al., Medical Image Analysis 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in

CLASSES = ("Benign", "InSitu", "Invasive", "Normal")
# Of the 400 files in order of class and number; patients are not named in the data, these parts share none.
TRAIN = ((0, 41), (59, 60), (90, 139), (169, 240), (258, 260), (273, 345), (368, 400))


def read(root: Path) -> Iterator[Row]:
    """A file's place among the 400 follows from its class and number: b001.tif, is001.tif, iv001.tif, n001.tif."""
    for file in files_in(root, "Photos/*/*.tif"):
        label, number = file.parent.name, file.stem.lstrip("bisvn")
        if label not in CLASSES or not number.isdigit() or not 1 <= int(number) <= 100:
            raise DataError(f"task bach: {file} is none of Photos/{{{','.join(CLASSES)}}}/NAME001.tif to NAME100.tif")
        place = 100 * CLASSES.index(label) + int(number) - 1
        yield Row(file, label, "train" if any(first <= place < end for first, end in TRAIN) else "val")


TASK = PublicTask(
    name="bach",
    about="breast: benign, in situ, invasive, normal",
    classes=CLASSES,
    counts={"train": 268, "val": 132},
    folders=("ICIAR2018_BACH_Challenge",),
    marks=("Photos",),
    read=read,
    layout=("Photos/Benign/b001.tif", "Photos/InSitu/is001.tif", "Photos/Invasive/iv001.tif", "Photos/Normal/n001.tif"),
    source="https://zenodo.org/records/3632035",
    licence="CC BY-NC-ND 4.0",
    scale="2048 x 1536 px, 0.42 µm/px",
    get=("download and unpack ICIAR2018_BACH_Challenge.zip (10 GB; its WSI folder is not needed)",),
    switches={"eva.choose_on_reported": "the best checkpoint is chosen on val, which is also reported"},
    notes=("resized to 224 px by the short side: about 2.9 µm/px, and a quarter of the width is cut off",),
)
