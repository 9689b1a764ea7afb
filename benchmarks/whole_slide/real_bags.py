"""Does supervision of the tile encoder by bag labels pay on real bags? Colon nuclei by patient, 40 patients.

python -m benchmarks.whole_slide.real_bags DATA -o OUT [--seeds 3] [--folds 3] [--tiny]

DATA holds crc_cells_27px: crops of 27 px around one nucleus each (CRCHistoPhenotypes, 0.55 µm/px), by patient. A bag is
a patient; its label says whether any of its nuclei is a cancerous one. Each patient becomes a slide: a mosaic of 128
crops, drawn without replacement as far as there are so many, so that the size of a bag tells nothing. Folds of patients
are the same for all seeds; nothing of a test patient is seen by any training. For each seed and fold

    start       DINO on the crops of the training patients
    end-to-end  from there, the label through all stages of a small pyramid (step 2 of the curriculum, without DINO)
    frozen      DINO on those crops from scratch, for as much processor time as the two above took together

Told: AUROC on the test patients by CLAM on stage 1's vectors, for end-to-end also by the pyramid's own head; beside
them CLAM on a random stage 1 (one draw of weights) and a linear head on mean colour; differences to frozen. Intervals
are over patients, the same resamples for all. Forty patients decide little: the table is told whatever it shows. The
same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch

from eosin.evaluation.mil import train_mil
from eosin.evaluation.mil.folder import read_predictions
from eosin.evaluation.mil.intervals import Predicted, compare, estimate
from eosin.evaluation.mil.scores import auroc
from eosin.features import export_model
from eosin.features.embed import embed_slides
from eosin.files import atomic_path, write_json
from eosin.models import EncoderConfig, ViT
from eosin.models.slide_task import SlideTask
from eosin.randomness import Words
from eosin.slides import Cohort
from eosin.slides.cohort import COLUMNS as COHORT_COLUMNS
from eosin.slides.cohort import row_digest, stored, write_cohort
from eosin.training import train
from eosin.training.export import export_run

MPP, TILE_PX, ROWS, COLUMNS, MARGIN_PX = 0.55, 27, 8, 16, 27
MASK_PX = 9  # level-0 px of a mask px: three along a crop
TILES = ROWS * COLUMNS
CANCER = SlideTask("cancer", "binary", ("no", "yes"))
DRAWS = 2000
Pixels = npt.NDArray[np.uint8]

ENCODER = {"width": 96, "depth": 4, "heads": 3, "patch": 9, "grid": 3}
QUIET = [
    "run.workers=0",
    "run.log_to=[]",
    "run.monitor_every=100%",
    "run.monitor_tiles=64",
    "run.checkpoint_every=100%",
]
DINO = [
    *QUIET,
    *(f"encoder.{name}={value}" for name, value in ENCODER.items()),
    f"tiles.size_px={TILE_PX}",
    f"tiles.mpp=[{MPP}]",
    f"views.global_px={TILE_PX}",
    "views.local_px=18",
    "views.blur_kernel_px=3",
    "objective.ibot_weight=0.0",
    "objective.uniformity=none",
    "objective.dino_prototypes=512",
    "objective.head_hidden=256",
    "objective.dino_bottleneck=64",
    "run.minutes=null",
    "run.batch=64",
]
END_TO_END = [
    *QUIET,
    "encoder=start",
    f"tiles.size_px={TILE_PX}",
    f"tiles.mpp=[{MPP}]",
    f"views.global_px={TILE_PX}",
    "views.local_px=18",
    "views.blur_kernel_px=3",
    f"pyramid.mpp={MPP}",
    f"pyramid.size_px={TILE_PX}",
    f"pyramid.tile_px={TILE_PX}",
    "pyramid.region.drop_path=0.1",
    "pyramid.slide.drop_path=0.1",
    "tasks=[{column: cancer}]",
    "labels.held_out=0.0",
    "run.steps=0",
    "run.batch=16",
    "step2.slides=2",
    "step2.tile_weight=0.0",
    "step2.region_weight=0.0",
    "step2.regions.count=0",
    "step2.tile_lr=3.0e-4",
    "step2.tile_frozen_slides=54",
    "step2.checkpoint_every=1000",
    "step2.save_slides=0",
]
CLAM = ["train.standardise=true", "train.lr=1e-3", "train.epochs=20", "head.k=4"]
COLOUR = ["train.standardise=true"]


def write_bags(data: Path, folder: Path, folds: int) -> Path:
    """A mosaic and a folder of crops for each patient, indexed with label and fold; returns the cohort file."""
    out, found = folder / "cohort.parquet", folder / "indexed.parquet"
    if out.is_file():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    images = np.load(data / "crc_cells_27px" / "cells.npz")["images"]
    with open(data / "crc_cells_27px" / "cells.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    patients = sorted({int(row["patient_id"]) for row in rows})
    own = {one: [int(row["index"]) for row in rows if int(row["patient_id"]) == one] for one in patients}
    ill = {one: any(int(rows[place]["is_cancerous"]) for place in own[one]) for one in patients}
    fold_of = dealt(ill, folds)
    with open(folder / "labels.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "fold", "cancer"))
        for one in patients:
            crops = images[own[one]]
            turns = [Words(0, "bag", one, turn).permutations(len(crops)) for turn in range(-(-TILES // len(crops)))]
            write_mosaic(folder / f"p{one:02d}.svs", crops[np.concatenate(turns)[:TILES]])
            write_crops(folder / "crops" / f"p{one:02d}", crops)
            table.writerow((f"p{one:02d}.svs", f"p{one:02d}", fold_of[one], ("no", "yes")[int(ill[one])]))
    Cohort.index(sorted(folder.glob("p*.svs")), found, metadata=folder / "labels.csv", workers=0)
    state_tissue(found, out)
    return out


def dealt(ill: dict[int, bool], folds: int) -> dict[int, int]:
    """Fold of each patient, class by class."""
    found: dict[int, int] = {}
    for word in (False, True):
        some = [one for one, has in ill.items() if has == word]
        for place, number in enumerate(Words(0, "folds", int(word)).permutations(len(some))):
            found[some[number]] = place % folds
    return found


def write_mosaic(path: Path, crops: Pixels) -> None:
    """Crops [128, 27, 27, 3] side by side on glass, pixel for pixel."""
    rows = crops.reshape(ROWS, COLUMNS, TILE_PX, TILE_PX, 3).swapaxes(1, 2).reshape(ROWS * TILE_PX, -1, 3)
    pixels = cv2.copyMakeBorder(rows, *[MARGIN_PX] * 4, cv2.BORDER_CONSTANT, value=(243, 243, 243))
    told = f"Aperio Image Library\n{pixels.shape[1]}x{pixels.shape[0]} RGB|MPP = {MPP:g}"
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            tile=(256, 256),
            photometric="rgb",
            compression="zlib",
            description=told,
            metadata=None,
        )


def write_crops(folder: Path, crops: Pixels) -> None:
    """A patient's crops as images, for DINO."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, crop in enumerate(crops):
        cv2.imwrite(str(folder / f"{number:03d}.png"), cv2.cvtColor(crop, cv2.COLOR_RGB2BGR))


