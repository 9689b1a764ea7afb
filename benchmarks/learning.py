"""Does a model that eosin trained know more than its own random start? On real slides and real labels.

A ViT-Ti/16 learns, without labels, from CMU-1-Small-Region.svs, two her2st regions and the train split of
colon5_tiles, and is then probed by logistic regression on CLS + mean beside its own random weights and six colour
numbers: crc_cells_27px (cell type, by patient), consep (majority cell type, by source image), colon5 val (by tile).
Needs the real data, which licences keep out of the project: python benchmarks/learning.py DATA -o OUT
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from eosin.evaluation import evaluate
from eosin.evaluation.results import ResultsFolder
from eosin.slides import Cohort
from eosin.training import export_run, train

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train, export, probe, print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with slides, her2st_patientC, colon5_tiles, …")
    parser.add_argument("-o", "--out", type=Path, default=Path("learning"))
    parser.add_argument("--set", action="append", default=[], help="recipe change, e.g. run.steps=100")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out
    out.mkdir(parents=True, exist_ok=True)

    tasks = write_tasks(data, out / "tasks")
    before, started = processor_seconds(), time.perf_counter()
    train(
        str(HERE / "learning.yaml"),
        out / "run",
        cohort=[str(write_cohort(data, out).path)],
        tiles=[str(data / "colon5_tiles" / "train")],
        mpp=1.0,
        where="slide_id != '1065626'",  # nearly empty and probably not H&E
        set=arguments.set,
    )
    minutes = (processor_seconds() - before) / 60
    print(f"training: {minutes:.1f} processor minutes, {(time.perf_counter() - started) / 60:.1f} minutes by the clock")

    export_run(out / "run", out / "model", pooling="cls+mean")
    rows = evaluate(str(out / "model"), tasks, "logreg", out / "results", baselines=True, fresh=True)
    for row in rows:
        ends = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        print(f"{row['task']:10s} {Path(row['model']).name:30s} {row['mean']:.3f} {ends}")
    for row in json.loads(ResultsFolder(out / "results").comparisons.read_text()):
        ends = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        other = Path(row["against"]).name
        print(f"{row['task']:10s} trained minus {other:30s} {row['difference']:+.3f} {ends} p {row['p']:.4f}")


def write_cohort(data: Path, out: Path) -> Cohort:
    """Index the slides; the her2st regions' scale is in their README, not in the files."""
    (out / "mpp.csv").write_text("slide,mpp\nC2.jpg,0.687\nC3.jpg,0.687\n")
    return Cohort.index(
        [str(data / "slides"), str(data / "her2st_patientC")], out / "cohort.parquet", mpp_csv=out / "mpp.csv"
    )


def write_tasks(data: Path, folder: Path) -> list[str]:
    """The three labelled sets in eosin's layouts; NAME=PATH of each. Images stay where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = pd.read_csv(data / "crc_cells_27px" / "cells.csv")
    images = np.load(data / "crc_cells_27px" / "cells.npz")["images"]
    np.savez(
        folder / "cells.npz",
        images=images,
        labels=cells["cell_type"].to_numpy(str),
        patient=cells["patient_id"].astype(str).to_numpy(str),
    )
    consep = pd.read_csv(data / "consep_patches_train" / "labels.csv")
    counts = [json.loads(text) for text in consep["type_counts"]]
    names = {"1": "miscellaneous", "2": "inflammatory", "3": "epithelial", "4": "spindle"}
    pd.DataFrame(
        {
            "file": [str(data / "consep_patches_train" / "images" / f"{name}.jpg") for name in consep["patch"]],
            "label": [names[max(count, key=count.__getitem__)] if count else "" for count in counts],
            "patient": consep["source_image"],  # the unit that patches share
        }
    ).query("label != '' and label != 'miscellaneous'").to_csv(folder / "consep.csv", index=False)
    colon = pd.read_csv(data / "colon5_tiles" / "labels.csv")
    colon["file"] = [str(data / "colon5_tiles" / name) for name in colon["file"]]
    colon[["file", "label", "split"]].to_csv(folder / "colon5.csv", index=False)
    return [
        f"crc-cells={folder / 'cells.npz'}",
        f"consep-cells={folder / 'consep.csv'}",
        f"colon5={folder / 'colon5.csv'}",
    ]


def processor_seconds() -> float:
    """User and system time of this process and of the reading processes that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


if __name__ == "__main__":
    main()
