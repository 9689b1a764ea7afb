"""Large cohorts: what they cost in memory does not grow with their pictures, and little with their rows."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eosin.slides import Cohort
from eosin.slides.cohort_file import COLUMNS, write_rows
from eosin.slides.records import Records
from eosin.tiles.config import TilesConfig
from eosin.tiles.slide_source import SlideSource


def written(folder: Path, count: int, of: Cohort) -> Path:
    """A cohort of `count` rows, which are `of`'s first slide under other names, with a thumbnail of 20 KB each."""
    row = of.row(0) | {"foreground": of._bytes("foreground", 0)}
    rng = np.random.default_rng(0)
    names = [f"slide-{n:06}" for n in range(count)]
    rows = ({name: row.get(name) for name in COLUMNS} | {"slide_id": s, "thumbnail": rng.bytes(20_000)} for s in names)
    path = folder / f"{count}.parquet"
    write_rows(path, rows, pd.DataFrame(index=range(count)), [f"{n:016x}" for n in range(1, count + 1)], names)
    return path


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, pink_slide: Path) -> Cohort:
    return Cohort.index(pink_slide, tmp_path_factory.mktemp("large") / "one.parquet", workers=0)


def test_a_source_travels_with_few_bytes_a_row(tmp_path: Path, one: Cohort) -> None:
    sizes = [
        len(pickle.dumps(SlideSource(Cohort.read(written(tmp_path, count, one)), TilesConfig(mpp=[1.0]), 0)))
        for count in (500, 2500)
    ]
    assert (sizes[1] - sizes[0]) / 2000 < 350


def test_a_copy_reads_its_table_again_only_where_it_is_the_same(tmp_path: Path, one: Cohort) -> None:
    path = written(tmp_path, 100, one)
    cohort = Cohort.read(path).where("slide_id >= 'slide-000050'")
    copy = pickle.loads(pickle.dumps(cohort))
    assert "table" not in vars(copy)
    assert (len(copy), copy.hash, copy.digest(3)) == (50, cohort.hash, cohort.digest(3))
    assert (copy.foreground(49) == one.foreground(0)).all()
    assert "table" not in vars(copy)
    assert copy.table.equals(cohort.table)
    assert copy.row(7) == cohort.row(7)
    other = pickle.loads(pickle.dumps(cohort))
    written(tmp_path, 60, one).replace(path)
    with pytest.raises(Exception, match="changed since it was opened"):
        other.table  # noqa: B018


def test_records_are_the_rows_of_the_table(one: Cohort, tmp_path: Path) -> None:
    table = Cohort.read(written(tmp_path, 40, one)).usable
    table.loc[3, "vendor"] = None
    names = ["slide_id", "vendor", "width", "mpp_x"]
    records = Records(table, names)
    plain = table[names].astype(object).where(table[names].notna(), None).to_dict("records")
    assert [records[n] for n in range(len(records))] == plain
    assert type(records[0]["width"]) is int
    assert pickle.loads(pickle.dumps(records))[39] == plain[39]


STREAM = """
import json, resource, sys
from eosin.slides import Cohort
from eosin.tiles.config import TilesConfig
from eosin.tiles.plan import TilePlan
from eosin.tiles.slide_source import SlideSource
source = SlideSource(Cohort.read(sys.argv[1]), TilesConfig(mpp=[1.0], size_px=64), 0)
plan = TilePlan([source], 0)
names = {plan.tile(i).address.name for i in range(150)}
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(names)]))
"""


@pytest.mark.slow
def test_the_memory_of_a_stream_is_flat_in_the_size_of_the_cohort(tmp_path: Path, one: Cohort) -> None:
    peaks = []
    for count in (200, 5000):
        done = subprocess.run(
            [sys.executable, "-c", STREAM, written(tmp_path, count, one)], capture_output=True, text=True, check=True
        )
        peak_kb, names = json.loads(done.stdout)
        assert names > 90
        peaks.append(peak_kb)
    assert peaks[1] - peaks[0] < 40_000  # kB; the pictures of 5,000 rows are 100 MB
