"""Does supervision of the tile encoder by slide labels pay? Synthetic slides whose label hangs on one tile in 128.

python -m benchmarks.whole_slide.learning -o OUT [--a-class 64] [--seed-from 0] [--seeds 3] [--arm ARM ...] [--tiny]
python -m benchmarks.whole_slide.learning -o OUT --tell        # the table of what is there

Slides are mosaics of 128 tiles (64 px, 0.5 µm/px) cut from painted tissue and shuffled over all slides. A positive
slide of `spots` has one tile whose pixels were put into another order, darkest in the middle of each 16-px square;
`bars` is a second sign of the same kind, drawn independently, its label missing for 70 %. No pixel is added or lost, so
colour cannot tell. A third of the slides is for testing. The kind of sign and its size (RADIUS_PX) were chosen by what
CLAM makes of frozen vectors of trial starts: neither chance (a smaller disc) nor nearly all (a larger one). All arms of
a seed start from one encoder (`start`: self-supervision on the training slides' tiles, recipe `quickstart`) and go on
with

    end-to-end  the label spots through all stages, heads first, then stage 1 too; DINO dropped
    two tasks   the same with both labels
    with DINO   end-to-end, DINO on tiles kept beside it
    frozen      more self-supervision, for as much processor time as end-to-end took

Told for each: AUROC of spots on the test slides by CLAM on stage 1's CLS vectors (early exit) and, where there is one,
by the pyramid's own head; differences to frozen and to the start, with intervals over slides, the same resamples for
both. What is there is kept, so seeds and arms may run side by side, with one OUT.
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
from eosin.files import atomic_path, write_json, write_text
from eosin.models.slide_task import SlideTask
from eosin.progress import progress_bar
from eosin.randomness import Words
from eosin.slides import Cohort
from eosin.slides.cohort import COLUMNS as COHORT_COLUMNS
from eosin.slides.cohort import row_digest, stored, write_cohort
from eosin.slides.synthetic import LABEL_DOWNSAMPLE, TISSUES, paint_slide
from eosin.training import train
from eosin.training.export import export_run

MPP, TILE_PX, ROWS, COLUMNS, MARGIN_PX, MASK_MPP = 0.5, 64, 8, 16, 64, 8.0
TILES = ROWS * COLUMNS
SQUARE_PX, RADIUS_PX = 16, 34
SPOTS = SlideTask("spots", "binary", ("no", "yes"))
DRAWS = 2000
Pixels = npt.NDArray[np.uint8]

ENCODER = ["encoder.width=96", "encoder.depth=4", "encoder.heads=3", "encoder.patch=16", "encoder.grid=4"]
QUIET = ["run.log_to=[]", "run.workers=0"]
SSL = [
    *ENCODER,
    *("tiles.size_px=64", "tiles.mpp=[0.5]"),
    *("views.global_px=64", "views.local_px=32", "views.blur_kernel_px=5", "views.blur_sigma=[0.1, 0.8]"),
    *("objective.dino_prototypes=512", "objective.ibot_prototypes=512", "objective.head_hidden=256"),
    *("objective.dino_bottleneck=64", "objective.ibot_bottleneck=64"),
    *("run.minutes=null", "run.group=16", *QUIET),
]
HEAD_PASSES = 60
"""Passes over the slides in which the heads learn alone."""
PYRAMID = [
    *ENCODER,
    *("views.global_px=64", "views.local_px=32", "optim.clip=1.0"),
    *("pyramid.side=16", "pyramid.region.depth=0", "pyramid.region.pool=gated", "pyramid.region.standardise=true"),
    *("pyramid.slide.depth=0", "pyramid.slide.pool=gated"),
    "step2.regions={side: 16, count: 0, min_tiles: 1, global_side: 14, local_side: 6, local_count: 0}",
    *("step2.slides=4", "step2.warmup_slides=160", "step2.tile_lr=5.0e-5", "step2.region_frozen_slides=0"),
    *("step2.region_lr=1.0e-3", "step2.slide_lr=1.0e-3", "step2.heads_lr=1.0e-3"),
    *("step2.checkpoint_every=1000", "step2.save_slides=0", "labels.held_out=0.0"),
    *("whole_slide.strategy=full", "whole_slide.keep_vectors_mb=64"),
    *("run.steps=0", "run.batch=16", "run.group=16", "run.monitor_every=100%", *QUIET),
]
CLAM = [
    "train.standardise=true",
    "train.lr=1e-3",
    "train.epochs=60",
    "head.k=2",
    "head.hidden=128",
    "head.attention=64",
]
ALONE = ["step2.tile_weight=0.0", "run.batch=2", "run.group=2"]
"""Without DINO; a batch of tiles is read all the same."""
ARMS: dict[str, list[str]] = {
    "start": [],
    "end-to-end": ["tasks=[{column: spots}]", *ALONE],
    "two tasks": ["tasks=[{column: spots}, {column: bars}]", *ALONE],
    "with DINO": ["tasks=[{column: spots}]", "step2.tile_weight=0.1"],
    "frozen": [],
}
"""What an arm changes in PYRAMID; nothing: self-supervision."""
OF_COMPUTE = ("end-to-end", "start")
"""Frozen takes as long as the first; the second tells how long a step of it takes."""


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
    """`count` mosaics, the first half with spots, and labels.csv."""
    tiles = tissue_tiles(count * TILES, seed)
    order = Words(seed, "mosaic").permutations(len(tiles))
    bars = Words(seed, "bars").permutations(count) < count // 2
    known = Words(seed, "bars known").permutations(count) < round(0.3 * count)
    with open(folder / "labels.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "split", "spots", "bars"))
        for number in range(count):
            own = tiles[order[number * TILES : (number + 1) * TILES]]
            places = Words(seed, "signs", number).permutations(TILES)
            positive = number < count // 2
            if positive:
                rearrange(own[places[0]], spots=True)
            if bars[number]:
                rearrange(own[places[1]], spots=False)
            write_mosaic(folder / f"m{number:03d}.svs", own)
            told = ("no", "yes")[int(bars[number])] if known[number] else ""
            split = "test" if number % 3 == 2 else "train"
            table.writerow((f"m{number:03d}.svs", f"p{number:03d}", split, ("no", "yes")[int(positive)], told))


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


def rearrange(tile: Pixels, spots: bool) -> None:
    """Put the pixels of a disc into another order, in place: darkest in the middle of each square, or its columns."""
    rows, cols = np.mgrid[:TILE_PX, :TILE_PX]
    middle = (TILE_PX - 1) / 2
    inside = np.hypot(rows - middle, cols - middle) < RADIUS_PX
    down, across = ((x % SQUARE_PX) - (SQUARE_PX - 1) / 2 for x in (rows, cols))
    far = np.hypot(down, across) if spots else np.abs(across)
    place = np.argsort(far[inside], kind="stable")
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


def run_arm(out: Path, arm: str, seed: int, cohort: Path, changes: list[str]) -> float:
    """Train, export and embed; the processor seconds of training."""
    seconds, labels = out / "seconds.json", ARMS[arm]
    began = time.process_time()
    train(
        "pyramid-quickstart" if labels else "quickstart",
        out / "run",
        cohort=[str(cohort)],
        where="split == 'train'",
        set=[*(PYRAMID if labels else SSL), *labels, *changes, f"run.seed={seed}"],
    )
    if not seconds.is_file():
        write_json(seconds, time.process_time() - began)
    # A pyramid's stage 1 gives CLS vectors, so self-supervised encoders are to give the same.
    model = export_run(out / "run", out / "model", pooling="cls")
    embed_slides(model, [cohort], out / "tiles", workers=0)
    if labels:
        embed_slides(model, [cohort], out / "slides", stage="slide")
    return float(json.loads(seconds.read_text()))


def by_clam(out: Path, seed: int) -> Predicted:
    """What CLAM on stage 1's vectors says of the test slides: mean over its four seeds."""
    runs = read_predictions(out / "clam", SPOTS)
    mean = np.mean([run.predictions for run in runs], axis=0)
    return runs[0]._replace(seed=seed, fold=0, predictions=mean)


