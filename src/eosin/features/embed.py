"""Embed the tissue of many slides: one h5 a slide, resumable, reading and device overlapped.

Processes read blocks of tiles ahead (tiles/grid_stream.py) while the device encodes; vectors go into the h5 of their
slide batch by batch, so memory does not grow with a slide. A slide that fails is a line in failures.csv and the others
go on. Under torchrun each process takes its share of the slides, in an array of jobs each job its part, on a Ray
cluster each GPU the next slide (embed_fleet.py). What the folder holds is embed_folder.py's.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from eosin.distributed import World, world
from eosin.errors import CohortError, DataError
from eosin.features.embed_folder import COHORT_FILE, EmbeddingFolder, EmbeddingSettings, wanted_scale
from eosin.features.embed_run import Embedding, EmbeddingRun, share
from eosin.features.encoder import Encoder
from eosin.features.extract import find_device
from eosin.features.load import load_model
from eosin.features.pyramid_file import is_pyramid, load_pyramid_block
from eosin.files import PathLike, check_writable, write_json
from eosin.fleet import FleetError, exclude_each_other, part_of
from eosin.progress import say
from eosin.slides import Cohort

MIN_FOREGROUND = 0.25
PRECISIONS = ("fp32", "bf16")


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
        slides: a cohort (file), or slide files, folders and patterns, which are indexed into `out`/cohort.parquet
            first, with `mpp_csv`.
        mpp, size, stride: µm/px, side and distance of tiles in px of `mpp`; the encoder's own without, side by side.
        min_foreground: least share of tissue in a tile, [0, 1]; 0 takes every tile that touches tissue.
        tokens: store the patch tokens as well, `patch_tokens` float16 [N, h, w, D].
        clam: also write `out`/clam/h5_files and pt_files.
        workers: processes that read, 0 for none; batch: tiles a forward pass; device: default the GPU where there
            is one; precision: fp32 or bf16 (autocast), default bf16 on a GPU and fp32 on a CPU.
        where: an expression over cohort columns. fresh: drop the features that `out` holds.
        stage: tile; of an exported pyramid also region or slide: one table for all slides, regions.parquet or
            slides.parquet, with the tiles that the pyramid was trained on.
        ray: embed on a Ray cluster (`eosin.fleet.fleet`): local, auto, HOST:PORT or ray://HOST:PORT; a process a GPU,
            or a core where it has none. part: I/N, every N-th slide only, into the same folder. verbose: Ray's log too.

    Raises EosinError subclasses, one line: bad words, a folder made with other settings, no slide that worked.
    """
    if precision is not None and precision not in PRECISIONS:
        raise DataError(f"unknown precision {precision!r}: {', '.join(PRECISIONS)}")
    own = part_of(part) if part else (1, 1)
    if part:
        exclude_each_other("--part", ray=ray, fresh=fresh)
    if stage != "tile":
        if ray:
            raise DataError(f"--stage {stage} does not run on Ray: share the slides out by torchrun or --part I/N")
        given = (mpp, size, stride, pooling, weights, input_size) != (None,) * 6 or random_init or tokens or clam
        return _embed_upper(
            model, slides, Path(out), stage, _device(device), precision, batch, mpp_csv, where, fresh, given, own
        )
    load = Loading(model, weights, random_init, pooling, input_size, seed)

    def begin(encoder: Encoder, kind: str, here: World) -> tuple[EmbeddingFolder, EmbeddingSettings, Cohort]:
        """Settings, a folder that is ready for them, and the slides; kind of the device: cpu or cuda."""
        chosen = precision or ("bf16" if kind == "cuda" else "fp32")
        settings = _settings(encoder, mpp, load.size(size), stride, min_foreground, chosen, tokens)
        folder = EmbeddingFolder(check_writable(Path(out)))
        if here.is_first:
            folder.prepare(settings, fresh, alone=part is None)
        cohort = _cohort(slides, folder.folder, mpp_csv, where, alone=here.size == 1 and part is None, ray=ray)
        if here.is_first:
            told = {"cohort": str(cohort.path), "cohort_hash": cohort.hash}
            folder.describe(settings, encoder, load.word, told)
        return folder, settings, cohort

    if ray is not None:
        from eosin.features.embed_fleet import embed_on_fleet

        done = embed_on_fleet(load, begin, ray, device, workers, batch, clam, verbose)
        return _told(done, EmbeddingFolder(Path(out)), own)
    place = _device(device)
    encoder = load.encoder().to(place)
    with world(place) as here:
        folder, settings, cohort = begin(encoder, place.type, here)
        token = here.first(f"{time.time_ns()}")
        run = Embedding(encoder, cohort, folder, settings, batch or default_batch(place.type), clam)
        done = run.embed(share(cohort, here, own), _workers(workers, place))
        done = _merged(done, here, folder.folder / f".ranks-{token}")
        return _told(done, folder, own) if here.is_first else _not_in_vain(done)


def default_batch(kind: str) -> int:
    """Tiles a forward pass on a kind of device, cpu or cuda."""
    return 256 if kind == "cuda" else 32


def _told(done: EmbeddingRun, folder: EmbeddingFolder, part: tuple[int, int]) -> EmbeddingRun:
    """Write what failed and say what was done."""
    done.failures_file = folder.write_failures(done.failures, part).name
    say(done.told)
    return _not_in_vain(done)


