"""Multi-crop views of one batch of tiles on a CPU: eosin's chain beside others', same settings, CPU time a tile.

All make 2 x 224 + 8 x 98 crops of 256-px tiles (second table: 2 x 392 + 8 x 168 of 512-px tiles) with horizontal flips,
colour jitter, grey, blur, solarise and normalisation, as float32. eosin's last row adds HED jitter, vertical flips and
quarter turns, which the others do not have. kornia's rows appear where it is installed. One thread; the chains take
turns, and each figure is the median over the rounds. python benchmarks/views.py [--rounds N] [--threads N]

`--threads N` prints the wall time of eosin's chain with 1..N threads instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from eosin.randomness import Words
from eosin.views import CropPlan, ViewPlan, ViewsConfig, crops, draw_views, render
from eosin.views.multicrop import photometric_

SIZES = ((256, 224, 98, 16), (512, 392, 168, 6))  # tile, global crop, local crop, tiles
PLAIN = ViewsConfig(vertical_flip=0.0, quarter_turns=False)
FULL = ViewsConfig(hed_sigma=0.05)
BARE = PLAIN.model_copy(
    update={"jitter_probability": 0, "grey_probability": 0, "blur_probability": (0, 0, 0), "solarise_probability": 0}
)
CHUNK_BYTES = 4 << 20


def pictures(count: int, size_px: int) -> np.ndarray:
    """Coloured squares with noise: uint8 [count, size, size, 3]."""
    rng = np.random.default_rng(0)
    squares = rng.integers(60, 255, (count, size_px // 8, size_px // 8, 3)).repeat(8, 1).repeat(8, 2)
    return (squares + rng.normal(0, 6, squares.shape)).clip(0, 255).astype(np.uint8)


def views_of(config: ViewsConfig) -> list[tuple[int, tuple[float, float], float, float, int]]:
    """size, scale, blur and solarise probability, count: of the first global, the second, the locals."""
    first, later, local = config.blur_probability
    return [
        (config.global_px, config.global_scale, first, 0.0, 1),
        (config.global_px, config.global_scale, later, config.solarise_probability, 1),
        (config.local_px, config.local_scale, local, 0.0, config.local_count),
    ]


def with_torchvision(images: list[Any], config: ViewsConfig) -> Callable[[], object]:
    """The chain of DINOv2 built from torchvision's transforms, tile by tile, as a loader runs it."""
    chains = [
        (
            v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                    v2.RandomHorizontalFlip(),
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                    v2.RandomGrayscale(0.2),
                    v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                    v2.RandomSolarize(128, solarise),
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize([0.5] * 3, [0.5] * 3),
                ]
            ),
            count,
        )
        for size, scale, blur, solarise, count in views_of(config)
    ]
    return lambda: [chain(image) for image in images for chain, count in chains for _ in range(count)]


def with_kornia(pixels: np.ndarray, config: ViewsConfig) -> Callable[[], object]:
    """The same from kornia's batched augmentations, a batch a view."""
    kornia = import_module("kornia.augmentation")
    chains = [
        (
            nn.Sequential(
                kornia.RandomResizedCrop((size, size), scale, resample="bicubic", cropping_mode="resample"),
                kornia.RandomHorizontalFlip(),
                kornia.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                kornia.RandomGrayscale(p=0.2),
                kornia.RandomGaussianBlur((9, 9), (0.1, 2.0), p=blur),
                kornia.RandomSolarize(0.0, 0.0, p=solarise),
                kornia.Normalize(torch.full((3,), 0.5), torch.full((3,), 0.5)),
            ),
            count,
        )
        for size, scale, blur, solarise, count in views_of(config)
    ]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return lambda: [chain(images / 255) for chain, count in chains for _ in range(count)]


