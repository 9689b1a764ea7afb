"""Five tasks, one of each kind: a call killed among them goes on where it was; `all` judges what a protocol can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.evaluation import protocols as protocol_module
from eosin.evaluation.kinds import KINDS
from eosin.evaluation.tasks import PUBLIC
from eosin.features import baselines

from .five_tasks import judge_all, write_all

KIND_OF = {
    "tiles": "classification",
    "spots": "regression",
    "camelyon16-small": "slide",
    "squares": "segmentation",
    "pathorob-camelyon": "robustness",
}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts in its place, `strict` is itself again afterwards."""
    monkeypatch.setitem(protocol_module.PROTOCOLS, "strict", protocol_module.PROTOCOLS["strict"])


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """How often each kind judges from now on, and how many images each size of tile is embedded of."""
    judged: Counter[str] = Counter()
    embedded: Counter[str] = Counter()
    for name, kind in KINDS.items():
        own = type(kind).judge

        def judge(self: Any, *words: Any, own: Any = own, name: str = name) -> Any:
            judged[name] += 1
            return own(self, *words)

        monkeypatch.setattr(type(kind), "judge", judge)
    embed = baselines.ColourEncoder.embed

    def counting(self: Any, pixels: Any) -> Any:
        embedded[f"{pixels.shape[1]} px"] += len(pixels)
        return embed(self, pixels)

    monkeypatch.setattr(baselines.ColourEncoder, "embed", counting)
    return judged, embedded


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_five_tasks_killed_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, data, out = write_all(tmp_path / "data"), tmp_path / "data", tmp_path / "out"
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.evaluation.kinds.five_tasks", str(data), str(out), *words]
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "results.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (out / "cache").rglob("[!.]*.np[yz]")}
    # Two outcomes with their features, and five bags of the slides.
    assert sorted(path.suffix for path in kept) == [".npy"] * 7 + [".npz"] * 2

    judged, embedded = counted(monkeypatch)
    rows = judge_all(words, data, out)
    assert judged == {"slide": 1, "segmentation": 1, "robustness": 1}
    assert embedded["224 px"] == (18 - 5) * 8  # tiles of the slides that were not done
    assert "32 px" not in embedded  # spots were done; squares are read as pixels, not as vectors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {row["task"]: row["kind"] for row in rows} == KIND_OF
    assert judged.total() == 3
    judge_all(words, data, out)
    assert judged.total() == 3

    whole = judge_all(words, data, tmp_path / "whole")
    told = ("task", "metric", "mean", "ci_low", "ci_high", "run_scores", "n", "label_hash")
    for row, other in zip(rows, whole, strict=True):
        assert {key: row[key] for key in told} == {key: other[key] for key in told}
    again = json.loads((out / "results.json").read_text())
    assert [row["mean"] for row in again] == [row["mean"] for row in rows]
    assert all(np.isfinite(row["mean"]) for row in rows)


@pytest.mark.slow
@pytest.mark.usefixtures("strict")
def test_all_judges_what_a_protocol_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from eosin.evaluation import evaluate

    from .five_tasks import quick

    write_all(tmp_path)
    protocol_module.PROTOCOLS["strict"] = quick()
    rows = evaluate("colour", ["all"], ["strict", "knn"], tmp_path / "out", tmp_path, any_count=True)
    found = {(row["task"], row["protocol"]) for row in rows}
    assert found == {(name, "strict") for name in ("camelyon16", "camelyon16-small", "pathorob-camelyon")}
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if "does not judge" in line]
    assert lines == [
        "knn does not judge camelyon16 (slide), camelyon16-small (slide), pathorob-camelyon (robustness): left out"
    ]
    assert PUBLIC["camelyon16"].kind == "slide"
