"""The pre-training step, top to bottom, for DINO, DINOv2 and Midnight alike.

What differs between them is which targets, which uniformity term and which weights the recipe names. Papers: DINO
(Caron et al. 2021), iBOT (Zhou et al. 2022), DINOv2 (Oquab et al. 2023), KDE (Zimmermann et al. 2024, Virchow2).
All randomness of a step is drawn for the global batch from words keyed by (seed, step), then cut into the rows that
this process holds; so the step does not depend on how it is spread. B tiles, G globals, L locals a tile, D width,
K prototypes; crops are view-major: row v·B + t is view v of tile t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.models import DropPath, draw_drop_path, draw_masks
from eosin.objectives import ObjectiveConfig
from eosin.objectives.dino import view_pairs
from eosin.objectives.ibot import masked_patches
from eosin.objectives.targets import centering, sinkhorn, update_center
from eosin.objectives.uniformity import kde, koleo
from eosin.optim import clip_gradients, set_step_values, update_teacher
from eosin.randomness import Words
from eosin.tiles import TileBatch
from eosin.training.networks import Networks
from eosin.training.recipe import Recipe
from eosin.views import ViewPlan, draw_views, render


@dataclass(frozen=True)
class StepDraws:
    """All randomness of one step for the global batch: augmentations, masked patches, drop-path subsets."""

    views: ViewPlan
    masks: npt.NDArray[np.bool_] | None  # [G·B, N]
    drops: DropPath


def draw_step(recipe: Recipe, step: int) -> StepDraws:
    """The draws of step `step`; a function of the recipe's seed and the step."""
    run, views, goal = recipe.run, recipe.views, recipe.objective
    masks = None
    if goal.ibot_weight > 0:
        words = Words(run.seed, "masks", step)
        grid = views.global_px // recipe.encoder.patch
        masks = draw_masks(
            words, run.batch, views.global_count, grid, run.group, goal.mask_ratio, goal.mask_probability
        )
    sizes = (views.global_count, views.local_count) if views.local_count else (views.global_count,)
    return StepDraws(
        views=draw_views(views, run.batch, Words(run.seed, "views", step)),
        masks=masks,
        drops=draw_drop_path(recipe.encoder, Words(run.seed, "drop path", step), run.batch, sizes, run.group),
    )


def pretrain_step(
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    tiles: TileBatch,
    draws: StepDraws,
    values: dict[str, float],
    autocast: torch.autocast,
) -> dict[str, Tensor]:
    """One optimiser step. values: the row of `Schedules` for this step. Returns 0-d loss tensors on the device.

    Nothing is read back from the device here, so the caller decides when to wait for the losses.
    """
    goal, views = recipe.objective, recipe.views
    student, teacher = networks.student, networks.teacher
    device = networks.dino_center.device
    b, g = len(tiles.pixels), views.global_count
    set_step_values(optimizer, values["lr"], values["last_layer_lr"], values["weight_decay"])

    # 1. Views of every tile: globals [G·B, 3, H, W], locals [L·B, 3, h, w].
    crops = render(tiles.pixels, draws.views, views, device)
    masks = None if draws.masks is None else torch.from_numpy(draws.masks).to(device)  # [G·B, N]
    hidden, patch_weight = hidden_patches(draws.masks, device)  # [P], [P]

    # 2. The teacher sees the unmasked globals and sets the targets.
    with torch.no_grad(), autocast:
        seen = teacher.encoder([crops[0]])[0]
        dino_logits = teacher.dino(seen.cls)  # [G·B, K]
        ibot_logits = teacher.ibot(seen.patches.flatten(0, 1)[hidden]) if teacher.ibot is not None else None  # [P, K]
    dino_target = targets(dino_logits, networks.dino_center, goal, values["teacher_temperature"]).unflatten(0, (g, b))
    ibot_target = (
        None if ibot_logits is None else targets(ibot_logits, networks.ibot_center, goal, values["teacher_temperature"])
    )

    # 3. The student sees the globals, half of them masked, and the locals, in one call.
    with autocast:
        out = student.encoder(crops, [masks, *[None] * (len(crops) - 1)], draws.drops.to(device))
        logits = student.dino(torch.cat([tokens.cls for tokens in out]))  # [(G+L)·B, K]
        patch_logits = student.ibot(out[0].patches.flatten(0, 1)[hidden]) if student.ibot is not None else None

    # 4. Losses, in fp32.
    losses = {
        **dino_losses(logits, dino_target, b, goal),
        **ibot_loss(patch_logits, ibot_target, patch_weight, g * b, goal),
        **uniformity_loss(out[0].cls.unflatten(0, (g, b)), torch.from_numpy(tiles.address).to(device), goal),
    }
    spread = values["uniformity_ramp"] * goal.uniformity_weight
    weights = {"loss/ibot": goal.ibot_weight, "loss/uniformity": spread}
    loss = torch.stack([weights.get(name, goal.dino_weight) * value for name, value in losses.items()]).sum()

    # 5. One backward, clip, AdamW; the teacher follows.
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = clip_gradients(student.parts, recipe.optim.clip, recipe.optim.clip_by)
    optimizer.step()
    update_teacher(teacher, student, values["momentum"])
    move_centers(networks, dino_logits, ibot_logits, goal)
    return {name: value.detach() for name, value in {"loss": loss, **losses, "grad_norm": grad_norm}.items()}


