"""CRC: colorectal tissue in nine classes, NCT-CRC-HE-100K and CRC-VAL-HE-7K (Kather et al., PLOS Medicine 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.evaluation.tasks.layout import PublicTask, Row, files_in

FOLDERS = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "val"}


def read(root: Path) -> Iterator[Row]:
    """FOLDER/CLASS/CLASS-AAAFLCLY.tif."""
    for folder, split in FOLDERS.items():
        for file in files_in(root / folder, "*/*.tif"):
            yield Row(file, file.parent.name, split)


TASK = PublicTask(
    name="crc",
    about="colorectal tissue: fat, background, debris, lymphocytes, mucus, muscle, mucosa, stroma, tumour",
    classes=("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"),
    counts={"train": 100_000, "val": 7_180},
    folders=(),
    marks=tuple(FOLDERS),
    read=read,
    layout=("NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif", "CRC-VAL-HE-7K/TUM/TUM-YYYSGWYW.tif"),
    source="https://zenodo.org/records/1214456",
    licence="CC BY 4.0",
    scale="224 x 224 px, 0.5 µm/px",
    get=(
        "download and unpack NCT-CRC-HE-100K.zip (11.7 GB, md5 035777cf327776a71a05c95da6d6325f)",
        "and CRC-VAL-HE-7K.zip (0.8 GB, md5 2fd1651b4f94ebd818ebf90ad2b6ce06) side by side",
    ),
    switches={"eva.choose_on_reported": "the best checkpoint is chosen on val, which is also reported"},
    notes=("patients are not named: the 50 of val are others than those of train, by the owners",),
)