def state_tissue(indexed: Path, out: Path) -> None:
    """The same cohort with the mosaic as its foreground, so that the grid of tiles is that of the crops."""
    table = pq.read_table(indexed)
    keys, rows = stored(table.schema)["keys"], table.to_pandas()
    for name, kind in COHORT_COLUMNS.items():
        if not pa.types.is_floating(kind):  # pandas makes a missing word a NaN
            rows[name] = rows[name].astype(object).where(rows[name].notna(), None)
    cell, border = TILE_PX // MASK_PX, MARGIN_PX // MASK_PX
    mask = np.pad(np.ones((ROWS * cell, COLUMNS * cell), bool), border)
    rows["foreground"] = [cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()] * len(rows)
    rows["foreground_mpp"], rows["tissue_mm2"] = MASK_PX * MPP, TILES * (TILE_PX * MPP / 1000) ** 2
    write_cohort(out, rows, [row_digest(row, mask) for row in rows.to_dict("records")], keys)


def table_of(cohort: Path) -> list[dict[str, str]]:
    """Rows of labels.csv: slide (its id), patient, fold, cancer."""
    with open(cohort.parent / "labels.csv", newline="") as handle:
        return [{**row, "slide": Path(row["slide"]).stem} for row in csv.DictReader(handle)]


def dino(out: Path, cohort: Path, fold: int, seed: int, steps: int) -> Path:
    """DINO on the crops of all patients outside the fold; the exported encoder."""
    folders = [str(cohort.parent / "crops" / row["patient"]) for row in table_of(cohort) if int(row["fold"]) != fold]
    changes = [*DINO, f"run.steps={steps}", f"run.seed={seed}"]
    train("quickstart", out / "run", tiles=folders, mpp=MPP, set=changes, device="cpu")
    return export_run(out / "run", out / "model", pooling="cls")


def end_to_end(out: Path, cohort: Path, fold: int, seed: int, passes: float, start: Path) -> Path:
    """The label of all patients outside the fold through the whole pyramid; the exported pyramid."""
    changes = [*END_TO_END, f"start={start}", f"step2.passes={passes}", f"run.seed={seed}"]
    where = f"fold != {fold}"
    train("pyramid-quickstart", out / "run", cohort=[str(cohort)], where=where, set=changes, device="cpu")
    return export_run(out / "run", out / "model")


def random_stage1(out: Path) -> Path:
    """Stage 1 as it is drawn."""
    encoder = ViT(EncoderConfig.model_validate(ENCODER), generator=torch.Generator().manual_seed(0))
    half = (0.5, 0.5, 0.5)
    return export_model(encoder, out, input_size=TILE_PX, mean=half, std=half, pooling="cls", info={})


