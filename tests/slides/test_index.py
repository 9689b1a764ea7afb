"""Indexing: error rows, crashes, resuming, names, tables."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tifffile
from typer.testing import CliRunner

from eosin.cli.main import app
from eosin.errors import CohortError, OutputError, SlideError
from eosin.slides import Cohort, index
from eosin.slides.index import Job, read_all
from eosin.slides.journal import journal_path
from eosin.slides.listing import find_slides, match_names, name_slides, read_metadata, read_mpp
from eosin.slides.tiff import TiffSlide

from .conftest import pink_levels


@pytest.fixture
def slides(tmp_path: Path, pink_slide: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(pink_slide, folder / f"{name}.svs")
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """slide_ids in the order in which indexing in this process reads them."""
    seen: list[str] = []
    read = index.read_slide
    monkeypatch.setattr(index, "read_slide", lambda job: seen.append(job.slide_id) or read(job))
    return seen


def test_broken_slides_become_rows(tmp_path, slides: Path, write_aperio, capfd) -> None:
    good = (slides / "a.svs").read_bytes()
    (slides / "cut.svs").write_bytes(good[: len(good) // 3])
    (slides / "empty.svs").write_bytes(b"")
    (slides / "text.svs").write_text("no slide")
    write_aperio(slides / "scaleless.svs", pink_levels(), mpp=None)
    white = pink_levels(tissue=False)
    write_aperio(slides / "white.svs", [level * 0 + 255 for level in white], mpp=1.0)
    cohort = Cohort.index(slides, tmp_path / "c.parquet", workers=2)
    assert cohort.usable["slide_id"].tolist() == ["a", "b", "c", "white"]
    assert cohort.usable["tissue_mm2"].iloc[3] == 0
    assert not cohort.foreground(3).any()
    errors = cohort.table.set_index("slide_id")["error"]
    assert "--mpp-csv" in errors["scaleless"]
    for name in ("cut", "empty", "text", "scaleless"):
        assert f"{name}.svs: " in errors[name]
        assert "\n" not in errors[name]
    told = capfd.readouterr().err
    assert "8 slides: 4 ok, 4 errors (1 ok without tissue)" in told
    with pytest.raises(CohortError, match=r"4 of 8 slides failed \(--strict\)"):
        Cohort.index(slides, tmp_path / "c.parquet", workers=0, strict=True)


def test_a_tail_that_is_missing_is_noticed(tmp_path, slides: Path) -> None:
    """A copy that broke off: the directory at the front is whole, the last tiles are not."""
    path = slides / "a.svs"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 3_000_000)
    with pytest.raises(CohortError, match="no slide is usable"):
        Cohort.index(path, tmp_path / "c.parquet", workers=0)
    assert Cohort.read(tmp_path / "c.parquet").table["status"].tolist() == ["error"]


def test_the_reader_is_kept_and_can_be_forced(tmp_path, slides: Path, reads: list[str]) -> None:
    out = tmp_path / "c.parquet"
    own = Cohort.index(slides, out, workers=0)
    assert own.table["reader"].tolist() == ["tiff"] * 3
    reads.clear()
    forced = Cohort.index(slides, out, workers=0, reader="openslide")
    assert len(reads) == 3
    assert forced.table["reader"].tolist() == ["openslide"] * 3
    assert forced.hash != own.hash
    told = CliRunner().invoke(app, ["index", str(slides), "-o", str(out), "--workers", "0", "--reader", "bioformats"])
    assert isinstance(told.exception, CohortError)
    assert "it is auto or openslide" in str(told.exception)


def test_openslide_is_tried_where_the_own_reader_fails(tmp_path, slides: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise SlideError("no tile is decoded today")

    monkeypatch.setattr(TiffSlide, "_read", refuse)
    cohort = Cohort.index(slides / "a.svs", tmp_path / "c.parquet", workers=0)
    assert cohort.table["reader"].tolist() == ["openslide"]
    with pytest.raises(CohortError, match="no slide is usable"):
        Cohort.index(_cut(slides / "b.svs"), tmp_path / "d.parquet", workers=0)


def _cut(path: Path) -> Path:
    """A slide without its last tile's last bytes; its directory lies before them."""
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        end = first.dataoffsets[-1] + first.databytecounts[-1]
    assert end > first.tags["TileOffsets"].valueoffset
    with open(path, "r+b") as handle:
        handle.truncate(end - 1)
    return path


