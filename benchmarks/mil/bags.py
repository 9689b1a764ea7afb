"""Heads on real bags: 40 patients' colon nuclei (crc_cells_27px), is any of a patient's cells malignant?

Colour alone, a ViT-Ti with random weights and one that eosin trained, each with a mean + linear, an ABMIL and a CLAM-SB
head, by two protocols. python -m benchmarks.mil.bags DATA/crc_cells_27px --model EXPORT -o OUT
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import pandas as pd

from eosin.evaluation.mil import train_mil
from eosin.features import Encoder, embed_images, load_model
from eosin.features.h5 import feature_writer
from eosin.randomness import Words

HEADS = ("mean-linear", "abmil", "clam-sb")
PROTOCOLS = ("exaone", "5-fold")
TEST_SHARE = 0.4


def main() -> None:
    """Embed, train, print a row a score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with cells.npz and cells.csv")
    parser.add_argument("--model", required=True, help="an exported ViT-Ti")
    parser.add_argument("-o", "--out", type=Path, default=Path("bags"))
    arguments = parser.parse_args()
    cells = pd.read_csv(arguments.data / "cells.csv")
    images = np.load(arguments.data / "cells.npz")["images"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    labels = write_labels(cells, arguments.out / "labels.csv")
    encoders = {
        "colour": load_model("colour"),
        "random init": load_model(arguments.model, random_init=True),
        "eosin": load_model(arguments.model),
    }
    print(f"{cells['patient_id'].nunique()} patients, {len(cells)} cells")
    for name, encoder in encoders.items():
        folder = write_bags(encoder, images, cells, arguments.out / "features" / name.replace(" ", "-"))
        for head in HEADS:
            for protocol in PROTOCOLS:
                started = time.perf_counter()
                out = arguments.out / f"{name.replace(' ', '-')}-{head}-{protocol}"
                rows = train_mil(folder, labels, out, head=head, protocol=protocol, fresh=True)
                row = next(row for row in rows if row["metric"] == "auroc")
                ends = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
                print(
                    f"{name:12s} {head:12s} {protocol:7s} AUROC {row['mean']:.3f} {ends} run sd {row['run_sd']:.3f}"
                    f" n {row['n']} {time.perf_counter() - started:.0f} s",
                    flush=True,
                )


def write_labels(cells: pd.DataFrame, path: Path) -> Path:
    """slide = patient, malignant, and a split that is drawn by label."""
    malignant = cells.groupby("patient_id")["is_cancerous"].max()
    split = pd.Series("train", index=malignant.index)
    for label, patients in malignant.groupby(malignant):
        order = Words(0, "bags", int(label)).permutations(len(patients))
        split[patients.index[order[: round(TEST_SHARE * len(patients))]]] = "test"
    with open(path, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "split", "malignant"))
        for patient, label in malignant.items():
            table.writerow((f"patient-{patient}", patient, split[patient], "yes" if label else "no"))
    return path


def write_bags(encoder: Encoder, images: np.ndarray, cells: pd.DataFrame, folder: Path) -> Path:
    """One h5 a patient; the cells have no place on a slide, so their numbers stand for it."""
    folder.mkdir(parents=True, exist_ok=True)
    features = embed_images(encoder, images)
    for patient, rows in cells.groupby("patient_id").groups.items():
        number = np.asarray(rows)
        coords = np.stack([number * 27, np.zeros_like(number)], axis=1)
        attributes = {
            "patch_size": 27,
            "patch_size_level0": 27,
            "model": encoder.name,
            "model_hash": encoder.model_hash,
        }
        with feature_writer(folder / f"patient-{patient}.h5", coords, attributes, encoder.name) as writer:
            writer.write("features", np.arange(len(number)), features[number])
    return folder


if __name__ == "__main__":
    main()
