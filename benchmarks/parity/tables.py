"""Schedules and per-parameter factors: theirs, by their own functions on their own configurations, beside ours."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from eosin.models import EncoderConfig, ProjectionHead, ViT
from eosin.optim import OptimConfig, Schedules, make_schedules, parameter_groups

from . import dino_side, dinov2_side, shim

Factors = dict[str, tuple[float, float, bool]]
"""Parameter -> learning-rate factor, weight-decay factor, whether it is of the last layer."""


@dataclass(frozen=True)
class Row:
    """One table that was compared: number of entries, and the largest difference relative to the largest entry."""

    name: str
    entries: int
    apart: float


def compare_schedules(name: str, ours: Schedules, theirs: dict[str, np.ndarray]) -> list[Row]:
    """Every schedule of ours that they have too, over all steps."""
    rows = []
    for key, values in theirs.items():
        mine = getattr(ours, key)
        if mine.shape != values.shape:
            raise AssertionError(f"{name} {key}: {mine.shape} against {values.shape}")
        rows.append(Row(f"{name}: {key}", len(mine), float(np.abs(mine - values).max() / np.abs(values).max())))
    return rows


def compare_factors(name: str, ours: Factors, theirs: Factors) -> list[Row]:
    """Factors of every parameter. Raises AssertionError, with the name, where one is missing or of the other kind."""
    if ours.keys() != theirs.keys():
        raise AssertionError(f"{name}: only on one side: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    wrong = [key for key in ours if ours[key][2] != theirs[key][2]]
    if wrong:
        raise AssertionError(f"{name}: last layer or not? {wrong}")
    pairs = [("learning-rate factors", 0), ("weight-decay factors", 1)]
    apart = [max(abs(ours[key][at] - theirs[key][at]) for key in ours) for _, at in pairs]
    return [Row(f"{name}: {kind}", len(ours), value) for (kind, _), value in zip(pairs, apart, strict=True)]


# ---- DINOv2 --------------------------------------------------------------------------------------------------------


def dinov2(config: str, gpus: int) -> list[Row]:
    """Tables of one of their configuration files on a number of GPUs."""
    cfg = dinov2_side.scaled(dinov2_side.settings(f"train/{config}", {}), gpus)
    epoch, batch = cfg.train.OFFICIAL_EPOCH_LENGTH, cfg.train.batch_size_per_gpu * gpus
    optim = OptimConfig(
        base_lr=cfg.optim.base_lr,
        lr_rule="sqrt-1024",
        min_lr=cfg.optim.min_lr,
        warmup_steps=cfg.optim.warmup_epochs * epoch,
        weight_decay=(cfg.optim.weight_decay, cfg.optim.weight_decay_end),
        momentum=(cfg.teacher.momentum_teacher, cfg.teacher.final_momentum_teacher),
        teacher_temperature=(cfg.teacher.warmup_teacher_temp, cfg.teacher.teacher_temp),
        teacher_temperature_steps=cfg.teacher.warmup_teacher_temp_epochs * epoch,
        freeze_last_layer_steps=cfg.optim.freeze_last_layer_epochs * epoch,
        layer_decay=cfg.optim.layerwise_decay,
        patch_embed_factor=cfg.optim.patch_embed_lr_mult,
    )
    steps = cfg.optim.epochs * epoch
    name = f"{config} on {gpus} GPUs"
    ours = make_schedules(optim, steps, batch)
    return [
        *compare_schedules(name, ours, _their_schedules(cfg, steps)),
        *compare_factors(name, *_dinov2_factors(cfg, optim)),
    ]


def _their_schedules(cfg: Any, steps: int) -> dict[str, np.ndarray]:
    names = ("lr", "weight_decay", "momentum", "teacher_temperature", "last_layer_lr")
    schedules = import_module("dinov2.train.train").build_schedulers(cfg)
    return {
        # Their scheduler gives its final value past its own end; only the temperature's is shorter than the run.
        name: np.concatenate([schedule.schedule, np.full(steps - schedule.total_iters, schedule.final_value)])
        for name, schedule in zip(names, schedules, strict=True)
    }


def _dinov2_factors(cfg: Any, optim: OptimConfig) -> tuple[Factors, Factors]:
    architecture, groups = import_module("dinov2.train.ssl_meta_arch"), import_module("dinov2.utils.param_groups")
    with torch.device("meta"):
        model = architecture.SSLMetaArch(cfg)
    theirs: Factors = {}
    for part, module in model.student.items():
        for group in groups.get_params_groups_with_decay(module, optim.layer_decay, optim.patch_embed_factor):
            name = _our_name(f"{part}.{group['name']}", cfg.student.block_chunks > 0)
            theirs[name] = (group["lr_multiplier"], group["wd_multiplier"], group["is_last_layer"])
    backbone = model.student["backbone"]
    encoder = EncoderConfig(
        width=backbone.embed_dim,
        depth=backbone.n_blocks,
        heads=backbone.num_heads,
        patch=cfg.student.patch_size,
        grid=cfg.crops.global_crops_size // cfg.student.patch_size,
        registers=cfg.student.num_register_tokens,
        ffn="mlp" if cfg.student.ffn_layer == "mlp" else "swiglu",
        layer_scale=cfg.student.layerscale,
    )
    return _our_factors(encoder, ["dino", "ibot"] if cfg.ibot.separate_head else ["dino"], optim, True), theirs


def _our_name(name: str, chunked: bool) -> str:
    """backbone.blocks.CHUNK.LAYER.… -> encoder.blocks.LAYER.…; dino_head.… -> dino.…"""
    prefix = next(prefix for prefix in dinov2_side.PREFIXES if name.startswith(prefix))
    parts = name.removeprefix(prefix).split(".")
    if chunked and parts[0] == "blocks":
        del parts[1]
    return dinov2_side.PREFIXES[prefix] + ".".join(parts)


def _our_factors(encoder: EncoderConfig, heads: list[str], optim: OptimConfig, train_gain: bool) -> Factors:
    with torch.device("meta"):
        modules = {"encoder": ViT(encoder), **{name: ProjectionHead(encoder.width, 64, 64, 64) for name in heads}}
    for name in heads:
        modules[name].last_layer.weight_g.requires_grad_(train_gain)
    groups = parameter_groups(
        modules["encoder"],
        [modules[name] for name in heads],
        encoder.depth,
        optim.layer_decay,
        optim.patch_embed_factor,
    )
    names = {p: f"{part}.{name}" for part, module in modules.items() for name, p in module.named_parameters()}
    return {
        names[parameter]: (group["lr_factor"], group["wd_factor"], group["rate"] == "last_layer_lr")
        for group in groups
        for parameter in group["params"]
    }


# ---- DINO v1 -------------------------------------------------------------------------------------------------------


def dino(main: Any, epoch: int, gpus: int = 4) -> list[Row]:
    """Tables of the defaults of their command line (ViT-S/16), with epochs of `epoch` steps."""
    args = dino_side.defaults(main)
    batch, steps = args.batch_size_per_gpu * gpus, args.epochs * epoch
    optim = OptimConfig(
        base_lr=args.lr,
        lr_rule="linear-256",
        min_lr=args.min_lr,
        warmup_steps=args.warmup_epochs * epoch,
        weight_decay=(args.weight_decay, args.weight_decay_end),
        momentum=(args.momentum_teacher, 1.0),
        teacher_temperature=(args.warmup_teacher_temp, args.teacher_temp),
        teacher_temperature_steps=args.warmup_teacher_temp_epochs * epoch,
        freeze_last_layer_steps=args.freeze_last_layer * epoch,
        last_layer_freeze="gradient",
        clip_by="tensor",
    )
    name = f"DINO v1 defaults, {epoch} steps an epoch, batch {batch}"
    scheduler = main.utils.cosine_scheduler
    lr = scheduler(args.lr * batch / 256.0, args.min_lr, args.epochs, epoch, warmup_epochs=args.warmup_epochs)
    temperatures = (args.warmup_teacher_temp, args.teacher_temp, args.warmup_teacher_temp_epochs, args.epochs)
    by_epoch = main.DINOLoss(64, args.local_crops_number + 2, *temperatures).teacher_temp_schedule
    theirs = {
        "lr": lr,
        "weight_decay": scheduler(args.weight_decay, args.weight_decay_end, args.epochs, epoch),
        "momentum": scheduler(args.momentum_teacher, 1, args.epochs, epoch),
        "teacher_temperature": np.repeat(by_epoch, epoch),
        # They take the last layer's gradient away in the first epochs: it stands still.
        "last_layer_lr": np.where(np.arange(steps) // epoch < args.freeze_last_layer, 0.0, lr),
    }
    return [
        *compare_schedules(name, make_schedules(optim, steps, batch), theirs),
        *compare_factors(name, *_dino_factors(main, args, optim)),
    ]


def _dino_factors(main: Any, args: Namespace, optim: OptimConfig) -> tuple[Factors, Factors]:
    backbone = main.vits.__dict__[args.arch](patch_size=args.patch_size)
    head = main.DINOHead(backbone.embed_dim, 64, norm_last_layer=args.norm_last_layer)
    model = main.utils.MultiCropWrapper(backbone, head)
    names = {parameter: name for name, parameter in dino_side.named(model)}
    theirs: Factors = {}
    for number, group in enumerate(main.utils.get_params_groups(model)):
        for parameter in group["params"]:  # only the first group is decayed by their loop
            name = names[parameter]
            theirs[name] = (1.0, float(number == 0), "last_layer" in name)
    encoder = EncoderConfig(
        width=backbone.embed_dim,
        depth=len(backbone.blocks),
        heads=backbone.blocks[0].attn.num_heads,
        patch=args.patch_size,
        grid=224 // args.patch_size,
    )
    ours = _our_factors(encoder, ["dino"], optim, not args.norm_last_layer)
    del ours["encoder.mask_token"]  # not theirs, and without a gradient in DINO v1
    return ours, theirs


def all_rows(main: Any) -> list[Row]:
    """Every table."""
    with shim.quietly():
        return [*dinov2("vitl16_short", 32), *dinov2("vitl14", 96), *dinov2("vitg14", 256), *dino(main, 5004)]
