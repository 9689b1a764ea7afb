"""CoNSeP: colon nuclei in five classes of pixels (Graham et al., Medical Image Analysis 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import io

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in
from eosin.evaluation.tasks.masks import Masks

CLASSES = ("background", "other", "inflammatory", "epithelial", "spindle-shaped")
# HoVer-Net's merge: healthy and malignant epithelium; fibroblast, muscle, endothelium.
VALUES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4}


def read(root: Path) -> Iterator[Row]:
    """Train/Images/train_1.png with Train/Labels/train_1.mat, and the same in Test."""
    for folder, split in (("Train", "train"), ("Test", "test")):
        for file in files_in(root / folder, "Images/*.png"):
            mask = file.parent.parent / "Labels" / f"{file.stem}.mat"
            if not mask.is_file():
                raise DataError(f"task consep: {file} has no labels: looked for {mask}")
            yield Row(file, split=split, mask=mask)


def read_types(path: Path) -> npt.NDArray[np.integer]:
    """The `type_map` of a MATLAB file, int [H, W]."""
    try:
        types = io.loadmat(path)["type_map"]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise DataError(f"cannot read `type_map` of {path}: {error}") from error
    return np.asarray(types).astype(np.int64)


TASK = PublicTask(
    name="consep",
    about="colon nuclei: inflammatory, epithelial, spindle-shaped, other",
    kind="segmentation",
    classes=CLASSES,
    counts={"train": 27, "test": 14},
    folders=("CoNSeP",),
    marks=("Train/Images", "Train/Labels", "Test/Images", "Test/Labels"),
    read=read,
    masks=lambda paths: Masks(paths, len(CLASSES), read_types, VALUES),
    layout=("Train/Images/train_1.png", "Train/Labels/train_1.mat (type_map)", "Test/Images/…", "Test/Labels/…"),
    source="https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet/",
    licence="for research, University of Warwick",
    scale="1000 x 1000 px, 0.25 µm/px",
    get=("the official link was dead when last looked at: ask the authors for consep_dataset.zip",),
    switches={
        "eva.test_is_val": "the official test split is what eva calls val",
        "eva.choose_on_reported": "the best checkpoint is chosen on it as well",
    },
    notes=("patients are not named",),
)
