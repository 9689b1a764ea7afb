"""Names of published encoder weights and ours: one key map a layout.

Layouts: "eosin" (the state of our `ViT`), "meta" (DINO, DINOv2, DINOv3: chunked block names, training checkpoints
with teacher and heads), "timm" (its VisionTransformer, and its Eva for DINOv3) and "transformers" (ViTModel,
Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel of that library). The maps rename, join and split; what is
missing or does not fit is found when the state is loaded (`weights.py`).

Three things exist in several forms that say the same function, and are brought to the form of the encoder here:
- the position table with and without a CLS row. A CLS row is only ever added to the CLS token, so it can be folded
  into that token, and a table without one equals a table whose CLS row is zero.
- no bias of queries, keys and values, and one that is zero.
- no LayerScale, and one of 1 (timm's Eva has no other way to say none).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from eosin.models.positions import resize_positions
from eosin.models.vit import EncoderConfig, Interpolation

Layout = Literal["eosin", "timm", "meta", "transformers"]
State = dict[str, Tensor]

META_PREFIXES = ("teacher.backbone.", "module.backbone.", "backbone.", "module.")
"""Prefixes of the encoder in Meta's checkpoints; the first of these that occurs is stripped."""
IGNORED: dict[Layout, tuple[str, ...]] = {
    "eosin": (),
    "timm": ("head.",),
    "meta": (
        "head.", "dino_head.", "ibot_head.", "module.head.",
        "teacher.dino_head.", "teacher.ibot_head.", "student.", "dino_loss.", "ibot_patch_loss.",
    ),
    "transformers": ("pooler.", "vit.pooler.", "classifier."),
}  # fmt: skip
"""Parts that are not the encoder and are left out, by name. Any other unknown key is an error."""
OPTIONAL: dict[Layout, tuple[str, ...]] = {
    "eosin": (),
    "timm": ("mask_token",),
    "meta": ("mask_token",),
    "transformers": ("mask_token",),
}
"""Parameters that a layout may lack (DINO v1, timm and ViTModel know no mask token); they keep their start value."""
_FIRST_OF_TRANSFORMERS = "embeddings.cls_token"
_FROM_TRANSFORMERS = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)$", r"patch_embed.proj.\1"),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
"""Names of the transformers library -> ours, in the order in which they are applied; older and newer files differ."""
_PERIODS = "rope_embed.periods"
_BIAS = ".attn.qkv.bias"


def guess_layout(state: Mapping[str, Tensor]) -> Layout:
    """The layout that the names of a state speak of.

    Plain ViT names are the same in eosin's, timm's and Meta's and count as "timm", our own count as "meta".
    """
    keys = list(state)
    if any(key.endswith(_FIRST_OF_TRANSFORMERS) for key in keys):
        return "transformers"
    if any(key.startswith(META_PREFIXES) or re.match(r"blocks\.\d+\.\d+\.", key) for key in keys):
        return "meta"
    if {"mask_token", "register_tokens", "storage_tokens"} & set(keys):
        return "meta"
    return "timm"


def is_ignored(key: str, layout: Layout) -> bool:
    """Whether `key` is a part that is left out."""
    return key.startswith(IGNORED[layout]) if IGNORED[layout] else False


def to_ours(state: Mapping[str, Tensor], layout: Layout, config: EncoderConfig) -> State:
    """A state in any layout under our names."""
    if layout == "eosin":
        return fit_class_row(state, config.class_position)
    maps = {"timm": from_timm, "meta": from_meta, "transformers": from_transformers}
    return maps[layout](state, config)


