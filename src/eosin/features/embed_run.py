"""One process's part of an embedding: its slides, one after the other, each into its h5.

What fails is noted and the next slide begins. Which slides, settings and folder is embed.py's to say.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.distributed import World
from eosin.errors import DataError, EosinError, OutputError, RegionError
from eosin.features.embed_folder import EmbeddingFolder, EmbeddingSettings
from eosin.features.encoder import Encoder
from eosin.features.h5 import FeatureWriter, feature_writer, write_clam
from eosin.progress import Bar, progress_bar
from eosin.slides import Cohort, Foreground
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import MAX_UPSAMPLE, GridPart, GridSlide, ReaderDied, read_grids


@dataclass
class EmbeddingRun:
    """What one call did. slides: embedded now; finished: were there before; failures: slide to its line."""

    folder: str
    slides: int = 0
    finished: int = 0
    tiles: int = 0
    seconds: float = 0.0
    failures: dict[str, str] = field(default_factory=dict)
    failures_file: str = "failures.csv"

    @property
    def told(self) -> str:
        """The closing line."""
        per_second = self.tiles / max(self.seconds, 1e-9)
        rate = f", {3600 * self.slides / self.seconds:,.1f} slides/h, {per_second:,.1f} tiles/s" if self.slides else ""
        before = f" ({self.finished} were there)" if self.finished else ""
        count = len(self.failures)
        failed = f"{count} failure{'' if count == 1 else 's'}" + (
            f", see {self.folder}/{self.failures_file}" if count else ""
        )
        slides = f"{self.slides} slide{'' if self.slides == 1 else 's'}"
        return f"{slides} embedded{before}, {self.tiles:,} tiles{rate}, {failed}"


def share(cohort: Cohort, here: World, part: tuple[int, int] = (1, 1)) -> list[int]:
    """Usable slides of this process: every n-th of those with most tissue first, so shares are alike.

    part: (number from 1, of how many); the part's slides are shared by the processes of `here`.
    """
    order = np.argsort(-cohort.usable["tissue_mm2"].to_numpy(float), kind="stable")[part[0] - 1 :: part[1]]
    return [int(number) for number in order[here.rank :: here.size]]


class Embedding:
    """One process's work: its slides, one after the other."""

    def __init__(
        self,
        encoder: Encoder,
        cohort: Cohort,
        folder: EmbeddingFolder,
        settings: EmbeddingSettings,
        batch: int,
        clam: bool,
    ) -> None:
        self.encoder, self.cohort, self.folder, self.settings = encoder, cohort, folder, settings
        self.batch, self.clam = batch, clam
        self.run = EmbeddingRun(str(folder.folder))
        self.grids: dict[int, tuple[TileGrid, str]] = {}
        self._told = 0.0  # slides that the bar was told of

    def embed(self, numbers: Sequence[int], workers: int) -> EmbeddingRun:
        """Embed the slides `numbers`; a slide that takes its readers down is tried again alone. Counts from 0."""
        start = time.perf_counter()
        self.run, self._told = EmbeddingRun(str(self.folder.folder)), 0.0
        waiting = list(numbers)
        with progress_bar("embed", len(waiting), "slides") as bar:
            while waiting:
                begun: list[int] = []
                try:
                    self._embed_in_one_go(waiting, begun, workers, bar)
                    waiting = []
                except ReaderDied:
                    suspects = [number for number in begun if number in self.grids]
                    waiting = [number for number in waiting if number not in begun]
                    for number in suspects:
                        self.grids.pop(number, None)
                        try:
                            self._embed_in_one_go([number], [], workers, bar)
                        except ReaderDied as error:
                            self._fail(number, error)
        self.run.seconds = time.perf_counter() - start
        return self.run

    def _embed_in_one_go(self, numbers: Sequence[int], begun: list[int], workers: int, bar: Bar) -> None:
        """Embed slides from one stream of tiles; `begun` receives those whose reading was asked for."""
        for number, parts in groupby(read_grids(self._slides(numbers, begun), workers), lambda part: part.number):
            try:
                self._embed_slide(number, parts, bar)
                self.run.slides += 1
            except (OutputError, ReaderDied):
                raise
            except EosinError as error:
                self._fail(number, error)
            self.grids.pop(number, None)
            self._tell(bar)
        self._tell(bar)

    def _tell(self, bar: Bar, share: float = 0.0, note: str = "") -> None:
        """Move the bar to the slides that are done with, one way or the other, and `share` of the one under way."""
        settled = self.run.slides + self.run.finished + len(self.run.failures) + share
        if settled > self._told:
            bar.advance(settled - self._told, note)
            self._told = settled

    def _slides(self, numbers: Sequence[int], begun: list[int]) -> Iterator[GridSlide]:
        """The slides to read, as the readers come to them; finished ones are passed over, failures noted."""
        for number in numbers:
            begun.append(number)
            row, slide_hash = self.cohort.row(number), self.cohort.digest(number)
            try:
                if self.folder.is_finished(row["slide_id"], self.settings.hash, slide_hash):
                    self.run.finished += 1
                    self._write_clam(row["slide_id"], again=False)
                    continue
                self.folder.features(row["slide_id"]).unlink(missing_ok=True)  # of another slide or setting
                mask = Foreground(self.cohort.foreground(number), self.cohort.foreground_mpp(number))
                grid = self._grid(row, mask)
            except OutputError:
                raise
            except EosinError as error:
                self._fail(number, error)
                continue
            self.grids[number] = grid, slide_hash
            size = (int(row["width"]), int(row["height"]))
            yield GridSlide(number, row["path"], (row["mpp_x"], row["mpp_y"]), size, grid, row["reader"])

    def _grid(self, row: dict[str, Any], mask: Foreground) -> TileGrid:
        native = max(row["mpp_x"], row["mpp_y"])
        wanted = self.settings
        if native > wanted.mpp * MAX_UPSAMPLE:
            raise RegionError(f"{wanted.mpp:g} µm/px wanted, the slide has {native:g} at its finest")
        grid = tissue_grid(
            mask,
            (row["mpp_x"], row["mpp_y"]),
            (int(row["width"]), int(row["height"])),
            mpp=wanted.mpp,
            size_px=wanted.size_px,
            stride_px=wanted.stride_px,
            min_foreground=wanted.min_foreground,
        )
        if not len(grid):
            side = f"{wanted.size_px} px at {wanted.mpp:g} µm/px"
            least = f"no tile of {side} has {wanted.min_foreground:.0%} foreground; lower --min-foreground or --size"
            raise DataError(least if mask.mask.any() else "no tissue")
        return grid

    def _embed_slide(self, number: int, parts: Iterable[GridPart], bar: Bar) -> None:
        """Embed one slide's tiles into its h5."""
        grid, slide_hash = self.grids[number]
        row = self.cohort.row(number)
        start, done = time.perf_counter(), 0
        attributes = self._attributes(row, grid) | {"slide_hash": slide_hash}
        with feature_writer(
            self.folder.features(row["slide_id"]), grid.coords, attributes, self.encoder.name
        ) as writer:
            waiting: tuple[npt.NDArray[np.int64], dict[str, torch.Tensor]] | None = None
            for rows, pixels in _batches(parts, self.batch):
                found = self._forward(pixels)
                if waiting is not None:  # the device works on the next batch while this one is stored
                    self._store(writer, *waiting, grid)
                waiting = rows, found
                done += len(rows)
                speed = done / (time.perf_counter() - start)
                self._tell(bar, done / len(grid), f"{row['slide_id']}: {speed:,.0f} tiles/s")
            if waiting is not None:
                self._store(writer, *waiting, grid)
        self.run.tiles += done
        self._write_clam(row["slide_id"], again=True)

    def _forward(self, pixels: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        """Vectors [B, D], and patch tokens [B, h, w, D] where they are wanted, on the device."""
        place = self.encoder.mean.device
        try:
            with (
                torch.inference_mode(),
                torch.autocast(place.type, torch.bfloat16, enabled=self.settings.precision == "bf16"),
            ):
                if not self.settings.tokens:
                    return {"features": self.encoder.embed(pixels)}
                features = self.encoder.features(self.encoder.prepare(pixels))
                return {
                    "features": self.encoder.vector(features).float(),
                    "patch_tokens": features.patches.half(),
                }
        except torch.OutOfMemoryError as error:
            raise OutputError(f"{place}: not enough memory for {len(pixels)} tiles at once; lower --batch") from error

    def _store(
        self, writer: FeatureWriter, rows: npt.NDArray[np.int64], found: dict[str, torch.Tensor], grid: TileGrid
    ) -> None:
        for name, values in found.items():
            array = values.cpu().numpy()
            if not np.isfinite(array).all():
                bad = int(np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))[0])
                x, y = grid.coords[rows[bad]].tolist()
                raise DataError(f"{self.encoder.name} gives NaN or infinite {name} for the tile at ({x}, {y})")
            writer.write(name, rows, array)

    def _attributes(self, row: dict[str, Any], grid: TileGrid) -> dict[str, Any]:
        """What TRIDENT's readers need of the tiles (magnification = 10 / µm/px), and what ours need."""
        return {
            "patch_size": grid.size_px,
            "patch_size_level0": round(grid.size_px * grid.mpp / row["mpp_x"]),
            "level0_magnification": 10 / row["mpp_x"],
            "target_magnification": 10 / grid.mpp,
            "overlap": grid.size_px - grid.stride_px,
            "name": row["slide_id"],
            "level0_width": int(row["width"]),
            "level0_height": int(row["height"]),
            "level0_mpp": float(row["mpp_x"]),
            "level0_mpp_y": float(row["mpp_y"]),
            "mpp": grid.mpp,
            "stride": grid.stride_px,
            "anchor_x": grid.anchor[0],
            "anchor_y": grid.anchor[1],
            "min_foreground": self.settings.min_foreground,
            "model": self.encoder.name,
            "model_hash": self.encoder.model_hash,
            "pooling": self.encoder.pooling,
            "settings_hash": self.settings.hash,
        }

    def _write_clam(self, slide_id: str, again: bool) -> None:
        folder = self.folder.folder / "clam"
        if self.clam and (again or not (folder / "h5_files" / f"{slide_id}.h5").is_file()):
            write_clam(folder, self.folder.features(slide_id))

    def _fail(self, number: int, error: EosinError) -> None:
        slide_id = self.cohort.row(number)["slide_id"]
        self.grids.pop(number, None)
        self.run.failures[slide_id] = str(error)


def _batches(parts: Iterable[GridPart], batch: int) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]]:
    """Parts of one slide as batches of `batch` tiles (the last may be smaller); raises the first part's error."""
    waiting: list[GridPart] = []
    count = 0
    for part in parts:
        if part.error is not None:
            raise part.error
        waiting.append(part)
        count += len(part.rows)
        if count >= batch:
            rows = np.concatenate([part.rows for part in waiting])
            pixels = np.concatenate([part.pixels for part in waiting])
            whole = count - count % batch
            for first in range(0, whole, batch):
                yield rows[first : first + batch], pixels[first : first + batch]
            waiting = [GridPart(part.number, rows[whole:], pixels[whole:])]
            count -= whole
    if count:
        yield np.concatenate([part.rows for part in waiting]), np.concatenate([part.pixels for part in waiting])
