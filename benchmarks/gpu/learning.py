"""Does a ViT-S/14 learn on this GPU? Trained on real tiles without labels, then probed beside its own start weights.

Training is `eosin train` in a process of its own, which saves and stops when its time is up. The probe is logistic
regression on CLS, with intervals, on labelled sets that it was not trained on: cell types by patient (crc_cells_27px),
the majority cell type of a patch by source image (consep), diagnoses of tiles of other slides (colon5 val).

    python -m benchmarks.gpu.learning DATA OUT RUN DEVICE SIZE       (the probe, by the proof itself)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.gpu.child import run_child
from benchmarks.gpu.settings import Settings
from benchmarks.learning import write_tasks

from eosin.evaluation import evaluate
from eosin.evaluation.results import ResultsFolder
from eosin.features import export_model
from eosin.runs import RunFolder
from eosin.training import export_run, open_run
from eosin.training.networks import Networks
from eosin.training.start import start_networks

TILES_MPP = 1.0  # colon5_tiles, by crypt size
PROBE_SHARE, START_SECONDS = 0.2, 30.0  # of the part's time; from the command to the first step, and the last save

LEARN = [
    "tiles.size_px=192",
    "tiles.mpp={low: 0.5, high: 1.0, law: uniform}",
    "tiles.max_upsample=2.1",
    "tiles.hsv_share=null",
    "run.log_every=10",
    "run.log_to=[]",
    "run.monitor_every=25%",
    "run.monitor_tiles=512",
    "run.checkpoint_every=25%",
    "run.keep_last=1",
]
"""Tiles of 224 px at 1 µm/px give windows of 192 px between 0.5 and 1 µm/px."""
FROM_NOTHING = [
    "encoder.layer_scale=null",
    "objective.dino_prototypes=8192",
    "objective.ibot_prototypes=8192",
    "objective.kappa=5.0",
    "objective.uniformity_weight=0.05",
    "optim.uniformity_ramp=null",
    "optim.base_lr=5.0e-4",
    "optim.layer_decay=1.0",
    "optim.patch_embed_factor=1.0",
    "optim.momentum=[0.99, 1.0]",
]
"""The recipe is for weights that know something already; from random ones it runs with the values of quickstart."""
TINY_RUN = ["run.batch=8", "run.group=4", "run.workers=0", "run.monitor_tiles=16", "tiles.size_px=96"]


def train_tiles(data: Path) -> Path:
    """The unlabelled training tiles."""
    return data / "colon5_tiles" / "train"


def learning_changes(settings: Settings, minutes: float = 3.0) -> list[str]:
    """Recipe changes of the learning part."""
    length = ["run.steps=6"] if settings.tiny else ["run.steps=20000", f"run.minutes={minutes:.3f}"]
    start = [f"start={settings.start}", *(FROM_NOTHING if settings.start == "random" else [])]
    return [*LEARN, *start, *length, *settings.changes(*(TINY_RUN if settings.tiny else []))]


def measure_learning(settings: Settings, seconds: float, hard_seconds: float) -> dict[str, Any]:
    """Train for what `seconds` allow, probe, and tell; the probe may take up to `hard_seconds` in all."""
    assert settings.data is not None
    began = time.perf_counter()
    training = seconds * (1 - PROBE_SHARE)
    changes = learning_changes(settings, max(training - START_SECONDS, 5.0) / 60)
    run, log = settings.out / "learning" / "run", settings.out / "learning.log"
    words = ["-m", "eosin", "train", "vits14-1h", "--tiles", str(train_tiles(settings.data)), "--mpp", str(TILES_MPP)]
    words += ["-o", str(run), "--fresh", "--device", settings.device]
    words += [word for change in changes for word in ("--set", change)]
    trained = run_child(words, training, log)
    told: dict[str, Any] = {"start": settings.start, "training_s": trained.seconds, **_told_of(RunFolder(run))}
    if not RunFolder(run).steps():
        return {**told, "error": f"training {trained.problem or 'left no checkpoint'}"}
    if trained.problem:
        told["stopped"] = trained.problem
    size = "tiny" if settings.tiny else "full"
    words = ["-m", "benchmarks.gpu.learning", str(settings.data), str(run.parent), str(run), settings.device, size]
    probed = run_child(words, hard_seconds - (time.perf_counter() - began), log)
    told["probe_s"] = probed.seconds
    if probed.problem:
        return {**told, "error": f"the probe {probed.problem}"}
    results = ResultsFolder(run.parent / "results")
    told["results"] = json.loads(results.results.read_text())
    told["comparisons"] = json.loads(results.comparisons.read_text())
    told["models"] = json.loads((run.parent / "models.json").read_text())
    return told


def _told_of(run: RunFolder) -> dict[str, Any]:
    """What the run wrote down."""
    try:
        _, recipe, identity = open_run(run.root)
    except Exception:  # it ended before it had begun
        return {"metrics": []}
    rows = run.read_metrics()
    speed = [row for row in rows if "img_s" in row][1:] or [row for row in rows if "img_s" in row]
    return {
        "recipe": recipe.name,
        "batch": recipe.run.batch,
        "precision": identity["precision"],
        "steps_planned": identity["steps"],
        "steps": run.steps()[-1] if run.steps() else 0,
        **{name: float(np.median([row[name] for row in speed])) for name in _SPEED if speed and name in speed[0]},
        "metrics": rows,
    }


_SPEED = ("img_s", "mfu", "data_wait")


def export_start(run: Path, out: Path) -> Path:
    """The encoder that the run began with, as a model folder: same recipe, same seed, same start."""
    _, recipe, _ = open_run(run)
    networks = Networks(recipe)
    start_networks(networks, recipe.start)
    return export_model(
        networks.teacher.encoder,
        out,
        input_size=recipe.views.global_px,
        mean=recipe.views.mean,
        std=recipe.views.std,
        pooling="cls",
        info={"name": f"{recipe.name}, before training", "steps": 0, "start": recipe.start},
    )


def probe(data: Path, out: Path, run: Path, device: str, tiny: bool) -> None:
    """Trained minus its own start, and minus six colour numbers, on the same samples."""
    trained = export_run(run, out / "trained", pooling="cls")
    start = export_start(run, out / "start")
    hashes = {
        name: json.loads((path / "config.json").read_text()) for name, path in (("trained", trained), ("start", start))
    }
    (out / "models.json").write_text(json.dumps({config["eosin"]["model_hash"]: n for n, config in hashes.items()}))
    tasks = write_tasks(data, out / "tasks")
    keep_present(out / "tasks" / "colon5.csv")
    if tiny:
        thin(out / "tasks")
    workers = 0 if tiny else 8
    evaluate(
        str(trained), tasks, "logreg", out / "results", against=[str(start), "colour"],
        batch=256, workers=workers, device=device, fresh=True,
    )  # fmt: skip


def hash_of_model(folder: Path) -> str:
    """By which results name it."""
    return str(json.loads((folder / "config.json").read_text())["eosin"]["model_hash"])


def keep_present(table: Path) -> None:
    """Leave out images that did not travel with the data (see benchmarks/carry_data.py)."""
    rows = pd.read_csv(table)
    rows[[Path(file).exists() for file in rows["file"]]].to_csv(table, index=False)


def thin(tasks: Path, every: int = 8) -> None:
    """Keep each eighth sample of the written tasks."""
    for file in tasks.glob("*.csv"):
        pd.read_csv(file).iloc[::every].to_csv(file, index=False)
    cells = np.load(tasks / "cells.npz")
    np.savez(tasks / "cells.npz", **{name: cells[name][::every] for name in cells.files})


def main(words: Sequence[str]) -> None:
    """The probe of a finished run."""
    data, out, run, device, size = words
    probe(Path(data), Path(out), Path(run), device, size == "tiny")


if __name__ == "__main__":
    main(sys.argv[1:])
