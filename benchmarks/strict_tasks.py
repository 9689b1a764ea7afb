"""The labelled sets of the shared data as task tables, for the table of `strict` results.

python benchmarks/strict_tasks.py DATA -o FOLDER writes a table or archive a task and prints their NAME=PATH:

| task | kind | a sample | patient (unit of folds and intervals) |
|---|---|---|---|
| colon5 | classification, train and val | tile | not known |
| crc-cells | classification | cell, 27 px | patient |
| consep-nuclei | segmentation, 5 classes of nuclei | 256 px image | the 1000 px image it was cut from |
| monuseg | segmentation, nucleus or not | 1000 px image | patient (one image each) |
| glas | segmentation, gland or not | image | not known |
| her2st | regression, 50 genes | square of 112 µm around a spot | section: a fold is one of both, of one patient |

Images stay where they are; masks that hold instances are written anew as classes. Licences keep the data out of the
project (READMEs of DATA say which).
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
from learning import write_tasks
from PIL import Image

NAMES = ("colon5", "crc-cells", "consep-nuclei", "monuseg", "glas", "her2st")
MPP, SPOT_UM, GENES = 0.687, 112.0, 50
"""Of her2st: µm/px of the pictures (their README), side of a square as in HEST, genes that are predicted."""


def main() -> None:
    """Write the tables and print one NAME=PATH a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with colon5_tiles, consep_patches_train, glas_train …")
    parser.add_argument("-o", "--out", type=Path, default=Path("strict_tasks"))
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES)
    arguments = parser.parse_args()
    for spec in strict_tasks(arguments.data.resolve(), arguments.out.resolve(), arguments.only):
        print(spec)


def strict_tasks(data: Path, out: Path, only: tuple[str, ...] | list[str] = NAMES) -> list[str]:
    """Write the tasks named in `only` below `out`; NAME=PATH of each, in the order of NAMES."""
    out.mkdir(parents=True, exist_ok=True)
    specs: dict[str, str] = {}
    if {"colon5", "crc-cells"} & set(only):
        specs.update(spec.split("=", 1) for spec in write_tasks(data, out))
    for name, write in (("consep-nuclei", _consep), ("monuseg", _monuseg), ("glas", _glas), ("her2st", _her2st)):
        if name in only:
            specs[name] = str(write(data, out / name))
    return [f"{name}={specs[name]}" for name in NAMES if name in only]


def _consep(data: Path, folder: Path) -> Path:
    source = data / "consep_patches_train"
    labels = pd.read_csv(source / "labels.csv")
    classes = ("background", "miscellaneous", "inflammatory", "epithelial", "spindle-shaped")
    return _table(
        folder,
        classes,
        file=[str(source / "images" / f"{name}.jpg") for name in labels["patch"]],
        mask=[str(source / "types" / f"{name}.png") for name in labels["patch"]],
        patient=labels["source_image"].tolist(),
    )


def _monuseg(data: Path, folder: Path) -> Path:
    source = data / "monuseg_train"
    labels = pd.read_csv(source / "labels.csv")
    masks = [_as_classes(source / "instances" / f"{name}.png", folder / "masks") for name in labels["image"]]
    return _table(
        folder,
        ("background", "nucleus"),
        file=[str(source / "images" / f"{name}.png") for name in labels["image"]],
        mask=[str(mask) for mask in masks],
        patient=labels["patient"].astype(str).tolist(),
    )


def _glas(data: Path, folder: Path) -> Path:
    source = data / "glas_train"
    labels = pd.read_csv(source / "labels.csv")
    masks = [_as_classes(source / "masks" / f"{name}.png", folder / "masks") for name in labels["image"]]
    return _table(
        folder,
        ("background", "gland"),
        file=[str(source / "images" / f"{name}.png") for name in labels["image"]],
        mask=[str(mask) for mask in masks],
    )


def _her2st(data: Path, folder: Path) -> Path:
    """log(1 + counts per 10,000) of the genes that vary most among those seen in a tenth of the spots."""
    source = data / "her2st_patientC"
    parts = []
    for section in ("C2", "C3"):
        spots = pd.read_csv(source / f"{section}_spots.tsv", sep="\t")
        spots = spots[spots["selected"] == 1]
        spots.index = [f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)]
        with gzip.open(source / f"{section}_counts.tsv.gz", "rt") as handle:
            counts = pd.read_csv(handle, sep="\t", index_col=0)
        spots, counts = (
            spots.loc[spots.index.intersection(counts.index)],
            counts.loc[counts.index.intersection(spots.index)],
        )
        places = pd.DataFrame(
            {
                "file": str(source / f"{section}.jpg"),
                "x": spots["pixel_x"].round().astype(int),
                "y": spots["pixel_y"].round().astype(int),
                "size_px": round(SPOT_UM / MPP),
                "patient": section,
            }
        )
        parts.append(pd.concat([places, counts.loc[places.index]], axis=1))
    joined = pd.concat(parts, join="inner").reset_index(drop=True)
    columns = ["file", "x", "y", "size_px", "patient"]
    counts = joined.drop(columns=columns)
    counts = counts.loc[:, (counts > 0).mean() >= 0.1]
    values = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4)
    genes = values.var().sort_values(ascending=False, kind="stable").index[:GENES]
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.concat([joined[columns], values[genes].round(5).add_prefix("value_")], axis=1)
    table.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def _as_classes(path: Path, folder: Path) -> Path:
    """A mask of instances, or of 0 and 255, as 0 (background) and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    Image.fromarray((pixels > 0).astype(np.uint8)).save(folder / path.name)
    return folder / path.name


def _table(folder: Path, classes: tuple[str, ...], **columns: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    pd.DataFrame(columns).to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


if __name__ == "__main__":
    main()
