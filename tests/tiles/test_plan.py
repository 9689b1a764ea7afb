"""TilePlan: tile i is a function, positions are uniform over tissue, failures redraw without moving other tiles."""

from __future__ import annotations

import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eosin.errors import PlanError
from eosin.slides import Cohort
from eosin.tiles import MppRange, SlideSource, TilePlan, TilesConfig, foreground_share
from eosin.tiles.filters import integral
from eosin.tiles.slide_source import chosen_patients

from .conftest import plan_of

CONFIG = TilesConfig(size_px=64, mpp=[0.5, 1.0, 2.0])


def test_a_tile_depends_on_its_number_alone(cohort: Cohort) -> None:
    plan = plan_of(cohort, CONFIG, 3)
    twin = pickle.loads(pickle.dumps(plan_of(cohort, CONFIG, 3)))
    forward = [plan.tile(i) for i in range(12)]
    for i in (7, 0, 11, 3):
        again = twin.tile(i)
        assert again.address == forward[i].address
        assert np.array_equal(again.pixels, forward[i].pixels)
    other = plan_of(cohort, CONFIG, 4)
    assert sum(other.tile(i).address == forward[i].address for i in range(12)) == 0
    assert len({tile.address.number for tile in forward}) == 12


def test_every_tile_has_enough_foreground(cohort: Cohort) -> None:
    plan = plan_of(cohort, CONFIG, 0)
    for i in range(60):
        address = plan.tile(i).address
        mask, mpp = cohort.foreground(address.image), cohort.foreground_mpp(address.image)
        share = slow_share(mask, address.x * 0.5 / mpp, address.y * 0.5 / mpp, 64 * address.mpp / mpp)
        assert share >= 0.4 - 1e-9


def slow_share(mask: np.ndarray, x: float, y: float, side: float) -> float:
    """Share of set area in a box, pixel by pixel, with the part of each pixel that the box covers."""
    total = 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column]:
                wide = max(0.0, min(x + side, column + 1) - max(x, column))
                high = max(0.0, min(y + side, row + 1) - max(y, row))
                total += wide * high
    return total / side**2


def test_foreground_share_is_exact_at_fractions() -> None:
    generator = np.random.default_rng(0)
    mask = generator.random((9, 7)) < 0.4
    table = integral(mask)
    for _ in range(50):
        x, y, side = generator.uniform(-2, 7), generator.uniform(-2, 9), generator.uniform(0.3, 6)
        assert float(foreground_share(table, x, y, side, side)) == pytest.approx(slow_share(mask, x, y, side), abs=1e-9)


