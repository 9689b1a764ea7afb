"""`eosin doctor`: what a slide or a cohort is like, how fast its tiles are read, and what is wrong, in plain words.

Here it is found out; doctor_terminal.py and doctor_page.py show it, doctor_problems.py says what to do about it. Reads
foreground and tiles, never label or macro images. Writes nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eosin.errors import EosinError, SlideError
from eosin.figures import Image
from eosin.progress import Bar, progress_bar
from eosin.report.doctor_cohort import CohortFacts, cohort_facts, sampled_rows
from eosin.report.doctor_machine import Machine, machine
from eosin.report.doctor_problems import Problem, problems_of
from eosin.slides import Cohort, Foreground, Slide, open_slide
from eosin.slides.anatomy import Anatomy, Serving, anatomy, hint_of_power, serving
from eosin.slides.cohort import COLUMNS, write_cohort
from eosin.slides.index import Job, read_slide
from eosin.slides.listing import match_names, read_mpp
from eosin.slides.page import outlined
from eosin.slides.uri import Uri, is_uri
from eosin.tiles import TilesConfig
from eosin.tiles.grid import tissue_grid
from eosin.tiles.source import REDRAWS
from eosin.tiles.speed import ScaleSpeed, measure_scale
from eosin.training.gpus import gpu_called, gpu_here
from eosin.training.recipe import Recipe, load_recipe
from eosin.training.starvation import RANGE_SCALES, Starvation, mixed_rate, predict, scales_of

VISIT_TILES = 4
SAMPLED_SLIDES = 8
PICTURE_PX = 640
_PLAIN = TilesConfig.model_validate(
    {"size_px": 256, "mpp": list(RANGE_SCALES), "min_foreground": 0.4, "hsv_share": 0.6, "max_upsample": 1.05}
)


@dataclass
class ScaleReport:
    """One µm/px of one slide. side_by_side: foreground tiles that fit without overlap; one, visits: how fast."""

    serving: Serving
    side_by_side: int
    one: ScaleSpeed
    visits: ScaleSpeed


@dataclass
class SlideReport:
    """One slide, by its file and its tiles. tissue_share: of the slide's area; picture: overview with the outline."""

    name: str
    path: str
    bytes: int | None
    width: int
    height: int
    mpp_x: float
    mpp_y: float
    tissue_mm2: float
    tissue_share: float
    anatomy: Anatomy
    scales: list[ScaleReport]
    picture: Image


@dataclass
class Diagnosis:
    """All that `eosin doctor` found. slides: the slide, or the sample of a cohort; unread: those of it that failed."""

    target: str
    kind: str
    tiles: TilesConfig
    recipe: str | None
    slides: list[SlideReport]
    machine: Machine
    cohort: CohortFacts | None = None
    unread: list[str] = field(default_factory=list)
    starvation: Starvation | None = None
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0