def by_mil(
    out: Path, model: Path | str, cohort: Path, fold: int, seed: int, head: str, changes: Sequence[str]
) -> Predicted:
    """What a head on vectors of tiles says of the fold's patients."""
    embed_slides(model, [cohort], out / "tiles", mpp=MPP, size=TILE_PX, min_foreground=0.9, workers=0)
    labels = out / "labels.csv"
    with open(labels, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "split", "cancer"))
        for row in table_of(cohort):
            table.writerow((row["slide"], row["patient"], ("train", "test")[int(row["fold"]) == fold], row["cancer"]))
    train_mil(
        out / "tiles", labels, out / "mil", head=head, protocol="exaone", tasks=["cancer"], seeds=1, changes=[*changes]
    )
    (run,) = read_predictions(out / "mil", CANCER)
    return run._replace(seed=seed, fold=fold)


def by_head(out: Path, model: Path, cohort: Path, like: Predicted) -> Predicted:
    """What the pyramid's own head says of them."""
    embed_slides(model, [cohort], out / "slides", stage="slide")
    table = pq.read_table(out / "slides" / "slides.parquet").to_pandas().set_index("slide")
    logits = np.stack([np.asarray(table.loc[name, "output.cancer"], np.float64) for name in like.ids])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return like._replace(predictions=shares / shares.sum(axis=1, keepdims=True))


def timed(out: Path, work: Callable[[Path], Path]) -> tuple[Path, float]:
    """What `work` writes below `out`, and its seconds of processor time (others may use the machine), kept there."""
    kept, begun = out / "seconds.json", time.process_time()
    if kept.is_file():
        return out / "model", float(json.loads(kept.read_text()))
    made = work(out)
    write_json(kept, time.process_time() - begun)
    return made, float(json.loads(kept.read_text()))


def one_fold(out: Path, cohort: Path, fold: int, seed: int, words: argparse.Namespace) -> dict[str, Predicted]:
    """All arms of a seed and a fold."""
    clam = [*CLAM, "train.epochs=2"] if words.tiny else CLAM
    start, one = timed(out / "start", lambda at: dino(at, cohort, fold, seed, words.steps))
    model, two = timed(out / "end-to-end", lambda at: end_to_end(at, cohort, fold, seed, words.passes, start))
    steps = round(words.steps * (one + two) / one)
    frozen, three = timed(out / "frozen", lambda at: dino(at, cohort, fold, seed, steps))
    print(f"seed {seed} fold {fold}: {one:.0f} s + {two:.0f} s; frozen {three:.0f} s, {steps} steps", flush=True)
    found = {
        "frozen, CLAM": by_mil(out / "frozen", frozen, cohort, fold, seed, "clam-sb", clam),
        "end-to-end, CLAM": by_mil(out / "end-to-end", model, cohort, fold, seed, "clam-sb", clam),
    }
    found["end-to-end, own head"] = by_head(out / "end-to-end", model, cohort, found["end-to-end, CLAM"])
    random, colour = out.parent / f"random-{fold}", out.parent / f"colour-{fold}"  # the same for all seeds
    plain, _ = timed(random, lambda at: random_stage1(at / "model"))
    found["random stage 1, CLAM"] = by_mil(random, plain, cohort, fold, seed, "clam-sb", clam)
    found["mean colour, linear"] = by_mil(colour, "colour", cohort, fold, seed, "mean-linear", COLOUR)
    return found


def tell(said: dict[str, list[Predicted]]) -> None:
    """A row an arm, and its difference to frozen."""
    frozen = said["frozen, CLAM"]
    print("\n| | AUROC | 95 % over patients | sd of seeds | minus frozen |\n|---|---|---|---|---|")
    for name, runs in said.items():
        found = estimate(auroc, runs, DRAWS)
        row = f"| {name} | {found.value:.3f} | [{found.low:.3f}, {found.high:.3f}] | {found.run_sd:.3f} |"
        if runs is not frozen:
            gap = compare(auroc, runs, frozen, DRAWS)
            row += f" {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        print(f"{row} |", flush=True)


def main() -> None:
    """Write bags, train all arms with every seed on every fold, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds crc_cells_27px")
    parser.add_argument("-o", "--out", type=Path, default=Path("whole-slide-real-bags"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps of the DINO that end-to-end starts from")
    parser.add_argument("--passes", type=float, default=8, help="passes over the patients in step 2")
    parser.add_argument("--tiny", action="store_true", help="one seed, a few steps: does it run?")
    words = parser.parse_args()
    if words.tiny:
        words.seeds, words.steps, words.passes = 1, 4, 1
    begun = time.perf_counter(), time.process_time()
    cohort = write_bags(words.data, words.out / f"bags-{words.folds}", words.folds)
    said: dict[str, list[Predicted]] = {}
    for seed in range(words.seeds):
        for fold in range(words.folds):
            for arm, run in one_fold(words.out / f"{seed}-{fold}", cohort, fold, seed, words).items():
                said.setdefault(arm, []).append(run)
    rows = table_of(cohort)
    ill = sum(row["cancer"] == "yes" for row in rows)
    tell(said)
    wall, spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"\n{len(rows)} patients, {ill} with cancer, {words.folds} folds, {words.seeds} seeds", flush=True)
    print(f"{wall:.0f} s, {spent:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    main()
