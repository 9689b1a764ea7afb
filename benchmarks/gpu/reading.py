"""How fast tiles are read on this machine: the stream of a run with one reading process and with its usual number.

From the folder of tiles that the learning part trains on and, where the data has one, from a whole-slide file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import one_line
from benchmarks.gpu.learning import learning_changes, train_tiles
from benchmarks.gpu.settings import Settings

from eosin.slides import Cohort
from eosin.tiles import TilePlan, TileStream
from eosin.training import Recipe, load_recipe
from eosin.training.prepare import reading_processes
from eosin.training.train import tile_plan

SLIDE = "CMU-1-Small-Region.svs"


def measure_reading(settings: Settings, seconds: float) -> list[dict[str, Any]]:
    """A row for each source and number of processes, within about `seconds`."""
    assert settings.data is not None
    recipe = load_recipe("vits14-1h", learning_changes(settings))[0]
    sources = {"folder of tiles": train_tiles(settings.data), "whole slide": settings.data / "slides" / SLIDE}
    sources = {name: path for name, path in sources.items() if path.exists()}
    workers = sorted({1, reading_processes(recipe.model_copy(update={"run": _own_number(recipe)}))})
    each = min(seconds, 4.0 if settings.tiny else seconds) / (len(sources) * len(workers))
    rows = []
    for name, path in sources.items():
        for count in workers:
            row: dict[str, Any] = {"source": name, "processes": count, "size_px": recipe.tiles.size_px}
            try:
                row.update(_rate(_plan(recipe, path, settings.out), recipe.run.batch, count, each))
            except Exception as error:  # a library that reads slides may be missing
                row["error"] = one_line(error)
            rows.append(row)
    return rows


def _own_number(recipe: Recipe) -> Any:
    return recipe.run.model_copy(update={"workers": None})


def _plan(recipe: Recipe, path: Path, out: Path) -> TilePlan:
    if path.is_dir():
        return tile_plan(recipe, [], [str(path)], 1.0, None)
    cohort = Cohort.index([str(path)], out / "slide.parquet")
    return tile_plan(recipe, [str(cohort.path)], [], None, None)


def _rate(plan: TilePlan, batch: int, workers: int, seconds: float) -> dict[str, Any]:
    """Tiles a second, from the first batch on: what comes before is the processes' start."""
    began = time.perf_counter()
    batches = iter(TileStream(plan, batch, workers=workers))
    next(batches)
    first = time.perf_counter()
    count, now = 0, first
    # At least one batch of each process, since they hand over theirs at about the same time.
    while count < 2 * workers or now - began < seconds:
        next(batches)
        count, now = count + 1, time.perf_counter()
        if now - began > 3 * seconds:
            break
    return {"tiles_s": count * batch / (now - first), "first_batch_s": first - began, "tiles": (1 + count) * batch}
