"""Is a run spread by NCCL the same run? One GPU, so a world of one: every collective and wrapper is used, none helps.

A plain run of twenty steps without torch.distributed is the measure. Under torchrun the same twenty steps go through
DistributedDataParallel and through FSDP2, and the plain run's checkpoint of step ten is resumed. Losses must agree; how
far the resumed run differs shows what the GPU's own rounding does.

    python -m benchmarks.gpu.distributed plain OUT DEVICE SIZE
    torchrun --nproc-per-node 1 -m benchmarks.gpu.distributed spread OUT DEVICE SIZE
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from benchmarks.gpu.child import one_line, run_child
from benchmarks.gpu.settings import TINY, Settings
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from eosin.distributed import World
from eosin.files import write_json
from eosin.optim import make_schedules
from eosin.runs import RunFolder
from eosin.tiles import TileStream
from eosin.training import Recipe, load_recipe, train
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel, _shard, spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import draw_step, micro_batches, pretrain_step
from eosin.training.train import tile_plan

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""Largest relative difference of a loss within twenty steps: rounding differs where kernels add up in another order."""


def length(tiny: bool) -> int:
    """Steps of a run; it is saved after half of them."""
    return 4 if tiny else 20


def measure_distributed(settings: Settings, seconds: float) -> dict[str, Any]:
    """Curves of the plain and the spread runs, and how far they lie apart, for each precision."""
    out, log = settings.out / "distributed", settings.out / "distributed.log"
    shutil.rmtree(out, ignore_errors=True)
    write_tiles(out / "tiles")
    began = time.perf_counter()
    rest = [str(out), settings.device, "tiny" if settings.tiny else "full"]
    plain = run_child(["-m", "benchmarks.gpu.distributed", "plain", *rest], seconds, log)
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "benchmarks.gpu.distributed",
    ]
    left = seconds - (time.perf_counter() - began)
    spread_out = run_child([*launch, "spread", *rest], left, log)
    steps = length(settings.tiny)
    told: dict[str, Any] = {
        "backend": "nccl" if settings.device == "cuda" else "gloo",
        "runs": compare(out, steps // 2),
    }
    if problem := plain.problem or spread_out.problem:
        told["error"] = problem
    return told


def compare(out: Path, saved: int) -> list[dict[str, Any]]:
    """A row for each precision and way: its losses, and the largest relative difference from the plain run's."""
    rows: list[dict[str, Any]] = []
    for precision, tolerance in TOLERANCE.items():
        plain = losses_of(out / f"plain-{precision}")
        found = {"plain": plain} if plain else {}
        path = out / f"spread-{precision}.json"
        found |= json.loads(path.read_text()) if path.exists() else {}
        if resumed := losses_of(out / f"resumed-{precision}"):
            found[f"resumed at step {saved}"] = dict(list(resumed.items())[saved:])
        for way, told in found.items():
            row: dict[str, Any] = {"precision": precision, "way": way}
            if isinstance(told, str):
                rows.append({**row, "error": told})
                continue
            curve = {int(step): value for step, value in told.items()}
            apart = [abs(curve[s] - plain[s]) / abs(plain[s]) for s in curve if s in plain]
            furthest = max(apart, default=float("nan"))
            row |= {"losses": curve, "furthest": furthest, "tolerance": tolerance, "equal": furthest <= tolerance}
            rows.append(row)
    return rows


def losses_of(run: Path) -> dict[int, float]:
    """Step → loss."""
    return {int(row["step"]): row["loss"] for row in RunFolder(run).read_metrics() if "loss" in row}


def write_tiles(folder: Path) -> None:
    """Forty-eight images of 288 px, smooth colour noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(48):
        small = generator.integers(60, 255, (18, 18, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{number:02d}.png"), cv2.resize(small, (288, 288), interpolation=cv2.INTER_CUBIC))


def changes_for(precision: str, tiny: bool) -> list[str]:
    """Recipe changes: vits14-1h, short, one tile scale, every loss written down."""
    return [
        "start=random",
        "run.batch=32",
        *(["run.batch=8", "run.group=4", *TINY, "run.workers=0", "run.monitor_tiles=16"] if tiny else []),
        "tiles.mpp=[0.5]",
        "tiles.hsv_share=null",
        f"run.steps={length(tiny)}",
        f"run.checkpoint_every={length(tiny) // 2}",
        "run.keep_last=9",
        "run.log_every=1",
        "run.log_to=[]",
        "run.monitor_every=100%",
        "run.monitor_tiles=64",
        f"run.precision={precision}",
    ]


def run_plain(out: Path, device: str, tiny: bool) -> None:
    """The runs without torch.distributed."""
    for precision in TOLERANCE:
        train_run(out, f"plain-{precision}", precision, device, tiny)


def train_run(out: Path, name: str, precision: str, device: str, tiny: bool) -> None:
    changes = changes_for(precision, tiny)
    train("vits14-1h", out / name, tiles=[str(out / "tiles")], mpp=0.5, set=changes, device=device)


def run_spread(out: Path, device_name: str, tiny: bool) -> None:
    """The same steps in a world of one, and the plain run's second half again."""
    device = torch.device("cpu")
    if device_name == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        check_collectives(device)
        for precision in TOLERANCE:
            recipe = load_recipe("vits14-1h", changes_for(precision, tiny))[0]
            found: dict[str, Any] = {}
            for way in ("ddp", "fsdp"):
                try:
                    found[way] = curve_of(recipe, out / "tiles", way, device)
                except Exception as error:  # a row of its own
                    found[way] = one_line(error)
                write_json(out / f"spread-{precision}.json", found)
            resume(out, precision, device_name, tiny)
    finally:
        dist.destroy_process_group()


def check_collectives(device: torch.device) -> None:
    """What the engine asks of the backend, on the device, in a world of one."""
    x = torch.arange(6.0, device=device)
    total, out = x.clone(), torch.empty_like(x)
    dist.all_reduce(total)
    dist.all_gather_into_tensor(out, x)
    assert torch.equal(total, x)
    assert torch.equal(out, x)


def curve_of(recipe: Recipe, tiles: Path, way: str, device: torch.device) -> dict[int, float]:
    """Losses of a run's steps in one way of spreading it; read when all is done."""
    networks = Networks(recipe)
    parallel = wrapped(networks, recipe, way, device)
    optimizer = make_optimizer(recipe, networks)
    schedules = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch)
    losses = []
    plan = tile_plan(recipe, [], [str(tiles)], 0.5, None)
    for batch in TileStream(plan, recipe.run.batch, steps=recipe.run.steps):
        ready = micro_batches(recipe, batch, draw_step(recipe, batch.step), parallel)
        losses.append(pretrain_step(networks, optimizer, recipe, ready, schedules.at(batch.step), parallel)["loss"])
    return {step: float(loss) for step, loss in enumerate(losses, 1)}


