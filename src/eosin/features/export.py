"""Export: a trained ViT -> a folder that timm, load_model and a reader without eosin can use.

model.safetensors + config.json in the layout of timm, with an `eosin` block in it, and a model card. With
timm, `timm.create_model("local-dir:FOLDER", pretrained=True)` gives equal outputs at the exported input size. Where
no timm model equals the encoder, config.json names none and says why, and load_model alone opens the folder.
Heads and optimiser stay in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from eosin import __version__
from eosin.errors import OutputError, WeightsError
from eosin.features.encoder import POOLINGS
from eosin.features.model_card import model_card
from eosin.files import PathLike, atomic_folder, write_json, write_text
from eosin.models import EncoderConfig, ViT
from eosin.models.exported import CONFIG_FILE, POSITION_FILE, STATE_FILE, read_export
from eosin.models.layouts import to_timm
from eosin.models.timm_models import timm_arch
from eosin.provenance import hash_state

INFO = (
    "name",
    "recipe",
    "recipe_hash",
    "cohort_hash",
    "mpp",
    "data",
    "steps",
    "tiles",
    "distinct_tiles",
    "slides",
    "patients",
    "scores",
    "training",
    "start",
    "start_licence",
    "averaged_steps",
)


def export_model(
    vit: ViT,
    folder: PathLike,
    *,
    input_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    pooling: str = "cls",
    info: dict[str, Any] | None = None,
) -> Path:
    """Write `vit` into `folder`, whole or not at all, replacing an earlier export; returns the folder.

    `input_size` px, a multiple of the patch; `mean`, `std` of pixels in [0, 1]; `pooling` cls | cls+mean |
    mean. `info`, all optional, JSON values: name, recipe, recipe_hash, cohort_hash, mpp (µm/px, number or
    list), data (a line), steps, tiles (seen), distinct_tiles, slides and patients (how many), scores (rows of
    results.json), training ({"tasks": [...], "patients": [...], "slides": [...]}), start (weights it started from),
    start_licence, averaged_steps. Raises WeightsError for impossible settings, OutputError for a folder that holds
    something else.
    """
    folder = Path(folder)
    info = dict(info or {})
    if unknown := sorted(set(info) - set(INFO)):
        raise WeightsError(f"unknown export information {unknown[0]!r}: {', '.join(INFO)}")
    if pooling not in POOLINGS:
        raise WeightsError(f"unknown pooling {pooling!r}: {', '.join(POOLINGS)}")
    config = vit.config
    if input_size < 1 or input_size % config.patch:
        raise WeightsError(f"image size {input_size} px is not a multiple of the patch size {config.patch} px")
    _refuse_foreign(folder)

    state = {key: value.cpu().contiguous() for key, value in to_timm(vit.state_dict(), config, input_size).items()}
    native = to_timm(vit.state_dict(), config).get("pos_embed")
    # timm cannot resample this table by our rule, so it got one for input_size; ours is kept for other sizes.
    resampled = native is not None and native.shape != state["pos_embed"].shape
    scores = info.pop("scores", None)
    block = {
        **info,
        "encoder": config.model_dump(),
        "input_size": input_size,
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "pooling": pooling,
        "model_hash": hash_state(state),
        "code_version": __version__,
        "position_file": resampled,
    }
    description = _timm_description(config, block)
    block["timm"] = description.pop("reason", None)
    with atomic_folder(folder) as temporary:
        save_file(state, temporary / STATE_FILE, metadata={"format": "pt"})
        if native is not None and resampled:
            np.save(temporary / POSITION_FILE, native.cpu().numpy())
        write_json(temporary / CONFIG_FILE, {**description, "eosin": block})
        parameters = sum(parameter.numel() for parameter in state.values())
        write_text(temporary / "README.md", model_card(folder.name, block, parameters, scores))
    return folder


def _timm_description(config: EncoderConfig, block: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json that timm reads: how to build the network and what pixels it wants; or the `reason`
    why it cannot.
    """
    size = block["input_size"]
    try:
        architecture, model_args = timm_arch(config, size)
    except WeightsError as error:
        return {"reason": str(error)}
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": model_args["global_pool"],
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": block["mean"],
            "std": block["std"],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "unknown",
        },
    }


def _refuse_foreign(folder: Path) -> None:
    """An export replaces the whole folder, so it must be a new one, an empty one, or an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot export to {folder}: it is a file")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        ours = read_export(folder) is not None
    except WeightsError:
        ours = False
    if not ours:
        raise OutputError(f"cannot export to {folder}: it holds other files; give a new folder")
