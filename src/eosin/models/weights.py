"""Reads published encoder weights: one key map a layout, strict after mapping.

Layouts: "eosin" (the state of our `ViT`), "meta" (DINO, DINOv2: chunked block names, training checkpoints
with teacher and heads) and "timm". Files are read without running code from them: safetensors, or
torch.load with weights_only. What a model is called and how it is built is in `presets.py`; nothing is
downloaded here.

The position table exists with and without a CLS row. Both say the same function: a CLS row is only ever
added to the CLS token, so it can be folded into that token, and a table without one equals a table whose
CLS row is zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from eosin.errors import WeightsError
from eosin.models.vit import EncoderConfig, ViT, resize_positions

Layout = Literal["eosin", "timm", "meta"]
State = dict[str, Tensor]

WRAPPERS = ("teacher", "model", "state_dict")
"""Keys under which published checkpoints keep the state, in the order in which they are looked for."""
META_PREFIXES = ("teacher.backbone.", "module.backbone.", "backbone.", "module.")
"""Prefixes of the encoder in Meta's checkpoints; the first of these that occurs is stripped."""
IGNORED: dict[Layout, tuple[str, ...]] = {
    "eosin": (),
    "timm": ("head.",),
    "meta": (
        "head.", "dino_head.", "ibot_head.", "module.head.",
        "teacher.dino_head.", "teacher.ibot_head.", "student.", "dino_loss.", "ibot_patch_loss.",
    ),
}  # fmt: skip
"""Parts that are not the encoder and are left out, by name. Any other unknown key is an error."""
OPTIONAL: dict[Layout, tuple[str, ...]] = {
    "eosin": (),
    "timm": ("mask_token",),
    "meta": ("mask_token",),
}
"""Parameters that a layout may lack (DINO v1 and timm know no mask token); they keep their start value."""
SHOWN = 3
"""How many keys an error names."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_encoder` did."""

    layout: Layout
    loaded: int
    """Tensors that were loaded."""
    ignored: tuple[str, ...]
    """Keys of the source that were left out because `IGNORED` names them."""
    kept: tuple[str, ...]
    """Our parameters that the layout lacks; they keep their start value."""
    resized: tuple[int, int] | None
    """Grid of the source's position table and ours, if they differ and it was resampled."""

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors in {self.layout} layout"]
        if self.resized:
            parts.append(f"position table {self.resized[0]} -> {self.resized[1]}")
        if self.ignored:
            parts.append(f"left out {_some(self.ignored)}")
        if self.kept:
            parts.append(f"not in the source: {_some(self.kept)}")
        return "; ".join(parts)


