"""Camelyon16: whole slides of lymph nodes with metastases, or none (Ehteshami Bejnordi et al., JAMA 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in, read_csv, slides_of

CLASSES = ("normal", "tumor")
# The 54 slides whose tiles are PatchCamelyon's validation part.
_VAL = {
    "normal": "010 013 016 017 019 020 025 030 031 032 052 056 057 067 076 079 085 095 098 099 101 102 105 106 109 129"
    " 132 137 142 143 148 152",
    "tumor": "001 005 011 012 013 019 031 037 043 046 057 065 069 071 073 079 080 081 082 085 097 109",
}
VAL = frozenset(f"{label}_{number}" for label, numbers in _VAL.items() for number in numbers.split())


def read(root: Path) -> Iterator[Row]:
    """training/CLASS/CLASS_001.tif; testing/images/test_001.tif with its class in testing/reference.csv."""
    for file in files_in(root, "training/*/*.tif"):
        yield Row(file, file.parent.name, "val" if file.stem in VAL else "train", slide=file.stem)
    table = read_csv(root / "testing" / "reference.csv", header=None)
    if table.shape[1] < 2:
        raise DataError(f"task camelyon16: {root / 'testing' / 'reference.csv'} needs slide and class in each line")
    label_of = {slide.removesuffix(".tif"): label.lower() for slide, label in zip(table[0], table[1], strict=True)}
    for file in files_in(root, "testing/images/*.tif"):
        if file.stem not in label_of:
            raise DataError(f"task camelyon16: {file} is not in testing/reference.csv")
        yield Row(file, label_of[file.stem], "test", slide=file.stem)


TASK = PublicTask(
    name="camelyon16",
    about="lymph node slides: metastasis, or none; up to 10,000 tiles a slide",
    kind="slide",
    classes=CLASSES,
    counts={"train": 216, "val": 54, "test": 129},
    folders=("CAMELYON16", "camelyon16"),
    marks=("training/normal", "training/tumor", "testing/images", "testing/reference.csv"),
    read=read,
    samples=partial(slides_of, mpp=0.25, tiles=10_000),
    layout=(
        "training/normal/normal_001.tif",
        "training/tumor/tumor_001.tif",
        "testing/images/test_001.tif, testing/reference.csv",
    ),
    source="https://camelyon17.grand-challenge.org/Data/",
    licence="CC0 1.0",
    scale="tiles of 224 px at 0.25 µm/px",
    get=("aws s3 cp --no-sign-request --recursive s3://camelyon-dataset/CAMELYON16/ ROOT/camelyon16 (700 GB)",),
)
SMALL = replace(
    TASK,
    name="camelyon16-small",
    about="lymph node slides: metastasis, or none; up to 1,000 tiles a slide",
    samples=partial(slides_of, mpp=0.25, tiles=1_000),
)