def diagnose(
    target: str,
    recipe: str | None = None,
    changes: Sequence[str] = (),
    gpu: str | None = None,
    gpus: int = 1,
    seconds: float = 2.0,
    mpp_csv: Path | None = None,
    reader: str | None = None,
) -> Diagnosis:
    """Examine a slide file or a cohort file.

    Args:
        target: a slide, or the Parquet file of `eosin index`.
        recipe: whose scales, filters and step count; without it 256 px at 0.25, 0.5, 1 and 2 µm/px and no prediction.
        changes: values of the recipe to change, "tiles.mpp=[0.5]".
        gpu, gpus: the GPUs to predict for; without a name this machine's.
        seconds: reading time a µm/px: half of it one tile a place, half VISIT_TILES tiles a place.
        mpp_csv: scales of slides that do not say them; for a slide. reader: "openslide" to force it; for a slide.

    Raises:
        SlideError, CohortError: the target cannot be read. RecipeError: recipe or GPU are not known.
    """
    begun = time.monotonic()
    chosen = load_recipe(recipe, list(changes))[0] if recipe else None
    card = gpu_called(gpu) if gpu else None
    if chosen is not None and card is None and (here := gpu_here()) is not None:
        card = here[1]
    config = _PLAIN if chosen is None else chosen.tiles
    is_cohort = _is_cohort(target)
    examine = _Examination(config, seconds)
    if is_cohort:
        cohort = Cohort.read(target)
        found = examine.sample(cohort)
        facts = cohort_facts(cohort, config, examine.scales)
    else:
        found, facts = [examine.slide(target, mpp_csv, reader)], None
    here_now = machine(Path.cwd() if is_uri(target) else Path(target).parent)
    told = Diagnosis(
        target=_shown(target),
        kind="cohort" if is_cohort else "slide",
        tiles=config,
        recipe=None if chosen is None else chosen.name,
        slides=found,
        machine=here_now,
        cohort=facts,
        unread=examine.unread,
    )
    if chosen is not None:
        told.starvation = _starvation(chosen, card, gpus, told)
    told.problems = problems_of(told, None if chosen is None else chosen.run.batch)
    told.seconds = time.monotonic() - begun
    return told


def _shown(target: str) -> str:
    """The target without the query of a URI, which may be a signature."""
    return str(Uri.parse(target)) if is_uri(target) else target


def _is_cohort(target: str) -> bool:
    if target.lower().endswith(".parquet"):
        return True
    try:
        with open(target, "rb") as handle:
            return handle.read(4) == b"PAR1"
    except OSError:
        return False


class _Examination:
    """Measures slides by one configuration, with a bar; `unread` are slides of a sample that failed."""

    def __init__(self, config: TilesConfig, seconds: float) -> None:
        self.config, self.seconds = config, seconds
        self.scales = scales_of(config)[0]
        self.unread: list[str] = []

    def slide(self, target: str, mpp_csv: Path | None, reader: str | None) -> SlideReport:
        """Index the slide by itself, as `eosin index` would, and examine it."""
        known = Uri.parse(target).path if is_uri(target) else Path(target)
        name = known.name
        stated = match_names(read_mpp(mpp_csv), {known.stem: str(known)}, mpp_csv).get(known.stem)
        with progress_bar("doctor", 2 * len(self.scales) + 1, "measurements") as bar:
            row = _indexed(target, stated, reader)
            bar.advance()
            with tempfile.TemporaryDirectory(prefix="eosin-doctor-") as folder:
                file = Path(folder) / "cohort.parquet"
                table = pd.DataFrame({column: [row.get(column)] for column in COLUMNS}, dtype=object)
                write_cohort(file, table, [row["digest"]], [""])
                return self._examine(Cohort.read(file), name, stated, reader, self.seconds, bar, PICTURE_PX)

    def sample(self, cohort: Cohort) -> list[SlideReport]:
        """Examine slides drawn by key, the same of a cohort every time."""
        rows = sampled_rows(cohort, SAMPLED_SLIDES)
        found = []
        with progress_bar("doctor", 2 * len(self.scales) * len(rows), "measurements") as bar:
            for row in rows:
                name = str(row["slide_id"])
                alone = cohort.where(f"slide_id == {name!r}")
                try:
                    found.append(self._examine(alone, name, None, None, self.seconds / len(rows), bar, None))
                except EosinError as error:
                    self.unread.append(str(error))
        return found

    def _examine(
        self,
        alone: Cohort,
        name: str,
        stated: float | None,
        forced: str | None,
        seconds: float,
        bar: Bar,
        picture_px: int | None,
    ) -> SlideReport:
        row = alone.usable.iloc[0].to_dict()
        known = row["mpp_x"] if row["mpp_x"] == row["mpp_y"] else None

        def open_again() -> Slide:
            return open_slide(row["path"], known, row["reader"], halve=self.config.dct_halving)

        mask = alone.foreground(0)
        tissue = Foreground(mask, alone.foreground_mpp(0))
        with open_again() as slide:
            told = anatomy(slide, stated, forced)
            servings = [serving(slide, mpp, self.config.size_px, self.config.max_upsample) for mpp in self.scales]
            thumbnail = alone.thumbnail(0) if picture_px is None else slide.overview(picture_px)[0]
        scales = []
        for how in servings:
            count = 0 if how.level is None else self._side_by_side(tissue, row, how.mpp)
            speeds = []
            for per_visit in (1, VISIT_TILES):
                bar.advance(0, note=f"{name} at {how.mpp:g} µm/px")
                speeds.append(measure_scale(alone, self.config, how.mpp, open_again, seconds / 2, per_visit))
                bar.advance()
            scales.append(ScaleReport(how, count, speeds[0], speeds[1]))
        area = row["width"] * row["mpp_x"] * row["height"] * row["mpp_y"] / 1e6
        return SlideReport(
            name=name,
            path=_shown(str(row["path"])),
            bytes=os.path.getsize(row["path"]) if os.path.isfile(row["path"]) else None,
            width=int(row["width"]),
            height=int(row["height"]),
            mpp_x=float(row["mpp_x"]),
            mpp_y=float(row["mpp_y"]),
            tissue_mm2=float(row["tissue_mm2"]),
            tissue_share=float(row["tissue_mm2"]) / area,
            anatomy=told,
            scales=scales,
            picture=np.asarray(outlined(thumbnail, mask)),
        )

    def _side_by_side(self, tissue: Foreground, row: dict[Any, Any], mpp: float) -> int:
        grid = tissue_grid(
            tissue,
            (row["mpp_x"], row["mpp_y"]),
            (row["width"], row["height"]),
            mpp=mpp,
            size_px=self.config.size_px,
            min_foreground=self.config.min_foreground,
        )
        return len(grid)


