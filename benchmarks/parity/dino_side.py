"""Meta's dino (v1): their networks, loss and `train_one_epoch` as published, on given inputs, recorded."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eosin.training import Recipe
from eosin.training.networks import Networks

from . import shim
from .inputs import StepInput
from .trace import Trace, copies, gradients_of

PREFIXES = {"backbone.": "encoder.", "head.": "dino."}
"""Their names -> ours; behind the prefix they are the same."""

_GENERAL_NAMES = ("utils", "vision_transformer")


def load(checkout: Path) -> Any:
    """Their main_dino.py from a checkout; its modules' general names are free again afterwards."""
    shim.world_of_one(torch.device("cpu"))
    sys.path.insert(0, str(checkout))
    try:
        return import_module("main_dino")
    finally:
        sys.path.remove(str(checkout))
        for name in _GENERAL_NAMES:
            sys.modules.pop(name, None)


def build(main: Any, recipe: Recipe, drop_path: float) -> nn.Module:
    """One of their networks: backbone and head behind a MultiCropWrapper, in the recipe's size, with the settings of
    their vit_tiny … vit_base.
    """
    encoder, goal = recipe.encoder, recipe.objective
    backbone = main.vits.VisionTransformer(
        img_size=[encoder.grid * encoder.patch],
        patch_size=encoder.patch,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        drop_path_rate=drop_path,
    )
    head = main.DINOHead(
        encoder.width,
        goal.dino_prototypes,
        norm_last_layer=not goal.train_gain,
        hidden_dim=goal.head_hidden,
        bottleneck_dim=goal.dino_bottleneck,
    )
    return main.utils.MultiCropWrapper(backbone, head)


def give_weights(theirs: nn.Module, ours: nn.Module) -> None:
    """Put our weights into a network of theirs; our mask token has no place there."""
    state = {}
    for key, value in ours.state_dict().items():
        for prefix, name in PREFIXES.items():
            if key.startswith(name) and not key.endswith("mask_token"):
                state[prefix + key.removeprefix(name)] = value
    theirs.load_state_dict(state, strict=True)


def named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Their parameters by our names."""
    for name, parameter in module.named_parameters():
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        yield PREFIXES[prefix] + name.removeprefix(prefix), parameter


def keeps(given: StepInput) -> Iterator[Tensor]:
    """Our choices of one step in the order in which their blocks draw: crop size, layer, branch; bool [crops]."""
    for draw in given.drops.draws:
        for layer in draw.flatten(2):  # [2, crops]
            if not (layer == 1).all():  # a layer of rate 0 draws nothing
                yield from layer > 0


def schedules(main: Any, recipe: Recipe, epoch: int) -> dict[str, Any]:
    """Learning rate, weight decay and momentum of all steps by their cosine_scheduler, as train_dino makes them."""
    optim, epochs = recipe.optim, recipe.run.steps // epoch
    assert isinstance(optim.warmup_steps, int), "the recipe gives steps as shares"
    scheduler = main.utils.cosine_scheduler
    lr = optim.base_lr * recipe.run.batch / 256.0
    return {
        "lr_schedule": scheduler(lr, optim.min_lr, epochs, epoch, warmup_epochs=optim.warmup_steps // epoch),
        "wd_schedule": scheduler(*optim.weight_decay, epochs, epoch),
        "momentum_schedule": scheduler(*optim.momentum, epochs, epoch),
    }


def run(
    main: Any, recipe: Recipe, networks: Networks, inputs: list[StepInput], dtype: torch.dtype, epoch: int
) -> Trace:
    """Their `train_one_epoch`, epoch after epoch, from the weights of `networks` over `inputs`."""
    goal, optim, utils = recipe.objective, recipe.optim, main.utils
    student, teacher = (build(main, recipe, rate).to(dtype) for rate in (recipe.encoder.drop_path, 0.0))
    teacher.requires_grad_(False)
    give_weights(student, networks.student)
    give_weights(teacher, networks.teacher)
    trace = Trace({f"{b}.{name}": p for b, m in (("student", student), ("teacher", teacher)) for name, p in named(m)})
    trace.start = copies(trace.start)
    wrapped = DistributedDataParallel(student)
    temperatures = (*optim.teacher_temperature, 0, recipe.run.steps // epoch)
    loss = main.DINOLoss(goal.dino_prototypes, recipe.views.local_count + 2, *temperatures).to(dtype)
    loss.register_forward_hook(lambda _, __, value: trace.losses.append({"loss": value.item()}))
    optimizer = torch.optim.AdamW(utils.get_params_groups(wrapped))
    clip = utils.clip_gradients

    def recorded_clip(model: nn.Module, limit: float) -> Any:
        trace.gradients.append(gradients_of(named(student)))
        norms = clip(model, limit)
        trace.clipped.append(gradients_of(named(student)))
        return norms

    def after_step() -> None:
        trace.students.append(copies(dict(named(student))))
        trace.teachers.append(copies(dict(named(teacher))))

    assert isinstance(optim.freeze_last_layer_steps, int), "the recipe gives steps as shares"
    frozen = optim.freeze_last_layer_steps // epoch
    settings = Namespace(clip_grad=optim.clip, freeze_last_layer=frozen, epochs=recipe.run.steps // epoch)
    batches = [
        ([part for crop in given.crops for part in crop.to(dtype).split(recipe.run.batch)], None) for given in inputs
    ]
    with ExitStack() as stack:
        for part in (
            shim.on_this_device(torch.device("cpu"), after_step),
            shim.our_keeps(row for given in inputs for row in keeps(given)),
            shim.quietly(utils.SmoothedValue),
            patch.object(utils, "clip_gradients", recorded_clip),
            warnings.catch_warnings(),
        ):
            stack.enter_context(part)
        warnings.simplefilter("ignore")
        for number in range(len(batches) // epoch):
            data = batches[number * epoch : (number + 1) * epoch]
            values = schedules(main, recipe, epoch)
            main.train_one_epoch(
                wrapped,
                teacher,
                teacher,
                loss,
                data,
                optimizer,
                **values,
                epoch=number,
                fp16_scaler=None,
                args=settings,
            )
    trace.centers = {"dino": loss.center}
    return trace


def defaults(main: Any) -> Namespace:
    """The defaults of their command line (which would list a hub's models first)."""
    with shim.without_hub():
        return main.get_args_parser().parse_args([])
