"""The GPU proof, gone through at toy size on the CPU; its refusals, its guards, its page, the data that it carries."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import distributed, steps  # noqa: E402
from benchmarks.gpu.child import run_child  # noqa: E402
from benchmarks.gpu.page import write_page  # noqa: E402

from benchmarks import carry_data, gpu_proof  # noqa: E402
from eosin.runs import append_line  # noqa: E402
from eosin.training.networks import Networks  # noqa: E402


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param([], "no CUDA GPU here", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
        (["--device", "cpu"], "add --tiny"),
        (["--device", "cpu", "--tiny", "--parts", "steps,speed"], "no part called speed"),
        (["--device", "cpu", "--tiny", "--variants", "fast"], "no variant called fast"),
        (["/nowhere", "--device", "cpu", "--tiny"], "/nowhere has no colon5_tiles/train"),
        (["--device", "cpu", "--tiny", "--start", "/no/weights.pth"], "no such file"),
    ],
)
def test_a_refusal_is_one_line(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_proof.main([*words, "-o", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_into_the_time_is_left_out_and_named(tmp_path: Path) -> None:
    assert gpu_proof.main(["--device", "cpu", "--tiny", "--minutes", "0.05", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "gpu_proof.json").read_text())
    why = {row["part"]: row["why"] for row in record["left_out"]}
    assert why.keys() == {"steps", "reading", "learning", "distributed"}
    assert "s were left" in why["steps"]
    assert "it needs DATA" in why["learning"]
    assert record["complete"]
    assert record["facts"]["torch"] == torch.__version__
    assert "it needs DATA" in (tmp_path / "gpu_proof.html").read_text()


@pytest.fixture(scope="module")
def step_rows() -> dict[str, dict[str, Any]]:
    """Rows of the toy ViT-S/14 in two variants, from the same weights."""
    state = Networks(steps.recipe_for("ViT-S/14", "plain", tiny=True)).state_dict()
    cpu = torch.device("cpu")
    return {name: steps.row_of("ViT-S/14", name, state, cpu, tiny=True) for name in ("plain", "recompute")}


def test_rows_of_steps_hold_together(step_rows: dict[str, dict[str, Any]]) -> None:
    for row in step_rows.values():
        assert "error" not in row
        low, high = row["img_s_range"]
        assert 0 < low <= row["img_s"] <= high
        # Whatever a step takes is drawing, views or the step itself.
        parts = (row["step_ms"] + row["views_ms"] + row["draws_ms"]) / 1000
        assert 0.7 * row["batch"] / high <= parts <= 1.3 * row["batch"] / low
        assert 0 < row["views_share"] < 1
        assert row["mfu"] is None  # no data sheet for this machine
    one, other = step_rows.values()
    assert one["loss_after_warm_up"] == pytest.approx(other["loss_after_warm_up"], rel=1e-5)


def test_full_size_recipes_are_those_that_are_named() -> None:
    small, large = (steps.told_of(steps.recipe_for(m, "plain", False), m, "plain") for m in steps.MODELS)
    assert (small["encoder"], small["batch"], small["precision"]) == ("ViT-S/14 reg4", 128, "bf16")
    assert (large["encoder"], large["prototypes"], large["precision"]) == ("ViT-L/14 reg4", 131072, "bf16")
    assert max(small["estimated_gb"], large["estimated_gb"]) < 36  # of 40
    assert steps.recipe_for("ViT-L/14", "compile", False).parallel.compile
    assert steps.recipe_for("ViT-L/14", "recompute", False).parallel.recompute == "selective"


def test_a_variant_that_cannot_run_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of another size, which it meets where it would meet a GPU that is too small."""
    monkeypatch.setitem(steps.VARIANTS, "impossible", ["run.precision=fp64", "objective.head_hidden=48"])
    state = Networks(steps.recipe_for("ViT-S/14", "plain", tiny=True)).state_dict()
    row = steps.row_of("ViT-S/14", "impossible", state, torch.device("cpu"), tiny=True)
    assert row["error"].startswith("RuntimeError: Error(s) in loading state_dict")
    assert "\n" not in row["error"]
    assert "img_s" not in row


def test_a_child_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3));"
        f"p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid));"
        "time.sleep(600)"
    )
    ended = run_child(["-c", code], 2.0, tmp_path / "log")
    assert ended.timed_out
    assert ended.seconds < 15
    assert "stopped after" in ended.problem
    pid = int((tmp_path / "pid").read_text())
    deadline = time.time() + 5
    while time.time() < deadline and not ended_or_zombie(pid):
        time.sleep(0.05)
    assert ended_or_zombie(pid)


