"""Parameter groups and clipping, by the rules of DINO and DINOv2.

No weight decay on biases, norms and LayerScale; a layer-wise learning-rate factor; a factor for the patch embedding;
the prototypes' own learning rate, zero while they are frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eosin.distributed import World, is_sharded, local_part


def decays(name: str) -> bool:
    """Whether weight decay acts on the parameter called `name`. Tokens, positions and the prototype gain decay."""
    return not (name.endswith(".bias") or "norm" in name or "gamma" in name)


def layer_factor(name: str, depth: int, layer_decay: float) -> float:
    """rate^(depth + 1 - layer) for an encoder parameter: layer 0 = embeddings, tokens; i + 1 = block i; norm 1."""
    if name.startswith(("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")):
        layer = 0
    elif found := re.match(r"blocks\.(\d+)\.", name):
        layer = int(found.group(1)) + 1
    else:
        layer = depth + 1
    return layer_decay ** (depth + 1 - layer)


def parameter_groups(
    encoder: nn.Module,
    heads: Iterable[nn.Module],
    depth: int,
    layer_decay: float = 1.0,
    patch_embed_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups for AdamW, each with `lr_factor`, `wd_factor` and `rate` for `set_step_values`.

    rate: the schedule that a group follows: encoder_lr, lr (heads) or last_layer_lr (prototypes: the parameters of a
    head under `last_layer`). The encoder's names are those of eosin's ViT. Parameters that share all three values
    share a group.
    """
    groups: dict[tuple[float, float, str], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        factor = layer_factor(name, depth, layer_decay) * (patch_embed_factor if "patch_embed" in name else 1.0)
        _add(groups, parameter, factor, 1.0 if decays(name) else 0.0, "encoder_lr")
    for head in heads:
        for name, parameter in head.named_parameters():
            rate = "last_layer_lr" if "last_layer" in name else "lr"
            _add(groups, parameter, 1.0, 1.0 if decays(name) else 0.0, rate)
    return [
        {"params": parameters, "lr_factor": lr, "wd_factor": wd, "rate": rate}
        for (lr, wd, rate), parameters in groups.items()
    ]


def _add(
    groups: dict[tuple[float, float, str], list[nn.Parameter]],
    parameter: nn.Parameter,
    lr: float,
    wd: float,
    rate: str,
) -> None:
    if parameter.requires_grad:
        groups.setdefault((lr, wd, rate), []).append(parameter)


def set_step_values(optimizer: torch.optim.Optimizer, values: Mapping[str, float]) -> None:
    """Write a step's row of `Schedules` into the groups made by `parameter_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = values[group["rate"]] * group["lr_factor"]
        group["weight_decay"] = values["weight_decay"] * group["wd_factor"]


@torch.no_grad()
def forget_last_layer(optimizer: torch.optim.Optimizer) -> None:
    """Leave the prototypes as if this step had given them no gradient: DINO v1's frozen last layer.

    Their learning rate was 0, so only Adam's averages and step counts have moved; these are set back to 0.
    """
    for group in optimizer.param_groups:
        if group["rate"] == "last_layer_lr":
            for parameter in group["params"]:
                for value in optimizer.state[parameter].values():
                    value.zero_()


def clip_gradients(modules: Iterable[nn.Module], limit: float, by: Literal["module", "tensor"]) -> Tensor:
    """Scale gradients so that the L2 norm of each module (DINOv2) or each tensor (DINO v1) is at most `limit`.

    Returns the norm of all gradients before clipping, a 0-d tensor on the device (no host sync). The factor is
    limit / (norm + 1e-6), at most 1. Of parameters that are spread over processes (FSDP) the parts are added up.
    """
    held = [[p.grad for p in module.parameters() if p.grad is not None] for module in modules]
    held = [gradients for gradients in held if gradients]
    if not held:
        return torch.zeros(())
    parts = [[local_part(gradient) for gradient in gradients] for gradients in held]
    squares = torch.cat([torch.stack(torch._foreach_norm(gradients)).square() for gradients in parts])
    if is_sharded(held[0][0]):
        World.here().sum_(squares)
    for gradients, square in zip(parts, squares.split([len(gradients) for gradients in parts]), strict=True):
        if by == "module":
            torch._foreach_mul_(gradients, (limit / (square.sum().sqrt() + 1e-6)).clamp(max=1.0))
        else:
            torch._foreach_mul_(gradients, list((limit / (square.sqrt() + 1e-6)).clamp(max=1.0).unbind()))
    return squares.sum().sqrt()
