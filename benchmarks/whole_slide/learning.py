"""Does supervision of the tile encoder by slide labels pay? Synthetic slides whose label hangs on one tile in 128.

python -m benchmarks.whole_slide.learning -o OUT [--a-class 64] [--seeds 3] [--tiny]

Slides are mosaics of 128 tiles (64 px, 0.5 µm/px) cut from painted tissue and shuffled over all slides. A positive
slide of `whorl` has one tile whose pixels were put into another order, in rings; `stripe` is a second sign of the same
kind, in bands, drawn independently, its label missing for 70 %. No pixel is added or lost, so colour cannot tell. A
third of the slides is for testing. All arms of a seed start from one stage 1 (`start`: DINO on tiles) and go on with

    end-to-end  the label whorl through all stages, DINO kept (step 2 of the curriculum)
    two tasks   the same with both labels
    no DINO     end-to-end, DINO dropped
    frozen      DINO on tiles, as many seconds of steps as end-to-end took (DINO on regions teaches stage 1 nothing)

Told for each: AUROC of whorl on the test slides by CLAM on stage 1's vectors (early exit) and, where there is one, by
the pyramid's own head; differences to frozen with intervals over slides, the same resamples for both.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile

from eosin.evaluation.mil import train_mil
from eosin.evaluation.mil.folder import read_predictions
from eosin.evaluation.mil.intervals import Predicted, compare, estimate
from eosin.evaluation.mil.scores import auroc
from eosin.features.embed import embed_slides
from eosin.files import atomic_path, write_json
from eosin.models.slide_task import SlideTask
from eosin.progress import progress_bar
from eosin.randomness import Words
from eosin.runs import RunFolder
from eosin.slides import Cohort
from eosin.slides.cohort import COLUMNS as COHORT_COLUMNS
from eosin.slides.cohort import row_digest, stored, write_cohort
from eosin.slides.synthetic import LABEL_DOWNSAMPLE, TISSUES, paint_slide
from eosin.training import train
from eosin.training.export import export_run

MPP, TILE_PX, ROWS, COLUMNS, MARGIN_PX, MASK_MPP = 0.5, 64, 8, 16, 64, 8.0
TILES = ROWS * COLUMNS
RADIUS_PX = 30
WHORL = SlideTask("whorl", "binary", ("no", "yes"))
DRAWS = 2000
Pixels = npt.NDArray[np.uint8]

COMMON = [
    "encoder.patch=16",
    "encoder.grid=4",
    "views.local_px=32",
    "step2.slides=2",
    "step2.tile_lr=3.0e-4",
    "step2.tile_frozen_slides=170",
    "encoder.drop_path=0.1",
    "pyramid.region.drop_path=0.1",
    "pyramid.slide.drop_path=0.1",
    "step2.checkpoint_every=1000",
    "step2.save_slides=0",
    "labels.held_out=0.0",
    "run.log_to=[]",
    "run.workers=0",
    "run.monitor_every=100%",
]
CLAM = ["train.standardise=true", "train.lr=1e-3", "train.epochs=60", "head.k=2"]
ALONE = ["step2.passes=0", "step1.regions.count=0"]
ARMS = {
    "start": ALONE,
    "end-to-end": ["tasks=[{column: whorl}]"],
    "two tasks": ["tasks=[{column: whorl}, {column: stripe}]"],
    "no DINO": ["tasks=[{column: whorl}]", "step2.tile_weight=0.0", "step2.region_weight=0.0"],
    "frozen": ALONE,  # last: as many steps as take as long as end-to-end
}


def write_slides(folder: Path, a_class: int, seed: int = 0) -> Path:
    """2 · `a_class` mosaics, indexed with their labels; returns the cohort file. What lies there is kept."""
    out, found = folder / "cohort.parquet", folder / "indexed.parquet"
    if not found.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_mosaics(folder, 2 * a_class, seed)
        slides = sorted(folder.glob("m*.svs"))
        Cohort.index(slides, found, metadata=folder / "labels.csv", workers=0)
    if not out.is_file():
        state_tissue(found, out)
    return out


def write_mosaics(folder: Path, count: int, seed: int) -> None:
    """`count` mosaics, the first half with a whorl, and labels.csv."""
    tiles = tissue_tiles(count * TILES, seed)
    order = Words(seed, "mosaic").permutations(len(tiles))
    stripes = Words(seed, "stripe").permutations(count) < count // 2
    known = Words(seed, "stripe known").permutations(count) < round(0.3 * count)
    with open(folder / "labels.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "split", "whorl", "stripe"))
        for number in range(count):
            own = tiles[order[number * TILES : (number + 1) * TILES]]
            places = Words(seed, "signs", number).permutations(TILES)
            positive = number < count // 2
            if positive:
                rearrange(own[places[0]], rings=True)
            if stripes[number]:
                rearrange(own[places[1]], rings=False)
            write_mosaic(folder / f"m{number:03d}.svs", own)
            stripe = ("no", "yes")[int(stripes[number])] if known[number] else ""
            split = "test" if number % 3 == 2 else "train"
            table.writerow((f"m{number:03d}.svs", f"p{number:03d}", split, ("no", "yes")[int(positive)], stripe))


def state_tissue(indexed: Path, out: Path) -> None:
    """The same cohort with the mosaic as its foreground, so that the grid of tiles is that of the mosaic."""
    table = pq.read_table(indexed)
    keys, rows = stored(table.schema)["keys"], table.to_pandas()
    for name, kind in COHORT_COLUMNS.items():
        if not pa.types.is_floating(kind):  # pandas makes a missing word a NaN
            rows[name] = rows[name].astype(object).where(rows[name].notna(), None)
    cell = round(TILE_PX * MPP / MASK_MPP)
    border = round(MARGIN_PX * MPP / MASK_MPP)
    mask = np.pad(np.ones((ROWS * cell, COLUMNS * cell), bool), border)
    rows["foreground"] = [cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()] * len(rows)
    rows["foreground_mpp"], rows["tissue_mm2"] = MASK_MPP, TILES * (TILE_PX * MPP / 1000) ** 2
    write_cohort(out, rows, [row_digest(row, mask) for row in rows.to_dict("records")], keys)


def tissue_tiles(count: int, seed: int, size_px: int = 2048) -> Pixels:
    """`count` tiles without glass, from as many painted slides as it takes."""
    found: list[Pixels] = []
    number = have = 0
    with progress_bar("tissue", count, "tiles") as bar:
        while have < count:
            pixels, labels, _ = paint_slide(size_px, MPP, seed, number)
            tissue = (labels < TISSUES.index("background")).astype(np.float32)
            side = TILE_PX // LABEL_DOWNSAMPLE
            cells = tissue.reshape(len(tissue) // side, side, -1, side).mean(axis=(1, 3)) == 1
            grid = pixels.reshape(len(cells), TILE_PX, -1, TILE_PX, 3).swapaxes(1, 2)
            found.append(grid[cells])
            have += len(found[-1])
            bar.advance(len(found[-1]))
            number += 1
    return np.concatenate(found)[:count]


def rearrange(tile: Pixels, rings: bool) -> None:
    """Put the pixels of a disc in the middle into rings or bands, in place: the brightest where a cosine is highest."""
    rows, cols = np.mgrid[:TILE_PX, :TILE_PX]
    y, x = rows - TILE_PX / 2 + 0.5, cols - TILE_PX / 2 + 0.5
    inside = np.hypot(y, x) < RADIUS_PX
    phase = np.hypot(y, x) if rings else (x + y) / np.sqrt(2)
    place = np.argsort(np.cos(2 * np.pi * phase[inside] / 10), kind="stable")
    found = tile[inside]
    order = np.argsort(found.astype(int).sum(axis=1), kind="stable")
    moved = np.empty_like(found)
    moved[place] = found[order]
    tile[inside] = moved


def write_mosaic(path: Path, tiles: Pixels) -> None:
    """Tiles [128, S, S, 3] side by side on glass."""
    rows = tiles.reshape(ROWS, COLUMNS, TILE_PX, TILE_PX, 3).swapaxes(1, 2).reshape(ROWS * TILE_PX, -1, 3)
    pixels = cv2.copyMakeBorder(rows, *[MARGIN_PX] * 4, cv2.BORDER_CONSTANT, value=(243, 243, 243))
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            tile=(256, 256),
            photometric="rgb",
            compression="zlib",  # JPEG would leave its own traces around a sign
            description=f"Aperio Image Library\n{pixels.shape[1]}x{pixels.shape[0]} RGB|MPP = {MPP:g}",
            metadata=None,
        )


def run_arm(out: Path, arm: str, seed: int, cohort: Path, steps: int, changes: list[str]) -> float:
    """Train, export and embed; the seconds of training."""
    began = time.perf_counter()
    seconds = out / "seconds.json"
    train(
        "pyramid-quickstart",
        out / "run",
        cohort=[str(cohort)],
        where="split == 'train'",
        set=[*COMMON, *ARMS[arm], *changes, f"run.steps={steps}", f"run.seed={seed}"],
    )
    if not seconds.is_file():
        write_json(seconds, time.perf_counter() - began)
    model = export_run(out / "run", out / "model")
    embed_slides(model, [cohort], out / "tiles", workers=0)
    if ARMS[arm] is not ALONE:
        embed_slides(model, [cohort], out / "slides", stage="slide")
    return float(json.loads(seconds.read_text()))


def by_clam(out: Path, labels: Path, seed: int, changes: list[str]) -> Predicted:
    """What CLAM on stage 1's vectors says of the test slides: mean over its four seeds."""
    train_mil(out / "tiles", labels, out / "clam", head="clam-sb", protocol="exaone", tasks=["whorl"], changes=changes)
    runs = read_predictions(out / "clam", WHORL)
    mean = np.mean([run.predictions for run in runs], axis=0)
    return runs[0]._replace(seed=seed, fold=0, predictions=mean)


