"""Do TRIDENT's and CLAM's own programs read what `eosin embed --clam` writes?

Draws slides, embeds them, and hands the files to code of the two checkouts (which stay outside the project): TRIDENT's
coordinate reader, patch dataset, picture of the tiles and slide-feature step; CLAM's data set, and its main.py, which
trains for an epoch. Needs what those two need: geopandas, shapely, transformers, segmentation-models-pytorch and
others; `python benchmarks/embedding_formats.py --trident DIR --clam DIR`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from eosin.features import load_model
from eosin.features.embed import embed_slides
from eosin.features.h5 import read_features
from eosin.slides import Cohort, open_slide
from eosin.slides.synthetic import write_slides

MODEL, INPUT_PX, MPP, SIZE_PX = "vit_tiny_patch16_224", 96, 0.6, 96


def check(name: str, holds: bool, told: str = "") -> None:
    """One line a check; the script ends at the first that fails."""
    print(f"{'ok  ' if holds else 'FAIL'} {name}{': ' + told if told else ''}", flush=True)
    if not holds:
        sys.exit(1)


class PlainEncoder(torch.nn.Module):
    """Our network as TRIDENT wants it: a module with `eval_transforms` and `precision`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = load_model(MODEL, random_init=True, input_size=INPUT_PX)
        self.enc_name, self.precision, self.embedding_dim = "plain", torch.float32, self.encoder.dim

    def eval_transforms(self, tile: Any) -> torch.Tensor:
        return self.encoder.prepare(np.asarray(tile)[None])[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder.vector(self.encoder.features(images))


class MeanOfTiles(torch.nn.Module):
    """A slide encoder in TRIDENT's sense."""

    def forward(self, batch: dict[str, Any], device: str) -> torch.Tensor:
        return batch["features"].mean(dim=1)


def check_trident(checkout: Path, cohort: Cohort, features: Path, work: Path) -> None:
    """TRIDENT's loaders on our h5, and ours on TRIDENT's."""
    sys.path.insert(0, str(checkout))
    warnings.simplefilter("ignore")
    from trident import OpenSlideWSI
    from trident.IO import read_coords

    row = cohort.usable.iloc[0]
    path = features / f"{row['slide_id']}.h5"
    ours = read_features(path)
    assert ours.coords is not None
    attributes, coords = read_coords(str(path))
    check(
        "TRIDENT read_coords", np.array_equal(coords, ours.coords), f"{len(coords)} tiles, {len(attributes)} attributes"
    )
    with OpenSlideWSI(slide_path=row["path"], lazy_init=False) as slide, open_slide(row["path"]) as own:
        patcher = slide.create_patcher(
            patch_size=attributes["patch_size"],
            src_mag=attributes["level0_magnification"],
            dst_mag=attributes["target_magnification"],
            custom_coords=coords,
            coords_only=False,
        )
        check("TRIDENT patch side at level 0", patcher.patch_size_src == attributes["patch_size_level0"])
        differences = []
        side = attributes["patch_size_level0"]
        inside = (coords + side <= (row["width"], row["height"])).all(
            axis=1
        )  # beyond the edge: theirs black, ours white
        for number in np.flatnonzero(inside)[::8].tolist():
            tile, x, y = patcher[number]
            pair = (tile.astype(np.float32), own.region(x, y, SIZE_PX, MPP).astype(np.float32))
            theirs, ours_px = (cv2.GaussianBlur(pixels, (0, 0), 2.0) for pixels in pair)
            differences.append(np.abs(theirs - ours_px).mean())
        # TRIDENT shrinks bilinearly, eosin averages by area: alike but for the finest grain, which the blur takes out.
        check(
            "TRIDENT tiles show what ours do",
            max(differences) < 4,
            f"mean |difference| {np.mean(differences):.2f} of 255",
        )
        picture = slide.visualize_coords(str(path), str(work / "pictures"))
        check("TRIDENT visualize_coords", Path(picture).is_file())
        made = slide.extract_slide_features(str(path), MeanOfTiles(), str(work / "slide"), device="cpu")
        gap = np.abs(read_features_flat(made) - ours.features.mean(axis=0)).max()
        check("TRIDENT extract_slide_features", gap < 1e-5, f"max |difference| {gap:.1e}")
        theirs = slide.extract_patch_features(
            PlainEncoder(), str(path), str(work / "tiles"), device="cpu", batch_limit=16
        )
        found = read_features(theirs)
        pair = (torch.tensor(side_.features[inside]) for side_ in (found, ours))
        alike = torch.cosine_similarity(*pair).min().item()
        check("TRIDENT extract_patch_features from our coords, read by eosin", alike > 0.9, f"least cosine {alike:.4f}")


def read_features_flat(path: str) -> np.ndarray:
    """TRIDENT's slide vector [D]."""
    import h5py

    with h5py.File(path) as file:
        return np.asarray(file["features"])


def check_clam(checkout: Path, cohort: Cohort, features: Path, work: Path) -> None:
    """CLAM's data set and its training script on our pt and h5."""
    names = cohort.usable["slide_id"].tolist()
    root = work / "clam_run"
    (root / "dataset_csv").mkdir(parents=True)
    labels = [f"patient_{n},{name},{('normal', 'tumor')[n % 2]}_tissue" for n, name in enumerate(names)]
    table = root / "dataset_csv" / "tumor_vs_normal_dummy_clean.csv"
    table.write_text("\n".join(["case_id,slide_id,label", *labels]) + "\n")
    (root / "data").mkdir()
    (root / "data" / "tumor_vs_normal_resnet_features").symlink_to(features / "clam")
    (root / "splits" / "ours").mkdir(parents=True)
    split = [",train,val,test", f"0,{names[0]},{names[2]},{names[4]}", f"1,{names[1]},{names[3]},{names[5]}"]
    (root / "splits" / "ours" / "splits_0.csv").write_text("\n".join(split) + "\n")
    code = (
        "import sys; from dataset_modules.dataset_generic import Generic_MIL_Dataset as D\n"
        "d = D(csv_path=sys.argv[1], data_dir=sys.argv[2], shuffle=False, print_info=False,"
        " label_dict={'normal_tissue': 0, 'tumor_tissue': 1}, patient_strat=False, ignore=[])\n"
        "pt = d[0][0]; d.load_from_h5(True); h5, label, coords = d[0]\n"
        "assert (pt == h5).all(); print(tuple(pt.shape), tuple(coords.shape), pt.dtype)\n"
    )
    done = run([sys.executable, "-c", code, str(table), str(features / "clam")], checkout)
    check("CLAM Generic_MIL_Dataset, pt and h5", done.returncode == 0, last_line(done))
    words = (
        "--k 1 --max_epochs 1 --task task_1_tumor_vs_normal --model_type clam_sb --B 4 --split_dir ours --exp_code x"
    )
    words += f" --embed_dim {read_features(features / f'{names[0]}.h5').features.shape[1]} --data_root_dir data"
    done = run([sys.executable, str(checkout / "main.py"), *words.split()], root)
    epoch = [line for line in done.stdout.splitlines() if line.startswith("Epoch")]
    check("CLAM main.py, one epoch", done.returncode == 0 and bool(epoch), epoch[0] if epoch else last_line(done))


def run(command: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    """Run in a folder, with the output kept."""
    return subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last thing a program said."""
    return ([*done.stdout.splitlines(), *done.stderr.splitlines()] or ["said nothing"])[-1 if done.returncode else 0]


def main() -> None:
    """Run all checks; exit 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trident", type=Path, required=True)
    parser.add_argument("--clam", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        slides = write_slides(work / "slides", count=6, size_px=1024, workers=1)
        cohort = Cohort.index(slides, work / "cohort.parquet", workers=0)
        words = {"random_init": True, "input_size": INPUT_PX, "mpp": MPP, "size": SIZE_PX, "device": "cpu"}
        embed_slides(MODEL, cohort, work / "features", clam=True, workers=0, **words)
        check_trident(args.trident.resolve(), cohort, work / "features", work)
        check_clam(args.clam.resolve(), cohort, work / "features", work)


if __name__ == "__main__":
    main()
