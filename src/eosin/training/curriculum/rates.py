"""Learning rates of a curriculum: groups of parameters by stage; schedules of both steps, one behind the other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from eosin.optim import Schedules, make_schedules
from eosin.optim.groups import decays, layer_factor
from eosin.optim.schedules import FloatArray, cosine
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.recipe import CurriculumRecipe


@dataclass(frozen=True)
class CurriculumSchedules(Schedules):
    """As in pre-training, and a rate for each stage; `curriculum_step` is 1 or 2."""

    region_lr: FloatArray
    slide_lr: FloatArray
    heads_lr: FloatArray
    curriculum_step: FloatArray


def curriculum_schedules(recipe: CurriculumRecipe, steps: int, a_step: int) -> CurriculumSchedules:
    """Schedules of a run of `steps` optimiser steps, of which `recipe.run.steps` are step 1.

    a_step: slides that a step of step 2 has (`SlideOrder.a_step`: fewer than the recipe's where there are fewer).
    """
    first, one, two = recipe.run.steps, _of_step1(recipe), _of_step2(recipe, steps - recipe.run.steps, a_step)
    names = [field.name for field in fields(CurriculumSchedules)]
    joined = {name: np.concatenate([one[name], two[name]]) for name in names if name != "curriculum_step"}
    return CurriculumSchedules(**joined, curriculum_step=np.where(np.arange(steps) < first, 1.0, 2.0))


def _of_step1(recipe: CurriculumRecipe) -> dict[str, FloatArray]:
    """The recipe's `optim`; one rate for stages 1 and 2."""
    rows = vars(make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch))
    return {**rows, "region_lr": rows["encoder_lr"], "slide_lr": rows["lr"], "heads_lr": rows["lr"]}


def _of_step2(recipe: CurriculumRecipe, steps: int, a_step: int) -> dict[str, FloatArray]:
    two = recipe.step2
    warm = -(-two.warmup_slides // a_step)

    def rate_of(rate: float, frozen_slides: int = 0) -> FloatArray:
        """A stage that stands still at first warms up and decays when it learns."""
        still = min(-(-frozen_slides // a_step), steps)
        # A slide is too dear for a rate of 0.
        curve = cosine(rate, min(two.min_lr, rate), steps - still, warm, rate / max(warm, 1))
        return np.concatenate([np.zeros(still), curve])

    tile, region = rate_of(two.tile_lr, two.tile_frozen_slides), rate_of(two.region_lr, two.region_frozen_slides)
    dino, slide, heads = rate_of(two.region_lr), rate_of(two.slide_lr), rate_of(two.heads_lr)
    level = np.ones(steps)
    return {
        "lr": dino,
        "encoder_lr": tile,
        "last_layer_lr": dino,
        "last_layer_frozen": 0 * level,
        "weight_decay": two.weight_decay * level,
        "momentum": cosine(*two.momentum, steps),
        "teacher_temperature": two.teacher_temperature * level,
        "uniformity_ramp": level,
        "region_lr": region,
        "slide_lr": slide,
        "heads_lr": heads,
    }


def curriculum_optimizer(recipe: CurriculumRecipe, networks: CurriculumNetworks) -> torch.optim.Optimizer:
    """AdamW with a group for each stage, layer factor and weight decay (`optim.set_step_values`)."""
    student, optim = networks.student, recipe.optim
    groups: dict[tuple[float, float, str], list[torch.nn.Parameter]] = {}

    def add(parameter: torch.nn.Parameter, name: str, rate: str, factor: float = 1.0) -> None:
        if parameter.requires_grad:
            groups.setdefault((factor, 1.0 if decays(name) else 0.0, rate), []).append(parameter)

    for name, parameter in student.encoder.named_parameters():
        embed = optim.patch_embed_factor if "patch_embed" in name else 1.0
        add(parameter, name, "encoder_lr", layer_factor(name, recipe.encoder.depth, optim.layer_decay) * embed)
    for rate, stage in (
        ("region_lr", student.pyramid.region),
        ("slide_lr", student.pyramid.slide),
        ("heads_lr", student.pyramid.heads),
    ):
        for name, parameter in stage.named_parameters():
            add(parameter, name, rate)
    for head in (student.dino, student.region_dino):
        for name, parameter in head.named_parameters():
            add(parameter, name, "last_layer_lr" if "last_layer" in name else "lr")
    told: list[dict[str, Any]] = [
        {"params": parameters, "lr_factor": lr, "wd_factor": wd, "rate": rate}
        for (lr, wd, rate), parameters in groups.items()
    ]
    return torch.optim.AdamW(told, lr=optim.base_lr, betas=optim.betas, eps=optim.eps, fused=True)
