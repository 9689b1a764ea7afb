"""The page of a run while the run is under way: before its first row, between rows, at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from eosin.report import write_run_report
from eosin.runs import RunFolder
from eosin.training import train
from eosin.training.pretrain import pretrain_step

TINY = """
base: quickstart
encoder: {width: 24, depth: 2, heads: 2, patch: 8, grid: 4}
tiles: {size_px: 40, mpp: [0.5]}
views: {global_px: 32, local_px: 16, local_count: 2, blur_kernel_px: 3}
objective: {dino_prototypes: 16, ibot_prototypes: 12, head_hidden: 16, dino_bottleneck: 8, ibot_bottleneck: 8}
run: {batch: 8, group: 4, steps: 12, minutes: null, precision: fp32, workers: 0, log_every: 1, monitor_every: 3,
  monitor_tiles: 16, checkpoint_every: 5}
watch: {data_wait: 1.0e-9, data_wait_rows: 1}
"""


def test_a_page_can_be_made_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for number in range(8):
        pixels = generator.integers(60, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "tiles" / f"{number}.png"), pixels)
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = RunFolder(tmp_path / "run")
    seen: list[str] = []
    begun: list[int] = []

    def look() -> None:
        seen.append(write_run_report(run, tmp_path / "page.html").read_text())

    def step(*arguments: Any) -> Any:
        begun.append(len(begun))
        if begun[-1] in (0, 1, 3, 4, 11):  # the first look of the monitor is at 3
            look()
        return pretrain_step(*arguments)

    monkeypatch.setattr("eosin.training.method.pretrain_step", step)
    train(str(tmp_path / "tiny.yaml"), run.root, tiles=[str(tmp_path / "tiles")], mpp=0.5, device="cpu")
    look()
    states = [page.partition('class="status">')[2].split(" · ")[0] for page in seen]
    assert states == [*(f"Step {done} of 12" for done in (0, 1, 3, 4, 11)), "Step 12 of 12, finished"]
    assert all("cannot be read" not in page for page in seen)
    for section in ("alarms", "curves", "tiles", "views", "attention"):
        assert f'<section id="{section}"' in seen[-1]
    for name in ("teacher-entropy", "prototypes-used", "data-wait", "teacher-entropy-ibot", "rankme"):
        assert f'id="curve-{name}"' in seen[-1]