def wrapped(networks: Networks, recipe: Recipe, way: str, device: torch.device) -> Parallel:
    """`networks` as `spread` would wrap them among several processes, in a world of one."""
    plain = spread(networks, recipe, device, recipe.run.precision)
    student: nn.Module = networks.student
    sharded: tuple[Any, ...] = ()
    if way == "fsdp":
        mesh = init_device_mesh(device.type, (1,))
        sharded = (*_shard(networks.student, mesh, False), *_shard(networks.teacher, mesh, True))
    else:
        ids = [device.index] if device.type == "cuda" else None
        student = DistributedDataParallel(
            networks.student, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    return Parallel(World.here(), device, plain.autocast, plain.dtype, plain.accumulate, student, sharded)


def resume(out: Path, precision: str, device: str, tiny: bool) -> None:
    """Go on from a copy of the plain run as it was half way."""
    plain, copy = out / f"plain-{precision}", out / f"resumed-{precision}"
    if not plain.exists():
        return
    last = RunFolder(plain).checkpoint(length(tiny)).name
    shutil.copytree(plain, copy, ignore=lambda at, names: {last} & set(names))
    train_run(out, copy.name, precision, device, tiny)


def main(words: Sequence[str]) -> None:
    """One of the two processes."""
    kind, out, device, size = words
    (run_plain if kind == "plain" else run_spread)(Path(out), device, size == "tiny")


if __name__ == "__main__":
    main(sys.argv[1:])
