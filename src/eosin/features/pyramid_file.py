"""An exported pyramid as it lies in a folder: stage 1 as any exported encoder, stages 2 and 3 and the heads beside it.

    config.json, model.safetensors    stage 1: what timm, `load_model` and `eosin embed` open (the early exit)
    pyramid/model.safetensors         stages 2 and 3, heads
    pyramid/config.json               their settings, the tasks, the tiles of a slide

Reads and writes these two files; the run that is exported is known to `training/curriculum/export.py` alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file

from eosin.errors import DataError, WeightsError
from eosin.files import PathLike, write_json
from eosin.models import ViT
from eosin.models.exported import ExportedEncoder, read_export, read_export_state
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_config import PyramidConfig
from eosin.models.slide_task import SlideTask
from eosin.models.weights import load_encoder, read_state
from eosin.provenance import hash_of, hash_state

FOLDER, CONFIG_FILE, STATE_FILE = "pyramid", "config.json", "model.safetensors"


class PyramidBlock(BaseModel):
    """What pyramid/config.json says."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    config: PyramidConfig
    tasks: list[dict[str, Any]] = Field(description="of `SlideTask.to_dict`, in the order of the heads")
    centre: dict[str, tuple[float, float]] = Field({}, description="mean and sd of each regression's labels")
    mpp: float = Field(gt=0, description="µm/px of the tiles")
    size_px: int = Field(gt=0, description="side of a tile as it is read")
    min_foreground: float = Field(ge=0, le=1)
    model_hash: str = Field(description="of pyramid/model.safetensors")


@dataclass(frozen=True, eq=False)
class ExportedPyramid:
    """A pyramid ready for `encode_slide`, in evaluation mode."""

    name: str
    pyramid: Pyramid
    block: PyramidBlock
    stage1: ExportedEncoder

    @property
    def hash(self) -> str:
        """Of all weights."""
        return hash_of([self.stage1.model_hash, self.block.model_hash])

    @property
    def training(self) -> dict[str, Any]:
        """Tasks, patients and slides that it was trained on."""
        return self.stage1.training.model_dump() if self.stage1.training else {}


def is_pyramid(folder: PathLike) -> bool:
    """Whether `folder` is an exported pyramid."""
    return (Path(folder) / FOLDER / CONFIG_FILE).is_file()


def upper_state(pyramid: Pyramid) -> dict[str, torch.Tensor]:
    """Weights of stages 2 and 3 and the heads."""
    state = pyramid.state_dict()
    return {name: value.cpu().contiguous() for name, value in state.items() if not name.startswith("tile.")}


def write_pyramid(folder: Path, pyramid: Pyramid, block: dict[str, Any]) -> PyramidBlock:
    """Write pyramid/ into the folder of an exported stage 1; block: what `PyramidBlock` holds beside the hash."""
    state = upper_state(pyramid)
    told = PyramidBlock(**block, model_hash=hash_state(state))
    (folder / FOLDER).mkdir()
    save_file(state, folder / FOLDER / STATE_FILE, metadata={"format": "pt"})
    write_json(folder / FOLDER / CONFIG_FILE, told.model_dump(mode="json"))
    return told


def load_pyramid_block(folder: PathLike) -> PyramidBlock:
    """What pyramid/config.json of an exported folder says. Raises WeightsError where it is damaged."""
    path = Path(folder) / FOLDER / CONFIG_FILE
    try:
        block = PyramidBlock.model_validate(json.loads(path.read_text(encoding="utf-8")))
        for task in block.tasks:
            SlideTask.from_dict(task)
    except (OSError, ValueError, ValidationError, DataError) as error:
        line = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path} is not a description of a pyramid: {line}") from error
    return block


def load_pyramid(folder: PathLike, device: str | torch.device | None = None) -> ExportedPyramid:
    """The pyramid in an exported folder, frozen. Raises WeightsError, one line, where it is none or damaged."""
    folder = Path(folder).expanduser()
    if not is_pyramid(folder):
        raise WeightsError(
            f"{folder} is no exported pyramid: it has no {FOLDER}/{CONFIG_FILE}; stage tile alone is there"
        )
    stage1 = read_export(folder)
    if stage1 is None:
        raise WeightsError(f"{folder}: config.json has no eosin block; export again")
    block = load_pyramid_block(folder)
    tasks = [SlideTask.from_dict(task) for task in block.tasks]
    state = read_state(folder / FOLDER / STATE_FILE)
    if hash_state(state) != block.model_hash:
        raise WeightsError(f"{folder / FOLDER}: {STATE_FILE} is not the file that {CONFIG_FILE} was written for")
    vit = ViT(stage1.encoder)
    load_encoder(vit, read_export_state(folder, stage1), "timm", str(folder))
    pyramid = Pyramid(block.config.model_copy(update={"tile": stage1.encoder}), tasks)
    try:
        pyramid.load_state_dict({**state, **{f"tile.vit.{name}": value for name, value in vit.state_dict().items()}})
    except RuntimeError as error:
        raise WeightsError(f"{folder / FOLDER}: its weights do not fit its {CONFIG_FILE}; export again") from error
    pyramid.requires_grad_(False).eval()
    if device is not None:
        pyramid.to(device)
    return ExportedPyramid(stage1.name or folder.name, pyramid, block, stage1)
