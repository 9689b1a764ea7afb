"""The pre-training step, top to bottom, for DINO, DINOv2 and Midnight alike.

What differs between them is which targets, which uniformity term and which weights the recipe names. Papers: DINO
(Caron et al. 2021), iBOT (Zhou et al. 2022), DINOv2 (Oquab et al. 2023), KDE (Zimmermann et al. 2024, Virchow2).
All randomness of a step is drawn for the global batch from words keyed by (seed, step), then cut into the rows that
this process holds, then into micro-batches; so the step does not depend on how it is spread. B tiles, G globals,
L locals a tile, D width, K prototypes; crops are view-major: row v·B + t is view v of tile t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.distributed import World
from eosin.models import DropPath, Scores, draw_drop_path, draw_masks
from eosin.objectives import ObjectiveConfig
from eosin.objectives.cross_entropy import Targets
from eosin.objectives.dino import view_losses
from eosin.objectives.ibot import masked_patches
from eosin.objectives.precision import at_least_fp32
from eosin.objectives.targets import center_offset, sinkhorn_offset, target, update_center
from eosin.objectives.uniformity import kde, koleo
from eosin.optim import clip_gradients, forget_last_layer, set_step_values, update_teacher
from eosin.randomness import Words
from eosin.tiles import TileBatch
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel
from eosin.training.recipe import Recipe
from eosin.views import ViewPlan, draw_views, render
from eosin.views.transfer import to_device


@dataclass(frozen=True)
class StepDraws:
    """All randomness of a step: augmentations, masked patches, drop-path subsets."""

    views: ViewPlan
    masks: npt.NDArray[np.bool_] | None  # [G·B, N]
    drops: DropPath

    def rows(self, first: int, last: int) -> StepDraws:
        """The draws of tiles first..last-1."""
        masks = self.masks
        if masks is not None:
            masks = masks.reshape(-1, self.views.tiles, masks.shape[1])[:, first:last].reshape(-1, masks.shape[1])
        return StepDraws(self.views.rows(first, last), masks, self.drops.rows(first, last))


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward needs of B tiles, on the device."""

    tiles: int
    address: Tensor  # [B] equal for equal tiles
    crops: list[Tensor]  # globals [G·B, 3, H, W], locals [L·B, 3, h, w]
    masks: Tensor | None  # bool [G·B, N]
    hidden: Tensor | None  # [P] masked patches' positions in the flattened [G·B · N]
    patch_weight: Tensor | None  # [P] 1 / (masked patches of their crop)
    drops: DropPath


def draw_step(recipe: Recipe, step: int) -> StepDraws:
    """The draws of step `step` for the global batch; a function of the recipe's seed and the step."""
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


def micro_batches(recipe: Recipe, tiles: TileBatch, draws: StepDraws, parallel: Parallel) -> list[MicroBatch]:
    """This process's `tiles` as micro-batches. draws: of the global batch."""
    mine = draws.rows(*parallel.world.share(draws.views.tiles))
    count = len(tiles.pixels) // parallel.accumulate
    parts = []
    for first in range(0, len(tiles.pixels), count):
        own = mine.rows(first, first + count)
        crops = render(tiles.pixels[first : first + count], own.views, recipe.views, parallel.device)
        address = tiles.address[first : first + count]
        parts.append(micro_batch(crops, own.masks, own.drops, address, parallel))
    return parts


def micro_batch(
    crops: Sequence[Tensor],
    masks: npt.NDArray[np.bool_] | None,
    drops: DropPath,
    address: npt.NDArray[np.int64],
    parallel: Parallel,
) -> MicroBatch:
    """One micro-batch from its views, masks [G·B, N], drop-path draw and tile addresses [B].

    Masked patches are found on the host, where the masks were drawn, so that no size has to come back from the device;
    all that is not pixels travels there in one copy, which the host does not wait for.
    """
    device, dtype = parallel.device, parallel.dtype
    arrays = [address, *(draw.numpy() for draw in drops.draws)]
    if masks is not None:
        shares = np.broadcast_to(1.0 / np.maximum(masks.sum(axis=1, keepdims=True), 1), masks.shape)
        arrays += [masks, np.flatnonzero(masks), torch.from_numpy(shares[masks]).to(dtype).numpy()]
    sent = to_device(arrays, device)
    dropped = 1 + len(drops.draws)
    there, hidden, weight = sent[dropped:] or (None, None, None)
    return MicroBatch(
        tiles=len(address),
        address=sent[0],
        crops=[crop.to(device=device, dtype=dtype) for crop in crops],
        masks=there,
        hidden=hidden,
        patch_weight=weight,
        drops=replace(drops, draws=tuple(sent[1:dropped])),
    )


