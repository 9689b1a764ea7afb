"""Do heads find what decides? Slides with one whorl in some 500 tiles (planted_slides.py), colour at chance.

Embeds every slide with the two baselines (texture, colour), an eosin-trained encoder and its random start, trains three
heads by protocol exaone on standardised features, and asks of the test slides with a whorl whether their most attended
tiles are the ones that it touches. Draws the heatmap of the first of them.
python -m benchmarks.mil.planted --model EXPORT -o OUT
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from benchmarks.mil.planted_slides import MPP, RADIUS_PX, write_planted

from eosin.evaluation.mil import load_heads, train_mil
from eosin.features.embed import embed_slides
from eosin.features.h5 import read_features
from eosin.report.heatmap import heatmap

TILE_PX = 128
# A whorl touches 1 to 4 tiles: CLAM's usual k = 8 would call tiles without it positive.
CLAM = ["train.lr=1e-3", "train.epochs=60", "head.k=2"]
HEADS = {"mean-linear": [], "max-linear": ["train.lr=1e-2"], "clam-sb": CLAM}


def main() -> None:
    """Write, embed, train, look; one line a score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="an exported encoder")
    parser.add_argument("--a-class", type=int, default=24, help="slides a class")
    parser.add_argument("--size", type=int, default=4096, help="px a side")
    parser.add_argument("-o", "--out", type=Path, default=Path("planted"))
    arguments = parser.parse_args()
    labels = write_planted(arguments.out / "slides", arguments.a_class, arguments.size, seed=0)
    encoders = {"texture": "texture", "colour": "colour", "eosin": arguments.model, "random-init": arguments.model}
    for name, model in encoders.items():
        features = arguments.out / "features" / name
        random_init = name == "random-init"
        embed_slides(model, arguments.out / "slides", features, mpp=MPP, size=TILE_PX, random_init=random_init)
        for head, changes in HEADS.items():
            folder = arguments.out / f"{name}-{head}"
            rows = train_mil(
                features,
                labels,
                folder,
                head=head,
                protocol="exaone",
                changes=["train.standardise=true", *changes],
                fresh=True,
            )
            row = next(row for row in rows if row["metric"] == "auroc")
            ends = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
            found = "" if head != "clam-sb" else looked_at(folder, features, arguments.out / "slides", labels)
            if (name, head) == ("texture", "clam-sb"):
                first = positives(labels)[0]
                heatmap(folder, arguments.out / "slides" / f"{first}.svs", arguments.out / "heatmap", features=features)
            print(f"{name:11s} {head:11s} AUROC {row['mean']:.3f} {ends} run sd {row['run_sd']:.3f}{found}", flush=True)


def looked_at(folder: Path, features: Path, slides: Path, labels: Path) -> str:
    """Share of the k most attended tiles of the positive test slides that a whorl touches, k being how many it does."""
    heads = load_heads(folder)
    truth = json.loads((slides / "truth.json").read_text())
    precision, first, share = [], [], []
    for slide in positives(labels):
        found = read_features(features / f"{slide}.h5")
        weights = next(iter(heads.attention(found.features).values()))
        touched = touches(found.coords, truth[slide])
        order = np.argsort(-weights)
        precision.append(touched[order[: touched.sum()]].mean())
        first.append(touched[order[0]])
        share.append(touched.mean())
    return (
        f"  precision at k {np.mean(precision):.2f}, most attended tile right {np.mean(first):.2f},"
        f" chance {np.mean(share):.4f} (n {len(precision)})"
    )


def positives(labels: Path) -> list[str]:
    """Test slides with a whorl."""
    with open(labels, newline="") as handle:
        return [row["slide"] for row in csv.DictReader(handle) if row["split"] == "test" and row["whorl"] == "yes"]


def touches(coords: np.ndarray, centre: tuple[int, int]) -> np.ndarray:
    """Which tiles [N, 2] the disc reaches by more than its rim."""
    nearest = np.clip(np.asarray(centre), coords, coords + TILE_PX)
    return np.hypot(*(nearest - np.asarray(centre)).T) < 0.8 * RADIUS_PX


if __name__ == "__main__":
    main()
