"""What a run watches while it learns: label-free metrics of the teacher, a k-NN probe, speed; where they are written.

The tiles it looks at are drawn once from the run's own plan with another seed, so that numbers of different steps
compare. Uses the same evaluation code as `eosin eval`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.tensorboard import SummaryWriter

from eosin.evaluation.judge import judge, row_of
from eosin.evaluation.protocols import find_protocols
from eosin.evaluation.tasks import Task
from eosin.features import Encoder, embed_images, label_free
from eosin.features.encoder import VitEncoder
from eosin.files import atomic_path, finite
from eosin.randomness import Words
from eosin.runs import RunFolder, append_line, rewrite_lines
from eosin.tiles import TileBatch, TilePlan, TileStream
from eosin.training.networks import Networks
from eosin.training.recipe import Recipe
from eosin.views import denormalise, draw_views, render

SHOWN_TILES = 64  # tiles kept for the report
SHOWN_VIEWS = 8  # of them with their views


class MetricsLog:
    """metrics.jsonl and TensorBoard side by side. On resume, rows after the checkpoint are dropped."""

    def __init__(self, run: RunFolder, first_step: int) -> None:
        self._run = run
        rows = run.read_metrics()
        kept = [row for row in rows if row["step"] <= first_step]
        if len(kept) < len(rows):
            rewrite_lines(run.metrics, kept)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row after `step` optimiser steps."""
        append_line(self._run.metrics, finite({"step": step, **values}))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()


@dataclass
class Speed:
    """Tiles a second since the last reading, without the time spent on monitoring."""

    started: float = 0.0
    tiles: int = 0

    def restart(self) -> None:
        self.started, self.tiles = time.perf_counter(), 0

    def read(self) -> float:
        rate = self.tiles / max(time.perf_counter() - self.started, 1e-9)
        self.restart()
        return rate


def watched_tiles(plan: TilePlan, recipe: Recipe) -> TileBatch:
    """The tiles that label-free metrics look at: drawn from the run's sources with a seed of their own."""
    sources = TilePlan(plan.sources, _watch_seed(plan.seed), plan.weights)
    return next(iter(TileStream(sources, recipe.run.monitor_tiles, steps=1)))


def _watch_seed(seed: int) -> int:
    return int(Words(seed, "watched tiles").integers(2**40, 1)[0])


def keep_sample(batch: TileBatch, recipe: Recipe, run: RunFolder) -> None:
    """Keep some tiles, and the views of a few, in pictures/sample.npz for the report."""
    shown = min(SHOWN_VIEWS, len(batch.pixels))
    plan = draw_views(recipe.views, shown, Words(recipe.run.seed, "shown views"))
    crops = [denormalise(c, recipe.views) for c in render(batch.pixels[:shown], plan, recipe.views)]
    crops = [c.reshape(-1, shown, *c.shape[1:]).swapaxes(0, 1) for c in crops]  # [tiles, views, h, w, 3]
    arrays = {
        "tiles": batch.pixels[:SHOWN_TILES],
        "slide": np.array(batch.names[:SHOWN_TILES]),
        "mpp": batch.mpp[:SHOWN_TILES],
        **dict(zip(("globals", "locals"), crops, strict=False)),
    }
    with atomic_path(run.pictures / "sample.npz") as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


class Monitor:
    """Measures the teacher on the watched tiles and on labelled probes."""

    def __init__(self, recipe: Recipe, tiles: npt.NDArray[np.uint8], tasks: dict[str, Task]) -> None:
        """tiles: uint8 [N, S, S, 3] for the label-free metrics; tasks: labelled tiles by name."""
        self._recipe = recipe
        self._tiles = tiles
        self._tasks = tasks

    @torch.no_grad()
    def measure(self, networks: Networks) -> dict[str, float]:
        """rankme, odcorr, uniformity of the teacher's CLS, and `knn` (or `knn/NAME` where there are several)."""
        encoder = teacher_encoder(networks, self._recipe)
        z = embed_images(encoder, list(self._tiles))
        values = {
            "rankme": label_free.rankme(z),
            "odcorr": label_free.odcorr(z),
            "uniformity": label_free.uniformity(z),
        }
        for name, task in self._tasks.items():
            values["knn" if len(self._tasks) == 1 else f"knn/{name}"] = knn_accuracy_of(task, encoder)
        return values


def knn_accuracy_of(task: Task, encoder: Encoder) -> float:
    """Balanced accuracy of the protocol `knn` on a task of images."""
    protocol = find_protocols("knn")[0]
    features = task.features if task.images is None else embed_images(encoder, task.images)
    assert features is not None
    return float(row_of(task, protocol, judge(task, features, protocol))["mean"])


def teacher_encoder(networks: Networks, recipe: Recipe) -> Encoder:
    """The teacher as it will be exported: CLS token, the recipe's global size and normalisation."""
    return VitEncoder(
        networks.teacher.encoder,
        name=recipe.name,
        width=recipe.encoder.width,
        input_size=recipe.views.global_px,
        mean=recipe.views.mean,
        std=recipe.views.std,
        pooling="cls",
    ).to(networks.dino_center.device)
