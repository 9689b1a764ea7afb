"""Reads weights files and loads a state into our `ViT`, strictly.

Files are read without running code from them: safetensors, or torch.load with weights_only. Whose names a state
uses is `layouts.py`; what a model is called and how it is built is `presets.py`; where weights come from is
`start.py`.
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
from eosin.models.layouts import (
    OPTIONAL,
    Layout,
    State,
    guess_layout,
    is_ignored,
    meta_periods,
    resize_table,
    table_grid,
    to_ours,
)
from eosin.models.positions import Interpolation, rotary_periods
from eosin.models.vit import EncoderConfig, ViT

WRAPPERS = ("teacher", "model", "state_dict")
"""Keys under which published checkpoints keep the state, in the order in which they are looked for."""
SHOWN = 3
"""How many keys an error names."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_encoder` did."""

    layout: Layout
    loaded: int
    """Tensors of the encoder that were set."""
    ignored: tuple[str, ...]
    """Keys of the source that were left out because they name parts that are not the encoder."""
    kept: tuple[str, ...]
    """Our parameters that the layout lacks; they keep their start value."""
    resized: tuple[int, int] | None
    """Grid of the source's position table and ours, if they differ and it was resampled."""
    rule: Interpolation | None = None
    """The rule by which it was resampled."""

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors in {self.layout} layout"]
        if self.resized:
            parts.append(f"position table {self.resized[0]} -> {self.resized[1]} ({self.rule})")
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


def load_encoder(
    vit: ViT,
    state: Mapping[str, Tensor],
    layout: Layout | Literal["auto"] = "auto",
    source: str = "weights",
    published: EncoderConfig | None = None,
    rule: Interpolation | None = None,
) -> LoadReport:
    """Load a state into `vit`: every tensor must find its place and its shape.

    The position table alone is resampled where the grids differ: by `rule`, else by the one of the models that the
    layout speaks of, else by that of `vit.config`. `source` (a file or model name) opens the error line;
    `published` are its settings, where they are known. Raises WeightsError naming the settings in which the weights
    differ from `vit`, or the first missing, unexpected or misshapen keys; `vit` is unchanged then. A `vit` that was
    built on the meta device takes the tensors over as they are, in fp32, without a second copy.
    """
    chosen = guess_layout(state) if layout == "auto" else layout
    if chosen not in get_args(Layout):
        raise WeightsError(f"unknown weight layout {chosen!r}; choose auto, eosin, timm, meta or transformers")
    config = vit.config
    refuse_other_encoder(state, chosen, config, source, published)
    ours = to_ours(state, chosen, config)
    grid = table_grid(ours)
    resized = None if grid in (None, config.grid) else (grid, config.grid)
    rule = rule or _rule_of(state, chosen) or config.interpolation
    if resized:
        ours = resize_table(ours, config.grid, rule)
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
    if vit.cls_token.is_meta:
        absent = {key: torch.zeros(value.shape) for key, value in wanted.items() if key not in ours}
        whole = {key: value.detach().float().contiguous() for key, value in ours.items()}
        vit.load_state_dict(whole | absent, assign=True)
    else:
        vit.load_state_dict(ours, strict=False)
    return LoadReport(
        layout=chosen,
        loaded=len(ours),
        ignored=tuple(key for key in state if is_ignored(key, chosen)),
        kept=tuple(key for key in wanted if key not in ours),
        resized=resized,
        rule=rule if resized else None,
    )


def open_encoder(config: EncoderConfig, state: Mapping[str, Tensor], source: str = "weights") -> ViT:
    """An encoder of these settings with the weights of `state`, in whatever layout; its position table has the grid
    that the state has, so nothing is resampled before it must be.

    Built on the meta device: no random weights are drawn, and the tensors are taken over. Raises WeightsError as
    `load_encoder` does.
    """
    layout = guess_layout(state)
    outer = {key: value for key, value in state.items() if "embed" in key or "token" in key}
    grid = table_grid(to_ours(outer, layout, config))
    with torch.device("meta"):
        vit = ViT(config if grid is None else config.model_copy(update={"grid": grid}))
    load_encoder(vit, state, layout, source)
    return vit


