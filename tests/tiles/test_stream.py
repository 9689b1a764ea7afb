"""TileStream: the same global batches for any number of processes and workers, from any step."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from eosin.errors import PlanError
from eosin.slides import Cohort
from eosin.tiles import TilePlan, TilesConfig, TileStream

from .conftest import plan_of

CONFIG = TilesConfig(size_px=48, mpp=[0.5, 1.0])


@pytest.fixture(scope="module")
def plan(cohort: Cohort) -> TilePlan:
    return plan_of(cohort, CONFIG, 0)


@pytest.fixture(scope="module")
def expected(plan: TilePlan) -> np.ndarray:
    """Four global batches of 8 tiles, drawn one by one."""
    return np.stack([plan.tile(i).pixels for i in range(32)]).reshape(4, 8, 48, 48, 3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_world_size_and_worker_count(plan: TilePlan, expected: np.ndarray, world: int, workers: int) -> None:
    shares = [list(TileStream(plan, 8, steps=2, rank=r, world=world, workers=workers)) for r in range(world)]
    for step in range(2):
        joined = np.concatenate([share[step].pixels for share in shares])
        assert np.array_equal(joined, expected[step])
        assert [share[step].step for share in shares] == [step] * world


def test_from_any_step(plan: TilePlan, expected: np.ndarray) -> None:
    for first in (1, 3):
        batch = next(iter(TileStream(plan, 8, first_step=first, workers=1)))
        assert batch.step == first
        assert np.array_equal(batch.pixels, expected[first])


@pytest.mark.parametrize("room", [True, False])
def test_pixels_of_a_worker_come_through_shared_memory_where_there_is_room(
    plan: TilePlan, expected: np.ndarray, room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    if not room:
        monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # worker processes are forked from this one
    batches = list(TileStream(plan, 8, steps=4, workers=2))
    assert [batch.step for batch in batches] == [0, 1, 2, 3]
    for batch, pixels in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch.pixels, pixels)
        shared = isinstance(batch.pixels.base, torch.Tensor) and batch.pixels.base.is_shared()
        assert shared == room
        assert batch.pixels.flags.writeable


def test_it_has_no_end_of_its_own(plan: TilePlan) -> None:
    assert [batch.step for batch in islice(TileStream(plan, 1), 5)] == [0, 1, 2, 3, 4]


def test_an_impossible_split_is_refused(plan: TilePlan) -> None:
    with pytest.raises(PlanError, match="cannot be split"):
        TileStream(plan, 8, world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plan_that_finds_nothing_stops_with_its_line(
    cohort: Cohort, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.tiles.search.MOST_SLIDES", 2)  # worker processes are forked from this one
    whole_slides = TilesConfig(size_px=512, mpp=[1.0], min_foreground=0.1, hsv_share=1.0)
    plan = plan_of(cohort, whole_slides, 0)
    with pytest.raises(PlanError, match="no tile passes"):
        next(iter(TileStream(plan, 2, workers=workers)))


def test_it_counts_what_was_taken_and_what_was_not(cohort: Cohort) -> None:
    plan = plan_of(cohort, TilesConfig(size_px=48, mpp=[0.5], hsv_share=0.5), 0)
    stream = TileStream(plan, 8, steps=4)
    batches = list(stream)
    assert stream.accepted.total() == 32
    assert stream.rejections.total() == sum(len(batch.rejected) for batch in batches) > 0
