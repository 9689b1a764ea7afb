"""The configurations that are compared: tiny but complete, expressed as our recipes."""

from __future__ import annotations

from eosin.training import Recipe, load_recipe

EPOCH = 2
"""Steps of an epoch: both of Meta's training loops count in epochs."""

_TINY = {
    "start": "random",
    "encoder.width": 48,
    "encoder.depth": 4,
    "encoder.heads": 4,
    "views.global_count": 2,
    "views.local_count": 4,
    "views.blur_kernel_px": 3,
    "objective.dino_prototypes": 64,
    "objective.ibot_prototypes": 48,
    "objective.head_hidden": 40,
    "objective.dino_bottleneck": 16,
    "objective.ibot_bottleneck": 12,
    "optim.base_lr": 0.02,
    "optim.min_lr": 1e-6,
    "optim.warmup_steps": EPOCH,
    "optim.freeze_last_layer_steps": EPOCH,
    "optim.freeze_encoder_steps": 0,
    "optim.clip": 0.2,  # low enough to act
    "optim.eps": 1e-8,
    "optim.uniformity_ramp": None,
    "run.batch": 8,
    "run.group": 8,  # as on one of their GPUs
    "run.steps": 5 * EPOCH,
    "parallel.accumulate": 1,
    "parallel.compile": False,
    "parallel.recompute": "none",
}

_DINOV2 = {
    **_TINY,
    "encoder.patch": 14,
    "encoder.grid": 4,
    "encoder.ffn": "mlp",
    "encoder.registers": 0,
    "encoder.layer_scale": 1e-5,
    "encoder.interpolation": "offset",
    "encoder.drop_path": 0.4,
    "encoder.drop_path_form": "subset",
    "encoder.drop_path_law": "uniform",
    "views.global_px": 56,
    "views.local_px": 28,
    "objective.train_gain": True,
    "objective.uniformity": "koleo",
    "objective.uniformity_weight": 0.1,
    "optim.lr_rule": "sqrt-1024",
    "optim.weight_decay": [0.04, 0.2],
    "optim.momentum": [0.9, 1.0],
    "optim.teacher_temperature": [0.04, 0.07],
    "optim.teacher_temperature_steps": 2 * EPOCH,
    "optim.last_layer_freeze": "rate",
    "optim.layer_decay": 0.9,
    "optim.patch_embed_factor": 0.2,
    "optim.clip_by": "module",
}
_SHARED = {
    "objective.shared_head": True,
    "objective.ibot_prototypes": 64,
    "objective.ibot_bottleneck": 16,
}
_SWIGLU = {"encoder.ffn": "swiglu", "encoder.registers": 4, "encoder.interpolation": "antialias"}
_LARGE_TABLE = {"encoder.grid": 6}

DINOV2 = {
    "Sinkhorn, separate heads, MLP": {},
    "Sinkhorn, separate heads, SwiGLU, 4 registers, larger table": {**_SWIGLU, **_LARGE_TABLE},
    "centering, separate heads, SwiGLU, 4 registers": {**_SWIGLU, "objective.targets": "centering"},
    "centering, shared head, MLP, larger table": {**_SHARED, **_LARGE_TABLE, "objective.targets": "centering"},
    "Sinkhorn, shared head, SwiGLU, 4 registers": {**_SHARED, **_SWIGLU},
    "Sinkhorn, separate heads, MLP, no drop path, no KoLeo, no LayerScale": {
        "encoder.drop_path": 0.0,
        "encoder.layer_scale": None,
        "objective.uniformity": "none",
    },
    "Sinkhorn, separate heads, MLP, no LayerScale": {"encoder.layer_scale": None},
}
"""Changes by name, on top of the tiny DINOv2 recipe."""

_DINO = {
    **_TINY,
    "encoder.patch": 8,
    "encoder.grid": 4,
    "encoder.depth": 3,
    "encoder.drop_path": 0.5,  # layers at 0, .25, .5: exact in fp32, in which theirs are made
    "encoder.drop_path_form": "sample",
    "encoder.drop_path_law": "linear",
    "views.global_px": 32,
    "views.local_px": 16,
    "optim.base_lr": 0.1,
    "optim.last_layer_freeze": "gradient",
    "optim.clip": 0.05,  # low enough to act
}
DINO = {
    "gain fixed (norm_last_layer)": {},
    "gain learned": {"objective.train_gain": True},
    "gain fixed, larger table": _LARGE_TABLE,
}
"""Changes by name, on top of the tiny DINO v1 recipe."""


def dinov2_recipe(changes: dict[str, object]) -> Recipe:
    """A tiny recipe of the DINOv2 family."""
    return _recipe("midnight-12k", {**_DINOV2, **changes})


def dino_recipe(changes: dict[str, object]) -> Recipe:
    """A tiny recipe of the DINO v1 family; the method's values are those of kaiko-vits16."""
    return _recipe("kaiko-vits16", {**_DINO, **changes})


def _recipe(name: str, values: dict[str, object]) -> Recipe:
    recipe, _ = load_recipe(name, [f"{key}={'null' if value is None else value}" for key, value in values.items()])
    return recipe
