"""Whether reading slides keeps a GPU busy: tiles a second that a recipe's step takes, against what cores give.

What the step takes is an estimate of `estimate.py` (FLOPs and an assumed MFU of the data sheet's peak), never a
measurement; what a core gives was measured by `eosin doctor`. On a GPU run the cores only read: views are made on the
device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eosin.tiles.config import MppRange, TilesConfig
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.estimate import assumed_mfu, encoder_name, flops_of, hours
from eosin.training.gpus import Gpu
from eosin.training.recipe import Recipe

SPARE = 1.2
"""Reading has to be this much faster than the step, or a moment's delay of the disk is felt."""

RANGE_SCALES = (0.25, 0.5, 1.0, 2.0)
_STORED_MORE_WORK = 1.8  # from this mean cost on, lack of pyramid levels is worth a word


class Need(NamedTuple):
    """Tiles a second that a step takes on `gpus` GPUs, and on what assumptions; `why` there is no estimate."""

    tiles_s: float
    basis: str
    why: str | None = None


@dataclass(frozen=True)
class Starvation:
    """What is needed and what is had, in tiles for training a second.

    measured: the scales at which tiles passed, that the rates are over. per_core: one core, tiles read one by one;
    per_core_visits: `visit_tiles` of each place (NaN where not measured). workers: reading processes that a run starts
    here by itself. verdict: "fed", "tight" or "starved" with those, None where nothing can be said. busy: share of the
    time that the GPU then works. cores_needed: to feed it.
    """

    recipe: str
    network: str
    gpu: str | None
    gpus: int
    need: Need
    per_core: float
    per_core_visits: float
    visit_tiles: int
    measured: tuple[float, ...]
    cores: int
    workers: int
    verdict: str | None
    busy: float
    cores_needed: int | None
    cores_needed_visits: int | None
    advice: tuple[str, ...]