def targets(logits: Tensor, center: Tensor, goal: ObjectiveConfig, temperature: float) -> Tensor:
    """Teacher logits [N, K] -> target distributions [N, K] by the recipe's rule."""
    if goal.targets == "sinkhorn":
        return sinkhorn(logits, temperature, goal.sinkhorn_iterations)
    return centering(logits, center, temperature)


def move_centers(networks: Networks, dino: Tensor, ibot: Tensor | None, goal: ObjectiveConfig) -> None:
    """After a step, the centers of DINO v1's targets follow the teacher's logits [N, K]; Sinkhorn has none."""
    if goal.targets == "sinkhorn":
        return
    networks.dino_center.copy_(update_center(networks.dino_center, dino, goal.center_momentum))
    if ibot is not None:
        networks.ibot_center.copy_(update_center(networks.ibot_center, ibot, goal.center_momentum))


def dino_losses(logits: Tensor, target: Tensor, tiles: int, goal: ObjectiveConfig) -> dict[str, Tensor]:
    """Cross-entropy of every student view against every other teacher view, divided by the number of pairs.

    logits: [(G+L)·B, K] of the student's globals, then locals; target: [G, B, K]; tiles: B.
    """
    g = len(target)
    student = logits.unflatten(0, (-1, tiles))  # [G+L, B, K]
    pairs = g * (len(student) - g) + g * (g - 1)
    crossed = view_pairs(student[:g], target, goal.student_temperature, skip_same_view=True)
    small = view_pairs(student[g:], target, goal.student_temperature)
    return {"loss/dino_global": crossed / pairs, "loss/dino_local": small / pairs}


def ibot_loss(
    logits: Tensor | None, target: Tensor | None, patch_weight: Tensor, crops: int, goal: ObjectiveConfig
) -> dict[str, Tensor]:
    """The masked patches' term ([P, K] each; `crops`: global crops, masked or not); nothing without an iBOT head."""
    if logits is None or target is None:
        return {}
    return {"loss/ibot": masked_patches(logits, target, patch_weight, crops, goal.student_temperature)}


def uniformity_loss(cls: Tensor, address: Tensor, goal: ObjectiveConfig) -> dict[str, Tensor]:
    """The recipe's uniformity term summed over the global views. cls: [G, B, D] before the head; address: [B]."""
    if goal.uniformity == "none":
        return {}
    terms = [kde(view, goal.kappa, address) if goal.uniformity == "kde" else koleo(view) for view in cls]
    return {"loss/uniformity": torch.stack(terms).sum()}


def hidden_patches(masks: npt.NDArray[np.bool_] | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions [P] of masked patches in the flattened [G·B · N], and [P] weights 1 / (masked patches of their crop).

    Found on the host, where the masks were drawn, so that no size has to come back from the device.
    """
    if masks is None:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    weight = np.broadcast_to(1.0 / np.maximum(masks.sum(axis=1, keepdims=True), 1), masks.shape)
    return torch.from_numpy(np.flatnonzero(masks)).to(device), torch.from_numpy(weight[masks]).float().to(device)
