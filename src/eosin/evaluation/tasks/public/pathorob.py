"""PathoROB: does an encoder know the tissue or the medical centre? (Kömen et al., arXiv 2507.17845)

Three sets of tiles, each of the same classes from several centres. The tiles of the centres that train are the
split `train`, those of further centres `test`. Judged by `eosin.evaluation.robustness`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in, read_csv
from eosin.evaluation.tasks.parquet import ParquetImages, read_columns

COLUMNS = ("slide_id", "patch_id", "biological_class", "medical_center")
TRAINING_SITES = {
    "camelyon": ("RUMC", "UMCU"),
    "tcga": ("Asterand", "Christiana Healthcare", "Roswell Park", "University of Pittsburgh"),
    "tolkach": ("VALSET2_WNS", "VALSET4_CHA_FULL"),
}
LISTED = "tcga_4x4.csv"


def read(root: Path, name: str) -> Iterator[Row]:
    """One row a tile of data/*.parquet; for TCGA those that tcga_4x4.csv lists."""
    for _, tile in _tiles(root, name).iterrows():
        split = "train" if tile["medical_center"] in TRAINING_SITES[name] else "test"
        yield Row(
            root / "data",
            tile["biological_class"],
            split,
            slide=tile["slide_id"],
            site=tile["medical_center"],
            id=f"{tile['slide_id']}-{tile['patch_id']}",
        )


def images(root: Path, rows: list[Row], name: str) -> ParquetImages:
    """The images of the rows that `read` lists, in the same order."""
    return ParquetImages(files_in(root, "data/*.parquet"), _tiles(root, name).index.to_numpy(dtype=np.int64))


def _tiles(root: Path, name: str) -> pandas.DataFrame:
    paths = files_in(root, "data/*.parquet")
    if not paths:
        raise DataError(f"task pathorob-{name}: {root / 'data'} holds no .parquet files")
    tiles = read_columns(paths, COLUMNS)
    if name != "tcga":
        return tiles
    listed = read_csv(root / LISTED, "slide_id", "patch_id")
    wanted = set(zip(listed["slide_id"], listed["patch_id"], strict=True))
    there = [key in wanted for key in zip(tiles["slide_id"], tiles["patch_id"], strict=True)]
    return tiles[there].drop_duplicates(["slide_id", "patch_id"])


def _task(
    name: str, about: str, classes: tuple[str, ...], counts: dict[str, int], hub: str, licence: str
) -> PublicTask:
    extra = (LISTED,) if name == "tcga" else ()
    listed = (f"and {LISTED} (data/metadata of https://github.com/bifold-pathomics/PathoROB) beside data",) * len(extra)
    return PublicTask(
        name=f"pathorob-{name}",
        about=about,
        kind="robustness",
        classes=classes,
        counts=counts,
        folders=(hub, f"pathorob/{hub.removeprefix('PathoROB-')}"),
        marks=("data", *extra),
        read=partial(read, name=name),
        samples=partial(images, name=name),
        layout=("data/train-00000-of-00001.parquet (image, " + ", ".join(COLUMNS) + ")", *extra),
        source=f"https://huggingface.co/datasets/bifold-pathomics/{hub}",
        licence=licence,
        scale="256 x 256 px",
        get=(f"hf download --repo-type dataset bifold-pathomics/{hub} --local-dir ROOT/{hub}", *listed),
        notes=("robustness index on the training centres, k = 11 (camelyon), 61 (tcga), 46 (tolkach) in the paper",),
    )


TASKS = (
    _task(
        "camelyon",
        "lymph nodes of five centres: normal, tumour",
        ("normal", "tumor"),
        {"train": 20_400, "test": 2_002},
        "PathoROB-camelyon",
        "CC0 1.0",
    ),
    _task(
        "tcga",
        "four tumour types from eight centres",
        ("Breast_invasive_carcinoma", "Colon_adenocarcinoma", "Lung_adenocarcinoma", "Lung_squamous_cell_carcinoma"),
        {"train": 5_760, "test": 2_400},
        "PathoROB-tcga",
        "CC BY-NC-SA 4.0",
    ),
    _task(
        "tolkach",
        "oesophagus of four centres: six tissues",
        ("TUMOR", "MUSC_PROP", "SH_OES", "SH_MAG", "REGR_TU", "ADVENT"),
        {"train": 10_800, "test": 5_500},
        "PathoROB-tolkach_esca",
        "CC BY-SA 4.0",
    ),
)
