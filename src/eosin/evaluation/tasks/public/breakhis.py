"""BreaKHis: breast, four of its eight tumour types at 40x (Spanhol et al., IEEE TBME 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.evaluation.tasks.layout import PublicTask, Row, files_in

CLASSES = ("TA", "MC", "F", "DC")
VAL = (
    *("18842D", "19979", "15275", "15792", "16875", "3909", "5287"),
    *("16716", "2773", "5695", "16184CD", "23060CD", "21998CD", "21998EF"),
)


def read(root: Path) -> Iterator[Row]:
    """…/40X/SOB_B_TA-14-3411F-40-001.png: class TA, patient 3411F. Types with too few patients are left out."""
    for file in files_in(root, "**/40X/*.png"):
        kind, _, patient, *_ = [*file.stem.split("-"), "", "", ""]
        label = kind.split("_")[-1]
        if label in CLASSES:
            yield Row(file, label, "val" if patient in VAL else "train", patient=patient)


TASK = PublicTask(
    name="breakhis",
    about="breast tumours at 40x: tubular adenoma, mucinous carcinoma, fibroadenoma, ductal carcinoma",
    classes=CLASSES,
    counts={"train": 1132, "val": 339},
    folders=("BreaKHis_v1", "BreaKHis_v1/BreaKHis_v1"),
    marks=("histology_slides/breast/benign", "histology_slides/breast/malignant"),
    read=read,
    layout=("histology_slides/breast/benign/SOB/fibroadenoma/SOB_B_F_14-9133/40X/SOB_B_F-14-9133-40-001.png",),
    source="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    licence="CC BY 4.0",
    scale="700 x 460 px",
    get=("download and unpack BreaKHis_v1.tar.gz (4 GB)",),
    switches={"eva.choose_on_reported": "the best checkpoint is chosen on val, which is also reported"},
    notes=(
        "patients are taken as the file names give them; 16184 and 16184CD, 23060AB and 23060CD differ in letters"
        " only and lie on both sides of eva's split",
    ),
)