def scales_of(tiles: TilesConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The µm/px that a recipe draws and their shares; of a continuous range the usual scales in it, and its ends."""
    if isinstance(tiles.mpp, MppRange):
        inside = {tiles.mpp.low, tiles.mpp.high, *(x for x in RANGE_SCALES if tiles.mpp.low < x < tiles.mpp.high)}
        return tuple(sorted(inside)), tuple(1 / len(inside) for _ in inside)
    weights = tiles.mpp_weights or [1.0] * len(tiles.mpp)
    return tuple(tiles.mpp), tuple(weight / sum(weights) for weight in weights)


def mixed_rate(shares: Mapping[float, float], rates: Mapping[float, float]) -> float:
    """Tiles a second of a core over the mix of scales: shares and rates by µm/px. NaN without any rate.

    Scales without a rate are those that no slide offers, or where no tile passed; the others take their part.
    """
    known = {mpp: rate for mpp, rate in rates.items() if rate > 0 and shares.get(mpp, 0) > 0}
    if not known:
        return math.nan
    total = sum(shares[mpp] for mpp in known)
    return total / sum(shares[mpp] / rate for mpp, rate in known.items())


def need_of(recipe: Recipe, gpu: Gpu | None, gpus: int) -> Need:
    """Tiles a second that the recipe's step takes. As `eosin train --dry-run` has it."""
    if isinstance(recipe, CurriculumRecipe):
        return Need(math.nan, "", f"{recipe.name} learns from whole slides as well; its step is not estimated")
    if gpu is None:
        return Need(math.nan, "", "no GPU here that eosin knows; name one: --gpu H100")
    if recipe.run.precision not in ("auto", "bf16"):
        return Need(math.nan, "", f"not estimated in {recipe.run.precision}: peaks of GPUs are known for bf16")
    mfu = assumed_mfu(recipe.encoder)
    flops = flops_of(recipe, recipe.parallel.accumulate, recipe.parallel.recompute)
    needed = hours(recipe, flops, gpu.tflops * 1e12, gpus, mfu)
    rate = recipe.run.steps * recipe.run.batch / needed / 3600
    return Need(rate, f"estimate, not measured: {mfu:.0%} MFU assumed of {gpu.tflops:g} TFLOP/s (dense bf16)")


def predict(
    recipe: Recipe,
    gpu: Gpu | None,
    gpus: int,
    per_core: float,
    per_core_visits: float,
    visit_tiles: int,
    costs: Sequence[float],
    cores: int,
    measured: Sequence[float] = (),
) -> Starvation:
    """What will happen. per_core …: measured tiles/s, at the scales `measured`; costs: `Serving.cost` of the scales."""
    need = need_of(recipe, gpu, gpus)
    own = recipe.tiles.tiles_per_visit > 1
    now = per_core_visits if own and per_core_visits == per_core_visits else per_core
    workers = default_workers(recipe, cores, gpus)
    verdict, busy = None, math.nan
    if need.why is None and now == now:
        given = now * min(workers, cores)
        busy = min(given / need.tiles_s, 1.0)
        verdict = "starved" if busy < 1 else "fed" if given >= SPARE * need.tiles_s else "tight"
    counts = tuple(_cores_for(need.tiles_s, rate) for rate in (per_core, per_core_visits))
    told = Starvation(
        recipe=recipe.name,
        network=encoder_name(recipe.encoder),
        gpu=None if gpu is None else gpu.name,
        gpus=gpus,
        need=need,
        per_core=per_core,
        per_core_visits=per_core_visits,
        visit_tiles=visit_tiles,
        measured=tuple(measured),
        cores=cores,
        workers=workers,
        verdict=verdict,
        busy=busy,
        cores_needed=counts[0],
        cores_needed_visits=counts[1],
        advice=(),
    )
    advice = () if verdict in (None, "fed") else _advice(told, now, own, [cost for cost in costs if cost == cost])
    return Starvation(**vars(told) | {"advice": advice})


def default_workers(recipe: Recipe, cores: int, gpus: int) -> int:
    """Reading processes of a run on `gpus` GPUs of a machine with `cores`; the rule of `prepare.reading_processes`."""
    each = recipe.run.workers
    return gpus * (max(1, min(16, cores // 2 // gpus)) if each is None else each)


def _cores_for(need: float, rate: float) -> int | None:
    """Cores that give `need` tiles/s with some to spare; None where it cannot be told."""
    if not (math.isfinite(need) and rate == rate and rate > 0):
        return None
    return math.ceil(SPARE * need / rate)


def _advice(told: Starvation, now: float, own: bool, costs: Sequence[float]) -> tuple[str, ...]:
    """What helps, the cheapest first."""
    found = []
    enough = _cores_for(told.need.tiles_s, now)
    # One core a GPU stays for the step itself.
    spare = told.cores - told.gpus
    if told.workers < spare and enough is not None:
        each = max(min(enough, spare) // told.gpus, 1)
        word = "enough" if enough <= spare else "not enough alone"
        found.append(f"more reading processes: --set run.workers={each} uses the cores that are here ({word})")
    if not own and told.per_core_visits > 1.2 * told.per_core:
        count = told.cores_needed_visits
        found.append(
            f"several tiles of each place that is decoded: --set tiles.tiles_per_visit={told.visit_tiles} gives "
            f"{told.per_core_visits / told.per_core:.1f} times the tiles a core"
            + (f", then {count} core{'' if count == 1 else 's'} feed it" if count else "")
        )
    if costs and sum(costs) / len(costs) > _STORED_MORE_WORK:
        found.append(
            "slides stored with a level at every factor of 2: now levels are missing, which takes "
            f"{sum(costs) / len(costs):.1f} times the decoding on average"
        )
    if enough is not None and enough > spare:
        found.append(f"more cores: {enough + told.gpus} in all for {told.gpus} x {told.gpu}, as tiles are read now")
    return tuple(found)
