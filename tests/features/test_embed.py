"""Embedding slides: equal to the slow way, resumable, whatever the slides are like."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eosin.errors import CohortError, DataError, OutputError, ResumeError
from eosin.features import load_model
from eosin.features.embed import embed_slides
from eosin.features.encoder import Encoder
from eosin.features.h5 import read_attributes, read_features
from eosin.slides import Cohort, open_slide
from eosin.slides.synthetic import write_slides
from eosin.tiles.filters import foreground_share, integral

WORDS = {"mpp": 1.0, "size": 48, "workers": 0}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Three slides of 1,024 px at 0.5 µm/px."""
    folder = tmp_path_factory.mktemp("embed")
    paths = write_slides(folder / "slides", count=3, size_px=1024, workers=1)
    return Cohort.index(paths, folder / "cohort.parquet", workers=0)


@pytest.fixture(scope="module")
def vit() -> Encoder:
    return load_model("vit_tiny_patch16_224", random_init=True, input_size=32, pooling="cls+mean", seed=4)


def test_equals_a_loop_over_all_cells(cohort: Cohort, vit: Encoder, tmp_path: Path) -> None:
    run = embed_slides(vit, cohort, tmp_path, mpp=0.9, size=40, stride=50, min_foreground=0.4, batch=7, workers=1)
    assert (run.slides, run.finished, run.failures) == (3, 0, {})
    total = 0
    for number, row in enumerate(cohort.usable.to_dict("records")):
        found = read_features(tmp_path / f"{row['slide_id']}.h5")
        mask, scale = cohort.foreground(number), cohort.foreground_mpp(number)
        rows, columns = np.nonzero(mask)
        left, top = int(columns.min() * scale / row["mpp_x"]), int(rows.min() * scale / row["mpp_y"])
        coords, vectors = [], []
        table = integral(mask)
        with open_slide(row["path"]) as slide:
            for line in range(15):
                for column in range(15):
                    x, y = (int(first + n * 50 * 0.9 / 0.5 + 0.5) for first, n in ((left, column), (top, line)))
                    place = (x * 0.5 / scale, y * 0.5 / scale, 36 / scale, 36 / scale)
                    if foreground_share(table, *place) >= 0.4:
                        coords.append((x, y))
                        vectors.append(vit.embed(slide.region(x, y, 40, 0.9)[None])[0].numpy())
        assert found.coords is not None
        assert found.coords.tolist() == [list(place) for place in coords]
        np.testing.assert_allclose(found.features, np.stack(vectors), atol=1e-5)
        assert found.features.dtype == np.float32
        total += len(coords)
    assert run.tiles == total > 100
    assert found.attributes["patch_size_level0"] == 72
    assert found.attributes["overlap"] == -10
    assert found.attributes["model_hash"] == vit.model_hash
    assert (found.attributes["anchor_x"], found.attributes["anchor_y"]) == (left, top)
    told = json.loads((tmp_path / "embedding.json").read_text())
    assert told["cohort_hash"] == cohort.hash
    assert (told["mpp"], told["size_px"], told["dim"], told["model"]) == (0.9, 40, 384, vit.name)


def test_again_resumes_and_other_settings_refuse(cohort: Cohort, vit: Encoder, tmp_path: Path) -> None:
    words = {**WORDS, "where": "slide_id != 'synthetic-03'"}
    assert embed_slides(vit, cohort, tmp_path, **words).slides == 2
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.glob("*.h5")}
    run = embed_slides(vit, cohort, tmp_path, **WORDS)
    assert (run.slides, run.finished) == (1, 2)
    for name, (time_ns, _) in before.items():
        assert (tmp_path / name).stat().st_mtime_ns == time_ns
    for changed, name in (
        ({"size": 64}, "size_px"),
        ({"min_foreground": 0.1}, "min_foreground"),
        ({"mpp": 2.0}, "mpp"),
    ):
        with pytest.raises(ResumeError, match=rf"{name} .*--fresh"):
            embed_slides(vit, cohort, tmp_path, **{**WORDS, **changed})
    with pytest.raises(ResumeError, match="model_hash"):
        embed_slides(load_model("vit_tiny_patch16_224", random_init=True, input_size=32), cohort, tmp_path, **WORDS)
    damaged = tmp_path / "synthetic-01.h5"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    assert embed_slides(vit, cohort, tmp_path, **WORDS).slides == 1
    assert damaged.read_bytes() == before["synthetic-01.h5"][1]
    (tmp_path / "notes.h5").write_bytes(b"")
    run = embed_slides(
        vit, cohort, tmp_path, **{**WORDS, "size": 64, "where": "slide_id == 'synthetic-02'"}, fresh=True
    )
    assert (run.slides, run.finished) == (1, 0)
    assert sorted(path.name for path in tmp_path.glob("synthetic*.h5")) == ["synthetic-02.h5"]