def ended_or_zombie(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_child_that_fails_says_its_last_line(tmp_path: Path) -> None:
    ended = run_child(["-c", "print('one'); raise SystemExit('no such thing')"], 60, tmp_path / "log")
    assert ended.problem == "ended with 1: no such thing"
    assert run_child(["-c", "import os; os.kill(os.getpid(), 9)"], 60, tmp_path / "log").code == -signal.SIGKILL
    assert run_child(["-c", "import benchmarks.gpu.settings"], 60, tmp_path / "log").problem == ""


def test_spread_runs_are_held_against_the_plain_one(tmp_path: Path) -> None:
    for name, losses in (("plain-fp32", [9.0, 8.0, 7.0, 6.0]), ("resumed-fp32", [9.0, 8.0, 7.0, 6.03])):
        (tmp_path / name).mkdir()
        for number, loss in enumerate(losses, 1):
            append_line(tmp_path / name / "metrics.jsonl", {"step": number, "loss": loss})
    spread = {"ddp": {"1": 9.0, "2": 8.0, "3": 7.0, "4": 6.0006}, "fsdp": "RuntimeError: no"}
    (tmp_path / "spread-fp32.json").write_text(json.dumps(spread))
    rows = {row["way"]: row for row in distributed.compare(tmp_path, saved=2)}
    assert rows["plain"]["furthest"] == 0
    assert rows["ddp"]["furthest"] == pytest.approx(1e-4)
    assert rows["ddp"]["equal"]
    assert rows["fsdp"]["error"] == "RuntimeError: no"
    assert list(rows["resumed at step 2"]["losses"]) == [3, 4]
    assert not rows["resumed at step 2"]["equal"]


def test_the_page_shows_failures_and_what_is_missing(step_rows: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    failed = {"model": "ViT-S/14", "variant": "compile", "error": "OutOfMemoryError: <none> left"}
    record = {
        "command": "python benchmarks/gpu_proof.py",
        "complete": False,
        "seconds": 61.0,
        "facts": {"gpu": "NVIDIA H200", "memory_gb": 150.1, "time": "today"},
        "left_out": [{"part": "reading", "why": "no time"}],
        "steps": {"rows": [*step_rows.values(), failed]},
        "learning": {"start": "random", "error": "training ended with 1: no tiles", "metrics": []},
    }
    write_page(record, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in (
        "GPU proof on NVIDIA H200",
        "OutOfMemoryError: &lt;none&gt; left",
        "no time",
        "no tiles",
        "not complete",
    ):
        assert words in page
    assert "the proof had not come to it" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def make_data(folder: Path, tiles: int = 20, tile_bytes: int = 1000) -> None:
    """A folder laid out like the real one, with files of no content."""
    for kind in ("A", "B"):
        for split, count in (("train", tiles), ("val", 2)):
            (folder / "colon5_tiles" / split / kind).mkdir(parents=True)
            for number in range(count):
                (folder / "colon5_tiles" / split / kind / f"{number:03d}.jpg").write_bytes(b"x" * tile_bytes)
    for name in (
        "colon5_tiles/labels.csv",
        "crc_cells_27px/cells.npz",
        "crc_cells_27px/cells.csv",
        "consep_patches_train/labels.csv",
        "consep_patches_train/images/a.jpg",
        "consep_patches_train/types/a.png",
        "slides/CMU-1-Small-Region.svs",
        "slides/other.svs",
        "other/README.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"y" * 100)


def test_carried_data_is_what_the_proof_reads(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_data(data)
    for _ in range(2):  # again over its own copy
        assert carry_data.main([str(data), "-o", str(out)]) == 0
    carried = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert all((out / name).exists() for name in gpu_proof.NEEDED)
    assert "colon5_tiles/train/B/019.jpg" in carried
    assert not carried & {"consep_patches_train/types/a.png", "slides/other.svs", "other/README.md"}


def test_too_much_data_is_thinned_evenly(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_data(data)
    assert carry_data.main([str(data), "-o", str(out), "--most-mb", "0.025"]) == 0
    kept = {kind: sorted((out / "colon5_tiles" / "train" / kind).iterdir()) for kind in ("A", "B")}
    assert len(kept["A"]) == len(kept["B"]) == 10
    assert np.diff([int(path.stem) for path in kept["A"]]).max() <= 2
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= 25_000 + 100
    assert carry_data.main([str(data), "-o", str(out), "--most-mb", "0.001"]) == 2


def test_a_folder_of_others_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(tmp_path)
    assert carry_data.main([str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "slides" / "other.svs").exists()


@pytest.mark.slow
def test_the_whole_proof_at_toy_size(shared_data: Path, tmp_path: Path) -> None:
    """Every part on real data, and compilation where there is no compiler."""
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu_proof.py"), str(shared_data), "-o", str(tmp_path)]
    words += ["--device", "cpu", "--tiny", "--minutes", "40"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CXX": "/no/compiler",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "gpu_proof.json").read_text())
    assert record["complete"]
    assert record["left_out"] == []
    rows = {(row["model"], row["variant"]): row for row in record["steps"]["rows"]}
    assert set(rows) == {(model, variant) for model in steps.MODELS for variant in ("plain", "recompute", "compile")}
    for (_, variant), row in rows.items():
        assert ("error" in row) == (variant == "compile"), row
    assert {row["source"] for row in record["reading"]["rows"]} == {"folder of tiles", "whole slide"}
    assert all(row["tiles_s"] > 0 for row in record["reading"]["rows"])
    assert all(row["equal"] for row in record["distributed"]["runs"])
    assert {row["way"] for row in record["distributed"]["runs"]} == {"plain", "ddp", "fsdp", "resumed at step 2"}
    learning = record["learning"]
    assert learning["steps"] == 6
    assert {row["task"] for row in learning["results"]} == {"crc-cells", "consep-cells", "colon5"}
    assert len(learning["comparisons"]) == 6  # trained against its own start and against colour, three tasks
    page = (tmp_path / "gpu_proof.html").read_text()
    assert "trained − its own start" in page
    assert "colour-only" in page
