"""`eosin embed --stage region|slide`: vectors of regions and slides, by an exported pyramid, as one Parquet table.

slides.parquet: slide, vector, and what the heads say of each task (logits). regions.parquet: slide, vector, row,
column (place in the slide's grid of regions), tiles, x, y (corner, level-0 px). What the pyramid was trained on stands
in the file, so that `eosin mil --slide-features` can say what it had seen. A slide that is done waits in a folder of
parts until all are.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eosin.errors import DataError, EosinError, OutputError
from eosin.features.embed_folder import EmbeddingFolder
from eosin.features.embed_run import EmbeddingRun
from eosin.features.pyramid_file import ExportedPyramid, load_pyramid
from eosin.files import PathLike, atomic_path, check_writable, write_json
from eosin.models.pyramid_encode import SlideForward, SlideVectors, encode_slide
from eosin.models.pyramid_pixels import Pixels
from eosin.progress import progress_bar, say
from eosin.provenance import hash_of
from eosin.slides import Cohort, Foreground, open_slide
from eosin.slides.cohort import row_digest
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import read_tiles
from eosin.tiles.pyramid_grid import RegionGrid, region_grid

STAGES = ("tile", "region", "slide")
KEY = b"eosin.embedding"
"""Where the Parquet file says what made it."""


def embed_stage(
    model: PathLike,
    cohort: Cohort,
    out: Path,
    stage: str,
    device: torch.device,
    precision: str,
    batch: int,
    fresh: bool,
) -> EmbeddingRun:
    """Embed all slides of a cohort into `out`/regions.parquet or slides.parquet; again goes on where it stopped.

    Raises EosinError, one line: no pyramid, no slide that worked. What fails is a line of failures.csv.
    """
    made = load_pyramid(model, device)
    settings = SlideForward(tile_chunk=batch, precision="bf16" if precision == "bf16" else "fp32")
    key = hash_of([made.hash, made.block.model_dump(mode="json"), precision, stage])
    parts = check_writable(out) / f".{stage}-parts"
    if fresh:
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(exist_ok=True)
    run = EmbeddingRun(str(out))
    begun, rows = time.perf_counter(), cohort.usable.to_dict("records")
    with progress_bar("embed", len(rows), "slides") as bar:
        for number, row in enumerate(rows):
            mask = Foreground(cohort.foreground(number), cohort.foreground_mpp(number))
            path = parts / f"{hash_of([key, row['slide_id'], row_digest(row, mask.mask)])}.npz"
            try:
                if path.is_file():
                    run.finished += 1
                else:
                    run.tiles += _embed(made, row, mask, stage, settings, path)
                    run.slides += 1
            except OutputError:
                raise
            except EosinError as error:
                run.failures[row["slide_id"]] = str(error)
            rows[number]["part"] = path
            bar.advance()
    run.seconds = time.perf_counter() - begun
    done = [row for row in rows if row["slide_id"] not in run.failures]
    EmbeddingFolder(out).write_failures(run.failures)
    if not done:
        raise DataError("no slide could be embedded; {}: {}".format(*next(iter(run.failures.items()))))
    told = _told(made, str(model), cohort, stage, key)
    _write_table(out / f"{stage}s.parquet", done, told)
    write_json(out / f"{stage}s.json", told)
    if not run.failures:  # else they spare the others when the same command runs again
        shutil.rmtree(parts, ignore_errors=True)
    say(run.told)
    return run


def _embed(
    made: ExportedPyramid, row: dict[str, Any], mask: Foreground, stage: str, settings: SlideForward, path: Path
) -> int:
    """Embed one slide into its part; returns its tiles. Raises EosinError."""
    block, mpp = made.block, (float(row["mpp_x"]), float(row["mpp_y"]))
    size = (int(row["width"]), int(row["height"]))
    grid = tissue_grid(mask, mpp, size, mpp=block.mpp, size_px=block.size_px, min_foreground=block.min_foreground)
    if not len(grid):
        raise DataError("no tissue" if not mask.mask.any() else f"no tile with {block.min_foreground:.0%} tissue")
    regions = region_grid(grid.row, grid.column, block.config.side)
    with open_slide(row["path"], mpp=mpp[0] if mpp[0] == mpp[1] else None) as slide:

        def read(region: int) -> Pixels:
            coords = grid.coords[regions.order[regions.span(region)]]
            pixels = np.empty((len(coords), grid.size_px, grid.size_px, 3), np.uint8)
            read_tiles(slide, coords, grid.size_px, grid.mpp, pixels)
            return pixels

        seen = encode_slide(made.pyramid, regions, read, settings)
    arrays = _of_slide(seen) if stage == "slide" else _of_regions(seen, grid, regions, mpp)
    if not np.isfinite(arrays["vector"]).all():
        raise DataError(f"{made.name} gives NaN or infinite vectors for it")
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, allow_pickle=False, **arrays)
    return len(grid)


def _of_slide(seen: SlideVectors) -> dict[str, np.ndarray]:
    outputs = {f"output.{name}": logits.float().cpu().numpy() for name, logits in seen.outputs.items()}
    return {"vector": seen.slide[None].float().cpu().numpy(), **outputs}


def _of_regions(
    seen: SlideVectors, grid: TileGrid, regions: RegionGrid, slide_mpp: tuple[float, float]
) -> dict[str, np.ndarray]:
    """The corner of a region is that of the grid place where it begins, whether or not a tile lies there."""
    first = regions.start[:-1]  # each region's first tile
    within = np.stack([regions.column[first], regions.row[first]], axis=1)
    pitch = grid.stride_px * grid.mpp / np.asarray(slide_mpp)
    corner = np.round(grid.coords[regions.order[first]] - within * pitch).astype(np.int64)
    return {
        "vector": seen.regions.float().cpu().numpy(),
        "row": regions.region_row,
        "column": regions.region_column,
        "tiles": regions.counts,
        "x": corner[:, 0],
        "y": corner[:, 1],
    }


def _told(made: ExportedPyramid, word: str, cohort: Cohort, stage: str, key: str) -> dict[str, Any]:
    """What the vectors are, with the words of embedding.json."""
    return {
        "model": word,
        "model_name": made.name,
        "model_hash": made.hash,
        "stage": stage,
        "mpp": made.block.mpp,
        "size_px": made.block.size_px,
        "min_foreground": made.block.min_foreground,
        "settings_hash": key,
        "cohort": str(cohort.path),
        "cohort_hash": cohort.hash,
        "tasks": made.block.tasks,
        "training_tasks": made.training.get("tasks", []),
        "training_patients": made.training.get("patients", []),
    }


def _write_table(path: Path, rows: list[dict[str, Any]], told: dict[str, Any]) -> None:
    columns: dict[str, list[Any]] = {"slide": []}
    for row in rows:
        with np.load(row["part"], allow_pickle=False) as part:
            columns["slide"] += [row["slide_id"]] * len(part["vector"])
            for name in part.files:
                columns.setdefault(name, []).extend(list(part[name]))
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(told)}), temporary)
