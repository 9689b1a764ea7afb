"""What a recipe costs, worked out from its values alone: FLOPs a tile, memory of a process, hours on a GPU.

FLOPs count a multiply-add as two and matrix products only, the usual convention of MFU. Memory counts what one step
keeps: states of the networks, what backward needs, teacher logits. It is held against a real step in the tests. Hours
rest on an assumed MFU, which is always named with them. Nothing here runs a network.

Per token and block 2 · (4·D² + FFN weights), attention 4·N²·D a block and crop, patches 2·3p²·D each; training is three
student forwards and one teacher forward on the globals; heads 6 · weights a student row and 2 · weights a teacher row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from eosin.models import EncoderConfig, mask_counts
from eosin.models.drop_path import kept_crops
from eosin.training.networks import Branch
from eosin.training.recipe import Recipe

Recompute = Literal["none", "selective", "full"]
Precision = Literal["bf16", "fp32", "fp64"]
COMPUTE_BYTES: dict[str, int] = {"bf16": 2, "fp32": 4, "fp64": 8}

ASSUMED_MFU = {"Ti": 0.15, "S": 0.25, "B": 0.35, "L": 0.40, "H": 0.40, "g": 0.40}
"""Share of the datasheet peak that training is assumed to reach, by size of the encoder; not measured."""

_SIZES = {(192, 12): "Ti", (384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H", (1536, 40): "g"}
"""width, depth -> the field's letter"""


def encoder_name(encoder: EncoderConfig) -> str:
    """The encoder as the field writes it: "ViT-S/14 reg4"; other sizes by width and depth, "ViT-48x3/8"."""
    size = _SIZES.get((encoder.width, encoder.depth), f"{encoder.width}x{encoder.depth}")
    return f"ViT-{size}/{encoder.patch}" + (f" reg{encoder.registers}" if encoder.registers else "")


def assumed_mfu(encoder: EncoderConfig) -> float:
    """ASSUMED_MFU of the encoder's size; other sizes take that of the next smaller width."""
    fitting = [letter for (width, _), letter in _SIZES.items() if width <= encoder.width]
    return ASSUMED_MFU[fitting[-1] if fitting else "Ti"]


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights of the student; the teacher has as many again."""

    encoder: int
    dino_head: int
    ibot_head: int

    @property
    def heads(self) -> int:
        return self.dino_head + self.ibot_head

    @property
    def student(self) -> int:
        return self.encoder + self.heads


def parameters_of(recipe: Recipe) -> Parameters:
    """Counted on the networks themselves, which are built without memory."""
    with torch.device("meta"):
        branch = Branch(recipe, torch.Generator())
    parts = (branch.encoder, branch.dino, branch.ibot)
    return Parameters(*(0 if part is None else sum(p.numel() for p in part.parameters()) for part in parts))


@dataclass(frozen=True)
class Crops:
    """The crops of one size that a tile has."""

    count: int
    patches: int
    tokens: int
    kept: float
    """Share of them on which a residual branch of the student runs."""


def crops_of(recipe: Recipe) -> list[Crops]:
    """Globals, then locals if there are any."""
    encoder, views = recipe.encoder, recipe.views
    found = []
    for count, side in ((views.global_count, views.global_px), (views.local_count, views.local_px)):
        if count:
            patches = (side // encoder.patch) ** 2
            group = count * recipe.run.group
            subset = encoder.drop_path_form == "subset" and encoder.drop_path > 0
            kept = kept_crops(group, encoder.drop_path) / group if subset else 1.0
            found.append(Crops(count, patches, 1 + encoder.registers + patches, kept))
    return found


def masked_patches_of(recipe: Recipe) -> float:
    """Masked patches a tile, on average over a group."""
    goal, views = recipe.objective, recipe.views
    if goal.ibot_weight == 0:
        return 0.0
    grid, group = views.global_px // recipe.encoder.patch, recipe.run.group
    counts = mask_counts(views.global_count, grid, group, goal.mask_ratio, goal.mask_probability)
    return float(counts.sum()) / group


@dataclass(frozen=True)
class Flops:
    """Floating-point operations a tile of one training step."""

    total: float
    """With nothing dropped."""
    executed: float
    """After what the subset form of drop path leaves out: the numerator of MFU."""
    repeated: float
    """Forward work done once more by recomputation or accumulation; no part of MFU."""


def flops_of(recipe: Recipe, accumulate: int = 1, recompute: Recompute = "none") -> Flops:
    """FLOPs a tile. accumulate: micro-batches a step; recompute: what blocks do again in backward."""
    encoder, crops = recipe.encoder, crops_of(recipe)
    blocks = [encoder.depth * c.count * _block_flops(encoder, c.tokens) for c in crops]
    embed = [c.count * c.patches * 6 * encoder.patch**2 * encoder.width for c in crops]
    run = sum(flops * c.kept for flops, c in zip(blocks, crops, strict=True))
    teacher = blocks[0] + embed[0]
    heads = _head_flops(recipe)
    student, student_run = sum(blocks) + sum(embed), run + sum(embed)
    again = run if recompute == "full" else 0.0
    if accumulate > 1 and recipe.objective.uniformity != "none":
        again += blocks[0] * crops[0].kept + embed[0]  # the globals' CLS of the whole batch come first
    return Flops(3 * student + teacher + heads, 3 * student_run + teacher + heads, again)


def _block_flops(encoder: EncoderConfig, tokens: int) -> float:
    """One block's forward on one crop."""
    return layer_flops(encoder.width, (2 if encoder.ffn == "mlp" else 3) * encoder.width * encoder.ffn_hidden, tokens)


