"""Peak memory and speed of one whole-slide gradient, by strategy and number of tiles.

python benchmarks/whole_slide/memory.py [--encoders tiny vit_s] [--strategies …] [--tiles …] [--repeats 3] [--device …]

Each measurement is a process of its own, which makes one slide (tiles from a keyed generator, drop path .1, two tasks),
runs `accumulate_slide` on it once and prints its peak: VmHWM on the host, torch's peak of allocated bytes on a GPU. The
peak of a large slide is predicted from two small ones and printed beside it. What is held for a while is reckoned from
the grid of tiles: regions that are read ahead, a chunk of stage 2, and tile vectors with their gradients; it stops
growing, so it must not be taken for a cost of every tile. What is left of the difference between the small slides is
what a tile costs in the graph of a strategy; multi-pass keeps none. What is predicted not to fit, on the device or on
the host, is not run; a prediction off by more than a fifth is said to be. PASS if multi-pass grows from the smallest to
the largest number of tiles by no more than 1.1 times its tile vectors and their gradients, and 64 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STRATEGIES = ("full", "checkpoint", "offload", "multi-pass")
MB = 1e6
SLACK_MB = 64
REGION_CHUNK, AHEAD = 4, 2
TOLERANCE = 0.2
"""Of a prediction, as a share of the peak that is measured then."""
NUMBERS_A_TOKEN = 18
"""What a block keeps of a token for backward, in widths, with the two activations of its MLP (4 each)."""


@dataclass(frozen=True)
class Encoder:
    """A stage 1 and the slides that it is measured on."""

    width: int
    depth: int
    heads: int
    tile_px: int
    tiles: tuple[int, ...]
    small: tuple[int, int]
    """Tiles of the two slides from which memory is predicted: both fill a chunk of stage 1, if not one of stage 2."""
    chunk: int


ENCODERS = {
    "tiny": Encoder(64, 2, 2, 32, (1_000, 5_000, 10_000, 50_000), (2_000, 4_000), 128),
    "vit_s": Encoder(384, 12, 6, 256, (64, 256, 1_000), (32, 96), 8),
    "vit_b": Encoder(768, 12, 12, 256, (1_000, 5_000, 10_000, 50_000), (128, 256), 128),
}


def pyramid_of(encoder: Encoder, device: str) -> Any:
    """All three stages, of the encoder's width."""
    import torch

    from eosin.models import EncoderConfig
    from eosin.models.pyramid import Pyramid
    from eosin.models.pyramid_config import PyramidConfig, StageConfig
    from eosin.models.slide_task import SlideTask

    width, heads, depth = encoder.width, encoder.heads, encoder.depth
    config = PyramidConfig(
        tile=EncoderConfig(width=width, depth=depth, heads=heads, patch=16, grid=encoder.tile_px // 16, drop_path=0.1),
        tile_px=encoder.tile_px,
        region=StageConfig(width=width, depth=max(depth // 2, 1), heads=heads, positions="table", drop_path=0.1),
        slide=StageConfig(width=width, depth=2, heads=heads, positions="rotary", drop_path=0.1),
    )
    tasks = (SlideTask("msi", "binary"), SlideTask("subtype", "classification", ("a", "b", "c")))
    return Pyramid(config, tasks, generator=torch.Generator().manual_seed(0)).to(device)


def slide_of(tiles: int, tile_px: int) -> Any:
    """A slide with holes: nine of ten places of a square hold tissue."""
    import numpy as np
    import torch

    from eosin.randomness import Words
    from eosin.tiles.pyramid_grid import region_grid
    from eosin.training.whole_slide import SlideSample

    extent = int((tiles / 0.9) ** 0.5) + 1
    place = np.sort(Words(0, "tissue").permutations(extent * extent)[:tiles])
    grid = region_grid(place // extent, place % extent)

    def read(region: int) -> Any:
        pixels = np.empty((int(grid.counts[region]), tile_px, tile_px, 3), np.uint8)
        for number, tile in enumerate(pixels):  # a tile at a time: the numbers drawn are of 8 bytes
            tile[:] = Words(0, "pixels", region, number).integers(256, *tile.shape)
        return pixels

    return SlideSample("benchmark", grid, read, {"msi": torch.tensor([1]), "subtype": torch.tensor([2])})


def measure(name: str, strategy: str, tiles: int, args: argparse.Namespace) -> dict[str, float]:
    """One gradient, in this process."""
    import torch

    from eosin.models.pyramid_draws import SlideDraws
    from eosin.training.whole_slide import SlideObjective, WholeSlideSettings, accumulate_slide

    torch.set_num_threads(args.threads)
    encoder, on_gpu = ENCODERS[name], args.device.startswith("cuda")
    pyramid, sample = pyramid_of(encoder, args.device), slide_of(tiles, encoder.tile_px)
    settings = WholeSlideSettings(
        strategy=strategy, tile_chunk=encoder.chunk, region_chunk=REGION_CHUNK, ahead=AHEAD, precision=args.precision
    )  # type: ignore[arg-type]
    goal = SlideObjective.of_step(pyramid.tasks, [sample.targets])
    # A small slide first: kernels and threads are there before anything is timed.
    small = slide_of(4, encoder.tile_px)
    accumulate_slide(pyramid, small, settings, SlideDraws(0, 0, "first"), goal)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    # What importing and building took is not to hide what the slide takes: the mark starts at what is in use now.
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    accumulate_slide(pyramid, sample, settings, SlideDraws(0, 1, "benchmark"), goal)
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    host = high_water_mb()
    device = torch.cuda.max_memory_allocated() / MB if on_gpu else host
    norm = sum(float(p.grad.double().square().sum()) for p in pyramid.tile.parameters() if p.grad is not None)
    return {"device_mb": device, "host_mb": host, "seconds": seconds, "grad_norm": norm**0.5}


def high_water_mb() -> float:
    """Largest resident memory of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MB
    raise SystemExit("no VmHWM in /proc/self/status: this benchmark needs Linux")


def in_own_process(name: str, strategy: str, tiles: int, args: argparse.Namespace) -> dict[str, float] | None:
    """What `measure` gives in a fresh process; none if it was killed or ran out of memory."""
    words = [sys.executable, __file__, "--one", name, strategy, str(tiles), "--device", args.device]
    words += ["--threads", str(args.threads), "--precision", args.precision]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    if done.returncode in (-9, 137) or "OutOfMemory" in done.stderr or "can't allocate memory" in done.stderr:
        return None
    raise SystemExit(f"{name} {strategy} {tiles}: {done.stderr[-2000:]}")


def room_mb(device: str) -> dict[str, float]:
    """Memory that a process may fill, on the device and on the host."""
    available = Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]
    host = int(available) * 1024 / MB
    if not device.startswith("cuda"):
        return {"device_mb": host, "host_mb": host}
    import torch

    return {"device_mb": float(torch.cuda.mem_get_info(device)[0]) / MB, "host_mb": host}


def tiles_of_regions(encoder: Encoder, tiles: int) -> list[int]:
    """Of a slide of so many tiles, region by region."""
    return [int(count) for count in slide_of(tiles, encoder.tile_px).grid.counts]


def largest_chunk(counts: list[int]) -> int:
    """Tiles in the fullest chunk of stage 2."""
    return max(sum(counts[first : first + REGION_CHUNK]) for first in range(0, len(counts), REGION_CHUNK))


def held_mb(encoder: Encoder, tiles: int, device: str) -> dict[str, float]:
    """What a slide of so many tiles takes beside the graph of stage 1, on the device and on the host."""
    counts = tiles_of_regions(encoder, tiles)
    together = largest_chunk(counts)
    depth = max(encoder.depth // 2, 1)
    vectors = 2 * 4 * encoder.width * tiles
    stage2 = 4 * NUMBERS_A_TOKEN * encoder.width * depth * together
    pixels = 3 * encoder.tile_px**2 * sum(sorted(counts)[-(AHEAD + 2) :])  # waiting, in hand, being cut
    if device.startswith("cuda"):
        return {"device_mb": (vectors + stage2) / MB, "host_mb": pixels / MB}
    return dict.fromkeys(("device_mb", "host_mb"), (vectors + stage2 + pixels) / MB)


def predict(
    encoder: Encoder, strategy: str, small: list[dict[str, float]], tiles: int, device: str
) -> dict[str, float]:
    """Peak of a slide of so many tiles, on the device and on the host; small: peaks of the two small slides."""
    held = {count: held_mb(encoder, count, device) for count in (*encoder.small, tiles)}
    first, second = encoder.small
    found = {}
    for where, whole in held[tiles].items():
        rest = [peak[where] - held[count][where] for peak, count in zip(small, encoder.small, strict=True)]
        a_tile = 0.0 if strategy == "multi-pass" else max((rest[1] - rest[0]) / (second - first), 0.0)
        found[where] = rest[1] + a_tile * (tiles - second) + whole
    return found


def line(tiles: int, predicted: dict[str, float], device: str) -> str:
    """Numbers for a row: tiles and predicted megabytes."""
    host = f" + {predicted['host_mb']:,.0f} on the host" if device.startswith("cuda") else ""
    return f"{tiles:,} | {predicted['device_mb']:,.0f}{host}"


def ladder(name: str, strategy: str, args: argparse.Namespace) -> dict[int, float]:
    """Measure one encoder and strategy on all its slides; prints a row each, returns the median peaks."""
    encoder = ENCODERS[name]
    runs = [in_own_process(name, strategy, tiles, args) for tiles in encoder.small]
    small = [run for run in runs if run is not None]
    if len(small) < len(runs):
        print(f"| {name} | {strategy} | {encoder.small[1]} | | did not fit, not even this small one | | |", flush=True)
        return {}
    found: dict[int, float] = {}
    for tiles in args.tiles or encoder.tiles:
        predicted, room = predict(encoder, strategy, small, tiles, args.device), room_mb(args.device)
        row = f"| {name} | {strategy} | {line(tiles, predicted, args.device)} |"
        short = [where for where in room if predicted[where] > 0.9 * room[where]]
        if short:
            print(f"{row} did not fit: {room[short[0]]:,.0f} MB there are | | |", flush=True)
            continue
        runs = [in_own_process(name, strategy, tiles, args) for _ in range(args.repeats)]
        good = [run for run in runs if run is not None]
        if len(good) < len(runs):
            print(f"{row} DID NOT FIT ALTHOUGH IT WAS PREDICTED TO | | |", flush=True)
            continue
        found[tiles] = statistics.median(run["device_mb"] for run in good)
        seconds = statistics.median(run["seconds"] for run in good)
        off = predicted["device_mb"] / found[tiles] - 1
        doubt = f" PREDICTION OFF BY {off:+.0%}" if abs(off) > TOLERANCE else ""
        print(f"{row} {found[tiles]:,.0f}{doubt} | {seconds:,.1f} | {tiles / seconds:,.1f} |", flush=True)
    return found


def verdict(name: str, peaks: dict[int, float]) -> str:
    """Whether multi-pass grows by the tile vectors and their gradients alone."""
    if len(peaks) < 2:
        return "no verdict: fewer than two numbers of tiles were measured"
    least, most = min(peaks), max(peaks)
    full, chunk = (largest_chunk(tiles_of_regions(ENCODERS[name], tiles)) for tiles in (most, least))
    if chunk < 0.5 * full:
        return (
            f"no verdict for {name}: {least:,} tiles do not half fill a chunk of stage 2 ({chunk:,} tiles of {full:,})"
        )
    grown = peaks[most] - peaks[least]
    allowed = 1.1 * 2 * 4 * ENCODERS[name].width * (most - least) / MB + SLACK_MB
    told = f"{name} multi-pass: peak({most:,}) - peak({least:,}) = {grown:,.0f} MB, allowed {allowed:,.0f} MB"
    return f"{'PASS' if grown <= allowed else 'FAIL'} {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["tiny", "vit_s"], choices=list(ENCODERS))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--tiles", nargs="+", type=int, help="instead of the encoder's own numbers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--one", nargs=3, metavar=("ENCODER", "STRATEGY", "TILES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], args.one[1], int(args.one[2]), args)))
        return
    from importlib.metadata import version

    machine = f"{platform.machine()}, {args.threads} thread(s), {args.device}, {args.precision}"
    print(f"torch {version('torch')}, {machine}, median of {args.repeats}, each in a process of its own\n")
    print(
        "| stage 1 | strategy | tiles | predicted MB | peak MB | s a slide | tiles/s |\n|---|---|---|---|---|---|---|"
    )
    verdicts = []
    for name in args.encoders:
        for strategy in args.strategies:
            peaks = ladder(name, strategy, args)
            if strategy == "multi-pass":
                verdicts.append(verdict(name, peaks))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
