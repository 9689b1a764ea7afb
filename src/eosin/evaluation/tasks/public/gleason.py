"""Gleason grades of prostate tissue microarrays (Arvaniti et al., Scientific Reports 2018)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in

CLASSES = ("benign", "gleason_3", "gleason_4", "gleason_5")
TRAIN, TEST = "train_validation_patches_750", "test_patches_750/patho_1"
SPLITS = {"ZT76": "val", "ZT111": "train", "ZT199": "train", "ZT204": "train"}


def read(root: Path) -> Iterator[Row]:
    """…/ZT76_39_A_1_1/ZT76_39_A_1_1_patch_12_class_0.jpg: array ZT76, core ZT76_39_A_1_1, class 0."""
    for folder in (TEST, TRAIN):
        for file in files_in(root / folder, "**/*.jpg"):
            core, _, end = file.stem.partition("_patch_")
            grade = end.rpartition("_class_")[2]
            array = core.split("_")[0]
            if grade not in ("0", "1", "2", "3") or (folder == TRAIN and array not in SPLITS):
                raise DataError(
                    f"task gleason: {file} is not of the form ARRAY_…_patch_N_class_0 to 3.jpg of a known array"
                )
            yield Row(file, CLASSES[int(grade)], SPLITS.get(array, "test"), slide=core)


TASK = PublicTask(
    name="gleason",
    about="prostate cores: benign, Gleason pattern 3, 4, 5",
    classes=CLASSES,
    counts={"train": 15_303, "val": 2_482, "test": 4_967},
    folders=("arvaniti_gleason_patches", "gleason_arvaniti"),
    marks=(TRAIN, TEST),
    read=read,
    layout=(
        f"{TRAIN}/ZT76_39_A_1_1/ZT76_39_A_1_1_patch_12_class_0.jpg",
        f"{TEST}/ZT80_38_A_1_2/ZT80_38_A_1_2_patch_18_class_1.jpg",
    ),
    source="https://dataverse.harvard.edu/dataset.xhtml?persistentId=doi:10.7910/DVN/OCYCMP",
    licence="CC0 1.0",
    scale="750 x 750 px, 0.23 µm/px",
    get=(
        "download and unpack the archives (4 GB)",
        "cut tiles with create_patches.py of https://github.com/eiriniar/gleason_CNN",
    ),
    switches={
        "eva.report_val": "val (array ZT76) is reported; the test cohort is not used",
        "eva.choose_on_reported": "the best checkpoint is chosen on val, which is also reported",
    },
    notes=("the test cohort carries the labels of the first of two pathologists",),
)