def layer_flops(width: int, ffn: float, tokens: float) -> float:
    """The forward of one transformer block on one sequence; ffn: weights of its FFN."""
    return 2.0 * tokens * (4 * width**2 + ffn) + 4.0 * tokens**2 * width


def forward_flops(encoder: EncoderConfig, side_px: int) -> float:
    """One forward of the encoder on one image of `side_px`, nothing dropped."""
    patches = (side_px // encoder.patch) ** 2
    blocks = encoder.depth * _block_flops(encoder, 1 + encoder.registers + patches)
    return blocks + patches * 6.0 * encoder.patch**2 * encoder.width


def block_bytes(encoder: EncoderConfig, precision: Precision) -> tuple[float, float]:
    """What the attention and the FFN branch of a block keep of a token for backward."""
    compute = COMPUTE_BYTES[precision]
    return _branch_bytes(encoder, _Bytes(compute, max(4, compute)))


def _head_flops(recipe: Recipe) -> float:
    goal, views = recipe.objective, recipe.views
    width, hidden = recipe.encoder.width, goal.head_hidden

    def weights(bottleneck: int, prototypes: int) -> int:
        return width * hidden + hidden**2 + hidden * bottleneck + bottleneck * prototypes

    dino = weights(goal.dino_bottleneck, goal.dino_prototypes)
    ibot = weights(goal.ibot_bottleneck, goal.ibot_prototypes)
    crops = views.global_count + views.local_count
    return dino * (6.0 * crops + 2.0 * views.global_count) + ibot * 8.0 * masked_patches_of(recipe)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at the fullest moment of a step. Kernels and the allocator add some of their own."""

    weights: float
    teacher: float
    gradients: float
    adam: float
    crops: float
    activations: float
    logits: float
    """The teacher's, and the prototypes with their gradients; the student's are formed some rows at a time."""

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def memory_of(
    recipe: Recipe,
    processes: int = 1,
    accumulate: int = 1,
    recompute: Recompute = "none",
    sharded: bool = False,
    precision: Precision = "bf16",
) -> Memory:
    """Memory of each of `processes` processes that share the global batch.

    sharded: states lie spread over the processes (FSDP). precision: of products; weights stay fp32 below fp64.
    """
    tiles = recipe.run.batch / processes
    size = _Bytes(compute=COMPUTE_BYTES[precision], master=max(4, COMPUTE_BYTES[precision]))
    states = size.master * parameters_of(recipe).student / (processes if sharded else 1)
    return Memory(
        weights=states,
        teacher=states,
        gradients=states,
        adam=2 * states,
        crops=tiles * size.master * _pixels(recipe),
        activations=_activation_bytes(recipe, tiles / accumulate, recompute, size),
        logits=_logit_bytes(recipe, tiles, tiles / accumulate, size),
    )


@dataclass(frozen=True)
class _Bytes:
    """Of one number."""

    compute: int
    """In products."""
    master: int
    """In weights, the residual stream and losses."""


def _pixels(recipe: Recipe) -> int:
    return sum(c.count * c.patches for c in crops_of(recipe)) * 3 * recipe.encoder.patch**2


def _activation_bytes(recipe: Recipe, tiles: float, recompute: Recompute, size: _Bytes) -> float:
    """What autograd keeps of the student for a micro-batch of `tiles` tiles."""
    encoder, crops = recipe.encoder, crops_of(recipe)
    tokens = sum(c.count * c.tokens for c in crops)
    run = sum(c.count * c.tokens * c.kept for c in crops)
    stream = size.master * encoder.width * tokens
    block = run * sum(_branch_bytes(encoder, size))
    kept = {"none": block, "selective": stream + run * _product_bytes(encoder, size), "full": stream}[recompute]
    again = 0.0 if recompute == "none" else block  # one block at a time, in backward
    ends = _pixels(recipe) * size.compute + stream + _head_bytes(recipe, size)
    low_weights = size.compute * parameters_of(recipe).encoder if size.compute < size.master else 0
    return tiles * (encoder.depth * kept + again + ends) + low_weights


def _branch_bytes(encoder: EncoderConfig, size: _Bytes) -> tuple[float, float]:
    """Kept for backward by the attention and by the FFN branch of a block, a token.

    As the residual stream: the norm's input and two statistics.
    As products: attention's input, q, k, v, result, the projection's input and, for LayerScale, its output; the FFN's
    input, both sides of its activation and, for LayerScale, its output.
    """
    width = encoder.width
    stream = 8 + size.master * width
    scale = width if encoder.layer_scale is not None else 0
    inside = (2 if encoder.ffn == "mlp" else 4) * encoder.ffn_hidden
    attention = stream + 4 * encoder.heads + size.compute * (6 * width + scale)
    return attention, stream + size.compute * (width + inside + scale)


def _product_bytes(encoder: EncoderConfig, size: _Bytes) -> float:
    """Results of a block's products and attention, a token: what the selective kind keeps."""
    wide = (1 if encoder.ffn == "mlp" else 2) * encoder.ffn_hidden
    return size.compute * (6 * encoder.width + wide) + 4 * encoder.heads


def _head_bytes(recipe: Recipe, size: _Bytes) -> float:
    """Kept by the heads' MLPs, a tile."""
    goal, views = recipe.objective, recipe.views
    row = size.compute * (recipe.encoder.width + 4 * goal.head_hidden)
    wide = 2 * (size.compute + size.master)
    dino = (views.global_count + views.local_count) * (row + goal.dino_bottleneck * wide)
    return dino + masked_patches_of(recipe) * (row + goal.ibot_bottleneck * wide)


def _logit_bytes(recipe: Recipe, tiles: float, micro: float, size: _Bytes) -> float:
    """Teacher logits of all `tiles` tiles of the step, CLS targets of a micro-batch, prototypes and their gradients."""
    goal, views = recipe.objective, recipe.views.global_count
    masked = masked_patches_of(recipe)
    logits = tiles * size.compute * (views * goal.dino_prototypes + masked * goal.ibot_prototypes)
    targets = micro * size.master * (views + 1) * goal.dino_prototypes
    dino = goal.dino_prototypes * goal.dino_bottleneck * 3 * size.compute  # globals and locals apart
    ibot = goal.ibot_prototypes * goal.ibot_bottleneck * 2 * size.compute if masked else 0
    return logits + targets + dino + ibot


def hours(recipe: Recipe, flops: Flops, peak: float, gpus: int, mfu: float) -> float:
    """Hours that the steps take on `gpus` GPUs of `peak` FLOP/s each at a share `mfu` of it, probes apart."""
    return recipe.run.steps * recipe.run.batch * (flops.executed + flops.repeated) / (peak * mfu * gpus) / 3600
