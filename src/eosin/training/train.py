"""`eosin.train`: from names and files to a run. The same words as `eosin train`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from eosin.errors import CohortError, DataError, OutputError, RecipeError
from eosin.progress import say
from eosin.runs import RunFolder
from eosin.slides import Cohort
from eosin.tiles import FolderSource, SlideSource, Source, TilePlan
from eosin.training.loop import run_training
from eosin.training.recipe import Recipe, is_curriculum, load_recipe


def train(
    recipe: str,
    out: str | os.PathLike[str],
    *,
    cohort: Sequence[str] = (),
    tiles: Sequence[str] = (),
    mpp: float | None = None,
    where: str | None = None,
    set: Sequence[str] = (),
    probe: Sequence[str] = (),
    data: str | os.PathLike[str] | None = None,
    device: str | None = None,
    fresh: bool = False,
    accept_changed: bool = False,
) -> RunFolder:
    """Train `recipe` (a shipped name or a YAML file) into the run folder `out`, resuming what is there.

    cohort: cohort files, each `FILE`, `NAME=FILE` or `NAME=FILE:weight`; tiles: folders or globs of tiles of `mpp`
    µm/px, each `WHERE` or `WHERE:weight`; where: an expression over cohort columns; set: changes such as
    "run.batch=64"; probe: tasks that the run is judged on as it learns (`run.probe_protocol`), `NAME=PATH` or public
    ones by name, which lie below `data`. Raises EosinError subclasses, one line each.
    """
    chosen, marks = load_recipe(recipe, list(set))
    if fresh and any(os.path.exists(recipe) and os.path.samefile(recipe, path) for path in RunFolder(out).own_files()):
        raise OutputError(f"--fresh would remove {recipe}, the recipe that is given; copy it to another place first")
    plan = tile_plan(chosen, cohort, tiles, mpp, where)
    method = None
    if is_curriculum(chosen):
        from eosin.training.curriculum import curriculum_of

        method = curriculum_of(chosen, [loaded for loaded, _ in read_cohorts(cohort, where, quiet=True)])
    return run_training(
        chosen,
        marks,
        plan,
        out,
        probes=probe,
        data=data,
        device=device,
        fresh=fresh,
        accept_changed=accept_changed,
        method=method,
    )


def tile_plan(
    recipe: Recipe, cohort: Sequence[str], tiles: Sequence[str], mpp: float | None, where: str | None
) -> TilePlan:
    """The tile plan of a run over all its cohorts and folders."""
    if not cohort and not tiles:
        raise RecipeError("give slides with --cohort FILE (from `eosin index`) or tiles with --tiles DIR --mpp X")
    if tiles and mpp is None:
        raise DataError("--tiles needs --mpp, the µm/px of those tiles")
    if mpp is not None and not tiles:
        raise DataError("--mpp states the scale of --tiles; the wanted scales are the recipe's: --set tiles.mpp=[0.5]")
    if where and not cohort:
        raise CohortError("--where chooses slides of a --cohort; there is none")
    sources: list[Source] = []
    weights: list[float] = []
    read = read_cohorts(cohort, where)
    loaded = [one for one, _ in read]
    if is_curriculum(recipe) and loaded:
        from eosin.training.curriculum import learned_parts

        loaded = learned_parts(recipe, loaded)
    sources += [SlideSource(one, recipe.tiles, recipe.run.seed) for one in loaded]
    weights += [weight for _, weight in read]
    for entry in tiles:
        path, weight = _weighted(entry)
        sources.append(FolderSource(path, float(mpp or 0), recipe.tiles))
        weights.append(weight)
    return TilePlan(sources, recipe.run.seed, weights, recipe.run.batch)


def read_cohorts(cohort: Sequence[str], where: str | None, quiet: bool = False) -> list[tuple[Cohort, float]]:
    """The cohorts `FILE`, `NAME=FILE` or `NAME=FILE:weight` and their weights. quiet: say nothing of skipped slides."""
    found = []
    for entry in cohort:
        name, _, named = entry.partition("=")
        path, weight = _weighted(named if named and "/" not in name else entry)
        loaded = Cohort.read(path)
        if (skipped := len(loaded.table) - len(loaded.usable)) and not quiet:
            say(f"{path}: {skipped} of {len(loaded.table)} slides are skipped because they could not be indexed")
        loaded = loaded.where(where) if where else loaded
        if len(loaded.usable) == 0:
            raise CohortError(f"{path}: no usable slide{' where ' + where if where else ''}")
        found.append((loaded, weight))
    return found


def _weighted(entry: str) -> tuple[str, float]:
    """`PATH:weight` -> path and weight, 1 without."""
    path, colon, weight = entry.rpartition(":")
    if colon and path:
        try:
            return path, float(weight)
        except ValueError:
            pass
    return entry, 1.0