def read_state(path: str | Path) -> State:
    """Read a state dict from `.safetensors`, or from a file that torch.load opens with weights_only=True.

    A state wrapped as {"teacher" | "model" | "state_dict": ...} is unwrapped. Raises WeightsError if the
    file is missing, damaged, holds anything but tensors, or would need code to run (a pickle of objects).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever the two libraries raise on a damaged or hostile file, it is the file that is refused.
        code = re.search(r"unsupported global:? (?:GLOBAL )?(\S+)", str(error), re.IGNORECASE)
        reason = f"needs code to run ({code[1]})" if code else "is damaged or no weights file"
        raise WeightsError(f"{path}: {reason}; give safetensors or a plain state dict of tensors") from error
    while isinstance(state, Mapping):
        inner = [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{path}: holds no state dict; give safetensors or a plain state dict of tensors")
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise WeightsError(f"{path}: {len(strange)} entries are no tensors ({_some(strange)})")
    return {str(key): value for key, value in state.items()}


def from_timm(state: Mapping[str, Tensor], config: EncoderConfig) -> State:
    """Names of timm's VisionTransformer -> ours.

    Keys that `IGNORED` names are left out, unknown ones stay as they are.
    """
    renamed = {}
    for key, value in state.items():
        if _is_ignored(key, "timm"):
            continue
        key = "register_tokens" if key == "reg_token" else key
        if config.ffn == "swiglu":
            key = key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        renamed[key] = value
    return _fit_class_row(renamed, config.class_position)


def to_timm(state: Mapping[str, Tensor], config: EncoderConfig, img_size: int | None = None) -> State:
    """Our names -> those of the timm model that `timm_arch(config, img_size)` describes.

    The mask token is left out. timm's models with registers have no CLS row; it is folded into the CLS
    token. timm resamples position tables by the "antialias" rule only, so with the "offset" rule the table is
    brought to `img_size` px here.
    """
    folded = _fit_class_row(state, config.class_position and not config.registers)
    if config.interpolation == "offset" and img_size is not None:
        folded = _resize_table(folded, img_size // config.patch, config)
    renamed = {}
    for key, value in folded.items():
        if key == "mask_token":
            continue
        key = "reg_token" if key == "register_tokens" else key
        key = key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        renamed[key] = value.detach()
    return renamed


def from_meta(state: Mapping[str, Tensor], config: EncoderConfig) -> State:
    """Names of Meta's DINO and DINOv2 -> ours: no prefix, no chunks (blocks.0.3.norm1).

    Of a whole training checkpoint the teacher's encoder is taken. Keys that `IGNORED` names are left out,
    unknown ones stay as they are.
    """
    prefix = next((p for p in META_PREFIXES if any(key.startswith(p) for key in state)), "")
    renamed = {}
    for key, value in state.items():
        if _is_ignored(key, "meta"):
            continue
        # The number inside a chunk counts through all chunks, so the chunk's own is simply dropped.
        renamed[re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix(prefix))] = value
    return _fit_class_row(renamed, config.class_position)


def load_encoder(
    vit: ViT, state: Mapping[str, Tensor], layout: Layout | Literal["auto"] = "auto", source: str = "weights"
) -> LoadReport:
    """Load a state into `vit`: every tensor must find its place and its shape.

    The position table alone is resampled, by the rule of `vit.config.interpolation`, where the grids
    differ. `source` (a file or model name) opens the error line. Raises WeightsError naming the first
    missing, unexpected or misshapen keys; `vit` is unchanged then.
    """
    chosen = guess_layout(state) if layout == "auto" else layout
    if chosen not in get_args(Layout):
        raise WeightsError(f"unknown weight layout {chosen!r}; choose auto, eosin, timm or meta")
    config = vit.config
    convert = {"timm": from_timm, "meta": from_meta}.get(chosen)
    ours = convert(state, config) if convert else _fit_class_row(state, config.class_position)
    grid = _grid_of(ours)
    resized = None if grid is None or grid == config.grid else (grid, config.grid)
    if resized:
        ours = _resize_table(ours, config.grid, config)
    wanted = vit.state_dict()
    missing = [key for key in wanted if key not in ours and key not in OPTIONAL[chosen]]
    unexpected = [key for key in ours if key not in wanted]
    misshapen = [
        f"{key} {tuple(ours[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in ours and ours[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {word} ({_some(keys)})"
        for word, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source}: does not fit the encoder in {chosen} layout: {', '.join(problems)};"
            " choose the encoder these weights belong to"
        )
    vit.load_state_dict(ours, strict=False)
    return LoadReport(
        layout=chosen,
        loaded=len(ours),
        ignored=tuple(key for key in state if _is_ignored(key, chosen)),
        kept=tuple(key for key in wanted if key not in ours),
        resized=resized,
    )


def guess_layout(state: Mapping[str, Tensor]) -> Layout:
    """The layout that the names of a state speak of.

    Plain ViT names are the same in all three and count as "timm", our own count as "meta".
    """
    keys = list(state)
    if any(key.startswith(META_PREFIXES) or re.match(r"blocks\.\d+\.\d+\.", key) for key in keys):
        return "meta"
    if "mask_token" in state or "register_tokens" in state:
        return "meta"
    return "timm"


def _is_ignored(key: str, layout: Layout) -> bool:
    return key.startswith(IGNORED[layout]) if IGNORED[layout] else False


def _some(keys: Iterable[str]) -> str:
    """The first few of `keys`, for one line."""
    names = list(keys)
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _grid_of(state: Mapping[str, Tensor]) -> int | None:
    """Side of the position table with or without CLS row, None if there is none or it is not square."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    rows = table.shape[1]
    # g * g and g * g + 1 are never both squares, so the number of rows tells whether there is a CLS row.
    grid = int(rows**0.5)
    return grid if grid > 0 and rows - grid**2 in (0, 1) else None


def _has_class_row(table: Tensor) -> bool:
    return table.shape[1] == int(table.shape[1] ** 0.5) ** 2 + 1


def _fit_class_row(state: Mapping[str, Tensor], wanted: bool) -> State:
    """Give the position table a zero CLS row, or fold its CLS row into the CLS token."""
    out = dict(state)
    table, token = out.get("pos_embed"), out.get("cls_token")
    if table is None or token is None or _grid_of(out) is None or _has_class_row(table) == wanted:
        return out
    if wanted:
        out["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    else:
        out["cls_token"] = token + table[:, :1]
        out["pos_embed"] = table[:, 1:]
    return out


def _resize_table(state: Mapping[str, Tensor], grid: int, config: EncoderConfig) -> State:
    """Resample the patch rows of the position table to `grid` x `grid` by the rule of `config`."""
    table = state["pos_embed"].detach().float()
    first = int(_has_class_row(table))
    patches = resize_positions(table[:, first:], (grid, grid), config.interpolation)
    return {**state, "pos_embed": torch.cat([table[:, :first], patches], dim=1)}
