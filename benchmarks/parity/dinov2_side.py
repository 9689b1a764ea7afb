"""Meta's dinov2: their SSLMetaArch and their training loop `do_train` as published, on given inputs, recorded."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eosin.training import Recipe
from eosin.training.networks import Networks

from . import shim
from .inputs import StepInput
from .trace import State, Trace, copies, gradients_of

PREFIXES = {"backbone.": "encoder.", "dino_head.": "dino.", "ibot_head.": "ibot."}
"""Their names -> ours; behind the prefix they are the same."""


def load(checkout: Path, device: torch.device) -> Any:
    """Their package, importable from a checkout; returns the training module."""
    shim.install(device)
    sys.path.insert(0, str(checkout))
    shim.world_of_one(device)
    return import_module("dinov2.train.train")


def settings(config: str, changes: dict[str, Any]) -> Any:
    """Their configuration file `config` ("" = the default one) over their defaults, with `changes` on top."""
    configs, omegaconf = import_module("dinov2.configs"), import_module("omegaconf")
    cfg = configs.load_and_merge_config(config) if config else configs.dinov2_default_config
    return omegaconf.OmegaConf.merge(cfg, omegaconf.OmegaConf.create(changes))


def settings_of(recipe: Recipe, epoch: int) -> Any:
    """Their configuration that says what `recipe` says, with epochs of `epoch` steps."""
    goal, optim, encoder = recipe.objective, recipe.optim, recipe.encoder
    head = {"head_hidden_dim": goal.head_hidden, "head_nlayers": 3}

    def epochs(steps: Any) -> int:
        assert isinstance(steps, int), "the recipe gives steps as shares"
        assert steps % epoch == 0, f"{steps} steps are no whole epochs"
        return steps // epoch

    changes = {
        "compute_precision": {"grad_scaler": False},
        "dino": {
            **head,
            "loss_weight": goal.dino_weight,
            "head_n_prototypes": goal.dino_prototypes,
            "head_bottleneck_dim": goal.dino_bottleneck,
            "koleo_loss_weight": goal.uniformity_weight if goal.uniformity == "koleo" else 0.0,
        },
        "ibot": {
            **head,
            "loss_weight": goal.ibot_weight,
            "mask_sample_probability": goal.mask_probability,
            "mask_ratio_min_max": list(goal.mask_ratio),
            "separate_head": not goal.shared_head,
            "head_n_prototypes": goal.ibot_prototypes,
            "head_bottleneck_dim": goal.ibot_bottleneck,
        },
        "train": {
            "batch_size_per_gpu": recipe.run.batch,
            "OFFICIAL_EPOCH_LENGTH": epoch,
            "centering": "sinkhorn_knopp" if goal.targets == "sinkhorn" else "centering",
        },
        "student": {
            "arch": "vit_of_recipe",
            "patch_size": encoder.patch,
            "drop_path_rate": encoder.drop_path,
            "drop_path_uniform": encoder.drop_path_law == "uniform",
            "layerscale": encoder.layer_scale,
            "ffn_layer": "mlp" if encoder.ffn == "mlp" else "swiglufused",
            "num_register_tokens": encoder.registers,
            "interpolate_antialias": encoder.interpolation == "antialias",
            "interpolate_offset": 0.1 if encoder.interpolation == "offset" else 0.0,
        },
        "teacher": {
            "momentum_teacher": optim.momentum[0],
            "final_momentum_teacher": optim.momentum[1],
            "warmup_teacher_temp": optim.teacher_temperature[0],
            "teacher_temp": optim.teacher_temperature[1],
            "warmup_teacher_temp_epochs": epochs(optim.teacher_temperature_steps),
        },
        "optim": {
            "epochs": epochs(recipe.run.steps),
            "weight_decay": optim.weight_decay[0],
            "weight_decay_end": optim.weight_decay[1],
            "base_lr": optim.base_lr,
            "warmup_epochs": epochs(optim.warmup_steps),
            "min_lr": optim.min_lr,
            "clip_grad": optim.clip,
            "freeze_last_layer_epochs": epochs(optim.freeze_last_layer_steps),
            "patch_embed_lr_mult": optim.patch_embed_factor,
            "layerwise_decay": optim.layer_decay,
            "adamw_beta1": optim.betas[0],
            "adamw_beta2": optim.betas[1],
        },
        "crops": {
            "local_crops_number": recipe.views.local_count,
            # The position table is built for this size; the crops themselves are given.
            "global_crops_size": encoder.grid * encoder.patch,
            "local_crops_size": recipe.views.local_px,
        },
        "evaluation": {"eval_period_iterations": 0},
    }
    if optim.lr_rule != "sqrt-1024" or optim.eps != 1e-8:
        raise AssertionError("their optimiser has one learning-rate rule, sqrt-1024, and eps 1e-8")
    return scaled(settings("", changes))


def scaled(cfg: Any, gpus: int = 1) -> Any:
    """`cfg` after their own learning-rate rule, for a number of GPUs."""
    with shim.on_gpus(import_module("dinov2.distributed"), gpus):
        return import_module("dinov2.utils.config").apply_scaling_rules_to_cfg(cfg)


def build(recipe: Recipe, cfg: Any) -> Any:
    """Their SSLMetaArch in the recipe's size."""
    encoder = recipe.encoder
    architecture = import_module("dinov2.train.ssl_meta_arch")
    size = {
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "mlp_ratio": encoder.mlp_ratio,
    }
    vits = import_module("dinov2.models.vision_transformer")
    with shim.our_size(vits, **size), shim.without_fsdp(architecture):
        model = architecture.SSLMetaArch(cfg)
        model.prepare_for_distributed_training()
    model.need_to_synchronize_fsdp_streams = False
    return model


