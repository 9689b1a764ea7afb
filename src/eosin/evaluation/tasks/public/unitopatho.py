"""UniToPatho: colorectal polyps in six classes, the 800 µm tiles (Barbano et al., ICIP 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in, read_csv

CLASSES = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")


def read(root: Path) -> Iterator[Row]:
    """800/CLASS/image_id; train.csv and test.csv have image_id and top_label (number of the class)."""
    folder = root / "800"
    files = {file.name: file for file in files_in(folder, "*/*.png")}
    for split in ("train", "test"):
        table = folder / f"{split}.csv"
        listed = read_csv(table, "image_id", "top_label")
        names = [name.rpartition("/")[2] for name in listed["image_id"]]
        if missing := [name for name in names if name not in files]:
            raise DataError(f"{len(missing)} of {len(names)} files that {table} lists are missing, first {missing[0]}")
        for name, number in zip(names, listed["top_label"], strict=True):
            label, file = files[name].parent.name, files[name]
            if label not in CLASSES or number != str(CLASSES.index(label)):
                raise DataError(f"task unitopatho: {table} gives {name} the label {number!r}, but it lies in {label}")
            yield Row(file, label, split, slide=name.partition(".ndpi")[0])


TASK = PublicTask(
    name="unitopatho",
    about="colorectal polyps: hyperplastic, normal, (tubulo-)villous adenoma of low and high grade",
    classes=CLASSES,
    counts={"train": 6_270, "test": 2_399},
    folders=("UNITOPATHO", "unitopath-public", "UniToPatho"),
    marks=("800/train.csv", "800/test.csv"),
    read=read,
    layout=("800/train.csv, 800/test.csv (image_id, top_label)", "800/HP/149-B3-HP.ndpi_ROI__mpp0.44_reg000_….png"),
    source="https://ieee-dataport.org/open-access/unitopatho",
    licence="CC BY 4.0",
    scale="1812 x 1812 px, 0.4415 µm/px; at 224 px about 3.6 µm/px",
    get=("download and unpack; the folder 7000 is not needed (48 GB with it)",),
    switches={
        "eva.test_is_val": "the official test split is what eva calls val",
        "eva.choose_on_reported": "the best checkpoint is chosen on it as well",
    },
    notes=("one slide a patient: intervals are over slides, named in the file names",),
)