def from_timm(state: Mapping[str, Tensor], config: EncoderConfig) -> State:
    """Names of timm's VisionTransformer and Eva -> ours.

    Keys that `IGNORED` names are left out, unknown ones stay as they are.
    """
    renamed = {}
    for key, value in state.items():
        if is_ignored(key, "timm"):
            continue
        key = "register_tokens" if key == "reg_token" else key
        key = re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)
        if config.ffn == "swiglu":
            key = key.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        renamed[key] = value
    for key in [key for key in renamed if key.endswith(".attn.q_bias")]:
        other = key.replace("q_bias", "v_bias")
        if other in renamed:
            query, value = renamed.pop(key), renamed.pop(other)
            renamed[key.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    _join(renamed, "fc1_g", "fc1_x")
    if config.layer_scale is None:
        renamed = {key: value for key, value in renamed.items() if not (_is_scale(key) and bool((value == 1).all()))}
    return fit_class_row(_fit_qkv_bias(_fold_register_rows(renamed), config), config.class_position)


def _fold_register_rows(state: State) -> State:
    """Add the rows that a position table has for registers to the registers themselves.

    timm gives registers positions where it is told to embed the class token, as Virchow2 does.
    """
    table, registers = state.get("pos_embed"), state.get("register_tokens")
    if table is None or registers is None or table.ndim != 3 or table_grid(state) is not None:
        return state
    last = 1 + registers.shape[1]
    if int((table.shape[1] - last) ** 0.5) ** 2 != table.shape[1] - last:
        return state
    return state | {
        "register_tokens": registers + table[:, 1:last],
        "pos_embed": torch.cat([table[:, :1], table[:, last:]], dim=1),
    }


def _is_scale(key: str) -> bool:
    return key.endswith((".ls1.gamma", ".ls2.gamma"))


def to_timm(state: Mapping[str, Tensor], config: EncoderConfig, img_size: int | None = None) -> State:
    """Our names -> those of the timm model that `timm_arch(config, img_size)` describes.

    The mask token is left out. timm's models with registers have no CLS row; it is folded into the CLS
    token. timm resamples position tables by the "antialias" rule only, so with another rule the table is brought to
    `img_size` px here.
    """
    state = {key: value.detach() for key, value in state.items() if key != "mask_token"}
    if "register_tokens" in state:
        state["reg_token"] = state.pop("register_tokens")
    if config.positions == "rotary":
        return _to_eva(state, config)
    folded = fit_class_row(state, config.class_position and not config.registers)
    if config.interpolation != "antialias" and img_size is not None:
        folded = resize_table(folded, img_size // config.patch, config.interpolation)
    return {
        key.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value for key, value in folded.items()
    }


def _to_eva(state: State, config: EncoderConfig) -> State:
    """Names of timm's Eva, which always has LayerScale and has its query and value biases apart."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
        if key.endswith(_BIAS) and config.qkv_bias == "no_key":
            stem = key.removesuffix("qkv.bias")
            renamed[f"{stem}q_bias"], _, renamed[f"{stem}v_bias"] = (part.clone() for part in value.chunk(3))
        elif ".mlp.w12." in key:
            for name, part in zip(("fc1_g", "fc1_x"), value.chunk(2), strict=True):
                renamed[key.replace("w12", name)] = part.clone()
        else:
            renamed[key.replace(".mlp.w3.", ".mlp.fc2.")] = value
    if config.layer_scale is None:
        ones = torch.ones(config.width)
        renamed |= {f"blocks.{n}.gamma_{b}": ones.clone() for n in range(config.depth) for b in (1, 2)}
    return renamed


def from_meta(state: Mapping[str, Tensor], config: EncoderConfig) -> State:
    """Names of Meta's DINO, DINOv2 and DINOv3 -> ours: no prefix, no chunks (blocks.0.3.norm1).

    Of a whole training checkpoint the teacher's encoder is taken. Keys that `IGNORED` names are left out,
    unknown ones stay as they are. DINOv3: the bias is multiplied by its mask (0 for keys; published files also hold
    masks that are 0 throughout), and the rotary periods are left out (`meta_periods`).
    """
    prefix = _meta_prefix(state)
    renamed = {}
    for key, value in state.items():
        if is_ignored(key, "meta"):
            continue
        # The number inside a chunk counts through all chunks, so the chunk's own is simply dropped.
        key = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key.removeprefix(prefix))
        renamed["register_tokens" if key == "storage_tokens" else key] = value
    renamed.pop(_PERIODS, None)
    for key in [key for key in renamed if key.endswith(f"{_BIAS}_mask")]:
        mask, bias = renamed.pop(key), key.removesuffix("_mask")
        if bias in renamed:
            renamed[bias] = torch.where(mask == 1, renamed[bias], 0.0)
    _join(renamed, "w1", "w2")
    return fit_class_row(_fit_qkv_bias(renamed, config), config.class_position)


def from_transformers(state: Mapping[str, Tensor], config: EncoderConfig) -> State:
    """Names of the transformers library's ViT, DINOv2 (with or without registers) and DINOv3 -> ours.

    Queries, keys and values are three linears there; a bias that only the keys lack is zero (DINOv3). Both halves of
    a SwiGLU lie in one tensor in the same order as ours (`weights_in`) or apart (`gate_proj`, `up_proj`). Keys that
    `IGNORED` names are left out, unknown ones stay as they are.
    """
    first = next((key for key in state if key.endswith(_FIRST_OF_TRANSFORMERS)), _FIRST_OF_TRANSFORMERS)
    prefix = first.removesuffix(_FIRST_OF_TRANSFORMERS)  # "vit." and the like, where a classifier was saved
    renamed = {}
    for key, value in state.items():
        if is_ignored(key, "transformers"):
            continue
        key = key.removeprefix(prefix)
        for pattern, replacement in _FROM_TRANSFORMERS:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value.flatten(0, 1) if key == "mask_token" and value.ndim == 3 else value
    for key in [key for key in renamed if ".attn.query." in key]:
        parts = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if key.endswith("bias") and parts[1] not in renamed:
            renamed[parts[1]] = torch.zeros_like(renamed[key])
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[key.replace(".query.", ".qkv.")] = joined
    _join(renamed, "gate_proj", "up_proj")
    renamed = {key.replace(".mlp.up_proj.", ".mlp.fc1."): value for key, value in renamed.items()}
    return fit_class_row(_fit_qkv_bias(renamed, config), config.class_position)


def meta_periods(state: Mapping[str, Tensor]) -> Tensor | None:
    """The rotary periods [d / 4] that Meta's DINOv3 files hold (rounded to bf16); None elsewhere."""
    return state.get(_meta_prefix(state) + _PERIODS)


def _meta_prefix(state: Mapping[str, Tensor]) -> str:
    return next((p for p in META_PREFIXES if any(key.startswith(p) for key in state)), "")


def _join(state: State, gate: str, value: str) -> None:
    """Join the two linears of a SwiGLU in place: gate, then value, as our `w12` has them."""
    for key in [key for key in state if f".mlp.{gate}." in key]:
        other = key.replace(f".mlp.{gate}.", f".mlp.{value}.")
        if other in state:
            state[key.replace(f".mlp.{gate}.", ".mlp.w12.")] = torch.cat([state.pop(key), state.pop(other)])
            second = key.replace(f".mlp.{gate}.", ".mlp.fc2.")
            if second in state:
                state[key.replace(f".mlp.{gate}.", ".mlp.w3.")] = state.pop(second)


def _fit_qkv_bias(state: State, config: EncoderConfig) -> State:
    """DINOv3 exists with a zero bias of queries, keys and values and without one: add or drop it."""
    if config.positions != "rotary":
        return state
    if config.qkv_bias == "none":
        return {key: value for key, value in state.items() if not key.endswith(_BIAS) or bool(value.any())}
    if any(key.endswith(_BIAS) for key in state):
        return state
    weights = {key: value for key, value in state.items() if key.endswith(".attn.qkv.weight")}
    return state | {key.replace("weight", "bias"): value.new_zeros(len(value)) for key, value in weights.items()}


def table_grid(state: Mapping[str, Tensor]) -> int | None:
    """Side of the position table with or without CLS row, None if there is none or it is not square."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3:
        return None
    rows = table.shape[1]
    # g * g and g * g + 1 are never both squares, so the number of rows tells whether there is a CLS row.
    grid = int(rows**0.5)
    return grid if grid > 0 and rows - grid**2 in (0, 1) else None


def fit_class_row(state: Mapping[str, Tensor], wanted: bool) -> State:
    """Give the position table a zero CLS row, or fold its CLS row into the CLS token."""
    out = dict(state)
    table, token = out.get("pos_embed"), out.get("cls_token")
    if table is None or token is None or table_grid(out) is None or _has_class_row(table) == wanted:
        return out
    if wanted:
        out["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    else:
        out["cls_token"] = token + table[:, :1]
        out["pos_embed"] = table[:, 1:]
    return out


def _has_class_row(table: Tensor) -> bool:
    return table.shape[1] == int(table.shape[1] ** 0.5) ** 2 + 1


def resize_table(state: Mapping[str, Tensor], grid: int, rule: Interpolation) -> State:
    """Resample the patch rows of the position table to `grid` x `grid`."""
    table = state["pos_embed"].detach().float()
    first = int(_has_class_row(table))
    patches = resize_positions(table[:, first:], (grid, grid), rule)
    return {**state, "pos_embed": torch.cat([table[:, :first], patches], dim=1)}