def give_weights(model: Any, networks: Networks) -> None:
    """Put our weights into their modules; every name has to be there on both sides."""
    for theirs, ours in ((model.student, networks.student), (model.teacher, networks.teacher)):
        state = ours.state_dict()
        for prefix, name in PREFIXES.items():
            part = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            if part:
                theirs[prefix[:-1]].load_state_dict(part, strict=True)


def named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Their parameters by our names."""
    for name, parameter in module.named_parameters():
        prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix))
        yield PREFIXES[prefix] + name.removeprefix(prefix), parameter


def collated(given: StepInput, recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    """Their collate function on our crops and masks."""
    data, views, tiles = import_module("dinov2.data"), recipe.views, recipe.run.batch
    grid = views.global_px // recipe.encoder.patch
    crops = [crop.unflatten(0, (-1, tiles)) for crop in given.crops]  # [V, B, 3, H, W]
    samples = [
        ({"global_crops": list(crops[0][:, t]), "local_crops": list(crops[1][:, t])}, None) for t in range(tiles)
    ]
    assert given.masks is not None
    with shim.our_masks(given.masks.reshape(-1, grid, grid)), shim.in_fp64(dtype):
        return data.collate_data_and_cast(
            samples,
            mask_ratio_tuple=recipe.objective.mask_ratio,
            mask_probability=recipe.objective.mask_probability,
            dtype=dtype,
            n_tokens=grid**2,
            mask_generator=data.MaskingGenerator((grid, grid), max_num_patches=0.5 * grid**2),
        )


def subsets(given: StepInput) -> Iterator[Tensor]:
    """Our drop-path subsets of one step in the order in which their blocks draw: layer, branch, crop size."""
    if given.drops.draws:
        for layer in range(len(given.drops.draws[0])):
            for branch in range(2):
                for draw in given.drops.draws:
                    yield draw[layer, branch, 0]


def loss_terms(losses: dict[str, Tensor], recipe: Recipe) -> dict[str, float]:
    """Their displayed losses by our names and in our units: they show half of the iBOT term, and KoLeo weighted and
    halved.
    """
    terms = {
        "loss/dino_global": losses["dino_global_crops_loss"].item(),
        "loss/dino_local": losses["dino_local_crops_loss"].item(),
        "loss/ibot": 2 * losses["ibot_loss"].item(),
    }
    if "koleo_loss" in losses:
        terms["loss/uniformity"] = 2 * losses["koleo_loss"].item() / recipe.objective.uniformity_weight
    return terms


def run(recipe: Recipe, networks: Networks, inputs: list[StepInput], dtype: torch.dtype, epoch: int) -> Trace:
    """Their `do_train` from the weights of `networks` over `inputs`."""
    train, architecture = import_module("dinov2.train.train"), import_module("dinov2.train.ssl_meta_arch")
    cfg = settings_of(recipe, epoch)
    model = build(recipe, cfg).to(dtype)
    give_weights(model, networks)
    trace = Trace({**_state("student", model.student), **_state("teacher", model.teacher)})
    forward_backward, update_teacher = model.forward_backward, model.update_teacher

    def recorded_backward(images: Any, teacher_temp: float) -> Any:
        losses = forward_backward(images, teacher_temp=teacher_temp)
        trace.losses.append(loss_terms(losses, recipe))
        trace.gradients.append(gradients_of(named(model.student)))
        return losses

    def recorded_update(momentum: float) -> None:
        trace.clipped.append(gradients_of(named(model.student)))
        update_teacher(momentum)
        trace.students.append(copies(dict(named(model.student))))
        trace.teachers.append(copies(dict(named(model.teacher))))

    model.forward_backward, model.update_teacher = recorded_backward, recorded_update
    helpers = import_module("dinov2.logging.helpers")
    data = [collated(given, recipe, dtype) for given in inputs]
    with ExitStack() as stack:
        cfg.train.output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        for part in (
            shim.given_batches(train, data),
            shim.on_this_device(torch.device("cpu")),
            shim.in_fp64(dtype),
            shim.without_fsdp(architecture),
            shim.our_subsets(row for given in inputs for row in subsets(given)),
            shim.quietly(helpers.SmoothedValue),
        ):
            stack.enter_context(part)
        train.do_train(cfg, model)
        # Their centers move when they are next needed.
        model.dino_loss.apply_center_update()
        model.ibot_patch_loss.apply_center_update()
    trace.centers = {"dino": model.dino_loss.center, "ibot": model.ibot_patch_loss.center.squeeze(0)}
    return trace


def _state(branch: str, module: nn.Module) -> State:
    return copies({f"{branch}.{name}": value for name, value in named(module)})
