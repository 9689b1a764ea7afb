"""`eosin embed --stage region|slide`: vectors of regions and slides, by an exported pyramid, as one Parquet table.

slides.parquet: slide, vector, and what the heads say of each task (logits). regions.parquet: slide, vector, row,
column (place in the slide's grid of regions), tiles, x, y (corner, level-0 px). What the pyramid was trained on stands
in the file, so that `eosin mil --slide-features` can say what it had seen. A slide that is done waits in a folder of
parts until all are; so several processes, on several machines that share the folder, may each embed some.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from eosin.distributed import World
from eosin.errors import DataError, EosinError, OutputError, SlideGone
from eosin.features.embed_folder import EmbeddingFolder
from eosin.features.embed_run import EmbeddingRun, share
from eosin.features.pyramid_file import ExportedPyramid, load_pyramid
from eosin.files import PathLike, atomic_path, check_writable, write_json, write_text
from eosin.models.pyramid_encode import SlideForward, SlideVectors, encode_slide
from eosin.models.pyramid_pixels import Pixels
from eosin.progress import progress_bar, say
from eosin.provenance import hash_of
from eosin.slides import Cohort, Foreground, open_slide
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import read_tiles
from eosin.tiles.pyramid_grid import RegionGrid, region_grid

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
    here: World | None = None,
    part: tuple[int, int] = (1, 1),
) -> EmbeddingRun:
    """Embed all slides of a cohort into `out`/regions.parquet or slides.parquet; again goes on where it stopped.

    here: the processes that share the slides out, this one without. part: I of N calls, on machines of any number, each
    with its share of the slides; whichever of them all finds that no slide is missing writes the table. What is told is
    of this process. Raises EosinError, one line: no pyramid, no slide that worked. What fails is a line of
    failures.csv.
    """
    here = here or World()
    work = StageEmbedding(model, cohort, out, stage, device, precision, batch)
    here.from_first(lambda: work.prepare(fresh))
    run = work.embed(share(cohort, here, part), fresh)
    say(run.told)
    if missing := work.finish():
        say(f"{missing} of {len(work.rows)} slides are still to be embedded by others; the last one writes the table")
    return run


class StageEmbedding:
    """The slides of a cohort on their way into one table."""

    def __init__(
        self,
        model: PathLike,
        cohort: Cohort,
        out: Path,
        stage: str,
        device: torch.device,
        precision: str,
        batch: int,
    ) -> None:
        self.made, self.word = load_pyramid(model, device), str(model)
        self.cohort, self.out, self.stage = cohort, out, stage
        self.settings = SlideForward(tile_chunk=batch, precision="bf16" if precision == "bf16" else "fp32")
        self.key = hash_of([self.made.hash, self.made.block.model_dump(mode="json"), precision, stage])
        self.parts, self.table = out / f".{stage}-parts", out / f"{stage}s.parquet"
        self.rows: list[dict[str, Any]] = cohort.usable.to_dict("records")
        for number, row in enumerate(self.rows):
            row["part"] = self.parts / f"{hash_of([self.key, row['slide_id'], cohort.digest(number)])}.npz"
            row["failed"] = row["part"].with_suffix(".failed")

    def mask(self, number: int) -> Foreground:
        """The tissue of a slide."""
        return Foreground(self.cohort.foreground(number), self.cohort.foreground_mpp(number))

    def prepare(self, fresh: bool) -> None:
        """Make room for what is embedded, slide by slide; fresh: drop the table."""
        check_writable(self.out)
        if fresh:
            self.table.unlink(missing_ok=True)
        if not self._is_written():
            self.parts.mkdir(exist_ok=True)

    def embed(self, numbers: Sequence[int], fresh: bool = False) -> EmbeddingRun:
        """Embed the slides `numbers` that are not there yet (`fresh`: all), each into a file of its own."""
        run, begun = EmbeddingRun(str(self.out)), time.perf_counter()
        if self._is_written():
            run.finished = len(numbers)
            return run
        for number in numbers:
            self.rows[number]["failed"].unlink(missing_ok=True)  # is tried again
            if fresh:
                self.rows[number]["part"].unlink(missing_ok=True)
        with progress_bar("embed", len(numbers), "slides") as bar:
            for number in numbers:
                row = self.rows[number]
                try:
                    if row["part"].is_file():
                        run.finished += 1
                    else:
                        run.tiles += _embed(self.made, row, self.mask(number), self.stage, self.settings, row["part"])
                        run.slides += 1
                except OutputError:
                    raise
                except EosinError as error:
                    run.failures[row["slide_id"]] = str(error)
                    write_text(row["failed"], str(error))
                bar.advance()
        run.seconds = time.perf_counter() - begun
        return run

    def finish(self) -> int:
        """Write table and failures.csv if all slides were tried; returns how many were not.

        Two processes that find so at the same time write the same. Raises DataError where no slide could be embedded.
        """
        failures: dict[str, str] = {}
        done = [row for row in self.rows if row["part"].is_file()]
        try:
            for row in self.rows:
                if not row["part"].is_file() and row["failed"].is_file():
                    failures[row["slide_id"]] = row["failed"].read_text()
            if missing := len(self.rows) - len(done) - len(failures):
                return 0 if self._is_written() else missing
            EmbeddingFolder(self.out).write_failures(failures)
            if not done:
                raise DataError("no slide could be embedded; {}: {}".format(*next(iter(failures.items()))))
            told = _told(self.made, self.word, self.cohort, self.stage, self.key)
            _write_table(self.table, done, told)
            write_json(self.table.with_suffix(".json"), told)
        except FileNotFoundError:
            if not self._is_written():  # by another process, which has tidied up meanwhile
                raise
        if not failures:  # else they spare the others when the same command runs again
            shutil.rmtree(self.parts, ignore_errors=True)
        return 0

    def _is_written(self) -> bool:
        """Whether the table holds the vectors of all slides, by this model."""
        if not self.table.is_file():
            return False
        told = json.loads((pq.read_schema(self.table).metadata or {}).get(KEY, b"{}"))
        wanted = {"settings_hash": self.key, "cohort_hash": self.cohort.hash}
        return not self.parts.is_dir() and all(told.get(name) == value for name, value in wanted.items())


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
    with open_slide(row["path"], mpp[0] if mpp[0] == mpp[1] else None, row["reader"]) as slide:
        if (slide.width, slide.height) != size:
            raise SlideGone(f"{row['path']}: is not the file that was indexed; run `eosin index` again")

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
