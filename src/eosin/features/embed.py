"""Embed the tissue of many slides: one h5 a slide, resumable, reading and device overlapped.

Processes read blocks of tiles ahead (tiles/grid_stream.py) while the device encodes; vectors go into the h5 of their
slide batch by batch, so memory does not grow with a slide. A slide that fails is a line in failures.csv and the others
go on. Under torchrun each process takes its share of the slides, in an array of jobs each job its part, on a Ray
cluster each GPU the next slide (embed_fleet.py). What was asked for is embed_request.py's, what the folder holds
embed_folder.py's.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eosin.distributed import World, world
from eosin.errors import DataError
from eosin.features.embed_folder import EmbeddingFolder, EmbeddingSettings
from eosin.features.embed_request import MIN_FOREGROUND, EmbeddingRequest
from eosin.features.embed_run import Embedding, EmbeddingRun, share
from eosin.features.encoder import Encoder
from eosin.files import PathLike, check_writable, write_json
from eosin.progress import say
from eosin.slides import Cohort


def embed_slides(
    model: PathLike | Encoder,
    slides: Sequence[PathLike] | PathLike | Cohort,
    out: PathLike,
    *,
    mpp: float | None = None,
    size: int | None = None,
    stride: int | None = None,
    min_foreground: float = MIN_FOREGROUND,
    pooling: str | None = None,
    weights: PathLike | None = None,
    random_init: bool = False,
    input_size: int | None = None,
    seed: int = 0,
    tokens: bool = False,
    clam: bool = False,
    workers: int | None = None,
    batch: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    mpp_csv: PathLike | None = None,
    where: str | None = None,
    fresh: bool = False,
    stage: str = "tile",
    ray: str | None = None,
    part: str | None = None,
    verbose: bool = False,
) -> EmbeddingRun:
    """Embed all tissue tiles of slides into `out`/SLIDE_ID.h5 (TRIDENT's layout). Again with the same words resumes.

    Args:
        model: a word of `load_model`, with `weights`, `random_init`, `pooling`, `input_size`, `seed`; or an Encoder.
        slides: a cohort (file), or slide files, folders and patterns, first indexed into `out` with `mpp_csv`.
        mpp, size, stride: µm/px, side and distance of tiles in px of `mpp`; the encoder's own without, side by side.
        min_foreground: least share of tissue in a tile, [0, 1]; 0 takes every tile that touches tissue.
        tokens: store `patch_tokens` float16 [N, h, w, D] as well. clam: also write `out`/clam/h5_files and pt_files.
        workers: processes that read, 0 for none; batch: tiles a forward pass; device: default the GPU where there
            is one; precision: fp32 or bf16 (autocast), default bf16 on a GPU and fp32 on a CPU.
        where: an expression over cohort columns. fresh: drop the features that `out` holds.
        stage: tile; of an exported pyramid also region or slide: one table for all slides, regions.parquet or
            slides.parquet, with the tiles that the pyramid was trained on.
        ray: embed on a Ray cluster (`eosin.fleet.fleet`): local, auto, HOST:PORT or ray://HOST:PORT; a process a GPU,
            or a core where it has none. part: I/N, every N-th slide only, into the same folder. verbose: Ray's log too.

    Raises EosinError subclasses, one line: bad words, a folder made with other settings, no slide that worked.
    """
    request = EmbeddingRequest(**locals())  # its fields are the arguments
    if request.stage != "tile":
        return _embed_upper(request)
    if request.ray is not None:
        from eosin.features.embed_fleet import embed_on_fleet

        return _told(embed_on_fleet(request), EmbeddingFolder(Path(out)), request.own)
    return _embed_tiles(request)


def _embed_tiles(request: EmbeddingRequest) -> EmbeddingRun:
    """Features of tiles, by the processes of this run."""
    place = request.place()
    encoder = request.loading.encoder().to(place)
    with world(place) as here:
        folder, settings, cohort = begin(request, encoder, place.type, here)
        token = here.first(f"{time.time_ns()}")
        run = Embedding(encoder, cohort, folder, settings, request.batch_on(place.type), request.clam)
        done = run.embed(share(cohort, here, request.own), request.readers(place.type))
        done = _merged(done, here, folder.folder / f".ranks-{token}")
        return _told(done, folder, request.own) if here.is_first else _not_in_vain(done)


def _embed_upper(request: EmbeddingRequest) -> EmbeddingRun:
    """Vectors of regions or slides."""
    from eosin.features.embed_pyramid import embed_stage

    place, out = request.place(), check_writable(Path(request.out))
    with world(place) as here:
        return embed_stage(
            str(request.model),
            request.cohort(out, here.size),
            out,
            request.stage,
            place,
            request.precision_on(place.type),
            request.batch or 128,
            request.fresh,
            here,
            request.own,
        )


def begin(
    request: EmbeddingRequest, encoder: Encoder, kind: str, here: World
) -> tuple[EmbeddingFolder, EmbeddingSettings, Cohort]:
    """A folder that is ready for the features, their settings, and the slides; kind of the device: cpu or cuda."""
    settings = request.settings(encoder, kind)
    folder = EmbeddingFolder(check_writable(Path(request.out)))
    if here.is_first:
        folder.prepare(settings, request.fresh, alone=request.part is None)
    cohort = request.cohort(folder.folder, here.size)
    if here.is_first:
        told = {"cohort": str(cohort.path), "cohort_hash": cohort.hash}
        folder.describe(settings, encoder, request.loading.word, told)
    return folder, settings, cohort


def _told(done: EmbeddingRun, folder: EmbeddingFolder, part: tuple[int, int]) -> EmbeddingRun:
    """Write what failed and say what was done."""
    done.failures_file = folder.write_failures(done.failures, part).name
    say(done.told)
    return _not_in_vain(done)


def _not_in_vain(done: EmbeddingRun) -> EmbeddingRun:
    if not done.slides and not done.finished and done.failures:
        raise DataError("no slide could be embedded; {}: {}".format(*next(iter(done.failures.items()))))
    return done


def _merged(run: EmbeddingRun, here: World, meeting: Path) -> EmbeddingRun:
    """All processes' runs as one, on the first process; through files, since their shares may end hours apart."""
    if here.size == 1:
        return run
    write_json(meeting / f"{here.rank}.json", asdict(run))
    if not here.is_first:
        return run
    while any(not (meeting / f"{rank}.json").is_file() for rank in range(here.size)):
        time.sleep(0.5)  # the launcher ends this process where another one dies
    runs = [EmbeddingRun(**json.loads((meeting / f"{rank}.json").read_text())) for rank in range(here.size)]
    shutil.rmtree(meeting, ignore_errors=True)
    return EmbeddingRun(
        run.folder,
        sum(each.slides for each in runs),
        sum(each.finished for each in runs),
        sum(each.tiles for each in runs),
        max(each.seconds for each in runs),
        {slide: line for each in runs for slide, line in each.failures.items()},
    )


embed = embed_slides
"""The public name, `eosin.embed`."""
