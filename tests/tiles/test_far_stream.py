"""The stream of slides behind a web server: the tiles of the files, and several visits on their way at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import StoreDown
from eosin.slides import Cohort, remote, tiff_cache
from eosin.slides.remote_errors import StoreUnreachable
from eosin.tiles import SlideSource, TilePlan, TilesConfig, TileStream

from ..slides.stores import RangeServer

pytest.importorskip("obstore", reason="pip install 'eosin[s3]'")

CONFIG = TilesConfig(size_px=48, mpp=[0.5, 1.0], hsv_share=0.3)


class Gate(RangeServer):
    """Answers nothing, once it is `shut`, until so many requests wait for an answer."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(files)
        self._waiting, self._wanted, self._turn = 0, 0, threading.Condition()

    def shut(self, wanted: int) -> None:
        with self._turn:
            self._waiting, self._wanted = 0, wanted

    @property
    def opened(self) -> bool:
        return self._waiting >= self._wanted

    def next_fault(self) -> str:
        with self._turn:
            self._waiting += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self.opened, timeout=30)
        return super().next_fault()


@pytest.fixture
def server(slide_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EOSIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EOSIN_ALLOW_HTTP", "1")
    remote._store.cache_clear()
    with Gate({f"/study/{path.name}": path.read_bytes() for path in slide_paths}) as running:
        yield running
    remote._store.cache_clear()
    remote._process = None  # later tests of this process fork: their children read files


@pytest.fixture
def far(server: Gate, tmp_path: Path) -> Cohort:
    paths = [f"http://{server.place}{path}" for path in server.files]
    return Cohort.index(paths, tmp_path / "far.parquet", workers=0)


def plan_of(cohort: Cohort, per_visit: int) -> TilePlan:
    config = CONFIG.model_copy(update={"tiles_per_visit": per_visit})
    return TilePlan([SlideSource(cohort, config, 0)], 0, batch=16)


@pytest.mark.parametrize("per_visit", [1, 4])
def test_visits_of_a_step_are_read_side_by_side(far: Cohort, cohort: Cohort, server: Gate, per_visit: int) -> None:
    near, plan = plan_of(cohort, per_visit), plan_of(far, per_visit)
    assert plan.far
    assert not near.far
    for number in range(16):
        plan.tile(number)  # all slides are open
    tiff_cache.shared.clear()
    server.shut(8)  # one visit by itself asks for at most 2 rows of stored tiles
    wanted = TileStream(near, 16, steps=3)
    for there, here in zip(TileStream(plan, 16, steps=3), wanted, strict=True):
        assert server.opened
        assert np.array_equal(there.pixels, here.pixels)
        assert there.names == here.names
        assert there.rejected == here.rejected
        assert there.errors == here.errors == []


def test_a_store_that_goes_away_stops_it(far: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(far, 4)
    plan.tile(0)

    def gone(uri: remote.Uri, *words: object) -> None:
        raise StoreUnreachable(f"{uri}: the store answers with status 503")

    tiff_cache.shared.clear()
    monkeypatch.setattr(remote, "read_range", gone)
    with pytest.raises(StoreDown, match="status 503"):
        next(iter(TileStream(plan, 16)))