def _not_in_vain(done: EmbeddingRun) -> EmbeddingRun:
    if not done.slides and not done.finished and done.failures:
        raise DataError("no slide could be embedded; {}: {}".format(*next(iter(done.failures.items()))))
    return done


@dataclass(frozen=True)
class Loading:
    """The words that `load_model` makes an encoder of; or an encoder."""

    model: PathLike | Encoder
    weights: PathLike | None = None
    random_init: bool = False
    pooling: str | None = None
    input_size: int | None = None
    seed: int = 0

    @property
    def word(self) -> str:
        """The model as the user named it."""
        return str(getattr(self.model, "name", self.model))

    def encoder(self) -> Encoder:
        """The encoder, on the CPU where it is loaded now."""
        if isinstance(self.model, Encoder):
            return self.model
        return load_model(self.model, self.weights, self.random_init, self.pooling, self.input_size, None, self.seed)

    def size(self, wanted: int | None) -> int | None:
        """Tile side in px: as wanted, else what a pyramid was trained with, else the encoder's to say (None)."""
        if wanted is None and not isinstance(self.model, Encoder) and is_pyramid(str(self.model)):
            return load_pyramid_block(str(self.model)).size_px
        return wanted

    def anywhere(self) -> Loading:
        """The same for processes with another working directory; FleetError for an encoder in memory."""
        if isinstance(self.model, Encoder):
            raise FleetError("--ray needs a model that each machine can load: a folder or a name, not an Encoder")
        model = Path(self.model).resolve() if Path(self.model).exists() else self.model
        return replace(self, model=str(model), weights=self.weights and Path(self.weights).resolve())


def _embed_upper(
    model: PathLike | Encoder,
    slides: Sequence[PathLike] | PathLike | Cohort,
    out: Path,
    stage: str,
    place: torch.device,
    precision: str | None,
    batch: int | None,
    mpp_csv: PathLike | None,
    where: str | None,
    fresh: bool,
    given: bool,
    part: tuple[int, int],
) -> EmbeddingRun:
    """Vectors of regions or slides; `given`: whether words were given that a pyramid decides by itself."""
    from eosin.features.embed_pyramid import STAGES, embed_stage

    if stage not in STAGES:
        raise DataError(f"unknown stage {stage!r}: {', '.join(STAGES)}")
    if given or isinstance(model, Encoder):
        raise DataError(f"--stage {stage} takes tiles, scale and weights as the exported pyramid has them")
    with world(place) as here:
        alone = here.size == 1 and part == (1, 1)
        cohort = _cohort(slides, check_writable(out), mpp_csv, where, alone)
        precision = precision or ("bf16" if place.type == "cuda" else "fp32")
        return embed_stage(model, cohort, out, stage, place, precision, batch or 128, fresh, here, part)


def _settings(
    encoder: Encoder,
    mpp: float | None,
    size: int | None,
    stride: int | None,
    min_foreground: float,
    precision: str,
    tokens: bool,
) -> EmbeddingSettings:
    """What the features will depend on; DataError where that makes no grid."""
    tile_mpp, size_px = wanted_scale(encoder, mpp, size)
    stride_px = size_px if stride is None else stride
    if stride_px < 1 or not 0 <= min_foreground <= 1:
        raise DataError(f"no grid of {size_px} px tiles at stride {stride_px} px, {min_foreground} foreground")
    return EmbeddingSettings(
        model_hash=encoder.model_hash,
        transform=encoder.transform,
        mpp=tile_mpp,
        size_px=size_px,
        stride_px=stride_px,
        min_foreground=min_foreground,
        precision=precision,
        tokens=tokens,
    )


def _cohort(
    slides: Sequence[PathLike] | PathLike | Cohort,
    out: Path,
    mpp_csv: PathLike | None,
    where: str | None,
    alone: bool,
    ray: str | None = None,
) -> Cohort:
    """The slides to embed: a cohort as it is, or slides indexed now into `out`; alone: no other process does too."""
    given = [slides] if isinstance(slides, str | os.PathLike) else slides
    if isinstance(given, Cohort):
        cohort = given
    elif len(given) == 1 and Path(given[0]).suffix == ".parquet":
        if mpp_csv is not None:
            raise CohortError(f"{given[0]} has its scales already; --mpp-csv belongs to `eosin index`")
        cohort = Cohort.read(given[0])
    elif not alone:
        raise CohortError("several processes embed a cohort: run `eosin index SLIDES -o cohort.parquet` first")
    else:
        cohort = Cohort.index(list(given), out / COHORT_FILE, mpp_csv=mpp_csv, ray=ray)
    if skipped := len(cohort.table) - len(cohort):
        say(f"{cohort.path}: {skipped} of {len(cohort.table)} slides are skipped because they could not be indexed")
    cohort = cohort.where(where) if where else cohort
    if not len(cohort):
        raise CohortError(f"{cohort.path}: no usable slide")
    return cohort


def _device(name: str | None) -> torch.device:
    """The device of this process; under torchrun each has the GPU of its local rank."""
    place = find_device(name)
    if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return place


def _workers(workers: int | None, place: torch.device) -> int:
    """Reading processes: as given, else a share of the cores; one beside a network that computes on the CPU."""
    if workers is not None:
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return min(share, 16) if place.type == "cuda" else min(max(share // 4, 1), 4)


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
