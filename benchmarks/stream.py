"""Kept training tiles a second, end to end: from a slide's file to tiles that passed all filters, and to their crops.

One Aperio slide (pyramid 1/4/16) is written from the real images of DATA/monuseg_train (benchmarks/slides_files.py).
Every way draws 256-px tiles at .25, .5, 1 and 2 µm/px alike, at least 40 % tissue, and keeps those of which 60 % lie in
the HSV window. "10 crops" are 2 x 224 and 8 x 98 px. Each way runs in `--processes` processes of one thread; wall
counts the tiles of all of them, CPU the processor time of all of them, and of reading processes where there are any.
eosin is measured once its stream is in its stride (one round of tiles/visits.py), without the store of decoded tiles,
which on a single slide would hide the work. OpenSlide keeps its own store. wsistream reads the nearest stored level and
does not resample to the wanted µm/px; it is left out where it is not installed (pip install --no-deps wsistream).

    python benchmarks/stream.py DATA -o FOLDER [--side 30720] [--seconds 8] [--processes 2] [--only PART]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from slides_files import write_slides

from eosin.randomness import Words
from eosin.slides import Cohort, tiff_cache
from eosin.tiles import SlideSource, TilePlan, TilesConfig, TileStream, hsv_share
from eosin.views import ViewsConfig, draw_views, render

SIZE, SCALES, HSV, BATCH = 256, [0.25, 0.5, 1.0, 2.0], 0.6, 64
FULL = ViewsConfig(vertical_flip=0.0, quarter_turns=False)
CROPS = FULL.model_copy(
    update={"jitter_probability": 0, "grey_probability": 0, "blur_probability": (0, 0, 0), "solarise_probability": 0}
)
LONGEST_START = 180.0  # seconds until a way is in its stride


@dataclass(frozen=True)
class Setting:
    """What a way works on: the slide, its cohort, and which of how many processes it is."""

    slide: Path
    cohort: Path
    rank: int
    world: int


Way = Callable[[Setting], Iterator[tuple[int, bool]]]
"""Yields how many tiles it has kept since, and whether it is in its stride."""


def config(per_visit: int = 1) -> TilesConfig:
    """The tiles that all ways draw."""
    return TilesConfig(size_px=SIZE, mpp=SCALES, hsv_share=HSV, tiles_per_visit=per_visit)


def eosin(per_visit: int, views: ViewsConfig | None = None, workers: int = 0) -> Way:
    """eosin's stream; crops are made by the process itself."""

    def way(setting: Setting) -> Iterator[tuple[int, bool]]:
        rank, world = (0, 1) if workers else (setting.rank, setting.world)
        plan = TilePlan([SlideSource(Cohort.read(setting.cohort), config(per_visit), 0)], 0, batch=BATCH)
        first = plan.spread.round_steps if plan.spread else 1
        stream = TileStream(plan, BATCH, rank=rank, world=world, workers=workers)
        tiff_cache.shared.limit = 0
        for batch in stream:
            if views is not None and batch.step >= first:
                render(batch.pixels, draw_views(views, len(batch.pixels), Words(0, "views", batch.step, rank)), views)
            yield len(batch.pixels), batch.step >= first

    return way


def openslide(crops: bool) -> Way:
    """openslide-python at eosin's own positions, area reduction to the wanted scale, torchvision on PIL."""

    def way(setting: Setting) -> Iterator[tuple[int, bool]]:
        import openslide as library
        from PIL import Image

        source = SlideSource(Cohort.read(setting.cohort), config(), 0)
        slide = library.OpenSlide(setting.slide)
        native = float(source.cohort.usable["mpp_x"].iloc[0])
        chains = torchvision_chains() if crops else []
        for index in range(setting.rank, 1 << 40, setting.world):
            at = source.draw(1, 0, index, 0)
            level = slide.get_best_level_for_downsample(at.mpp / native * 1.001)
            side = round(SIZE * at.mpp / (native * slide.level_downsamples[level]))
            pixels = np.asarray(slide.read_region((at.x, at.y), level, (side, side)).convert("RGB"))
            if side != SIZE:
                pixels = cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
            if hsv_share(pixels) < HSV:
                continue
            image = Image.fromarray(pixels)
            for chain, count in chains:
                for _ in range(count):
                    chain(image)
            yield 1, True

    return way


