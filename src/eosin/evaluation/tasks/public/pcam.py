"""PatchCamelyon: metastasis in lymph nodes, or none, in the centre of a tile (Veeling et al., MICCAI 2018).

The images stay in their HDF5 files and are read one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from eosin.errors import DataError
from eosin.evaluation.tasks.images import Hdf5Images, open_dataset
from eosin.evaluation.tasks.layout import PublicTask, Row, read_csv

STEM = "camelyonpatch_level_2_split"
CLASSES = ("no_tumor", "tumor")
SPLITS = {"train": "train", "valid": "val", "test": "test"}


def read(root: Path) -> Iterator[Row]:
    """Row i of STEM_SPLIT_y.h5 is the label of row i of …_x.h5; …_meta.csv, where it lies there, names the slide."""
    for word, split in SPLITS.items():
        images = root / f"{STEM}_{word}_x.h5"
        count = len(open_dataset(images, "x"))
        labels = np.asarray(open_dataset(root / f"{STEM}_{word}_y.h5", "y")).reshape(-1)
        if len(labels) != count or not set(np.unique(labels).tolist()) <= {0, 1}:
            raise DataError(
                f"task pcam: {STEM}_{word}_y.h5 must hold {count} labels 0 or 1, one an image; found {len(labels)}"
            )
        slides = _slides(root / f"{STEM}_{word}_meta.csv", count)
        for row, (label, slide) in enumerate(zip(labels.tolist(), slides, strict=True)):
            yield Row(images, CLASSES[label], split, slide=slide, id=f"{split}/{row}")


def _slides(path: Path, count: int) -> list[str] | list[None]:
    if not path.is_file():
        return [None] * count
    slides = read_csv(path, "wsi")["wsi"].tolist()
    if len(slides) != count:
        raise DataError(f"task pcam: {path} has {len(slides)} rows for {count} images")
    return slides


def _images(root: Path, rows: list[Row]) -> Hdf5Images:
    return Hdf5Images(list(dict.fromkeys(row.file for row in rows)), "x")


TASK = PublicTask(
    name="pcam",
    about="lymph nodes: metastasis in the central 32 px, or none",
    classes=CLASSES,
    counts={"train": 262_144, "val": 32_768, "test": 32_768},
    folders=("patch_camelyon", "PatchCamelyon", "pcam"),
    marks=tuple(f"{STEM}_{word}_{part}.h5" for word in SPLITS for part in "xy"),
    read=read,
    layout=(f"{STEM}_{{train,valid,test}}_x.h5", f"{STEM}_{{train,valid,test}}_y.h5", f"{STEM}_…_meta.csv (optional)"),
    source="https://zenodo.org/records/2546921",
    licence="CC0 1.0",
    scale="96 x 96 px, 1.0 µm/px; the encoder sees it enlarged",
    get=("download the six .h5.gz (and the three _meta.csv: then intervals are over slides)", "gunzip *.h5.gz (8 GB)"),
    md5={
        f"{STEM}_train_x.h5": "01844da899645b4d6f84946d417ba453",
        f"{STEM}_train_y.h5": "0781386bf6c2fb62d58ff18891466aca",
        f"{STEM}_valid_x.h5": "81cf9680f1724c40673f10dc88e909b1",
        f"{STEM}_valid_y.h5": "94d8aacc249253159ce2a2e78a86e658",
        f"{STEM}_test_x.h5": "2614b2e6717d6356be141d9d6dbfcb7e",
        f"{STEM}_test_y.h5": "11ed647efe9fe457a4eb45df1dba19ba",
    },
    samples=_images,
    notes=("cut from Camelyon16; the slides of val are those of camelyon16's val",),
)
TEN_SHOT = replace(
    TASK,
    name="pcam-10shot",
    about="pcam with 10 training tiles a class, drawn anew for each run",
    folders=(*TASK.folders, "pcam"),
    shots=10,
    switches={"eva.shots_of_runs": "one NumPy generator, seed 42, draws for run after run"},
)