def test_positions_are_uniform_over_all_that_pass(cohort: Cohort) -> None:
    source = SlideSource(cohort, CONFIG, seed=0)
    mask, mpp = cohort.foreground(0), cohort.foreground_mpp(0)
    table = integral(mask)
    room = 1024 - 64
    x, y = np.meshgrid(np.arange(0, room + 1, 4), np.arange(0, room + 1, 4))
    passing = foreground_share(table, x * 0.5 / mpp, y * 0.5 / mpp, 32 / mpp, 32 / mpp) >= 0.4
    cells = (y // 240).clip(max=3) * 4 + (x // 240).clip(max=3)
    expected = np.bincount(cells[passing], minlength=16) / passing.sum()
    drawn = [a for i in range(6000) if (a := source.draw(0, 0, i, 0)).size_px and a.image == 0 and a.mpp == 0.5]
    found = np.bincount([min(a.y // 240, 3) * 4 + min(a.x // 240, 3) for a in drawn], minlength=16)
    keep = expected > 0.01
    assert found[~keep].sum() < 0.05 * len(drawn)
    chances = expected[keep] / expected[keep].sum()
    assert stats.chisquare(found[keep], chances * found[keep].sum()).pvalue > 1e-3


def test_scales_and_slides_come_in_their_shares(cohort: Cohort) -> None:
    config = TilesConfig(size_px=64, mpp=[0.5, 1.0, 2.0], mpp_weights=[1, 2, 1], slide_weights="tissue")
    source = SlideSource(cohort, config, seed=0)
    drawn = [source.draw(0, 0, i, 0) for i in range(3000)]
    scales = [a.mpp for a in drawn if a.size_px]
    assert [scales.count(mpp) / len(scales) for mpp in (0.5, 1.0, 2.0)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    tissue = cohort.usable["tissue_mm2"].to_numpy(float)
    slides = np.bincount([a.image for a in drawn if a.size_px], minlength=3) / len(scales)
    assert slides == pytest.approx(tissue / tissue.sum(), abs=0.04)


@pytest.mark.parametrize("law", ["uniform", "log"])
def test_continuous_scales_follow_their_law(law: str) -> None:
    from eosin.randomness import Words

    config = TilesConfig(mpp=MppRange(low=0.5, high=2.0, law=law))
    drawn = np.array([config.draw_mpp(Words(0, i)) for i in range(4000)])
    if law == "log":
        drawn = np.log(drawn)
        assert stats.kstest(drawn, "uniform", args=(math.log(0.5), math.log(4))).pvalue > 1e-3
    else:
        assert stats.kstest(drawn, "uniform", args=(0.5, 1.5)).pvalue > 1e-3


def test_a_scale_that_no_slide_gives(cohort: Cohort) -> None:
    config = TilesConfig(size_px=64, mpp=[0.25, 0.5])
    with pytest.raises(PlanError, match=r"no image gives 0\.25 µm/px"):
        SlideSource(cohort, config, seed=0)
    kept = SlideSource(cohort, config.model_copy(update={"drop_empty_mpp": True}), seed=0)
    assert kept.config.mpp == [0.5]
    assert SlideSource(cohort, config.model_copy(update={"max_upsample": 2.1}), seed=0).config.mpp == [
        0.25,
        0.5,
    ]
    with pytest.raises(PlanError, match="no image gives 8 µm/px"):
        SlideSource(cohort, TilesConfig(size_px=256, mpp=[8.0]), seed=0)


def test_nothing_passes_is_one_clear_line(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eosin.tiles.search.MOST_SLIDES", 2)
    plan = plan_of(cohort, TilesConfig(size_px=512, mpp=[1.0], min_foreground=0.1, hsv_share=1.0), 0)
    with pytest.raises(PlanError, match=r"no tile passes.*times the HSV rule"):
        plan.tile(0)
    everything = TilesConfig(size_px=512, mpp=[1.0], min_foreground=1.0)
    with pytest.raises(PlanError, match="no place with 100% foreground"):
        plan_of(cohort, everything, 0).tile(0)


def test_a_broken_slide_changes_no_other_tile_and_is_replayed(
    cohort: Cohort, slide_paths: list[Path], tmp_path: Path
) -> None:
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in slide_paths]
    own = Cohort.index([str(path) for path in copies], tmp_path / "cohort.parquet", workers=0)
    plan = plan_of(own, CONFIG, 0)
    before = [plan.tile(i) for i in range(16)]
    broken = before[0].address.name
    victim = next(path for path in copies if path.stem == broken)
    content = victim.read_bytes()
    victim.write_bytes(b"")

    plan = plan_of(own, CONFIG, 0)
    during = [plan.tile(i) for i in range(16)]
    for old, new in zip(before, during, strict=True):
        if old.address.name != broken:
            assert np.array_equal(old.pixels, new.pixels)
        else:
            assert new.errors[0]["next"] % 16 == 0  # a slide that cannot be opened is left at once
            assert new.errors[0]["slide"] == broken
            assert broken in new.errors[0]["error"]

    victim.write_bytes(content)  # repaired: the ledger keeps the run on its tiles all the same
    ledger = {(error["i"], error["attempt"]): error["next"] for tile in during for error in tile.errors}
    plan = plan_of(own, CONFIG, 0)
    for new in during:
        again = plan.tile(new.index, ledger)
        assert again.address == new.address
        assert not again.errors


def test_smaller_shares_of_patients_nest(cohort: Cohort) -> None:
    import pandas

    table = pandas.DataFrame({"slide_id": [f"s{i}" for i in range(200)], "patient": [f"p{i // 2}" for i in range(200)]})
    previous = np.zeros(200, dtype=bool)
    for share in (0.01, 0.1, 0.3, 1.0):
        chosen = chosen_patients(table, share, seed=5)
        assert chosen.sum() == 2 * max(1, round(share * 100))
        assert (chosen | ~previous).all()
        assert all(chosen[i] == chosen[i + 1] for i in range(0, 200, 2))
        previous = chosen
    half = SlideSource(cohort, CONFIG.model_copy(update={"slides": 0.5}), seed=0)
    assert len(half) in (1, 2)


def test_distinct_tiles_repeat(cohort: Cohort) -> None:
    plan = plan_of(cohort, CONFIG.model_copy(update={"distinct_tiles": 5}), 0)
    assert plan.tile(3).address == plan.tile(8).address == plan.tile(503).address
    assert plan.tile(3).address != plan.tile(4).address


def test_the_hash_pins_what_tiles_depend_on(cohort: Cohort) -> None:
    base = plan_of(cohort, CONFIG, 0).hash
    assert plan_of(cohort, CONFIG, 0).hash == base
    others = [
        plan_of(cohort, CONFIG, 1).hash,
        plan_of(cohort, CONFIG.model_copy(update={"hsv_share": 0.1}), 0).hash,
        plan_of(cohort.where("patient == 'P1'"), CONFIG, 0).hash,
    ]
    assert len({base, *others}) == 4


def test_sources_that_do_not_go_together_are_refused(cohort: Cohort) -> None:
    four = CONFIG.model_copy(update={"tiles_per_visit": 4})
    with pytest.raises(PlanError, match=r"one and the same tiles\.tiles_per_visit"):
        TilePlan([SlideSource(cohort, CONFIG, 0), SlideSource(cohort, four, 0)], 0)
