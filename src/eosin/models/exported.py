"""An exported encoder as it lies in a folder: what its config.json says and where its tensors are.

Reads only; `features/export.py` writes such folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from eosin.errors import WeightsError
from eosin.models.layouts import State, table_grid
from eosin.models.vit import EncoderConfig
from eosin.models.weights import read_state, refuse_other_encoder
from eosin.provenance import hash_state

CONFIG_FILE = "config.json"
STATE_FILE = "model.safetensors"
POSITION_FILE = "position.npy"
"""The native position table, where model.safetensors holds one that was resampled for timm.

Not a second .safetensors file: several versions of timm stumble over two of them in a folder.
"""

Pooling = Literal["cls", "cls+mean", "mean"]
_Positive = Annotated[float, Field(gt=0)]


class TrainedOn(BaseModel):
    """What an encoder has seen while it was trained."""

    tasks: list[str] = []
    patients: list[str | int] = []
    slides: list[str | int] = []


class ExportedEncoder(BaseModel):
    """The `eosin` block of an export's config.json; keys that are not here are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    encoder: EncoderConfig
    input_size: int = Field(gt=0, description="px")
    mean: tuple[float, float, float] = Field(description="of R, G, B in [0, 1]")
    std: tuple[_Positive, _Positive, _Positive]
    pooling: Pooling
    model_hash: str = Field(description="of model.safetensors")
    position_file: bool = False
    name: str | None = None
    mpp: _Positive | list[_Positive] | None = Field(None, description="µm/px")
    recipe: str | None = None
    recipe_hash: str | None = None
    cohort_hash: str | None = None
    code_version: str | None = None
    training: TrainedOn | None = None


def read_export(folder: Path) -> ExportedEncoder | None:
    """The `eosin` block of a folder; None where its config.json has none. WeightsError where there is no
    config.json or it is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        hint = f"; it is a run, use `eosin export {folder} -o DIR` first" if (folder / "checkpoints").is_dir() else ""
        raise WeightsError(f"{folder} is no exported model: looked for {path}, found none{hint}")
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
        return None if config.get("eosin") is None else ExportedEncoder.model_validate(config["eosin"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("eosin", *first["loc"]))
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise WeightsError(f"{path} is not a model description: {where}: {reason}{more}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not a model description: {error}") from error


def read_export_state(folder: Path, block: ExportedEncoder) -> State:
    """The weights of an export in timm layout, with the native position table.

    WeightsError where they are not those that config.json was written for.
    """
    state = read_state(folder / STATE_FILE)
    if hash_state(state) != block.model_hash:
        raise WeightsError(f"{folder}: {STATE_FILE} is not the file that config.json was written for; export again")
    refuse_other_encoder(state, "timm", block.encoder, str(folder))
    if block.position_file:
        state["pos_embed"] = _read_table(folder / POSITION_FILE)
    grid = table_grid(state)
    if block.encoder.positions == "table" and grid != block.encoder.grid:
        raise WeightsError(f"{folder}: config.json has encoder.grid {block.encoder.grid}, its position table {grid}")
    return state


def _read_table(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"{path}: is missing or damaged; export again") from error