def with_tensors(pixels: np.ndarray, config: ViewsConfig) -> Callable[[], object]:
    """eosin's chain with the steps of a GPU: torch resizes crop by crop, then as many at a time as caches hold."""
    batch = torch.from_numpy(pixels)

    def work() -> list[Tensor]:
        plan = draw_views(config, len(batch), Words(0, "bench"))
        made = []
        for part, size in sizes_of(plan, config):
            step = max(1, CHUNK_BYTES // (len(part.grey) * 3 * size**2 * 4))
            for first in range(0, len(batch), step):
                rows = part.rows(first, first + step)
                made.append(photometric_(cut(batch[first : first + step], rows, size, config), rows, config))
                made[-1].sub_(0.5).mul_(2.0)
        return made

    return work


def sizes_of(plan: ViewPlan, config: ViewsConfig) -> list[tuple[CropPlan, int]]:
    """The plans of both crop sizes."""
    assert plan.locals is not None
    return [(plan.globals, config.global_px), (plan.locals, config.local_px)]


def cut(tiles: Tensor, plan: CropPlan, size: int, config: ViewsConfig) -> Tensor:
    """Crops of `tiles` uint8 [b, S, S, 3], resized and turned: float32 [V·b, 3, size, size] in 0..1."""
    planes, boxes = tiles.permute(0, 3, 1, 2), plan.boxes(config, *tiles.shape[1:3])
    turns = crops.turns_of(plan.horizontal_flip, plan.vertical_flip, plan.quarter_turns)
    made = []
    for v, t in np.ndindex(plan.grey.shape):
        top, left, height, width = boxes[v, t].tolist()
        box = planes[t : t + 1, :, top : top + height, left : left + width]
        crop = functional.interpolate(box, size=(size, size), mode="bicubic", antialias=True)
        if turns.transpose[v, t]:
            crop = crop.transpose(-1, -2)
        flips = [axis for axis, flip in ((-2, turns.flip_rows), (-1, turns.flip_columns)) if flip[v, t]]
        made.append(crop.flip(flips) if flips else crop)
    return torch.cat(made).float().mul_(1 / 255)


def with_eosin(pixels: np.ndarray, config: ViewsConfig) -> Callable[[], object]:
    """What a run on a CPU does."""
    return lambda: render(pixels, draw_views(config, len(pixels), Words(0, "bench")), config)


def cpu_ms(chains: dict[str, Callable[[], object]], rounds: int, tiles: int) -> dict[str, float]:
    """Median CPU milliseconds of a tile, the chains taking turns after a round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in chains}
    for _ in range(rounds + 1):
        for name, chain in chains.items():
            start = time.process_time()
            chain()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(seen[1:]) / tiles * 1e3 for name, seen in times.items()}


def table(tile_px: int, global_px: int, local_px: int, tiles: int, rounds: int) -> None:
    """Print one line a chain."""
    plain, full, bare = (
        config.model_copy(update={"global_px": global_px, "local_px": local_px}) for config in (PLAIN, FULL, BARE)
    )
    pixels = pictures(tiles, tile_px)
    chains = {
        "torchvision on PIL images": with_torchvision([Image.fromarray(tile) for tile in pixels], plain),
        "torchvision v2 on uint8 tensors": with_torchvision(
            [torch.from_numpy(tile).permute(2, 0, 1).contiguous() for tile in pixels], plain
        ),
        "eosin, a GPU's steps on the CPU": with_tensors(pixels, plain),
        "eosin": with_eosin(pixels, plain),
        "eosin, crops and normalisation alone": with_eosin(pixels, bare),
        "eosin, a GPU's steps, + HED, turns": with_tensors(pixels, full),
        "eosin, + HED, turns": with_eosin(pixels, full),
    }
    if find_spec("kornia"):
        chains = {"kornia, batched": with_kornia(pixels, plain), **chains}
    found = cpu_ms(chains, rounds, tiles)
    print(f"\n2 x {global_px} + 8 x {local_px} crops of {tile_px}-px tiles, batches of {tiles}")
    for name, ms in found.items():
        print(f"  {name:38s} {ms:7.2f} ms CPU a tile {1e3 / ms:7.0f} tiles/s a core")


def threads(most: int, rounds: int) -> None:
    """Print wall and CPU time of eosin's full chain by number of threads."""
    pixels = pictures(32, 256)
    chain = with_eosin(pixels, FULL)
    for count in range(1, most + 1):
        torch.set_num_threads(count)
        chain()
        seen = []
        for _ in range(rounds):
            start, cpu = time.perf_counter(), time.process_time()
            chain()
            seen.append((time.perf_counter() - start, time.process_time() - cpu))
        wall, cpu = (statistics.median(column) / len(pixels) * 1e3 for column in zip(*seen, strict=True))
        print(f"{count} threads: {wall:6.2f} ms a tile, {cpu:6.2f} ms CPU")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, OpenCV {cv2.__version__}"
    if find_spec("kornia"):
        versions += f", kornia {import_module('kornia').__version__}"
    print(f"{versions}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if args.threads:
        threads(args.threads, args.rounds)
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for sizes in SIZES:
        table(*sizes, args.rounds)


if __name__ == "__main__":
    main()
