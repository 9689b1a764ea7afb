"""The cohort file: what it holds, what it refuses, and that reading it is lazy and cheap."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.errors import CohortError
from eosin.slides import Cohort, find_foreground, open_slide
from eosin.slides.cohort import COLUMNS


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pink_slide) -> Path:
    """A cohort of three equal slides and a broken one."""
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("a", "b", "c"):
        shutil.copy(pink_slide, folder / f"{name}.svs")
    (folder / "broken.svs").write_text("no slide")
    (folder / "m.csv").write_text("slide,stain,grade\na.svs,HE,1\nb,HE,2\nc.svs,IHC,\n")
    Cohort.index(folder, folder / "cohort.parquet", metadata=folder / "m.csv", workers=0)
    return folder


@pytest.fixture
def cohort(folder: Path) -> Cohort:
    return Cohort.read(folder / "cohort.parquet")


def test_columns_and_rows(cohort: Cohort) -> None:
    assert list(cohort.table.columns) == [c for c in COLUMNS if c not in ("foreground", "thumbnail")] + ["grade"]
    assert cohort.table["slide_id"].tolist() == ["a", "b", "broken", "c"]
    assert cohort.usable["slide_id"].tolist() == ["a", "b", "c"]
    assert len(cohort) == 3
    assert cohort.usable["width"].dtype == np.int64
    row = cohort.usable.iloc[1]
    assert (row["width"], row["height"], row["mpp_x"], row["mpp_y"], row["levels"]) == (
        1024,
        1024,
        1.0,
        1.0,
        2,
    )
    assert (row["reader"], row["vendor"], row["stain"], row["grade"]) == ("tiff", "aperio", "HE", 2)
    assert pd.isna(cohort.usable["grade"].iloc[2])
    assert pd.isna(cohort.usable["error"]).all()


def test_foreground_and_thumbnail_are_the_slide_s(cohort: Cohort, pink_slide: Path) -> None:
    with open_slide(pink_slide) as slide:
        found, picture = find_foreground(slide), slide.overview(512)[0]
    for n in range(3):
        assert np.array_equal(cohort.foreground(n), found.mask)
        assert cohort.foreground(n).dtype == bool
        assert cohort.foreground_mpp(n) == found.mpp == 8.0
        assert cohort.thumbnail(n).shape == picture.shape == (512, 512, 3)
        assert np.abs(cohort.thumbnail(n).astype(int) - picture).mean() < 3
    assert cohort.usable["tissue_mm2"].tolist() == [found.mm2] * 3


def test_foreground_is_stored_as_one_bit_png(folder: Path) -> None:
    data = pq.read_table(folder / "cohort.parquet")["foreground"][0].as_py()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert (data[24], data[25]) == (1, 0)  # bit depth, grey


def test_copies_travel_light_and_still_read(cohort: Cohort) -> None:
    cohort.foreground(0)
    data = pickle.dumps(cohort)
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert copy.hash == cohort.hash
    assert np.array_equal(copy.foreground(2), cohort.foreground(2))


def test_bytes_are_read_from_their_row_group(tmp_path, folder: Path, cohort: Cohort, monkeypatch) -> None:
    monkeypatch.setattr("eosin.slides.cohort_file.ROWS_A_GROUP", 2)
    again = Cohort.index(folder, tmp_path / "c.parquet", workers=0)
    assert pq.ParquetFile(tmp_path / "c.parquet").num_row_groups == 2
    assert np.array_equal(again.foreground(2), cohort.foreground(2))


def test_hash_is_of_content_not_of_places(tmp_path, folder: Path, cohort: Cohort, pink_slide: Path) -> None:
    for name in ("a", "b", "c"):
        shutil.copy(pink_slide, tmp_path / f"{name}.svs")
    moved = Cohort.index(tmp_path, tmp_path / "moved.parquet", workers=0)
    assert moved.hash == cohort.hash  # neither paths, nor error rows, nor metadata count
    (tmp_path / "mpp.csv").write_text("slide,mpp\na.svs,1.1\n")
    other = Cohort.index(tmp_path, tmp_path / "moved.parquet", mpp_csv=tmp_path / "mpp.csv", workers=0)
    assert other.hash != cohort.hash


def test_where(cohort: Cohort) -> None:
    chosen = cohort.where('stain == "IHC" or slide_id == "a"')
    assert chosen.usable["slide_id"].tolist() == ["a", "c"]
    assert chosen.hash != cohort.hash
    assert chosen.where("grade != grade").usable["slide_id"].tolist() == ["c"]
    assert np.array_equal(chosen.foreground(1), cohort.foreground(2))
    assert cohort.where("width > 1").hash == cohort.hash


@pytest.mark.parametrize("expression", ["stain ==", "colour == 1", "stain + 1", "width > 5000", "", "@x > 1"])
def test_where_refuses(cohort: Cohort, expression: str) -> None:
    with pytest.raises(CohortError) as refused:
        cohort.where(expression)
    assert "\n" not in str(refused.value)


def test_read_refuses_what_is_no_cohort(tmp_path) -> None:
    (tmp_path / "text.parquet").write_text("slide,mpp")
    (tmp_path / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    for name in ("text.parquet", "empty.parquet", "foreign.parquet", "absent.parquet", "."):
        with pytest.raises(CohortError) as refused:
            Cohort.read(tmp_path / name)
        assert "\n" not in str(refused.value)
        assert str(tmp_path / name) in str(refused.value)


def test_a_file_that_changed_underneath_is_noticed(tmp_path, folder: Path) -> None:
    Cohort.index([folder / "a.svs", folder / "b.svs"], tmp_path / "c.parquet", workers=0)
    opened = Cohort.read(tmp_path / "c.parquet")
    Cohort.index([folder / "b.svs", folder / "c.svs"], tmp_path / "c.parquet", workers=0)
    with pytest.raises(CohortError, match="changed since"):
        opened.foreground(0)
