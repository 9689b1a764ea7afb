"""Synthetic slides whose label hangs on less than one tile in a hundred, and on no colour at all.

A positive slide holds one whorl: a disc of tissue whose pixels are put into another order, bright and dark in
concentric rings. No pixel is added, changed or lost, so the colours of the disc, and of the slide, stay what they were.
"""

from __future__ import annotations

import csv
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import tifffile

from eosin.files import atomic_path, write_json
from eosin.progress import progress_bar
from eosin.randomness import Words
from eosin.slides.synthetic import LABEL_DOWNSAMPLE, TISSUES, paint_slide

MPP = 0.5
RADIUS_PX = 60
RING_PX = 12

Pixels = npt.NDArray[np.uint8]


def write_planted(folder: Path, a_class: int, size_px: int, seed: int, workers: int = 2) -> Path:
    """`a_class` slides with a whorl and as many without; returns labels.csv (slide, patient, split,
    whorl); every third slide of a class is for testing.

    truth.json: of each positive slide the centre of its whorl, level-0 px. Slides that lie there are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, number, number < a_class, size_px, seed) for number in range(2 * a_class)]
    missing = [job for job in jobs if not _path(folder, job[1]).is_file()]
    pool = ProcessPoolExecutor(workers, get_context("spawn"), cv2.setNumThreads, (1,))
    with pool, progress_bar("planted slides", len(missing), "slide") as bar:
        for _ in pool.map(_write, missing):
            bar.advance()
    paths = [_path(folder, number) for number in range(2 * a_class)]
    write_json(folder / "truth.json", {path.stem: json.loads(path.with_suffix(".json").read_text()) for path in paths})
    labels = folder / "labels.csv"
    with open(labels, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(("slide", "patient", "split", "whorl"))
        for _, number, positive, _, _ in jobs:
            split = "test" if number % 3 == 2 else "train"
            table.writerow((_path(folder, number).stem, f"p{number:03d}", split, "yes" if positive else "no"))
    return labels


def whorl(pixels: Pixels, x: int, y: int, radius_px: int = RADIUS_PX, ring_px: int = RING_PX) -> None:
    """Put the pixels of a disc around (x, y) into rings, in place: the brightest where a cosine of the radius is
    highest.
    """
    rows, cols = np.mgrid[y - radius_px : y + radius_px, x - radius_px : x + radius_px]
    radius = np.hypot(rows - y, cols - x)
    inside = radius < radius_px
    rows, cols, radius = rows[inside], cols[inside], radius[inside]
    place = np.argsort(np.cos(2 * np.pi * radius / ring_px), kind="stable")
    found = pixels[rows, cols]
    brightness = np.argsort(found.astype(int).sum(axis=1), kind="stable")
    pixels[rows[place], cols[place]] = found[brightness]


def _path(folder: Path, number: int) -> Path:
    return folder / f"slide-{number:03d}.svs"


def _write(job: tuple[Path, int, bool, int, int]) -> None:
    folder, number, positive, size_px, seed = job
    pixels, labels, stain = paint_slide(size_px, MPP, seed, number)
    centre = _place(labels, Words(seed, "whorl", number)) if positive else None
    if centre:
        whorl(pixels, *centre)
    path = _path(folder, number)
    write_json(path.with_suffix(".json"), centre)
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            pixels,
            tile=(256, 256),
            photometric="rgb",
            compression="jpeg",
            compressionargs={"level": max(stain.jpeg_quality, 85)},
            description=f"Aperio Image Library\n{size_px}x{size_px} JPEG/RGB|MPP = {MPP:g}",
            metadata=None,
        )


def _place(labels: npt.NDArray[np.uint8], words: Words) -> tuple[int, int]:
    """Centre of a disc that lies in tissue, level-0 px."""
    tissue = (labels < TISSUES.index("background")).astype(np.uint8)
    deep = cv2.distanceTransform(cv2.copyMakeBorder(tissue, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0), cv2.DIST_L2, 5)
    rows, cols = np.nonzero(deep[1:-1, 1:-1] * LABEL_DOWNSAMPLE > 1.5 * RADIUS_PX)
    pick = int(words.integers(len(rows)))
    return int(cols[pick] * LABEL_DOWNSAMPLE), int(rows[pick] * LABEL_DOWNSAMPLE)
