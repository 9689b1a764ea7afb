"""Embedding on a Ray cluster: a slide is a unit of work, each GPU (or core) a process that has loaded the model.

Each process writes the h5 of its slides itself, so the folder fills as without Ray and a later run goes on there.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from eosin.distributed import World
from eosin.errors import WeightsError
from eosin.features.embed import begin
from eosin.features.embed_folder import EmbeddingFolder, EmbeddingSettings
from eosin.features.embed_request import EmbeddingRequest, Loading
from eosin.features.embed_run import Embedding, EmbeddingRun, share
from eosin.features.extract import find_device
from eosin.fleet import Fleet, FleetError, Lost, fleet, same_place
from eosin.progress import progress_bar
from eosin.slides import Cohort

MOST_READERS = 16


def embed_on_fleet(request: EmbeddingRequest) -> EmbeddingRun:
    """Embed on the Ray cluster at `request.ray`.

    device None is the cluster's GPUs where it has any, workers None the cores that are there for each GPU, and no
    reader beside a core that computes. Raises FleetError where the cluster cannot be used.
    """
    assert request.ray is not None
    load = request.loading.anywhere()
    with fleet(request.ray, None, request.verbose) as ships:
        kind = _kind(ships, request.device)
        count, readers = _spread(ships, kind, request.workers)
        folder, settings, cohort = begin(request, load.encoder(), kind, World())
        cohort.path = cohort.path.resolve()
        folder = EmbeddingFolder(folder.folder.resolve())
        batch, clam = request.batch_on(kind), request.clam
        work = SlideWork(load, cohort, folder.folder, settings, batch, clam, kind, readers)
        jobs = share(cohort, World())
        needed = [cohort.path, cohort.row(jobs[0])["path"], str(load.model), *([load.weights] if load.weights else [])]
        total = EmbeddingRun(str(folder.folder))
        start = time.perf_counter()
        with (
            same_place(folder.folder, needed) as place,
            progress_bar("embed", len(jobs), "slides") as bar,
            closing(ships.each(jobs, work, place, min(count, len(jobs)), 1 + readers, int(kind == "cuda"))) as results,
        ):
            for number, done in results:
                if isinstance(done, Lost):
                    total.failures[cohort.row(number)["slide_id"]] = done.line
                else:
                    total.slides += done.slides
                    total.finished += done.finished
                    total.tiles += done.tiles
                    total.failures |= done.failures
                bar.advance(1, f"{total.tiles / (time.perf_counter() - start):,.0f} tiles/s")
        total.seconds = time.perf_counter() - start
        return total


def _kind(ships: Fleet, device: str | None) -> str:
    if device not in (None, "cpu", "cuda"):
        raise FleetError(f"--device {device}: Ray deals the GPUs out; say cpu or cuda")
    if device == "cuda" and not ships.gpus:
        raise FleetError(f"{ships.address}: the cluster has no GPU")
    return device or ("cuda" if ships.gpus else "cpu")


def _spread(ships: Fleet, kind: str, workers: int | None) -> tuple[int, int]:
    """Processes that compute, and readers beside each; a process takes a core and one for each of its readers."""
    readers = workers or 0
    if kind == "cuda" and workers is None:
        readers = min(max(ships.cores_a_gpu() - 1, 0), MOST_READERS)
    return ships.room(1 + readers, int(kind == "cuda")), readers


@dataclass(frozen=True)
class SlideWork:
    """What a process of the cluster needs to embed slides by number; called there, once."""

    load: Loading
    cohort: Cohort
    folder: Path
    settings: EmbeddingSettings
    batch: int
    clam: bool
    kind: str
    readers: int

    def __call__(self) -> Callable[[int], EmbeddingRun]:
        encoder = self.load.encoder().to(find_device(self.kind))
        if encoder.model_hash != self.settings.model_hash:
            raise WeightsError(
                f"the machine {platform.node()} loads another {self.load.word} than the driver "
                f"({encoder.model_hash}, not {self.settings.model_hash})"
            )
        if self.kind == "cpu":
            torch.set_num_threads(1)
        work = Embedding(encoder, self.cohort, EmbeddingFolder(self.folder), self.settings, self.batch, self.clam)
        return lambda number: work.embed([number], self.readers)