def _indexed(target: str, stated: float | None, reader: str | None) -> dict[str, Any]:
    """The cohort row of one slide; SlideError where it cannot be read."""
    path = target if is_uri(target) else os.path.abspath(target)
    row = read_slide(Job(Path(target).stem, path, stated, "", reader))
    if row["status"] == "ok":
        return row
    hint = hint_of_power(Path(path)) if "does not say its µm/px" in str(row["error"]) else ""
    raise SlideError(f"{row['error']}{hint}")


def _starvation(recipe: Recipe, card: Any, gpus: int, told: Diagnosis) -> Starvation:
    """The prediction from what was measured on all slides, each with the same weight."""
    shares = dict(zip(*scales_of(recipe.tiles), strict=True))
    rates = [mixed_rate(shares, {mpp: _mean_rate(told, mpp, visits) for mpp in shares}) for visits in (False, True)]
    every = [scale for slide in told.slides for scale in slide.scales]
    costs = [scale.serving.cost for scale in every]
    measured = [mpp for mpp in shares if any(scale.one.kept for scale in every if scale.serving.mpp == mpp)]
    return predict(recipe, card, gpus, rates[0], rates[1], VISIT_TILES, costs, told.machine.cores, measured)


def _mean_rate(told: Diagnosis, mpp: float, visits: bool) -> float:
    """Kept tiles a second of a core at one scale over all slides measured at it, as a plan draws; NaN without any.

    A plan draws slides alike, reads up to REDRAWS places of one until a tile passes, then goes to another slide. NaN
    too where no tile passed: nothing can be said then.
    """
    seconds, kept = 0.0, 0.0
    for scale in (scale for slide in told.slides for scale in slide.scales if scale.serving.mpp == mpp):
        speed = scale.visits if visits else scale.one
        if not speed.tiles:
            continue
        passing = speed.acceptance
        succeeds = 1 - (1 - passing) ** REDRAWS
        seconds += (succeeds / passing if passing > 0 else REDRAWS) / speed.per_core
        kept += succeeds
    return kept / seconds if kept > 0 else float("nan")
