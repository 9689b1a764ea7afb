"""The page of a run while another process writes it: before its first row, between rows, at its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from eosin.errors import DataError
from eosin.report import write_run_report
from eosin.runs import RunFolder

TINY = """
base: quickstart
encoder: {width: 24, depth: 2, heads: 2, patch: 8, grid: 4}
tiles: {size_px: 40, mpp: [0.5]}
views: {global_px: 32, local_px: 16, local_count: 2, blur_kernel_px: 3}
objective: {dino_prototypes: 16, ibot_prototypes: 12, head_hidden: 16, dino_bottleneck: 8, ibot_bottleneck: 8}
run: {batch: 8, group: 4, steps: 30, minutes: null, precision: fp32, workers: 0, log_every: 1, monitor_every: 3,
  monitor_tiles: 16, checkpoint_every: 5}
watch: {data_wait: 1.0e-9, data_wait_rows: 1}
"""


def test_a_page_can_be_made_at_any_moment(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "tiles").mkdir()
    for number in range(8):
        pixels = generator.integers(60, 255, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "tiles" / f"{number}.png"), pixels)
    (tmp_path / "tiny.yaml").write_text(TINY)
    run = RunFolder(tmp_path / "run")
    words = [sys.executable, "-m", "eosin", "train", str(tmp_path / "tiny.yaml"), "--tiles", str(tmp_path / "tiles")]
    training = subprocess.Popen(
        [*words, "--mpp", "0.5", "-o", str(run.root), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen: list[str] = []
    deadline = time.time() + 120
    while training.poll() is None and time.time() < deadline:
        try:
            seen.append(write_run_report(run, tmp_path / "page.html").read_text())
        except DataError:  # there is nothing at all yet
            assert not seen
            time.sleep(0.1)
    assert training.wait(10) == 0, training.stderr and training.stderr.read()
    seen.append(write_run_report(run, tmp_path / "page.html").read_text())
    states = [page.partition('class="status">')[2].split(" · ")[0] for page in seen]
    assert states[-1] == "Step 30 of 30, finished"
    assert len(set(states)) > 3  # it was looked at in the middle
    assert all("cannot be read" not in page for page in seen)
    for section in ("alarms", "curves", "tiles", "views", "attention"):
        assert f'<section id="{section}"' in seen[-1]
    for name in ("teacher-entropy", "prototypes-used", "data-wait", "teacher-entropy-ibot", "rankme"):
        assert f'id="curve-{name}"' in seen[-1]
