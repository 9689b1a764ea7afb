"""Tiles a second of `eosin embed` beside TRIDENT's own pipeline: same slide, same places, same network, one run.

Both sides in turn, several times, medians. Three measures: the whole way to an h5; reading alone (no network); and the
processor time of all processes, which other jobs on the machine do not spoil. TRIDENT's side is its WSI class, its
patcher and DataLoader, its `extract_patch_features`, from a checkout that stays outside the project.
`python benchmarks/embedding.py --trident DIR --slide FILE [--mpp X] [--model NAME]`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eosin.features import load_model
from eosin.features.embed import embed_slides
from eosin.features.encoder import Encoder
from eosin.features.h5 import read_features
from eosin.slides import Cohort, Foreground
from eosin.tiles.grid import tissue_grid
from eosin.tiles.grid_stream import GridSlide, read_grids


class TheirEncoder(torch.nn.Module):
    """The same network as TRIDENT wants it: `eval_transforms` of a PIL image, `precision`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        from torchvision import transforms

        self.encoder, self.enc_name, self.precision = encoder, "same", torch.float32
        size, mean, std = encoder.input_size, encoder.mean.flatten().tolist(), encoder.std.flatten().tolist()
        steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
        self.eval_transforms = transforms.Compose([*steps, transforms.Normalize(mean, std)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encoder.vector(self.encoder.features(images))


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Clock and processor seconds (this process and its ended children) of one call."""

    def used() -> float:
        parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(part.ru_utime + part.ru_stime for part in parts)

    clock, processor = time.perf_counter(), used()
    work()
    return time.perf_counter() - clock, used() - processor


def measure(args: argparse.Namespace, work: Path) -> None:
    """Print one line a measure and side."""
    sys.path.insert(0, str(args.trident.resolve()))
    warnings.simplefilter("ignore")
    from torch.utils.data import DataLoader
    from trident import OpenSlideWSI
    from trident.wsi_objects.WSIPatcherDataset import WSIPatcherDataset

    cohort = Cohort.index([args.slide], work / "cohort.parquet", workers=0)
    encoder = load_model(args.model, random_init=True)
    words = {"mpp": args.mpp, "size": args.size, "stride": args.stride, "batch": args.batch, "device": "cpu"}
    row = cohort.usable.iloc[0]
    made = work / "ours" / f"{row['slide_id']}.h5"

    def ours() -> None:
        embed_slides(encoder, cohort, work / "ours", workers=args.workers, fresh=True, **words)

    ours()
    tiles = len(read_features(made))
    coords_file = work / "coords.h5"
    coords_file.write_bytes(made.read_bytes())
    slide = OpenSlideWSI(slide_path=row["path"], lazy_init=False, max_workers=args.workers)
    theirs_encoder = TheirEncoder(encoder)

    def theirs() -> str:
        return slide.extract_patch_features(
            theirs_encoder, str(coords_file), str(work / "theirs"), device="cpu", batch_limit=args.batch
        )

    pair = [read_features(path) for path in (theirs(), made)]
    ends = pair[1].coords + pair[1].attributes["patch_size_level0"]
    inside = (ends <= (row["width"], row["height"])).all(axis=1)  # beyond the slide: theirs black, ours white
    alike = torch.cosine_similarity(*(torch.tensor(side.features[inside]) for side in pair))
    grid = tissue_grid(
        Foreground(cohort.foreground(0), cohort.foreground_mpp(0)),
        (row["mpp_x"], row["mpp_y"]),
        (int(row["width"]), int(row["height"])),
        mpp=args.mpp,
        size_px=args.size,
        stride_px=args.stride,
    )
    place = GridSlide(0, row["path"], (row["mpp_x"], row["mpp_y"]), (int(row["width"]), int(row["height"])), grid)

    def our_reading() -> None:
        assert sum(len(part.rows) for part in read_grids([place], args.workers)) == tiles

    def their_reading() -> None:
        patcher = slide.create_patcher(
            patch_size=args.size,
            src_mag=10 / row["mpp_x"],
            dst_mag=10 / args.mpp,
            custom_coords=grid.coords,
            coords_only=False,
            pil=True,
        )
        dataset = WSIPatcherDataset(patcher, lambda tile: torch.from_numpy(np.array(tile)))
        # fork, as a lambda cannot be sent to a spawned process
        loader = DataLoader(
            dataset, args.batch, num_workers=args.workers, multiprocessing_context="fork" if args.workers else None
        )
        assert sum(len(batch) for batch, _ in loader) == tiles

    print(
        f"{args.model}, {tiles} tiles of {args.size} px at {args.mpp:g} µm/px (slide: {row['mpp_x']:g}), batch "
        f"{args.batch}, {args.workers} reading processes, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f}; torch {torch.__version__}; least cosine between the two sides' vectors "
        f"{alike.min():.4f}"
    )
    for measure_of, sides in (
        ("whole", {"eosin": ours, "trident": theirs}),
        ("reading", {"eosin": our_reading, "trident": their_reading}),
    ):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(args.repeats):
            for name in sides if turn % 2 == 0 else list(sides)[::-1]:
                times[name].append(seconds(sides[name]))
        rates = {}
        for name, values in times.items():
            clock, processor = (tiles / statistics.median(column) for column in zip(*values, strict=True))
            spread = max(value[0] for value in values) / min(value[0] for value in values)
            rates[name] = clock, processor
            told = f"{clock:.1f} tiles/s, {processor:.1f} tiles a processor second, slowest/fastest {spread:.2f}"
            print(f"{measure_of:8s} {name:8s} {told}")
        ratios = [ours_ / theirs_ for ours_, theirs_ in zip(rates["eosin"], rates["trident"], strict=True)]
        print(f"{measure_of:8s} ratio    {ratios[0]:.2f} by the clock, {ratios[1]:.2f} by processor time", flush=True)


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trident", type=Path, required=True, help="checkout of mahmoodlab/TRIDENT")
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