def test_any_number_of_processes_makes_the_same_cohort(tmp_path, slides: Path) -> None:
    one = Cohort.index(slides, tmp_path / "one.parquet", workers=0)
    two = Cohort.index(slides, tmp_path / "two.parquet", workers=2)
    assert one.hash == two.hash
    assert one.table.drop(columns="error").equals(two.table.drop(columns="error"))


class _Fatal:
    """Ends the process that unpickles it, as a segfault in a decoder would."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (11,)


def test_a_slide_that_kills_its_reader_becomes_a_row(slides: Path) -> None:
    jobs = [Job(name, str(slides / f"{name}.svs"), None, name) for name in ("a", "b", "c")]
    jobs.insert(1, Job("bad", "bad.svs", _Fatal(), "bad"))  # type: ignore[arg-type]
    rows = {job.slide_id: row for job, row in read_all(jobs, 2)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok",
        "b": "ok",
        "c": "ok",
        "bad": "error",
    }
    assert rows["bad"]["error"] == "bad.svs: the process that read it crashed; the file may be damaged"


def test_a_killed_indexing_goes_on(tmp_path, slides: Path, reads: list[str]) -> None:
    for number in range(27):
        shutil.copy(slides / "a.svs", slides / f"n{number:02}.svs")
    out = tmp_path / "c.parquet"
    code = f"from eosin.slides import Cohort; Cohort.index({str(slides)!r}, {str(out)!r}, workers=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    journal = journal_path(out)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    process.wait()
    assert not out.exists()
    finished = len([line for line in journal.read_text().splitlines() if line.endswith("}]")])
    with open(journal, "a") as file:
        file.write('["half a li')
    cohort = Cohort.index(slides, out, workers=0)
    assert 2 <= finished < 30
    assert len(reads) == 30 - finished
    assert len(cohort) == 30
    assert not journal.exists()


def test_a_rerun_reads_only_what_is_new_or_changed(tmp_path, slides: Path, write_aperio, reads: list[str]) -> None:
    (slides / "bad.svs").write_text("no slide")
    out = tmp_path / "c.parquet"
    first = Cohort.index(slides, out, workers=0)
    reads.clear()
    assert Cohort.index(slides, out, workers=0).hash == first.hash
    assert reads == ["bad"]  # failures are tried again
    write_aperio(slides / "bad.svs", pink_levels(1), mpp=1.0)
    shutil.copy(slides / "a.svs", slides / "d.svs")
    (tmp_path / "mpp.csv").write_text("slide,mpp\nb.svs,2.0\n")
    reads.clear()
    again = Cohort.index(slides, out, mpp_csv=tmp_path / "mpp.csv", workers=0)
    assert sorted(reads) == ["b", "bad", "d"]
    assert again.usable.set_index("slide_id").loc["b", "mpp_x"] == 2.0
    reads.clear()
    Cohort.index(slides, out, workers=0, fresh=True)
    assert len(reads) == 5


def test_metadata_does_not_outlive_its_table(tmp_path, slides: Path) -> None:
    (tmp_path / "m.csv").write_text("slide,patient\na,P1\n")
    out = tmp_path / "c.parquet"
    assert Cohort.index(slides, out, metadata=tmp_path / "m.csv", workers=0).usable["patient"].iloc[0] == "P1"
    assert Cohort.index(slides, out, workers=0).usable["patient"].isna().all()


def test_equal_stems_are_numbered_in_order_of_path() -> None:
    files = ["/x/1/a.svs", "/x/1/a.tif", "/x/2/a.svs", "/x/a-2.svs"]
    assert name_slides(files) == {
        "a": "/x/1/a.svs",
        "a-3": "/x/1/a.tif",  # a-2 is another file's own stem
        "a-4": "/x/2/a.svs",
        "a-2": "/x/a-2.svs",
    }


def test_names_join_by_file_name_id_or_end_of_path(capfd) -> None:
    slides = {"a": "/x/1/a.svs", "a-2": "/x/2/a.svs", "b": "/x/b.ndpi"}
    assert match_names({"1/a.svs": 1, "a-2": 2, "b.ndpi": 3}, slides, "t.csv") == {"a": 1, "a-2": 2, "b": 3}
    with pytest.raises(CohortError, match=r"t\.csv: a\.svs matches /x/1/a\.svs and /x/2/a\.svs"):
        match_names({"a.svs": 1}, slides, "t.csv")
    with pytest.raises(CohortError, match=r"two rows are for /x/b\.ndpi"):
        match_names({"b": 1, "b.ndpi": 2}, slides, "t.csv")
    assert match_names({"zebra": 1, "b": 2}, slides, "t.csv") == {"b": 2}
    assert "t.csv: 1 of 2 names match no slide: zebra" in capfd.readouterr().err


def test_tables(tmp_path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("wsi,mpp\na.svs,0.25\n")
    assert read_mpp(table) == {"a.svs": 0.25}
    table.write_text("slide,patient,age,grade\na,007,61,\nb,8,,high\n")
    assert read_metadata(table, taken=["path"]) == {
        "a": {"patient": "007", "age": 61.0, "grade": None},
        "b": {"patient": "8", "age": None, "grade": "high"},
    }
    for text, read in (
        ("name,mpp\na,1\n", read_mpp),
        ("slide,mpp\na,wide\n", read_mpp),
        ("slide,mpp\na,1\na,2\n", read_mpp),
        ("patient\nx\n", lambda path: read_metadata(path, taken=[])),
        ("slide,path\na,b\n", lambda path: read_metadata(path, taken=["path"])),
        ("", read_mpp),
    ):
        table.write_text(text)
        with pytest.raises(CohortError, match=r"t\.csv"):
            read(table)
    with pytest.raises(CohortError, match=r"absent\.csv"):
        read_mpp(tmp_path / "absent.csv")


def test_which_files_are_taken(tmp_path, capfd) -> None:
    for name in (
        "a.svs",
        "sub/b.NDPI",
        "sub/c.tif",
        ".hidden/d.svs",
        "._a.svs",
        "map.png",
        "big.jpg",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def found(*paths: str, exclude: tuple[str, ...] = (), with_mpp: frozenset[str] = frozenset()) -> list[str]:
        kept = find_slides([tmp_path / path for path in paths], exclude, with_mpp)
        return [os.path.relpath(path, tmp_path) for path in kept]

    assert found(".") == ["a.svs", "sub/b.NDPI", "sub/c.tif"]
    assert "2 PNG or JPEG files in folders are left out" in capfd.readouterr().err
    assert found(".", with_mpp=frozenset({"big.jpg"})) == ["a.svs", "big.jpg", "sub/b.NDPI", "sub/c.tif"]
    assert found("map.png", "*.svs", "a.svs") == ["a.svs", "map.png"]
    assert found("**/*.tif") == ["sub/c.tif"]
    assert found(".", exclude=("b", "*.tif")) == ["a.svs"]
    for paths in (("absent",), ("*.scn",), (".hidden/none",)):
        with pytest.raises(CohortError, match=paths[0].strip("*.")):
            found(*paths)
    with pytest.raises(CohortError, match="no slides found"):
        found("sub", exclude=("*",))


def test_outputs_that_cannot_be_written(tmp_path, slides: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file" / "c.parquet"):
        with pytest.raises(OutputError) as refused:
            Cohort.index(slides, out, workers=0)
        assert "\n" not in str(refused.value)


def test_real_slides(tmp_path, shared_data: Path) -> None:
    (tmp_path / "mpp.csv").write_text("slide,mpp\nTCGA-CR-7395-01A-01-TS1.svs,0.5\n")
    out = tmp_path / "c.parquet"
    cohort = Cohort.index(shared_data / "slides", out, workers=0)
    told = cohort.table.set_index("slide_id")
    assert told["status"].to_dict() == {
        "1065626": "ok",
        "CMU-1-Small-Region": "ok",
        "TCGA-CR-7395-01A-01-TS1": "error",
    }
    assert "does not say its µm/px" in told.loc["TCGA-CR-7395-01A-01-TS1", "error"]
    stated = Cohort.index(shared_data / "slides", out, mpp_csv=tmp_path / "mpp.csv", workers=0)
    assert len(stated) == 3
    assert stated.usable["mpp_x"].tolist() == [0.5026, 0.499, 0.5]