def pretrain_step(
    networks: Networks,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batch: Sequence[MicroBatch],
    values: Mapping[str, float],
    parallel: Parallel,
) -> dict[str, Tensor]:
    """One optimiser step on the micro-batches of this process. values: the row of `Schedules` for this step.

    Returns 0-d loss tensors on the device, means over this process's tiles (`grad_norm`: of the global batch).
    Nothing is read back from the device here, so the caller decides when to wait for the losses.
    """
    goal, world, g = recipe.objective, parallel.world, recipe.views.global_count
    temperature = values["teacher_temperature"]
    set_step_values(optimizer, values)
    optimizer.zero_grad(set_to_none=True)

    # 1. The teacher sees the unmasked globals and sets the targets, balanced over the global batch.
    with torch.no_grad(), parallel.autocast:
        taught = [networks.teacher(part.crops[:1], None, None, part.hidden) for part in batch]
        dino_logits = [seen.dino.logits() for seen in taught]  # [G·B, K] each
        ibot_logits = [seen.ibot.logits() for seen in taught if seen.ibot is not None]  # [P, K] each
    del taught
    dino_targets = offset_of(dino_logits, networks.dino_center, goal, temperature)
    ibot_targets = offset_of(ibot_logits, networks.ibot_center, goal, temperature)

    # 2. The uniformity term compares all tiles of the global batch. Where those are not in one graph, the student's CLS
    #    tokens are had beforehand, at the price of one more forward of the globals.
    spread = goal.uniformity_weight * values["uniformity_ramp"]
    apart = len(batch) > 1 and goal.uniformity != "none"
    pulls = uniformity_pulls(ahead(networks, batch, parallel), batch, goal) if apart else None

    # 3. The student sees the globals, half of them masked, and the locals, in one call. Losses in fp32; backward.
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(batch):
        with parallel.micro_batch(last=number == len(batch) - 1):
            with parallel.autocast:
                seen = parallel.student(part.crops, part.masks, part.drops, part.hidden)
            losses = dino_losses(seen.dino, target(dino_logits[number], dino_targets, temperature), part.tiles, goal)
            if seen.ibot is not None:
                rows = partial(target_rows, ibot_logits[number], ibot_targets, temperature)
                losses["loss/ibot"] = ibot_loss(seen.ibot, rows, part, g, goal)
            loss = weighted(losses, goal) / len(batch)
            if goal.uniformity != "none":
                pulls = pulls or uniformity_pulls([seen.cls.detach()], batch, goal)
                # The mean over processes that ends backward must not divide what is a sum over their rows.
                loss = loss + spread * world.size * (seen.cls * pulls.of_cls[number]).sum()
            loss.backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() / len(batch)
    whole = weighted(sums, goal)
    if pulls is not None:
        sums["loss/uniformity"], whole = pulls.value, whole + spread * pulls.value

    # 4. Clip, AdamW; teacher and centers follow.
    grad_norm = descend(networks, optimizer, recipe, values)
    move_centers(networks, dino_logits, ibot_logits, goal)
    return {"loss": whole, **sums, "grad_norm": grad_norm}


def descend(
    networks: Networks, optimizer: torch.optim.Optimizer, recipe: Recipe, values: Mapping[str, float]
) -> Tensor:
    """Clip the gradients, let the optimiser step and the teacher follow; returns the norm before clipping."""
    grad_norm = clip_gradients(networks.student.parts, recipe.optim.clip, recipe.optim.clip_by)
    optimizer.step()
    if values["last_layer_frozen"] and recipe.optim.last_layer_freeze == "gradient":
        forget_last_layer(optimizer)
    update_teacher(networks.teacher, networks.student, values["momentum"])
    return grad_norm


