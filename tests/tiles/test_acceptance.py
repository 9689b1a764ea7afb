"""Which slides give tiles: counted by slide and µm/px, kept over a run, the same when it was stopped and resumed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from eosin.errors import DataError
from eosin.runs import RunFolder
from eosin.slides import Cohort
from eosin.tiles import MppRange, SlideSource, TilePlan, TilesConfig, TileStream
from eosin.tiles.acceptance import Acceptance, keep_acceptance, read_acceptance, scale_of
from eosin.training import train

SMALL = [
    *("encoder.width=24", "encoder.depth=1", "encoder.heads=2", "encoder.patch=8", "encoder.grid=4"),
    *("tiles.size_px=40", "tiles.mpp=[0.5, 1.0]", "tiles.hsv_share=0.3", "tiles.tiles_per_visit=4"),
    *("views.global_px=32", "views.local_px=16", "views.local_count=2", "views.blur_kernel_px=3"),
    *("objective.dino_prototypes=16", "objective.ibot_prototypes=12", "objective.head_hidden=16"),
    *("objective.dino_bottleneck=8", "objective.ibot_bottleneck=8", "run.batch=8", "run.group=4", "run.steps=8"),
    *("run.minutes=null", "run.precision=fp32", "run.workers=0", "run.log_every=1", "run.log_to=[]"),
    *("run.monitor_every=8", "run.monitor_tiles=8", "run.checkpoint_every=2", "run.keep_last=9"),
]


def test_counts_are_those_of_the_batches(cohort: Cohort) -> None:
    config = TilesConfig(size_px=48, mpp=[0.5, 1.0], hsv_share=0.4)
    acceptance, slide = Acceptance(), str(cohort.usable["slide_id"].iloc[0])
    taken, refused = 0, 0
    for batch in TileStream(TilePlan([SlideSource(cohort, config, 0)], 0), 8, steps=6):
        acceptance.add(batch, config)
        taken += sum(name == slide and mpp == 0.5 for name, mpp in zip(batch.names, batch.mpp, strict=True))
        refused += sum(one == (slide, 0.5, "hsv") for one in batch.rejected)
    rows = {(row.slide, row.mpp): row for row in acceptance.rows()}
    assert sum(row.taken for row in rows.values()) == 48
    row = rows[slide, 0.5]
    assert (row.taken, row.hsv) == (taken, refused)
    assert row.rate == taken / (taken + refused)
    assert math.isnan(row._replace(taken=0, hsv=0, place=3).rate)


def test_a_continuous_scale_is_counted_in_eight_parts() -> None:
    flat = TilesConfig(mpp=MppRange(low=0.4, high=2.0))
    assert [scale_of(flat, mpp) for mpp in (0.4, 0.59, 0.61, 2.0)] == [0.5, 0.5, 0.7, 1.9]
    log = TilesConfig(mpp=MppRange(low=0.25, high=2.0, law="log"))
    assert scale_of(log, 0.25) == pytest.approx(0.25 * 8 ** (1 / 16), rel=0.01)
    assert scale_of(TilesConfig(mpp=[0.7]), 0.7) == 0.7


def test_the_file_holds_the_last_saves(tmp_path: Path) -> None:
    path, acceptance = tmp_path / "acceptance.parquet", Acceptance()
    assert read_acceptance(path, 7).from_step == 7
    for step in (10, 20, 30, 40):
        acceptance.counts["a", 0.5, "taken"] += 5
        keep_acceptance(path, step, acceptance)
    assert read_acceptance(path).rows() == [("a", 0.5, 20, 0, 0, 0)]
    assert read_acceptance(path, 30).rows() == [("a", 0.5, 15, 0, 0, 0)]
    assert read_acceptance(path, 10).from_step == 10  # too old: counted anew from there
    keep_acceptance(path, 25, read_acceptance(path, 20))  # a run that went back to step 20
    assert [read_acceptance(path, at).rows()[0].taken for at in (25, 20)] == [10, 10]
    assert set(pq.read_table(path).column("step").to_pylist()) == {20, 25}
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        read_acceptance(path)


def test_a_run_with_visits_resumes_exactly_and_so_do_its_counts(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eosin.tiles.visits.KEPT_TILES", 40)
    file = str(cohort.path)
    whole = train("quickstart", tmp_path / "whole", cohort=[file], set=SMALL)
    parts = train("quickstart", tmp_path / "parts", cohort=[file], set=SMALL)
    for step in (6, 8):  # as if it had been killed between steps 6 and 8, its last checkpoint not complete
        shutil.rmtree(parts.checkpoint(step))
    train("quickstart", tmp_path / "parts", cohort=[file], set=[*SMALL, "run.workers=2"])
    one, other = _state(whole), _state(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    counts = read_acceptance(whole.acceptance)
    assert counts == read_acceptance(parts.acceptance)
    assert counts.from_step == 0
    assert sum(row.taken for row in counts.rows()) == 8 * 8
    assert sum(row.hsv for row in counts.rows()) > 0


def _state(run: RunFolder) -> dict[str, torch.Tensor]:
    found = sorted(run.checkpoint(8).glob("*.safetensors"))
    assert found
    return {name: tensor for path in found for name, tensor in load_file(path).items()}
