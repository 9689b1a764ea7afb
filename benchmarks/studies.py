"""Two published questions at a size that two cores can answer: the uniformity term, and the number of distinct tiles.

ViT-Ti/16 on 64-px crops of the train split of colon5_tiles, three seeds an arm, probed on every third cell of
crc_cells_27px (by patient) and on consep (by source image) beside colour alone and the untrained network. Needs the
real data, which licences keep out of the project: OMP_NUM_THREADS=1 python benchmarks/studies.py DATA -o OUT
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from learning import processor_seconds, write_tasks

from eosin.report import write_study_report
from eosin.training import run_study

HERE = Path(__file__).resolve().parent
STUDIES = ("uniformity", "distinct-tiles")
CELLS = 3  # every third cell of a patient keeps all patients and most of the precision


def main() -> None:
    """Run both studies (or the one named), write their pages, print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with colon5_tiles, crc_cells_27px, consep_patches_train")
    parser.add_argument("-o", "--out", type=Path, default=Path("studies"))
    parser.add_argument("--only", choices=STUDIES, help="one study; both without")
    parser.add_argument("--set", action="append", default=[], help="change of every run, e.g. run.steps=20")
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out
    probes = write_probes(data, out / "tasks")
    for name in [arguments.only] if arguments.only else STUDIES:
        before, started = processor_seconds(), time.perf_counter()
        told = run_study(
            str(HERE / "studies" / f"{name}.yaml"),
            out / name,
            tiles=[str(data / "colon5_tiles" / "train")],
            mpp=1.0,
            set=arguments.set,
            probe=probes,
            device="cpu",
        )
        minutes = (processor_seconds() - before) / 60
        print(f"{name}: {len(told['runs'])} runs, {minutes:.1f} processor minutes, ", end="")
        print(f"{(time.perf_counter() - started) / 60:.1f} minutes by the clock")
        print_tables(told)
        print(write_study_report(out / name, command=f"python benchmarks/studies.py DATA --only {name}"))


def write_probes(data: Path, folder: Path) -> list[str]:
    """crc-cells, thinned, and consep, as NAME=PATH."""
    cells, consep, _ = write_tasks(data, folder)
    whole = dict(np.load(cells.partition("=")[2]))
    np.savez(folder / "cells-thinned.npz", **{name: values[::CELLS] for name, values in whole.items()})
    return [f"crc-cells={folder / 'cells-thinned.npz'}", consep]


def print_tables(told: dict[str, Any]) -> None:
    """A line an arm and metric, the baselines, the differences and the correlations; failed runs first."""
    for run in told["runs"]:
        if run["status"] != "done":
            print(f"{run['arm']}, seed {run['seed']}: {run['status']} {run['error'] or ''}")
    for row in told["summary"]:
        if row["n"]:
            print(f"{row['metric']:18s} {row['arm']:14s} {row['mean']:8.3f}  {ends(row)}  {row['n']} seeds")
    for row in told["baselines"]:
        print(f"{row['metric']:18s} {row['model']:14s} {row['mean']:8.3f}  {ends(row)}  over {row['resampled']}s")
    for row in told["differences"]:
        print(
            f"{row['metric']:18s} {row['arm']} minus {row['against']} {row['difference']:+.3f} {ends(row, '+')}"
            f" over {row['n']} {row['over']}" + ("" if row["p"] is None else f", p {row['p']:.4f}")
        )
    for row in told["correlations"]:
        rho = "none" if row["rho"] is None else f"{row['rho']:+.2f}"
        print(f"{row['y']:18s} against {row['x']}: rho {rho}, {row['n']} runs")


def ends(row: dict[str, Any], sign: str = "") -> str:
    """The interval of a row in words."""
    low, high = row["ci_low"], row["ci_high"]
    return "[none]" if low is None or low != low else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