def test_a_slide_that_changed_is_embedded_again(cohort: Cohort, vit: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    shutil.copy(cohort.usable["path"][0], path)
    csv_path = tmp_path / "mpp.csv"
    counts = []
    for mpp in (0.5, 1.0, 1.0):
        csv_path.write_text(f"slide,mpp\na.svs,{mpp}\n")
        run = embed_slides(vit, [path], tmp_path / "out", mpp_csv=csv_path, **WORDS)
        counts.append((run.slides, len(read_features(tmp_path / "out/a.h5"))))
    assert [count[0] for count in counts] == [1, 1, 0]
    assert counts[1][1] > 3 * counts[0][1]


def test_bad_slides_are_lines_and_the_others_go_on(
    cohort: Cohort, vit: Encoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for number, name in enumerate(("good", "cut", "moved")):
        shutil.copy(cohort.usable["path"][number], slides / f"{name}.svs")
    shutil.copy(cohort.usable["path"][0], slides / "coarse.svs")
    (slides / "text.svs").write_text("no slide")
    write_white(slides / "white.tif")
    (tmp_path / "mpp.csv").write_text("slide,mpp\nwhite.tif,1.0\ncoarse.svs,1.1\n")
    indexed = Cohort.index(slides, tmp_path / "cohort.parquet", mpp_csv=tmp_path / "mpp.csv", workers=0)
    os.truncate(slides / "cut.svs", 50_000)
    (slides / "moved.svs").unlink()
    run = embed_slides(vit, indexed.path, tmp_path / "out", **WORDS)
    assert (run.slides, sorted(run.failures)) == (1, ["coarse", "cut", "moved", "white"])
    with open(tmp_path / "out/failures.csv", newline="") as file:
        lines = {row["slide"]: row["error"] for row in csv.DictReader(file)}
    assert lines == run.failures
    assert lines["white"] == "no tissue"
    assert "1.1 at its finest" in lines["coarse"]
    assert "moved.svs" in lines["moved"]
    assert "cut.svs" in lines["cut"]
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["good.h5"]
    said = capfd.readouterr().err.splitlines()
    assert "1 of 6 slides are skipped because they could not be indexed" in said[-2]
    assert said[-1].startswith("1 slide embedded, ")
    assert "4 failures, see" in said[-1]
    with pytest.raises(DataError, match="no slide could be embedded; cut: "):
        embed_slides(vit, indexed, tmp_path / "none", **WORDS, where="slide_id == 'cut'")


def test_a_slide_that_kills_its_reader_fails_alone(
    cohort: Cohort, vit: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(path: str, *more: Any) -> object:
        if "synthetic-02" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return open_slide(path, *more)

    monkeypatch.setattr("eosin.tiles.grid_stream.open_slide", deadly)
    run = embed_slides(vit, cohort, tmp_path, **{**WORDS, "workers": 2})
    assert list(run.failures) == ["synthetic-02"]
    assert "the file is damaged, or memory ran out" in run.failures["synthetic-02"]
    assert run.slides == 2
    assert not list(tmp_path.glob(".*"))


def test_tokens_clam_and_bf16(cohort: Cohort, tmp_path: Path) -> None:
    import h5py

    words = {**WORDS, "where": "slide_id == 'synthetic-01'", "random_init": True, "input_size": 32}
    run = embed_slides("vit_tiny_patch16_224", cohort.path, tmp_path / "a", tokens=True, clam=True, **words)
    plain = read_features(tmp_path / "a/synthetic-01.h5")
    encoder = load_model("vit_tiny_patch16_224", random_init=True, input_size=32)
    with h5py.File(tmp_path / "a/synthetic-01.h5") as file, open_slide(cohort.usable["path"][0]) as slide:
        tokens = file["patch_tokens"]
        assert (tokens.shape, tokens.dtype) == ((run.tiles, 2, 2, 192), np.float16)
        x, y = plain.coords[5].tolist()
        tile = slide.region(x, y, 48, 1.0)[None]
        np.testing.assert_allclose(tokens[5], encoder.patch_tokens(tile)[0].numpy(), atol=4e-3)
        np.testing.assert_allclose(plain.features[5], encoder.embed(tile)[0].numpy(), atol=1e-5)
    for kind in ("h5_files/synthetic-01.h5", "pt_files/synthetic-01.pt"):
        np.testing.assert_array_equal(read_features(tmp_path / "a/clam" / kind).features, plain.features)
    embed_slides("vit_tiny_patch16_224", cohort, tmp_path / "b", precision="bf16", **words)
    rough = read_features(tmp_path / "b/synthetic-01.h5").features
    assert 0 < np.abs(rough - plain.features).max() < 0.1


def test_bad_words_are_one_line(cohort: Cohort, vit: Encoder, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "theirs.h5").write_bytes(b"x")
    cases = [
        (DataError, "does not say for which µm/px", vit, {**WORDS, "mpp": None}),
        (DataError, "no scale for tiles", vit, {**WORDS, "mpp": 50.0}),
        (DataError, "unknown precision", vit, {**WORDS, "precision": "int8"}),
        (DataError, "no grid of", vit, {**WORDS, "min_foreground": 2.0}),
        (CohortError, "belongs to `eosin index`", vit, {**WORDS, "mpp_csv": tmp_path}),
        (CohortError, "where 'x >", vit, {**WORDS, "where": "x > 1"}),
        (OutputError, r"theirs\.h5, which is not of an eosin run", vit, {**WORDS, "out": foreign}),
    ]
    for kind, said, model, words in cases:
        words = {"out": tmp_path / "out", **words}
        with pytest.raises(kind, match=said) as caught:
            embed_slides(model, cohort.path, **words)
        assert "\n" not in str(caught.value)
    vit.mpp = [0.25, 2.0]
    try:
        with pytest.raises(DataError, match=r"0\.25, 2 µm/px; choose one with --mpp"):
            embed_slides(vit, cohort, tmp_path / "out", size=48)
        vit.mpp = [0.25, 0.5]
        words = {"where": "slide_id == 'synthetic-01'", "size": 200, "workers": 0}
        embed_slides(vit, cohort, tmp_path / "scale", **words)
        assert read_attributes(tmp_path / "scale/synthetic-01.h5")["mpp"] == 0.5
    finally:
        vit.mpp = None


def test_an_encoder_that_gives_nan_is_a_failure(cohort: Cohort, tmp_path: Path) -> None:
    encoder = load_model("vit_tiny_patch16_224", random_init=True, input_size=32)
    with torch.no_grad():
        encoder.network.cls_token.fill_(float("nan"))
    with pytest.raises(DataError, match=r"no slide could be embedded; .* NaN or infinite features for the tile at"):
        embed_slides(encoder, cohort, tmp_path, **WORDS)
    assert not list(tmp_path.glob("*.h5"))


RUN = """
import sys
from eosin.features.embed import embed_slides
embed_slides("vit_tiny_patch16_224", sys.argv[1], sys.argv[2], random_init=True, input_size=32, mpp=0.5, size=32,
             stride=int(sys.argv[3]), workers=1, batch=8, device="cpu")
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_a_slide_and_run_again(cohort: Cohort, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(cohort.path)]
    subprocess.run([*command, str(tmp_path / "whole"), "16"], check=True)
    out = tmp_path / "killed"
    process = subprocess.Popen([*command, str(out), "16"], start_new_session=True)
    while not (list(out.glob("*.h5")) and list(out.glob(".*.h5.*.tmp"))):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert 0 < len(done) < 3
    assert list(out.glob(".*.tmp"))
    subprocess.run([*command, str(out), "16"], check=True)
    for path in (tmp_path / "whole").glob("*.h5"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in done.items())
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_processes_share_the_slides_and_a_dead_one_costs_its_own(cohort: Cohort, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [str(script), str(cohort.path)]
    subprocess.run([sys.executable, *words, str(tmp_path / "one"), "32"], check=True)
    both = subprocess.run([*launch, *words, str(tmp_path / "two"), "32"], check=True, capture_output=True, text=True)
    assert both.stderr.count("3 slides embedded") == 1
    assert not list((tmp_path / "two").glob(".*"))
    (tmp_path / "two" / "synthetic-02.h5").unlink()
    subprocess.run([*launch, *words, str(tmp_path / "two"), "32"], check=True)
    for path in (tmp_path / "one").glob("*.h5"):
        np.testing.assert_allclose(
            read_features(tmp_path / "two" / path.name).features, read_features(path).features, atol=1e-6
        )
    dying = tmp_path / "dying.py"
    dying.write_text("import os, signal\nimport eosin.features.embed_run as e\nembed = e.Embedding._embed_slide\n"
                     "def die(self, number, parts, bar):\n"
                     "    if self.cohort.row(number)['slide_id'] == last: os.kill(os.getpid(), signal.SIGKILL)\n"
                     "    embed(self, number, parts, bar)\n"
                     "last = 'synthetic-03'\ne.Embedding._embed_slide = die\n" + RUN)  # fmt: skip
    failed = subprocess.run([*launch, str(dying), str(cohort.path), str(tmp_path / "dead"), "32"], capture_output=True)
    assert failed.returncode != 0
    assert not (tmp_path / "dead/synthetic-03.h5").exists()
    subprocess.run([*launch, *words, str(tmp_path / "dead"), "32"], check=True)
    assert sorted(path.name for path in (tmp_path / "dead").iterdir()) == sorted(
        path.name for path in (tmp_path / "one").iterdir()
    )


PEAK = """
import resource, sys
from eosin.features.embed import embed_slides
words = {"mpp": 0.5, "size": 128, "stride": 64, "workers": int(sys.argv[3]), "device": "cpu"}
run = embed_slides("colour", sys.argv[1], sys.argv[2], **words)
# Its own peak; getrusage would count what the process that started it had held.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(run.tiles, peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_flat_in_slide_size(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "peak.py"
    script.write_text(PEAK)
    tiles, peaks = [], []
    for times in (3, 7):
        slide = write_tissue(tmp_path / f"{times}.svs", 1536 * times)
        cohort = Cohort.index([slide], tmp_path / f"{times}.parquet", workers=0)
        done = subprocess.run(
            [sys.executable, str(script), str(cohort.path), str(tmp_path / f"out{times}{workers}"), str(workers)],
            check=True,
            capture_output=True,
            text=True,
        )
        count, *peak = map(int, done.stdout.split())
        tiles.append(count)
        peaks.append(np.array(peak) / 1024)  # MiB of this process, and of its largest child
    assert tiles[1] > 5 * tiles[0]
    held_whole = tiles[1] * 128 * 128 * 3 / 2**20
    assert held_whole > 1200
    # Blocks in flight and what malloc keeps of them vary by some 200 MiB from run to run, whatever the size.
    assert (peaks[1] - peaks[0] < 300).all(), (peaks, tiles)


def write_tissue(path: Path, side: int) -> Path:
    """An SVS of textured tissue with a rim of glass, at 0.5 µm/px."""
    import cv2
    import tifffile

    rng = np.random.default_rng(0)
    part = np.array([200, 120, 170]) + cv2.GaussianBlur(rng.normal(0, 1, (512, 512)), (0, 0), 8)[..., None] * 400
    full = np.tile(part.clip(0, 255).astype(np.uint8), (side // 512, side // 512, 1))
    full[:64] = full[:, :64] = full[-64:] = full[:, -64:] = 241
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 4):
            level = cv2.resize(full, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
            text = f"Aperio Image Library v11.2.1 \r\n{side}x{side} (128x128){' -> ' if factor > 1 else ''}"
            text += "|AppMag = 20|MPP = 0.5"
            file.write(level, tile=(128, 128), photometric="rgb", compression="jpeg", description=text, metadata=None)
    return path


def write_white(path: Path) -> None:
    import tifffile

    tifffile.imwrite(path, np.full((512, 512, 3), 243, np.uint8), tile=(128, 128), photometric="rgb", metadata=None)