def refuse_other_encoder(
    state: Mapping[str, Tensor],
    layout: Layout,
    config: EncoderConfig,
    source: str,
    published: EncoderConfig | None = None,
) -> None:
    """Raise WeightsError where `state` belongs to an encoder of other settings than `config`, naming them.

    Compared is what the tensors tell (width, depth, patch …) and, from `published`, what they do not: the number
    of heads, the norms' epsilon, the base of rotary positions.
    """
    found = _settings_of(to_ours(state, layout, config))
    wanted = _settings(config)
    periods = meta_periods(state)
    if periods is not None and "width" in found:
        found["heads"] = found["width"] // (4 * len(periods))
    if published is not None:
        found |= {name: getattr(published, name) for name in ("heads", "norm_eps", "rotary_base")}
    if found.get("qkv_bias") == "no_key" and config.qkv_bias == "full":
        found["qkv_bias"] = "full"  # a key bias that is zero
    other = [key for key, value in found.items() if value != wanted[key]]
    if "width" in other and "ffn_hidden" in other:
        other.remove("ffn_hidden")  # it goes with the width
    if other:
        theirs, ours = (", ".join(f"{key} {values[key]}" for key in other) for values in (found, wanted))
        raise WeightsError(
            f"{source}: these weights have {theirs}; the encoder has {ours};"
            " choose weights and encoder that belong together"
        )
    if periods is not None and config.positions == "rotary":
        expected = rotary_periods(config.head_dim, config.rotary_base)
        if not torch.allclose(periods.double().cpu(), expected, rtol=2**-8, atol=0):  # bf16 keeps 8 bits
            raise WeightsError(
                f"{source}: these weights have rotary periods {periods[0]:g} to {periods[-1]:g}, the encoder"
                f" {expected[0]:g} to {expected[-1]:g}; set encoder.rotary_base"
            )


def _settings(config: EncoderConfig) -> dict[str, Any]:
    """The settings that weights can be compared by."""
    return {**config.model_dump(), "ffn_hidden": config.ffn_hidden, "layer_scale": config.layer_scale is not None}


def _settings_of(state: State) -> dict[str, Any]:
    """The settings that the tensors of a state in our names tell; none where the telling tensor is missing."""
    found: dict[str, Any] = {}
    if "cls_token" in state:
        found["width"] = state["cls_token"].shape[-1]
    if "patch_embed.proj.weight" in state:
        found["patch"] = state["patch_embed.proj.weight"].shape[-1]
    blocks = [int(key.split(".")[1]) for key in state if re.match(r"blocks\.\d+\.", key)]
    if not found or not blocks:
        return {}  # no vision transformer; the keys say it better
    found["depth"] = max(blocks) + 1
    biases = [value for key, value in state.items() if key.endswith(".attn.qkv.bias")]
    keys_have_one = any(bool(bias.chunk(3)[1].any()) for bias in biases)
    found["qkv_bias"] = "full" if keys_have_one else "no_key" if biases else "none"
    tokens = state.get("register_tokens")
    found["registers"] = 0 if tokens is None else tokens.shape[1]
    found["positions"] = "table" if "pos_embed" in state else "rotary"
    found["layer_scale"] = "blocks.0.ls1.gamma" in state
    first, second = (
        next((state[f"blocks.0.mlp.{name}.weight"] for name in names if f"blocks.0.mlp.{name}.weight" in state), None)
        for names in (("fc1", "w12"), ("fc2", "w3"))
    )
    if first is not None and second is not None:
        found["ffn_hidden"] = second.shape[1]
        found["ffn"] = "swiglu" if first.shape[0] == 2 * second.shape[1] else "mlp"
    return found


def _rule_of(state: Mapping[str, Tensor], layout: Layout) -> Interpolation | None:
    """The rule by which the models that the names speak of resample their table: with registers Meta's DINOv2 has
    another one than without, and than DINO, and so has the transformers library. None where the names do not tell.
    """
    if layout not in ("meta", "transformers"):
        return None
    if any(key.endswith("register_tokens") for key in state):
        return "antialias"
    return "offset" if layout == "meta" else "plain"


def _some(keys: Iterable[str]) -> str:
    """The first few of `keys`, for one line."""
    names = list(keys)
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
