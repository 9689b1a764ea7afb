"""Parameter groups and clipping, by the rules of DINO and DINOv2.

No weight decay on biases, norms and LayerScale; a layer-wise learning-rate factor; a factor for the patch embedding;
the prototypes' own learning rate, zero while they are frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn


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
    """Groups for AdamW, each with `lr_factor`, `wd_factor` and `is_last_layer` for `set_step_values`.

    The encoder's names are those of eosin's ViT; a head's prototypes are the parameters under `last_layer`.
    Parameters that share all three values share a group.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        factor = layer_factor(name, depth, layer_decay) * (patch_embed_factor if "patch_embed" in name else 1.0)
        _add(groups, parameter, factor, 1.0 if decays(name) else 0.0, False)
    for head in heads:
        for name, parameter in head.named_parameters():
            _add(groups, parameter, 1.0, 1.0 if decays(name) else 0.0, "last_layer" in name)
    return [
        {"params": parameters, "lr_factor": lr, "wd_factor": wd, "is_last_layer": last}
        for (lr, wd, last), parameters in groups.items()
    ]


def _add(
    groups: dict[tuple[float, float, bool], list[nn.Parameter]],
    parameter: nn.Parameter,
    lr: float,
    wd: float,
    last: bool,
) -> None:
    if parameter.requires_grad:
        groups.setdefault((lr, wd, last), []).append(parameter)


def set_step_values(optimizer: torch.optim.Optimizer, lr: float, last_layer_lr: float, weight_decay: float) -> None:
    """Write the scheduled values of a step into the groups made by `parameter_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = (last_layer_lr if group["is_last_layer"] else lr) * group["lr_factor"]
        group["weight_decay"] = weight_decay * group["wd_factor"]


def clip_gradients(modules: Iterable[nn.Module], limit: float, by: Literal["module", "tensor"]) -> Tensor:
    """Scale gradients so that the L2 norm of each module (DINOv2) or each tensor (DINO v1) is at most `limit`.

    Returns the norm of all gradients before clipping, a 0-d tensor on the device (no host sync). The factor is
    limit / (norm + 1e-6), at most 1.
    """
    squares: list[Tensor] = []
    for module in modules:
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if not gradients:
            continue
        norms = torch.stack(torch._foreach_norm(gradients))
        squares.append(norms.square().sum())
        if by == "module":
            factor = (limit / (norms.square().sum().sqrt() + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        else:
            factors = (limit / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(factors.unbind()))
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
