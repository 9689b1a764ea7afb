"""Visits: several tiles of one place, spread over steps; the same tiles by any route, of the law of single tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.slides import Cohort, open_slide
from eosin.tiles import SlideSource, TilesConfig, foreground_share
from eosin.tiles import visits as visits_module
from eosin.tiles.filters import integral
from eosin.tiles.plan import TilePlan
from eosin.tiles.visits import Spread

CONFIG = TilesConfig(size_px=48, mpp=[0.5, 0.7, 1.0], tiles_per_visit=4)


def visiting(cohort: Cohort, config: TilesConfig = CONFIG, seed: int = 0, batch: int = 8) -> TilePlan:
    return TilePlan([SlideSource(cohort, config, seed)], seed, batch=batch)


@pytest.mark.parametrize(("per_visit", "batch", "steps"), [(4, 8, 6), (2, 6, 5), (3, 8, 4), (8, 1, 12), (5, 7, 9)])
def test_tiles_and_places_are_one_to_one(per_visit: int, batch: int, steps: int) -> None:
    spread = Spread(3, per_visit, batch, steps)
    count = batch * steps * per_visit * 3
    places = [spread.place(index) for index in range(count)]
    assert len(set(places)) == count
    for index, place in enumerate(places):
        tiles = spread.tiles(place.visit)
        assert index in tiles
        assert len(tiles) == per_visit or min(tiles) < batch * steps  # those of the first round begin late
        assert tiles[place.slot - per_visit] == index if len(tiles) == per_visit else True
        assert {spread.place(other).visit for other in tiles} == {place.visit}


@pytest.mark.parametrize(("per_visit", "batch"), [(4, 128), (8, 1024), (4, 48), (2, 4096), (4, 1)])
def test_tiles_of_a_visit_are_rows_of_one_number_in_far_steps(per_visit: int, batch: int) -> None:
    spread = Spread.of(0, per_visit, batch)
    steps = spread.round_steps
    for index in range(0, 3 * batch * steps, 997 if batch > 1 else 31):
        tiles = spread.tiles(spread.place(index).visit)
        assert len({number % batch for number in tiles}) == 1
        for before, after in itertools.pairwise(tiles):
            assert steps // 2 < after // batch - before // batch < 2 * steps - steps // 2


def test_every_step_begins_as_many_visits_and_batches_do_not_recur() -> None:
    spread = Spread(0, 4, 16, 8)
    seen: set[int] = set()
    begun, batches = [], []
    for step in range(96):
        visits = {spread.place(step * 16 + row).visit for row in range(16)}
        assert len(visits) == 16
        begun.append(len(visits - seen))
        seen |= visits
        batches.append(visits)
    assert set(begun[8:]) == {4}
    # One after another, rounds show a group of rows in another order: two batches share few places
    assert max(len(a & b) for a, b in itertools.combinations(batches[16:64], 2)) < 12


def test_a_tile_is_the_same_alone_and_with_its_visit(cohort: Cohort) -> None:
    plan, twin = visiting(cohort), visiting(cohort)
    for index in (0, 40_000, 7, 123_456):
        together = plan.tiles(plan.siblings(index))
        assert index in {tile.index for tile in together}
        for tile in reversed(together):
            alone = twin.tile(tile.index)
            assert alone.address == tile.address
            assert np.array_equal(alone.pixels, tile.pixels)
            assert alone.rejected == tile.rejected
    other = visiting(cohort, seed=1)
    assert other.tile(7).address != plan.tile(7).address


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_pixels_are_those_of_the_slide_at_the_address(cohort: Cohort, reader: str) -> None:
    plan = visiting(cohort)
    plan.sources[0]._rows = [{**row, "reader": reader} for row in plan.sources[0]._rows]  # type: ignore[attr-defined]
    scales = set()
    for index in range(0, 4000, 173):
        for tile in plan.tiles(plan.siblings(index)):
            at = tile.address
            row = cohort.usable.iloc[at.image]
            with open_slide(row["path"], reader=reader) as slide:
                assert np.array_equal(tile.pixels, slide.region(at.x, at.y, 48, at.mpp))
            scales.add(at.mpp)
    assert scales == {0.5, 0.7, 1.0}


def test_slots_of_a_visit_lie_in_one_cell_of_stored_tiles(cohort: Cohort) -> None:
    plan = visiting(cohort, CONFIG.model_copy(update={"size_px": 256, "mpp": [0.5], "min_foreground": 0.0}))
    for index in range(0, 300, 7):
        tiles = plan.siblings(index + 100_000)
        places = [plan.tile(number).address for number in tiles]
        assert len({(at.image, at.x // 256, at.y // 256) for at in places}) == 1
        assert len({(at.x, at.y) for at in places}) == 4


def test_every_slot_has_the_law_of_single_tiles(cohort: Cohort) -> None:
    """Uniform over all level-0 pixels with enough foreground, counted one by one, slot by slot."""
    config = TilesConfig(size_px=64, mpp=[0.5], tiles_per_visit=4)
    source = SlideSource(cohort.where(f"slide_id == '{cohort.usable['slide_id'].iloc[0]}'"), config, 0)
    mask, mpp = cohort.foreground(0), cohort.foreground_mpp(0)
    room = 1024 - 64
    x, y = np.meshgrid(np.arange(0, room + 1, 2), np.arange(0, room + 1, 2))
    passing = foreground_share(integral(mask), x * 0.5 / mpp, y * 0.5 / mpp, 32 / mpp, 32 / mpp) >= 0.4
    expected = np.bincount((y // 161 * 6 + x // 161)[passing], minlength=36) / passing.sum()
    keep = expected > 0.008
    found = np.zeros((4, 36))
    for visit in range(2500):
        first = source.draw(0, 0, visit, 0)
        for slot, at in enumerate(source.around(first, Words(0, "slots", visit, 0))):
            assert foreground_share(integral(mask), at.x * 0.5 / mpp, at.y * 0.5 / mpp, 32 / mpp, 32 / mpp) >= 0.4
            found[slot, at.y // 161 * 6 + at.x // 161] += 1
    chances = expected[keep] / expected[keep].sum()
    for slot in range(4):
        counts = found[slot, keep]
        assert found[slot, ~keep].sum() < 0.03 * found[slot].sum()
        assert stats.chisquare(counts, chances * counts.sum()).pvalue > 1e-3


def test_cells_divide_all_positions() -> None:
    from eosin.tiles.positions import _cell

    for side, stored, room in ((64.0, 256.0, 960), (91.4, 256.0, 933), (256.0, 240.0, 777), (256.0, 1.0, 500)):
        left = 0
        while left <= room:
            first, count = _cell(left, side, stored, room)
            assert first == left
            assert count > 0
            assert _cell(left + count - 1, side, stored, room) == (first, count)
            assert count <= 1.5 * side + 1
            left += count


def test_more_than_one_tile_a_visit_is_pinned_and_one_is_what_it_was(cohort: Cohort) -> None:
    one = visiting(cohort, CONFIG.model_copy(update={"tiles_per_visit": 1}))
    unset = set(TilesConfig.model_fields) - {"tiles_per_visit", "dct_halving"}
    assert one.sources[0].config.model_dump().keys() == one.sources[0].config.model_dump(mode="json").keys() == unset
    assert CONFIG.model_dump().keys() == unset | {"tiles_per_visit"}
    assert hash_of(TilesConfig().model_dump()) == "0d0c0492a8f06015"  # runs of eosin 0.1.0 go on
    assert one.hash == TilePlan(one.sources, 0, batch=99).hash
    hashes = {one.hash, visiting(cohort).hash, visiting(cohort, batch=16).hash, visiting(cohort, seed=1).hash}
    hashes.add(visiting(cohort, CONFIG.model_copy(update={"tiles_per_visit": 8})).hash)
    hashes.add(visiting(cohort, CONFIG.model_copy(update={"dct_halving": False})).hash)
    assert len(hashes) == 6


def test_a_round_keeps_memory_bounded() -> None:
    for per_visit, batch in ((2, 32), (4, 32), (4, 256), (8, 768), (16, 64)):
        spread = Spread.of(0, per_visit, batch)
        kept = spread.most_kept(0, batch)
        least = batch * visits_module.LEAST_STEPS * (per_visit - 1) // 2
        assert visits_module.KEPT_TILES <= kept < max(visits_module.KEPT_TILES + batch * per_visit, least + 1)
    assert Spread(0, 4, 8, 5).most_kept(0, 4) == 5 * 6
    assert Spread(0, 4, 8, 5).most_kept(2, 5) == 5 * ((3 + 2) + 3)