def offset_of(logits: Sequence[Tensor], center: Tensor, goal: ObjectiveConfig, temperature: float) -> Tensor:
    """What turns teacher logits into targets by the recipe's rule: an offset [1, K] a prototype (see `targets`)."""
    if goal.targets == "centering" or not logits:
        return center_offset(center, temperature)
    return sinkhorn_offset(logits, temperature, goal.sinkhorn_iterations)


def target_rows(logits: Tensor, offset: Tensor, temperature: float, first: int, last: int) -> Tensor:
    """Targets of rows first..last-1 of teacher logits [P, K]."""
    return target(logits[first:last], offset, temperature)


def dino_losses(student: Scores, targets: Tensor, tiles: int, goal: ObjectiveConfig) -> dict[str, Tensor]:
    """The CLS terms. student: of all crops; targets: [G·B, K]."""
    crossed, small = view_losses(student, targets.unflatten(0, (-1, tiles)), goal.student_temperature)
    return {"loss/dino_global": crossed, "loss/dino_local": small}


def ibot_loss(student: Scores, rows: Targets, part: MicroBatch, views: int, goal: ObjectiveConfig) -> Tensor:
    """The masked patches' term of a micro-batch of `views` global crops a tile."""
    assert part.patch_weight is not None
    return masked_patches(student, rows, part.patch_weight, views * part.tiles, goal.student_temperature)


def weighted(losses: Mapping[str, Tensor], goal: ObjectiveConfig) -> Tensor:
    """The sum of the terms by the recipe's weights, uniformity aside."""
    return torch.stack(
        [(goal.ibot_weight if name == "loss/ibot" else goal.dino_weight) * value for name, value in losses.items()]
    ).sum()


@dataclass(frozen=True)
class Pulls:
    """The uniformity term over the global batch, and its gradient on the CLS tokens of each micro-batch [G·B, D]."""

    value: Tensor
    of_cls: list[Tensor]


def uniformity_pulls(cls: Sequence[Tensor], batch: Sequence[MicroBatch], goal: ObjectiveConfig) -> Pulls:
    """The recipe's uniformity term, summed over the global views, of all micro-batches of all processes.

    cls: student's CLS tokens of the globals before the head, [G·B, D] a micro-batch.
    """
    world = World.here()
    leaves = [at_least_fp32(tokens.detach()).requires_grad_() for tokens in cls]
    mine = torch.cat([x.unflatten(0, (-1, part.tiles)) for x, part in zip(leaves, batch, strict=True)], dim=1)
    address = world.gather(torch.cat([part.address for part in batch]))
    with torch.enable_grad():
        views = [world.gather_with_own_gradient(view) for view in mine]  # G x [all tiles, D]
        term = torch.stack([uniformity(view, goal, address) for view in views]).sum()
    return Pulls(term.detach(), list(torch.autograd.grad(term, leaves)))


def uniformity(view: Tensor, goal: ObjectiveConfig, address: Tensor) -> Tensor:
    """One view's term. view: [N, D]; address: [N]."""
    if goal.uniformity == "koleo":
        return koleo(view)
    return kde(view, goal.kappa, address) * (-1.0 if goal.uniformity == "kde-inverted" else 1.0)


@torch.no_grad()
def ahead(networks: Networks, batch: Sequence[MicroBatch], parallel: Parallel) -> list[Tensor]:
    """The student's CLS tokens of the globals of each micro-batch, [G·B, D], without a graph: same masks and draws."""
    with parallel.autocast:
        return [networks.student.encoder(p.crops[:1], [p.masks], p.drops.sizes(1))[0].cls for p in batch]


def move_centers(networks: Networks, dino: Sequence[Tensor], ibot: Sequence[Tensor], goal: ObjectiveConfig) -> None:
    """After a step, the centers of DINO v1's targets follow the teacher's logits; Sinkhorn has none."""
    if goal.targets == "sinkhorn":
        return
    networks.dino_center.copy_(update_center(networks.dino_center, dino, goal.center_momentum))
    if ibot:
        networks.ibot_center.copy_(update_center(networks.ibot_center, ibot, goal.center_momentum))
