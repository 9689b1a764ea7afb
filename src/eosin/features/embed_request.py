"""What `eosin embed` was asked for: its words, checked against each other, and what they make of slides and a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from eosin.errors import CohortError, DataError
from eosin.features.embed_folder import COHORT_FILE, EmbeddingSettings, wanted_scale
from eosin.features.encoder import Encoder
from eosin.features.extract import find_device
from eosin.features.load import load_model
from eosin.features.pyramid_file import is_pyramid, load_pyramid_block
from eosin.files import PathLike
from eosin.fleet import FleetError, exclude_each_other, part_of
from eosin.progress import say
from eosin.slides import Cohort

MIN_FOREGROUND = 0.25
PRECISIONS = ("fp32", "bf16")
STAGES = ("tile", "region", "slide")


@dataclass(frozen=True)
class EmbeddingRequest:
    """The arguments of `embed_slides`, which says what each means.

    Raises DataError, FleetError: an unknown word, or two that exclude each other.
    """

    model: PathLike | Encoder
    slides: Sequence[PathLike] | PathLike | Cohort
    out: PathLike
    mpp: float | None
    size: int | None
    stride: int | None
    min_foreground: float
    pooling: str | None
    weights: PathLike | None
    random_init: bool
    input_size: int | None
    seed: int
    tokens: bool
    clam: bool
    workers: int | None
    batch: int | None
    device: str | None
    precision: str | None
    mpp_csv: PathLike | None
    where: str | None
    fresh: bool
    stage: str
    ray: str | None
    part: str | None
    verbose: bool

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in PRECISIONS:
            raise DataError(f"unknown precision {self.precision!r}: {', '.join(PRECISIONS)}")
        if self.stage not in STAGES:
            raise DataError(f"unknown stage {self.stage!r}: {', '.join(STAGES)}")
        if self.part:
            exclude_each_other("--part", ray=self.ray, fresh=self.fresh)
            part_of(self.part)
        if self.stage != "tile":
            self._check_upper()

    def _check_upper(self) -> None:
        """A pyramid decides by itself what its tiles are."""
        if self.ray:
            raise DataError(f"--stage {self.stage} does not run on Ray: share the slides out by torchrun or --part I/N")
        numbers = (self.mpp, self.size, self.stride, self.pooling, self.weights, self.input_size)
        given = numbers != (None,) * 6 or self.min_foreground != MIN_FOREGROUND
        if given or self.random_init or self.tokens or self.clam or isinstance(self.model, Encoder):
            raise DataError(f"--stage {self.stage} takes tiles, scale and weights as the exported pyramid has them")

    @property
    def own(self) -> tuple[int, int]:
        """The part of the slides that is asked for: its number from 1, of how many."""
        return part_of(self.part) if self.part else (1, 1)

    @property
    def loading(self) -> Loading:
        """How the encoder is loaded."""
        return Loading(self.model, self.weights, self.random_init, self.pooling, self.input_size, self.seed)

    def precision_on(self, kind: str) -> str:
        """Precision on a kind of device, cpu or cuda."""
        return self.precision or ("bf16" if kind == "cuda" else "fp32")

    def settings(self, encoder: Encoder, kind: str) -> EmbeddingSettings:
        """What the features will depend on; DataError where that makes no grid."""
        tile_mpp, size_px = wanted_scale(encoder, self.mpp, self.loading.size(self.size))
        stride_px = size_px if self.stride is None else self.stride
        if stride_px < 1 or not 0 <= self.min_foreground <= 1:
            raise DataError(f"no grid of {size_px} px tiles at stride {stride_px} px, {self.min_foreground} foreground")
        return EmbeddingSettings(
            model_hash=encoder.model_hash,
            transform=encoder.transform,
            mpp=tile_mpp,
            size_px=size_px,
            stride_px=stride_px,
            min_foreground=self.min_foreground,
            precision=self.precision_on(kind),
            tokens=self.tokens,
        )

    def cohort(self, out: Path, processes: int = 1) -> Cohort:
        """The slides to embed: a cohort as it is, or slides indexed now into `out`.

        processes: how many share the slides in this run. Raises CohortError: no usable slide, slides that several
        processes would have to index.
        """
        given = [self.slides] if isinstance(self.slides, str | os.PathLike) else self.slides
        if isinstance(given, Cohort):
            cohort = given
        elif len(given) == 1 and Path(given[0]).suffix == ".parquet":
            if self.mpp_csv is not None:
                raise CohortError(f"{given[0]} has its scales already; --mpp-csv belongs to `eosin index`")
            cohort = Cohort.read(given[0])
        elif processes > 1 or self.part:
            raise CohortError("several processes embed a cohort: run `eosin index SLIDES -o cohort.parquet` first")
        else:
            to = out / COHORT_FILE
            cohort = Cohort.index(list(given), to, mpp_csv=self.mpp_csv, ray=self.ray, verbose=self.verbose)
        if skipped := len(cohort.table) - len(cohort):
            say(f"{cohort.path}: {skipped} of {len(cohort.table)} slides are skipped because they could not be indexed")
        cohort = cohort.where(self.where) if self.where else cohort
        if not len(cohort):
            raise CohortError(f"{cohort.path}: no usable slide")
        return cohort

    def place(self) -> torch.device:
        """The device of this process; under torchrun each has the GPU of its local rank."""
        place = find_device(self.device)
        if place.type == "cuda" and place.index is None and "LOCAL_RANK" in os.environ:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        return place

    def readers(self, kind: str) -> int:
        """Reading processes: as given, else a share of the cores; few beside a network that computes on the CPU."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
        return min(share, 16) if kind == "cuda" else min(max(share // 4, 1), 4)

    def batch_on(self, kind: str) -> int:
        """Tiles a forward pass on a kind of device."""
        return self.batch or (256 if kind == "cuda" else 32)


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