def by_head(out: Path, like: Predicted, seed: int) -> Predicted:
    """What the pyramid's own head says of them."""
    table = pq.read_table(out / "slides" / "slides.parquet").to_pandas().set_index("slide")
    logits = np.stack([np.asarray(table.loc[name, "output.whorl"], np.float64) for name in like.ids])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return like._replace(seed=seed, predictions=shares / shares.sum(axis=1, keepdims=True))


def colour_alone(cohort: Path, labels: Path, out: Path) -> str:
    """AUROC of mean colour and its spread, by a linear head: its interval must cover one half."""
    embed_slides("colour", [cohort], out / "tiles", mpp=MPP, size=TILE_PX, workers=0)
    rows = train_mil(
        out / "tiles",
        labels,
        out / "mean",
        head="mean-linear",
        protocol="exaone",
        tasks=["whorl"],
        changes=["train.standardise=true"],
    )
    row = next(row for row in rows if row["metric"] == "auroc")
    verdict = "PASS" if row["ci_low"] <= 0.5 <= row["ci_high"] else "FAIL"
    return f"colour alone: AUROC {row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] covers .5: {verdict}"


def main() -> None:
    """Write slides, train every arm with every seed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("whole-slide-learning"))
    parser.add_argument("--a-class", type=int, default=64, help="slides a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps1", type=int, default=1000, help="optimiser steps of the stage 1 that arms start from")
    parser.add_argument("--passes", type=float, default=14, help="passes over the slides in step 2")
    parser.add_argument("--set", action="append", default=[], help="change a value of every arm's recipe")
    parser.add_argument("--tiny", action="store_true", help="six slides a class, a few steps: does it run?")
    words = parser.parse_args()
    if words.tiny:
        words.a_class, words.seeds, words.steps1, words.passes = 6, 1, 4, 1
    cohort = write_slides(words.out / f"slides-{words.a_class}", words.a_class)
    labels = mil_labels(cohort.parent)
    print(colour_alone(cohort, labels, words.out / "colour"), flush=True)
    said: dict[str, list[Predicted]] = {}
    for seed in range(words.seeds):
        places = {arm: words.out / f"{arm.replace(' ', '-')}-{seed}" for arm in ARMS}
        for arm, out in places.items():
            changes, steps = list(words.set), words.steps1
            if arm != "start":
                changes.append(f"start={places['start'] / 'model'}")
            if arm == "frozen":
                took = [seconds_of_steps(places[other] / "run") for other in ("end-to-end", "start")]
                steps = round(words.steps1 * took[0] / took[1])
            elif arm != "start":
                changes.append(f"step2.passes={words.passes}")
                steps = 0
            spent = run_arm(out, arm, seed, cohort, steps, changes)
            clam = by_clam(out, labels, seed, [*CLAM, "train.epochs=2"] if words.tiny else CLAM)
            said.setdefault(f"{arm}, CLAM", []).append(clam)
            if ARMS[arm] is not ALONE:
                said.setdefault(f"{arm}, own head", []).append(by_head(out, clam, seed))
            print(f"seed {seed} {arm}: {spent:.0f} s of training, {steps} steps of DINO alone", flush=True)
    tell(said)


def mil_labels(folder: Path) -> Path:
    """The label table of `eosin mil`: slides by id."""
    out = folder / "mil.csv"
    out.write_text((folder / "labels.csv").read_text().replace(".svs", ""))
    return out


def seconds_of_steps(run: Path) -> float:
    """Seconds that the optimiser steps of a run took, from the logged pace."""
    rows = [row for row in RunFolder(run).read_metrics() if "img_s" in row]
    begun = [0, *(row["tiles"] for row in rows)]
    return sum((row["tiles"] - before) / row["img_s"] for row, before in zip(rows, begun, strict=False))


def tell(said: dict[str, list[Predicted]]) -> None:
    """A line an arm, and its difference to frozen."""
    frozen = said["frozen, CLAM"]
    passed = False
    for name, runs in said.items():
        found = estimate(auroc, runs, DRAWS)
        line = f"{name:24s} AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] run sd {found.run_sd:.3f}"
        if runs is not frozen:
            gap = compare(auroc, runs, frozen, DRAWS)
            line += f"  minus frozen {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
            passed |= name == "end-to-end, CLAM" and gap.low > 0
        print(line, flush=True)
    print(f"end-to-end minus frozen, both by CLAM on stage 1, above zero: {'PASS' if passed else 'FAIL'}")


if __name__ == "__main__":
    main()
