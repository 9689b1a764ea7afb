"""Parts of an indexing: the same rows whoever reads them, joined by the whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eosin.cli.main import app
from eosin.fleet import FleetError
from eosin.slides import Cohort, index
from eosin.slides.index import index_part
from eosin.slides.journal import KnownRows, journal_path

EXAMPLES = Path(__file__).parents[2] / "examples" / "slurm"


@pytest.fixture
def slides(tmp_path: Path, pink_slide: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    for n in range(7):
        shutil.copy(pink_slide, folder / f"s{n}.svs")
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """slide_ids in the order in which indexing in this process reads them."""
    seen: list[str] = []
    read = index.read_slide
    monkeypatch.setattr(index, "read_slide", lambda job: seen.append(job.slide_id) or read(job))
    return seen


def test_parts_are_joined_without_reading_again(
    tmp_path: Path, slides: Path, reads: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (slides / "s7.svs").write_text("no slide")
    whole = Cohort.index(slides, tmp_path / "whole.parquet", workers=0)
    out = tmp_path / "c.parquet"
    reads.clear()
    counts = [index_part([slides], out, (part, 3), workers=0) for part in (2, 1, 3)]
    assert sorted(reads) == [f"s{n}" for n in range(8)]
    assert reads[:3] == ["s1", "s4", "s7"]
    assert counts == [(2, 1), (3, 0), (2, 0)]
    assert f"error: {slides / 's7.svs'}: " in capfd.readouterr().err
    assert not out.exists()
    reads.clear()
    assert index_part([slides], out, (1, 3), workers=0) == (3, 0)
    assert reads == []  # a part that is started again goes on
    joined = Cohort.index(slides, out, workers=0)
    assert reads == ["s7"]  # errors are tried again
    assert joined.hash == whole.hash
    assert joined.table.equals(whole.table)
    for n in range(len(whole)):
        assert (joined.foreground(n) == whole.foreground(n)).all()
    assert not list(tmp_path.glob(".*journal*"))
    reads.clear()
    index_part([slides], out, (2, 3), workers=0)  # the finished cohort is looked at too
    assert reads == ["s7"]


def test_the_whole_reads_what_a_part_did_not(tmp_path: Path, slides: Path, reads: list[str]) -> None:
    out = tmp_path / "c.parquet"
    index_part([slides], out, (1, 2), workers=0)
    with open(journal_path(out, (1, 2)), "ab") as file:
        file.write(b'["half a li')
    reads.clear()
    assert len(Cohort.index(slides, out, workers=0)) == 7
    assert reads == ["s1", "s3", "s5"]


def test_what_excludes_parts(tmp_path: Path, slides: Path) -> None:
    words = ["index", str(slides), "-o", str(tmp_path / "c.parquet"), "--part", "1/2"]
    for more in (["--ray", "auto"], ["--fresh"], ["--strict"], ["--html", "x.html"]):
        refused = CliRunner().invoke(app, [*words, *more])
        assert isinstance(refused.exception, FleetError)
        assert f"--part and {more[0]} exclude each other" in str(refused.exception)


def test_rows_stay_on_disk_until_they_are_asked_for(tmp_path: Path) -> None:
    """What is held of a row does not grow with its pictures."""
    row = {"status": "ok", "digest": "d", "foreground": b"x" * 200_000, "thumbnail": None, "slide_id": "a"}
    with KnownRows(tmp_path / "c.parquet") as rows:
        for n in range(20):
            rows.note(f"k{n}", row)
        assert rows.row("k7")["foreground"] == row["foreground"]
        assert sys.getsizeof(rows._places["k7"]) < 500
    with KnownRows(tmp_path / "c.parquet") as rows:
        assert "k19" in rows
        assert rows.row("k19")["slide_id"] == "a"


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.sbatch")), ids=lambda path: path.name)
def test_example_scripts_are_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.slow
def test_the_array_example_runs(tmp_path: Path, slides: Path) -> None:
    """The command lines of the script, with what SLURM would set."""
    words = os.environ | {
        "SLIDES": str(slides),
        "COHORT": str(tmp_path / "c.parquet"),
        "EOSIN": f"{sys.executable} -m eosin",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_TASK_COUNT": "2",
    }
    for number in ("1", "2"):
        done = subprocess.run(
            ["bash", EXAMPLES / "index.sbatch"],
            env=words | {"SLURM_ARRAY_TASK_ID": number},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"part {number} of 2" in done.stderr
    joined = subprocess.run(
        ["bash", EXAMPLES / "index.sbatch"], env=words | {"PART": "join"}, capture_output=True, text=True, check=True
    )
    assert "7 slides: 7 ok" in joined.stderr
    embed = words | {
        "MODEL": "vit_tiny_patch16_224",
        "FEATURES": str(tmp_path / "features"),
        "OPTIONS": "--random-init --input-size 32 --mpp 2 --size 64 --device cpu",
    }
    for number in ("1", "2"):
        subprocess.run(
            ["bash", EXAMPLES / "embed.sbatch"],
            env=embed | {"SLURM_ARRAY_TASK_ID": number},
            capture_output=True,
            check=True,
        )
    assert len(list((tmp_path / "features").glob("*.h5"))) == 7
    assert sorted(path.name for path in (tmp_path / "features").glob("failures*")) == [
        "failures-1-of-2.csv",
        "failures-2-of-2.csv",
    ]


def test_parts_take_every_word_of_the_whole(tmp_path: Path, slides: Path, reads: list[str]) -> None:
    """Rule and annotations reach the parts, and a whole with other words takes nothing of them."""
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    ring = [[0, 0], [200, 0], [200, 200], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (drawn / "s1.geojson").write_text(json.dumps(feature))
    out = tmp_path / "c[1].parquet"
    for part in ("1/2", "2/2"):
        words = ["index", slides, "-o", out, "--foreground", "any-stain", "--annotations", drawn, "--workers", 0]
        done = CliRunner().invoke(app, [*map(str, words), "--part", part])
        assert done.exit_code == 0, done.exception
    assert len(reads) == 7
    joined = Cohort.index(slides, out, workers=0, foreground="any-stain", annotations=drawn)
    assert len(reads) == 7
    rules = dict(zip(joined.usable["slide_id"], joined.usable["foreground_rule"], strict=True))
    assert rules.pop("s1") == "geojson"
    assert all(rule.startswith("any-stain ") for rule in rules.values())
    assert not list(tmp_path.glob(".*journal*"))
    Cohort.index(slides, out, workers=0, foreground="otsu", annotations=drawn)
    assert len(reads) == 14


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a fork")
def test_a_part_that_is_killed_goes_on(tmp_path: Path, slides: Path, reads: list[str]) -> None:
    out, read = tmp_path / "c.parquet", index.read_slide
    process = os.fork()
    if process == 0:
        index.read_slide = lambda job: os.kill(os.getpid(), signal.SIGKILL) if job.slide_id == "s4" else read(job)
        index_part([slides], out, (1, 2), workers=0)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert index_part([slides], out, (1, 2), workers=0) == (4, 0)
    assert reads == ["s4", "s6"]
