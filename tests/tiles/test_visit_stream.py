"""The stream with visits: equal for any processes, workers and start; each visit read once; memory; the ledger."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from eosin.slides import Cohort, open_slide
from eosin.tiles import FolderSource, SlideSource, TileBatch, TilePlan, TilesConfig, TileStream
from eosin.tiles import visits as visits_module

CONFIG = TilesConfig(size_px=48, mpp=[0.5, 1.0], tiles_per_visit=4, hsv_share=0.3)
BATCH, STEPS = 8, 20


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits_module, "KEPT_TILES", 40)  # rounds of 4 steps; worker processes are forked


def plan_of(cohort: Cohort, config: TilesConfig = CONFIG, batch: int = BATCH) -> TilePlan:
    return TilePlan([SlideSource(cohort, config, 0)], 0, batch=batch)


@pytest.fixture(scope="module")
def expected(cohort: Cohort) -> np.ndarray:
    """All steps, tile by tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visits_module, "KEPT_TILES", 40)
        plan = plan_of(cohort)
        return np.stack([plan.tile(i).pixels for i in range(STEPS * BATCH)]).reshape(STEPS, BATCH, 48, 48, 3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (1, 3), (2, 0), (2, 2), (4, 0), (4, 2)])
def test_any_world_size_and_worker_count_with_every_visit_read_once(
    cohort: Cohort, expected: np.ndarray, world: int, workers: int
) -> None:
    plan = plan_of(cohort)
    assert plan.spread is not None
    needed = len({plan.spread.place(i).visit for i in range(STEPS * BATCH)})
    assert needed == 64  # 5 rounds of 32 places: a visit lasts for 4 rounds, and those of the first one begin late
    visits, shares = 0, []
    for rank in range(world):
        stream = TileStream(plan, BATCH, steps=STEPS, rank=rank, world=world, workers=workers)
        most = plan.spread.most_kept(rank * BATCH // world, (rank + 1) * BATCH // world) * 48 * 48 * 3
        share = []
        for batch in stream:
            share.append(batch)
            assert stream.waiting_bytes <= most
        assert stream.waiting_bytes == 0
        visits += stream.visits
        shares.append(share)
    for step in range(STEPS):
        assert np.array_equal(np.concatenate([share[step].pixels for share in shares]), expected[step])
        numbers = np.concatenate([share[step].index for share in shares])
        assert numbers.tolist() == list(range(step * BATCH, (step + 1) * BATCH))
    assert visits == needed


@pytest.mark.parametrize(("first", "workers"), [(1, 0), (7, 2), (18, 0)])
def test_from_any_step(cohort: Cohort, expected: np.ndarray, first: int, workers: int) -> None:
    stream = TileStream(plan_of(cohort), BATCH, first_step=first, steps=STEPS - first, workers=workers)
    for batch in stream:
        assert np.array_equal(batch.pixels, expected[batch.step])
    assert batch.step == STEPS - 1


def test_a_batch_that_the_plan_was_not_made_for_gives_the_same_tiles(cohort: Cohort, expected: np.ndarray) -> None:
    flat = expected.reshape(-1, 48, 48, 3)
    for world in (1, 3):
        shares = [list(TileStream(plan_of(cohort), 12, steps=4, rank=rank, world=world)) for rank in range(world)]
        joined = [np.concatenate([share[step].pixels for share in shares]) for step in range(4)]
        assert np.array_equal(np.concatenate(joined), flat[:48])


def test_distinct_tiles_repeat_and_are_read_once_a_round(cohort: Cohort, expected: np.ndarray) -> None:
    plan = plan_of(cohort, CONFIG.model_copy(update={"distinct_tiles": 20}))
    stream = TileStream(plan, BATCH, steps=6, workers=2)
    index = np.concatenate([batch.index for batch in stream])
    assert index.tolist() == [number % 20 for number in range(48)]
    pixels = np.concatenate([batch.pixels for batch in TileStream(plan, BATCH, steps=6)])
    assert np.array_equal(pixels, expected.reshape(-1, 48, 48, 3)[index])


def test_it_counts_what_was_tried_for_the_tiles_that_came(cohort: Cohort) -> None:
    plan = plan_of(cohort)
    alone = [plan.tile(number) for number in range(6 * BATCH)]
    stream = TileStream(plan, BATCH, steps=6)
    batches = list(stream)
    assert stream.accepted.total() == 6 * BATCH
    assert [one for batch in batches for one in batch.rejected] == [one for tile in alone for one in tile.rejected]
    assert stream.rejections.total() > 0
    assert {one.why for batch in batches for one in batch.rejected} <= {"hsv", "place"}


def test_folders_have_no_visits_and_mix_with_slides(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import cv2

    for name in range(3):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.full((64, 64, 3), 60 * name, np.uint8))
    config = TilesConfig(size_px=48, mpp=[0.5], tiles_per_visit=4)
    folder = FolderSource(str(tmp_path), 0.5, config)
    alone = TilePlan([folder], 0, batch=BATCH)
    plain = TilePlan([FolderSource(str(tmp_path), 0.5, TilesConfig(size_px=48, mpp=[0.5]))], 0)
    assert alone.spread is None
    alone.check()
    assert "tiles.tiles_per_visit=4 has no effect on folders of tiles" in capsys.readouterr().err
    assert [alone.tile(i).address for i in range(20)] == [plain.tile(i).address for i in range(20)]

    mixed = TilePlan([SlideSource(cohort, config, 0), folder], 0, batch=BATCH)
    batches = list(TileStream(mixed, BATCH, steps=8, workers=2))
    numbers = [tile.address.number for tile in map(mixed.tile, range(8 * BATCH))]
    assert np.concatenate([batch.address for batch in batches]).tolist() == numbers
    sources = {mixed.tile(number).address.source for number in range(8 * BATCH)}
    assert sources == {0, 1}
    inside = [mixed.tile(n).address for n in range(400) if mixed.tile(n).address.source == 1]
    assert len({at.image for at in inside}) == 3


def test_a_damaged_stored_tile_changes_no_other_tile_and_is_replayed(
    cohort: Cohort, slide_paths: list[Path], tmp_path: Path
) -> None:
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in slide_paths]
    own = Cohort.index([str(path) for path in copies], tmp_path / "cohort.parquet", workers=0)
    config = CONFIG.model_copy(update={"hsv_share": None, "mpp": [0.5], "min_foreground": 0.1})
    before = list(TileStream(plan_of(own, config), BATCH, steps=STEPS))
    victim, offset, count = _stored_tile(copies[1])
    content = victim.read_bytes()
    victim.write_bytes(content[:offset] + bytes(count) + content[offset + count :])

    during = list(TileStream(plan_of(own, config), BATCH, steps=STEPS, workers=2))
    alone = plan_of(own, config)
    ledger = {}
    for old, new in zip(before, during, strict=True):
        failed = {error["i"]: error for error in new.errors}
        for row, number in enumerate(new.index.tolist()):
            same = np.array_equal(old.pixels[row], new.pixels[row])
            assert same == (number not in failed)  # though the visit's other slots may touch what is damaged
            assert np.array_equal(alone.tile(number).pixels, new.pixels[row])
        assert all(error["slide"] == victim.stem and "damaged" in error["error"] for error in new.errors)
        ledger |= {(error["i"], error["attempt"]): error["next"] for error in new.errors}
    assert 0 < len(ledger) < STEPS * BATCH / 4
    touched = [number for number, _ in ledger]
    together = [other for number in touched for other in alone.siblings(number) if other not in touched]
    assert together  # slots of a damaged visit that came through

    victim.write_bytes(content)  # repaired: the ledger keeps the run on its tiles all the same
    for workers, first in ((0, 0), (2, 6)):
        stream = TileStream(
            plan_of(own, config), BATCH, first_step=first, steps=STEPS - first, workers=workers, known_errors=ledger
        )
        after: list[TileBatch] = list(stream)
        for again, new in zip(after, during[first:], strict=True):
            assert np.array_equal(again.pixels, new.pixels)
            assert not again.errors


def _stored_tile(path: Path) -> tuple[Path, int, int]:
    """A tile of the finest level, in the middle of the slide."""
    with open_slide(path, reader="tiff") as slide:
        stored = slide._index.levels[0]  # type: ignore[attr-defined]
        number = (stored.across // 2) * (stored.across + 1)
        return path, int(stored.offsets[number]), int(stored.counts[number])