def by_head(out: Path, like: Predicted, seed: int) -> Predicted:
    """What the pyramid's own head says of them."""
    table = pq.read_table(out / "slides" / "slides.parquet").to_pandas().set_index("slide")
    logits = np.stack([np.asarray(table.loc[name, "output.spots"], np.float64) for name in like.ids])
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
        tasks=["spots"],
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
    parser.add_argument("--seed-from", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds from there")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only this arm; may be given several times")
    parser.add_argument("--steps1", type=int, default=600, help="steps of self-supervision that all arms start from")
    parser.add_argument("--passes", type=int, default=10, help="passes over the slides in which stage 1 learns too")
    parser.add_argument("--set", action="append", default=[], help="change a value of every recipe with slide labels")
    parser.add_argument("--tell", action="store_true", help="train nothing: the table of what is there")
    parser.add_argument("--tiny", action="store_true", help="six slides a class, a few steps: does it run?")
    words = parser.parse_args()
    if words.tiny:
        words.a_class, words.seeds, words.steps1, words.passes = 6, 1, 4, 1
    if not words.tell:
        cohort = write_slides(words.out / f"slides-{words.a_class}", words.a_class)
        labels = mil_labels(cohort.parent)
        print(colour_alone(cohort, labels, words.out / "colour"), flush=True)
        for seed in range(words.seed_from, words.seed_from + words.seeds):
            for arm in words.arm or ARMS:
                out = place(words.out, arm, seed)
                spent = run_arm(out, arm, seed, cohort, changes_of(words, arm, seed))
                heads = {"head": "clam-sb", "protocol": "exaone", "tasks": ["spots"]}
                changes = [*CLAM, "train.epochs=2"] if words.tiny else CLAM
                train_mil(out / "tiles", labels, out / "clam", **heads, changes=changes)
                found = estimate(auroc, [by_clam(out, seed)], DRAWS)
                print(f"seed {seed} {arm}: {spent:.0f} s of training, CLAM {found.value:.3f}", flush=True)
    tell(words.out)


