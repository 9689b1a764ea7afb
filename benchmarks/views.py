"""Multi-crop views of one batch of tiles: eosin's batched chain beside torchvision's, same settings, one thread.

Both make 2 x 224 + 8 x 98 crops from 256-px tiles with flips, colour jitter, grey, blur and solarise; eosin's second
row adds HED jitter, vertical flips and quarter turns, which torchvision does not have. python benchmarks/views.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import v2

from eosin.randomness import Words
from eosin.views import ViewsConfig, draw_views, render

TILES, ROUNDS = 16, 5
PLAIN = ViewsConfig(vertical_flip=0.0, quarter_turns=False)
FULL = ViewsConfig(hed_sigma=0.05)


def torchvision_views(tiles: torch.Tensor) -> None:
    """The chain of DINOv2 built from torchvision's transforms, tile by tile, as a loader runs it."""
    for tile in tiles:
        for chain, count in CHAINS:
            for _ in range(count):
                chain(tile)


def _chain(size: int, scale: tuple[float, float], blur: float, solarise: float) -> v2.Compose:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
            v2.RandomSolarize(128, solarise),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


CHAINS = [
    (_chain(224, PLAIN.global_scale, 1.0, 0.0), 1),
    (_chain(224, PLAIN.global_scale, 0.1, 0.2), 1),
    (_chain(98, PLAIN.local_scale, 0.5, 0.0), 8),
]


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of one tile over the rounds, after one round of warming up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) / TILES * 1e3


def main() -> None:
    """Print one line a chain, and the ratio."""
    torch.set_num_threads(1)
    small = np.random.default_rng(0).integers(60, 255, (TILES, 32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(small).repeat_interleave(8, 1).repeat_interleave(8, 2)  # [B, 256, 256, 3]
    channels_first = pixels.permute(0, 3, 1, 2).contiguous()

    def ours(config: ViewsConfig) -> None:
        render(pixels, draw_views(config, TILES, Words(0, "bench")), config)

    theirs = milliseconds(lambda: torchvision_views(channels_first))
    plain, full = milliseconds(lambda: ours(PLAIN)), milliseconds(lambda: ours(FULL))
    print(f"torchvision, tile by tile        {theirs:6.2f} ms a tile")
    print(f"eosin, the same chain            {plain:6.2f} ms a tile   {theirs / plain:.1f} x as fast")
    print(f"eosin, + HED, flips, turns       {full:6.2f} ms a tile   {theirs / full:.1f} x as fast")


if __name__ == "__main__":
    main()
