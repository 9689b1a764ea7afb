"""A slide of 100,000 × 100,000 px is learned from end to end within 8 GB of host memory, and survives a kill -9.

python -m benchmarks.whole_slide.large_slide -o OUT [--tiles 21000] [--side 100000] [--steps 3] [--set KEY=VALUE]

The slide is a tiled pyramidal TIFF in which all glass is one stored tile and all tissue one of 64, so the file is
small while every tile is decoded as in any other. `--tiles` of its 256-px tiles are tissue. A second, small slide gives
the other class. Each optimiser step trains on both: once without interruption, once killed (SIGKILL) in the second step
when the first slide's gradients had been saved, and run again. PASS: peak memory of the process at most 8 GB, and equal
tensors.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from eosin.files import atomic_path
from eosin.runs import RunFolder
from eosin.slides import Cohort
from eosin.slides.synthetic import LABEL_DOWNSAMPLE, TISSUES, paint_slide

MPP, TILE_PX, SIDE_PX, BLOBS, COARSE = 0.5, 256, 100_000, 64, 16
LIMIT_GB = 8.0
GLASS = (243, 243, 243)
Pixels = npt.NDArray[np.uint8]
RECIPE = [
    "pyramid.size_px=256",
    "pyramid.side=16",
    "step2.regions={side: 16, count: 4, min_tiles: 64, global_side: 14, local_side: 6, local_count: 4}",
    "step2.sampling=passes",
    "step2.slides=2",
    "step2.tile_frozen_slides=0",
    "step2.region_frozen_slides=0",
    "step2.warmup_slides=0",
    "labels.held_out=0.0",
    "tiles.size_px=256",
    "run.steps=0",
    "run.batch=16",
    "run.workers=0",
    "run.log_to=[]",
    "run.log_every=1",
    "run.monitor_every=100%",
    "run.monitor_tiles=16",
    "run.precision=fp32",
]


def tissue_blobs() -> list[Pixels]:
    """64 different tiles of painted tissue."""
    found: list[Pixels] = []
    number = 0
    while len(found) < BLOBS:
        pixels, labels, _ = paint_slide(4096, MPP, 7, number)
        cell = TILE_PX // LABEL_DOWNSAMPLE
        tissue = (labels < TISSUES.index("background")).reshape(len(labels) // cell, cell, -1, cell).mean(axis=(1, 3))
        for row, column in np.argwhere(tissue == 1):
            found.append(pixels[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX])
        number += 1
    return found[:BLOBS]


def write_sparse(path: Path, side_px: int, tissue: int, blobs: list[Pixels]) -> None:
    """A square slide with `tissue` tissue tiles in a block in its middle, and a level of a 16th."""
    across = -(-side_px // TILE_PX)
    width = int(np.ceil(np.sqrt(tissue)))
    top = (across - width) // 2
    index = np.zeros((across, across), np.int64)  # 0: glass, n: tissue blob n - 1
    block = np.where(np.arange(width * width) < tissue, np.arange(width * width) % BLOBS + 1, 0).reshape(width, width)
    index[top : top + width, top : top + width] = block
    glass = np.full((TILE_PX, TILE_PX, 3), GLASS, np.uint8)
    stored = [zlib.compress(one.tobytes(), 6) for one in (glass, *blobs)]
    small = np.stack(
        [cv2.resize(one, (TILE_PX // COARSE,) * 2, interpolation=cv2.INTER_AREA) for one in (glass, *blobs)]
    )
    coarse_px, coarse_across = side_px // COARSE, -(-(side_px // COARSE) // TILE_PX)
    padded = np.zeros((coarse_across * COARSE, coarse_across * COARSE), np.int64)
    padded[:across, :across] = index
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"II*\0" + bytes(4))
        offsets = []
        for data in stored:
            offsets.append((file.tell(), len(data)))
            file.write(data)
        coarse = []
        for row in range(coarse_across):
            for column in range(coarse_across):
                part = small[padded[row * COARSE : (row + 1) * COARSE, column * COARSE : (column + 1) * COARSE]]
                data = zlib.compress(np.ascontiguousarray(part.swapaxes(1, 2)).tobytes(), 6)
                coarse.append((file.tell(), len(data)))
                file.write(data)
        first = write_directory(file, side_px, [offsets[blob] for blob in index.ravel()], 0)
        second = write_directory(file, coarse_px, coarse, 1)
        file.seek(first[1])
        file.write(struct.pack("<I", second[0]))
        file.seek(4)
        file.write(struct.pack("<I", first[0]))


def write_directory(file: Any, side_px: int, tiles: list[tuple[int, int]], reduced: int) -> tuple[int, int]:
    """One TIFF directory; where it begins, and where the pointer to the next one stands."""
    text = f"Aperio Image Library\n{side_px}x{side_px} RGB|MPP = {MPP:g}\0".encode()

    def put(data: bytes) -> int:
        file.seek(0, os.SEEK_END)
        file.write(bytes(file.tell() % 2))
        begin = int(file.tell())
        file.write(data)
        return begin

    count = len(tiles)
    places = put(struct.pack(f"<{count}I", *(place for place, _ in tiles)))
    lengths = put(struct.pack(f"<{count}I", *(length for _, length in tiles)))
    entries = [
        (254, 4, 1, reduced),
        (256, 4, 1, side_px),
        (257, 4, 1, side_px),
        (258, 3, 3, put(struct.pack("<3H", 8, 8, 8))),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (270, 2, len(text), put(text)),
        (277, 3, 1, 3),
        (284, 3, 1, 1),
        (322, 3, 1, TILE_PX),
        (323, 3, 1, TILE_PX),
        (324, 4, count, places),
        (325, 4, count, lengths),
    ]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    begin = put(body + bytes(4))
    return begin, begin + len(body)


def make_cohort(folder: Path, tiles: int, side_px: int) -> Path:
    """The large slide and a small one, indexed, with the labels of `kind`."""
    name = f"large-{side_px}-{tiles}"
    out = folder / f"{name}.parquet"
    if out.is_file():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    blobs = tissue_blobs()
    write_sparse(folder / f"{name}.svs", side_px, tiles, blobs)
    write_sparse(folder / "small.svs", 8192, 200, blobs)
    (folder / "labels.csv").write_text(f"slide,patient,kind\n{name}.svs,p1,a\nsmall.svs,p2,b\n")
    slides = [folder / f"{name}.svs", folder / "small.svs"]
    cohort = Cohort.index(slides, out, metadata=folder / "labels.csv", workers=0)
    for row in cohort.usable.to_dict("records"):
        size = Path(row["path"]).stat().st_size / 1e6
        print(f"{row['slide_id']}: {row['width']:,} x {row['height']:,} px, {row['tissue_mm2']:.1f} mm², {size:.0f} MB")
    return out


def child(words: argparse.Namespace) -> None:
    """Train; die in the second step where asked to, after the first slide's gradients were saved."""
    from eosin.training import train
    from eosin.training.curriculum import partial

    write = partial.PartialFile.write

    def write_and_die(self: Any, part: Any, module: Any) -> None:
        write(self, part, module)
        if words.kill and part.step == 1 and part.done == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    partial.PartialFile.write = write_and_die
    start = time.perf_counter()
    changes = [*RECIPE, f"step2.passes={words.steps}", "tasks=[{column: kind}]", *words.set]
    train("pyramid-quickstart", words.child, cohort=[str(words.cohort)], set=changes, device=words.device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = f", GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GB" if torch.cuda.is_available() else ""
    print(
        f"{words.child.name}: peak {peak:.2f} GB of host memory{gpu}, {time.perf_counter() - start:.0f} s", flush=True
    )
    (words.child / "peak_gb").write_text(f"{peak}")


def run_child(words: argparse.Namespace, run: Path, cohort: Path, kill: bool) -> int:
    """A fresh process; its exit code."""
    sets = [word for change in words.set for word in ("--set", change)]
    call = [sys.executable, "-m", "benchmarks.whole_slide.large_slide", "--child", run, "--cohort", cohort]
    call += ["--steps", words.steps, *(["--kill"] if kill else []), *sets]
    call += ["--device", words.device] if words.device else []
    return subprocess.run([str(word) for word in call], check=False).returncode


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    folder, found = RunFolder(run), {}
    for file in folder.checkpoint(folder.steps()[-1]).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def main() -> None:
    """Write, train, kill, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("large-slide"))
    parser.add_argument("--tiles", type=int, default=21_000, help="tissue tiles of the large slide")
    parser.add_argument("--side", type=int, default=SIDE_PX, help="px along the large slide")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="change a value of the recipe")
    parser.add_argument("--device")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cohort", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        return child(words)
    cohort = make_cohort(words.out / "slides", words.tiles, words.side)
    whole, parts = words.out / "whole", words.out / "parts"
    assert run_child(words, whole, cohort, kill=False) == 0
    if not (parts / "peak_gb").exists():
        code = run_child(words, parts, cohort, kill=True)
        print(f"killed in step 2: exit code {code}")
        assert code == -signal.SIGKILL
    assert run_child(words, parts, cohort, kill=False) == 0
    left, right = tensors(whole), tensors(parts)
    same = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    peak = max(float((run / "peak_gb").read_text()) for run in (whole, parts))
    print(f"peak {peak:.2f} GB of {LIMIT_GB:g} GB: {'PASS' if peak <= LIMIT_GB else 'FAIL'}")
    print(f"killed and run again, {len(left)} tensors bit for bit the same: {'PASS' if same else 'FAIL'}")
    return None


if __name__ == "__main__":
    main()