def torchvision_chains() -> list[tuple[Callable[[Any], Any], int]]:
    """DINOv2's chain and number of each kind of crop."""
    from torchvision.transforms import v2

    first, later, local = FULL.blur_probability
    kinds = [
        (FULL.global_px, FULL.global_scale, first, 0.0, 1),
        (FULL.global_px, FULL.global_scale, later, FULL.solarise_probability, 1),
        (FULL.local_px, FULL.local_scale, local, 0.0, FULL.local_count),
    ]
    return [
        (
            v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
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
        for size, scale, blur, solarise, count in kinds
    ]


def wsistream(crops: bool) -> Way:
    """wsistream's pipeline with its CLAM mask, its HSV filter and, with `crops`, its ten crops, without colour."""

    def way(setting: Setting) -> Iterator[tuple[int, bool]]:
        import wsistream as library

        views = [
            library.ViewConfig("global", crop=library.RandomResizedCrop(224, FULL.global_scale), count=2),
            library.ViewConfig("local", crop=library.RandomResizedCrop(98, FULL.local_scale), count=8),
        ]
        pipeline = library.PatchPipeline(
            slide_paths=[str(setting.slide)],
            backend=library.OpenSlideBackend(),
            tissue_detector=library.CLAMTissueDetector(),
            sampler=library.MultiMagnificationSampler(target_mpps=SCALES, patch_size=SIZE),
            patch_filter=library.HSVPatchFilter(min_pixel_fraction=HSV),
            views=views if crops else None,
            pool_size=1,
            patches_per_slide=1 << 40,
            cycle=True,
            seed=setting.rank,
        )
        for _ in pipeline:
            yield 1, True

    return way


WAYS: dict[str, Way] = {
    "OpenSlide + torchvision, 10 crops": openslide(crops=True),
    "OpenSlide, source tiles": openslide(crops=False),
    "wsistream, 10 crops without colour": wsistream(crops=True),
    "wsistream, source tiles": wsistream(crops=False),
    "eosin tile by tile, source tiles": eosin(1),
    "eosin k=4, source tiles": eosin(4),
    "eosin k=8, source tiles": eosin(8),
    "eosin k=4, 10 crops without colour": eosin(4, CROPS),
    "eosin k=4, 10 crops": eosin(4, FULL),
    "eosin k=4, source tiles, by reading processes": eosin(4, workers=2),
}


def measure(way: Way, slide: Path, cohort: Path, seconds: float, processes: int) -> dict[str, float]:
    """Kept tiles a second by the clock and by the processor, of all processes together."""
    context = multiprocessing.get_context("fork")
    told, ready = context.Queue(), context.Barrier(processes)
    every = [
        context.Process(target=_work, args=(way, Setting(slide, cohort, rank, processes), seconds, ready, told))
        for rank in range(processes)
    ]
    for one in every:
        one.start()
    results = [told.get() for _ in every]
    for one in every:
        one.join()
    if problem := next((result for result in results if isinstance(result, str)), None):
        raise RuntimeError(problem)
    tiles, cpu = sum(result[0] for result in results), sum(result[1] for result in results)
    return {"wall": sum(result[0] / result[2] for result in results), "cpu": tiles / cpu}


def _work(way: Way, setting: Setting, seconds: float, ready: Any, told: Any) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        stream, begun = way(setting), time.perf_counter()
        while not next(stream)[1] or time.perf_counter() - begun < 1.0:
            if time.perf_counter() - begun > LONGEST_START:
                raise TimeoutError("not in its stride after three minutes")
        ready.wait()
        tiles, start, cpu = 0, time.perf_counter(), processor_seconds()
        while time.perf_counter() - start < seconds:
            tiles += next(stream)[0]
        told.put((tiles, processor_seconds() - cpu, time.perf_counter() - start))
    except Exception as error:  # a peer may fail in any way
        ready.abort()
        told.put(f"{type(error).__name__}: {error}")


def processor_seconds() -> float:
    """Of this process and of the processes that it started and that still run."""
    total = time.process_time()
    for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    """Write the slide, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds monuseg_train/images")
    parser.add_argument("-o", "--out", type=Path, required=True, help="where the slide and stream.json go")
    parser.add_argument("--side", type=int, default=30720, help="px of the slide")
    parser.add_argument("--seconds", type=float, default=8.0, help="wall time of one way")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="ways whose name holds this")
    words = parser.parse_args()
    slide = write_slides(words.data / "monuseg_train" / "images", words.out, words.side, ["aperio"])["aperio"].file
    cohort = slide.with_suffix(".parquet")
    if not cohort.exists():
        Cohort.index([str(slide)], cohort, workers=0)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {words.processes} processes")
    print(f"{slide.name}, {slide.stat().st_size / 1e6:.0f} MB; kept tiles a second of the clock and of the processor")
    results: dict[str, dict[str, float]] = {}
    for name, way in WAYS.items():
        if words.only not in name:
            continue
        if name.startswith("wsistream") and find_spec("wsistream") is None:
            print(f"{name:46} not installed")
            continue
        processes = 1 if "reading processes" in name else words.processes
        try:
            found = results[name] = measure(way, slide, cohort, words.seconds, processes)
        except RuntimeError as error:
            print(f"{name:46} {error}")
            continue
        first = next(iter(results.values()))
        ratio = f"{found['cpu'] / first['cpu']:8.1f} x" if len(results) > 1 else ""
        print(f"{name:46} {found['wall']:9.0f} {found['cpu']:9.0f} {ratio}", flush=True)
    (words.out / "stream.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
