"""Synthetic H&E slides with known tissue: what `eosin quickstart` runs on when it is given no slides.

A slide is a smooth piece of tissue on glass, divided into regions of six tissues, with pen marks at its
border. `synthetic_layout` says what lies where, `synthetic_tissue` paints how much dye binds there,
`synthetic_stain` turns dye into colour; this file puts a slide together and writes pyramids and labelled
tiles. Stain, light, focus and JPEG quality differ so much from slide to slide that colour alone does not tell
the tissues apart on a slide not seen before.

It does not imitate a disease or a scanner, and nothing trained on it is of use on patients. One seed gives
the same pixels wherever numpy, OpenCV and the JPEG encoder compute the same.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cv2
import numpy as np
import tifffile

from eosin.errors import OutputError
from eosin.files import PathLike, atomic_folder, atomic_path, check_writable, write_bytes
from eosin.progress import progress_bar
from eosin.randomness import Words
from eosin.slides.synthetic_field import Array, Field, Map, lattice_noise
from eosin.slides.synthetic_layout import TISSUES, Labels, Layout, draw_layout
from eosin.slides.synthetic_stain import Pixels, Stain, develop, draw_stain
from eosin.slides.synthetic_tissue import PAINTERS, paint_tissue

__all__ = ["LABEL_DOWNSAMPLE", "PROBE_SLIDES", "TISSUES", "paint_slide", "write_probe", "write_slides"]

LABEL_DOWNSAMPLE = 8
PROBE_SLIDES = 5

_VERSION = 1
_TILE_PX = 256
_PYRAMID_STEP = 4
_PROBE_MARK = "probe.txt"
_MARGIN_UM = 40.0  # how far outside the tissue a region is still painted: its edge is ragged
_PAD_CELLS = 3  # what the soft mask of a region reaches beyond it


def write_slides(
    folder: PathLike,
    count: int = 6,
    size_px: int = 4096,
    mpp: float = 0.5,
    seed: int = 0,
    workers: int | None = None,
) -> list[Path]:
    """Write `count` slides of `size_px` x `size_px` pixels at `mpp` µm/px and return their paths.

    `synthetic-01.svs` ... are tiled JPEG pyramids with an Aperio-style description (OpenSlide takes no µm/px
    from plain TIFF); `synthetic-01.labels.png` is the truth: uint8 indices into `TISSUES`, 8 times smaller.
    Complete files of the same parameters are kept. `workers` processes (None: one a CPU) write a slide each.

    Raises OutputError where the folder cannot be written or the parameters make no slide.
    """
    if count < 1 or size_px < 2 * _TILE_PX or not 0.1 <= mpp <= 8.0:
        raise OutputError(
            f"cannot make {count} synthetic slides of {size_px} px at {mpp} µm/px in {folder}: "
            f"give count >= 1, size_px >= {2 * _TILE_PX}, mpp within 0.1-8"
        )
    target = check_writable(folder)
    paths = [target / f"synthetic-{number:02d}.svs" for number in range(1, count + 1)]
    jobs = [(path, size_px, mpp, seed, number) for number, path in enumerate(paths, start=1)]
    jobs = [job for job in jobs if not _is_written(*job)]
    workers = min(workers or _cpus(), len(jobs))
    with progress_bar("synthetic slides", len(jobs), "slide") as bar:
        if workers <= 1:
            for job in jobs:
                _write_slide(*job)
                bar.advance()
            return paths
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, cv2.setNumThreads, (1,)) as pool:
            for done in as_completed([pool.submit(_write_slide, *job) for job in jobs]):
                done.result()
                bar.advance()
    return paths


def paint_slide(size_px: int, mpp: float, seed: int, number: int) -> tuple[Pixels, Labels, Stain]:
    """Slide `number` of `seed`: uint8 RGB [size_px, size_px, 3], labels [size_px // 8] * 2, stain."""
    layout = draw_layout(size_px, mpp, Words(seed, "slide", number, "layout"))
    stain = draw_stain(Words(seed, "slide", number, "stain"))
    haematoxylin = np.zeros((size_px, size_px), np.float32)
    eosin = np.zeros((size_px, size_px), np.float32)
    for region in np.unique(layout.region[layout.edge_um > -_MARGIN_UM]).tolist():
        words = Words(seed, "slide", number, "region", region)
        _paint_region(layout, region, mpp, words, haematoxylin, eosin)
    cover = _tissue_cover(layout, size_px, mpp, Words(seed, "slide", number, "cover"))
    haematoxylin *= cover
    eosin *= cover
    pen = np.clip(3.0 * _enlarge(layout.pen, layout.cell_px)[:size_px, :size_px] - 1.0, 0, 1)
    pen *= 0.85 + 0.10 * lattice_noise(Words(seed, "slide", number, "ink"), size_px, size_px, 60.0, mpp)
    pixels = develop(haematoxylin, eosin, stain, mpp, Words(seed, "slide", number, "camera"), pen)
    return pixels, layout.labels(size_px, LABEL_DOWNSAMPLE), stain


def _paint_region(layout: Layout, region: int, mpp: float, words: Words, haematoxylin: Map, eosin: Map) -> None:
    """Paint one region on the rectangle around it and add it, weighted by a soft mask, to the slide's maps.

    The masks of all regions sum to 1 everywhere, so neighbours blend over about two cells.
    """
    inside = layout.region == region
    rows, cols = np.nonzero(inside & (layout.edge_um > -_MARGIN_UM))
    top, left = max(rows.min() - _PAD_CELLS, 0), max(cols.min() - _PAD_CELLS, 0)
    box = np.s_[top : rows.max() + 1 + _PAD_CELLS, left : cols.max() + 1 + _PAD_CELLS]
    mask = inside[box]
    deep = cv2.distanceTransform((mask & (layout.edge_um[box] > 0)).astype(np.uint8), cv2.DIST_L2, 5)
    deep = deep * layout.cell_um

    def depth_um(points: Array) -> Array:
        cell = (points / layout.cell_um).astype(int)
        return np.asarray(deep[cell[:, 1].clip(0, deep.shape[0] - 1), cell[:, 0].clip(0, deep.shape[1] - 1)])

    field = Field(mask.shape[0] * layout.cell_px, mask.shape[1] * layout.cell_px, mpp, words, depth_um)
    paint_tissue(TISSUES[layout.tissues[region]], field)
    weight = _enlarge(cv2.GaussianBlur(mask.astype(np.float32), (5, 5), 0.8), layout.cell_px)
    y, x = top * layout.cell_px, left * layout.cell_px
    height = min(weight.shape[0], haematoxylin.shape[0] - y)
    width = min(weight.shape[1], haematoxylin.shape[1] - x)
    here, part = np.s_[y : y + height, x : x + width], np.s_[:height, :width]
    haematoxylin[here] += (weight * field.haematoxylin)[part]
    eosin[here] += (weight * field.eosin)[part]


def _tissue_cover(layout: Layout, size_px: int, mpp: float, words: Words) -> Map:
    """Dye factor [size_px, size_px]: 0 on glass, about 1 in tissue; ragged edge, uneven thickness."""
    edge = _enlarge(layout.edge_um, layout.cell_px)[:size_px, :size_px]
    edge = edge + 2.0 * lattice_noise(words, size_px, size_px, 9.0, mpp)
    cover = np.clip(edge / 4.0 + 0.5, 0, 1)
    return np.asarray(cover * (1 + 0.08 * lattice_noise(words, size_px, size_px, 350.0, mpp)), np.float32)


def _enlarge(cells: Map, factor: int) -> Map:
    return np.asarray(cv2.resize(cells, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR), np.float32)


def _write_slide(path: Path, size_px: int, mpp: float, seed: int, number: int) -> None:
    """Labels first, then the slide: where a slide exists, the labels beside it are its own."""
    pixels, labels, stain = paint_slide(size_px, mpp, seed, number)
    path.unlink(missing_ok=True)
    write_bytes(path.with_suffix(".labels.png"), _encode(".png", labels))
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        description = _description(size_px, mpp, seed, number)
        while True:
            tiff.write(
                pixels,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": stain.jpeg_quality},
                subsampling=(2, 2),
                description=description,
                metadata=None,
                software=False,
                maxworkers=1,
            )
            if len(pixels) < 2 * _TILE_PX:
                break
            smaller = len(pixels) // _PYRAMID_STEP
            pixels = np.asarray(cv2.resize(pixels, (smaller, smaller), interpolation=cv2.INTER_AREA), np.uint8)


def _description(size_px: int, mpp: float, seed: int, number: int) -> str:
    """Aperio-style ImageDescription; the last entry names everything that determines the pixels."""
    return (
        f"Aperio Image Library\n{size_px}x{size_px} ({_TILE_PX}x{_TILE_PX}) JPEG/RGB"
        f"|AppMag = {10 / mpp:g}|MPP = {mpp:g}|eosin synthetic = v{_VERSION} seed {seed} slide {number}"
    )


def _is_written(path: Path, size_px: int, mpp: float, seed: int, number: int) -> bool:
    if not (path.is_file() and path.with_suffix(".labels.png").is_file()):
        return False
    try:
        with tifffile.TiffFile(path) as tiff:
            return bool(tiff.pages.first.description == _description(size_px, mpp, seed, number))
    except (tifffile.TiffFileError, OSError, IndexError):
        return False


def write_probe(folder: PathLike, per_class: int = 60, size_px: int = 128, mpp: float = 0.5, seed: int = 1) -> Path:
    """Write labelled tiles of the six tissues and return the folder.

    Layout: `train/CLASS/*.png` and `test/CLASS/*.png` with `per_class` tiles a class (RGB, `size_px` square
    at `mpp` µm/px), `labels.csv` with columns file, label, split, slide. The tiles of a split come from five
    slides, each with its own stain; no slide is in both splits. A folder of the same parameters is kept, an
    older one replaced.

    Raises OutputError where the folder cannot be written or holds something else.
    """
    target = Path(folder)
    name = f"eosin synthetic probe v{_VERSION} per_class {per_class} size_px {size_px} mpp {mpp:g} seed {seed}\n"
    mark = target / _PROBE_MARK
    if mark.is_file() and mark.read_text() == name:
        return target
    if target.exists() and not mark.is_file() and (not target.is_dir() or any(target.iterdir())):
        raise OutputError(f"{target} holds other files: give a new or empty folder for the synthetic probe")
    with atomic_folder(target) as temporary:
        rows = [("file", "label", "split", "slide")]
        for split in ("train", "test"):
            for tissue in PAINTERS:
                (temporary / split / tissue).mkdir(parents=True)
            for number, share in enumerate(np.array_split(np.arange(per_class), PROBE_SLIDES), start=1):
                rows += _write_probe_slide(temporary, split, number, len(share), size_px, mpp, seed)
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows(rows)
        (temporary / "labels.csv").write_text(table.getvalue())
        (temporary / _PROBE_MARK).write_text(name)
    return target


def _write_probe_slide(
    folder: Path, split: str, number: int, count: int, size_px: int, mpp: float, seed: int
) -> list[tuple[str, str, str, str]]:
    """`count` tiles a tissue of one slide, each painted on its own, so that no two share a structure."""
    slide = f"probe-{split}-{number:02d}"
    stain = draw_stain(Words(seed, slide, "stain"))
    rows = []
    for tissue in PAINTERS:
        for index in range(count):
            words = Words(seed, slide, tissue, index)
            field = Field(size_px, size_px, mpp, words)
            paint_tissue(tissue, field)
            pixels = develop(field.haematoxylin, field.eosin, stain, mpp, words)
            coded = _encode(".jpg", pixels, cv2.IMWRITE_JPEG_QUALITY, stain.jpeg_quality)
            seen = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR_RGB)
            name = f"{split}/{tissue}/{slide}-{index + 1:03d}.png"
            (folder / name).write_bytes(_encode(".png", seen))
            rows.append((name, tissue, split, slide))
    return rows


def _encode(suffix: str, pixels: Pixels, *options: int) -> bytes:
    """PNG or JPEG bytes of uint8 grey or RGB pixels."""
    ordered = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    _, data = cv2.imencode(suffix, ordered, list(options))
    return bytes(data)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