def place(out: Path, arm: str, seed: int) -> Path:
    """The folder of an arm."""
    return out / f"{arm.replace(' ', '-')}-{seed}"


def changes_of(words: argparse.Namespace, arm: str, seed: int) -> list[str]:
    """What the command and the arms before change in an arm's recipe."""
    if arm == "start":
        return [f"run.steps={words.steps1}"]
    changes = [f"start={place(words.out, 'start', seed) / 'model'}"]
    if arm == "frozen":
        spent = [json.loads((place(words.out, other, seed) / "seconds.json").read_text()) for other in OF_COMPUTE]
        return [*changes, f"run.steps={max(1, round(words.steps1 * spent[0] / spent[1]))}"]
    heads = 1 if words.tiny else HEAD_PASSES
    slides = sum(number % 3 != 2 for number in range(2 * words.a_class))
    frozen = [f"step2.tile_frozen_slides={heads * slides}", f"step2.passes={heads + words.passes}"]
    return [*changes, *frozen, *words.set]


def mil_labels(folder: Path) -> Path:
    """The label table of `eosin mil`: slides by id."""
    out = folder / "mil.csv"
    if not out.is_file():
        write_text(out, (folder / "labels.csv").read_text().replace(".svs", ""))
    return out


def tell(out: Path) -> None:
    """A line an arm, and its differences to frozen and to the start, over the seeds that both have."""
    said: dict[str, dict[int, Predicted]] = {}
    seconds: dict[str, list[float]] = {}
    for arm in ARMS:
        for folder in sorted(out.glob(f"{arm.replace(' ', '-')}-*")):
            seed = int(folder.name.rsplit("-", 1)[1])
            if not (folder / "clam" / "predictions.csv").is_file():
                continue
            clam = said.setdefault(f"{arm}, CLAM", {})[seed] = by_clam(folder, seed)
            seconds.setdefault(arm, []).append(json.loads((folder / "seconds.json").read_text()))
            if ARMS[arm]:
                said.setdefault(f"{arm}, own head", {})[seed] = by_head(folder, clam, seed)
    for arm, spent in seconds.items():
        print(f"{arm:12s} {np.mean(spent):5.0f} s of processor, training alone, mean of {len(spent)}")
    passed = False
    for name, runs in said.items():
        found = estimate(auroc, list(runs.values()), DRAWS)
        each = " ".join(f"{estimate(auroc, [run], 2).value:.3f}" for run in runs.values())
        line = f"{name:20s} AUROC {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] ({each})"
        for other in ("frozen", "start"):
            base = said.get(f"{other}, CLAM", {})
            both = [seed for seed in runs if seed in base]
            if runs is not base and both:
                gap = compare(auroc, [runs[seed] for seed in both], [base[seed] for seed in both], DRAWS)
                line += f"  minus {other} {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
                passed |= (name, other) == ("end-to-end, CLAM", "frozen") and gap.low > 0
        print(line, flush=True)
    print(f"end-to-end minus frozen, both by CLAM on stage 1, above zero: {'PASS' if passed else 'FAIL'}")


if __name__ == "__main__":
    main()
