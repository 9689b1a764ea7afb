"""How a run is spread: processes, micro-batches, precision, recomputation, compilation. Decided here and nowhere else.

Everything stands on torch.distributed: torchrun starts the processes; DistributedDataParallel copies the student, or
FSDP2 (`fully_shard`) spreads student, teacher and optimiser block by block. None of it changes what is learned: draws
belong to the global batch, targets and the uniformity term are global, gradients are those of the global mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from eosin.distributed import World
from eosin.errors import RecipeError
from eosin.models import ViT
from eosin.training.networks import Branch, Networks
from eosin.training.recipe import Recipe

# Outputs of our sharded modules are views and nobody writes into them.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

SHARD_BYTES_SHARE = 0.5
"""`auto` takes FSDP where weights, gradients, Adam's averages and teacher need more of a GPU's memory than this."""
BYTES_A_PARAMETER = 20  # fp32 student, gradient, two averages, teacher


@dataclass(frozen=True)
class Parallel:
    """A run's networks as they are spread here."""

    world: World
    device: torch.device
    autocast: torch.autocast
    dtype: torch.dtype  # of weights and crops
    accumulate: int  # micro-batches a step
    student: nn.Module  # `networks.student`, called through DDP where that is in use
    sharded: tuple[FSDPModule, ...] = ()

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch; gradients travel with the last one only."""
        for module in self.sharded:
            module.set_requires_gradient_sync(last)
        quiet = self.student.no_sync() if isinstance(self.student, DistributedDataParallel) and not last else None
        with quiet or nullcontext():
            yield


def spread(networks: Networks, recipe: Recipe, device: torch.device, precision: str) -> Parallel:
    """Move `networks` to `device` and spread them over the processes as the recipe's `parallel` group says.

    precision: fp32, bf16 (compute only; weights stay fp32) or fp64. Raises RecipeError where the batch does not
    divide into groups × micro-batches × processes.
    """
    world, config = World.here(), recipe.parallel
    check_split(recipe, world.size)
    dtype = torch.float64 if precision == "fp64" else torch.float32
    networks.to(device=device, dtype=dtype)
    _recompute(networks.student.encoder, config.recompute)
    student: nn.Module = networks.student
    sharded: tuple[FSDPModule, ...] = ()
    if world.size > 1 and _strategy(recipe, networks, device) == "fsdp":
        mesh = init_device_mesh(device.type, (world.size,))
        # The student's backward follows and gathers its weights back; the teacher has none.
        sharded = (*_shard(networks.student, mesh, False), *_shard(networks.teacher, mesh, True))
    elif world.size > 1:
        student = DistributedDataParallel(
            networks.student,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
    if config.compile:
        for block in [*networks.student.encoder.blocks, *networks.teacher.encoder.blocks]:
            block.compile()
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    return Parallel(world, device, autocast, dtype, config.accumulate, student, sharded)


def check_split(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError where the global batch does not divide into whole groups for every micro-batch."""
    batch, group, parts = recipe.run.batch, recipe.run.group, recipe.parallel.accumulate
    if batch % (group * processes * parts):
        raise RecipeError(
            f"run.batch {batch} does not divide into groups of {group} tiles x {processes} processes x "
            f"{parts} micro-batches; change run.batch, run.group or parallel.accumulate"
        )


def _strategy(recipe: Recipe, networks: Networks, device: torch.device) -> str:
    if recipe.parallel.strategy != "auto":
        return recipe.parallel.strategy
    if device.type != "cuda":
        return "ddp"
    needed = BYTES_A_PARAMETER * sum(parameter.numel() for parameter in networks.student.parameters())
    room = torch.cuda.get_device_properties(device).total_memory
    return "fsdp" if needed > SHARD_BYTES_SHARE * room else "ddp"


def _shard(branch: Branch, mesh: Any, reshard_after_forward: bool) -> list[FSDPModule]:
    """FSDP2 on every block, the rest of the encoder, and each head; returns the roots."""
    for block in branch.encoder.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=reshard_after_forward)
    return [fully_shard(part, mesh=mesh, reshard_after_forward=reshard_after_forward) for part in branch.parts]


def _recompute(encoder: ViT, kind: Literal["none", "selective", "full"]) -> None:
    """Make blocks forget what backward can work out again: everything, or all but products and attention."""
    if kind == "none":
        return
    extra = {} if kind == "full" else {"context_fn": partial(create_selective_checkpoint_contexts, _keep_products)}
    for block in encoder.blocks:
        run = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **extra)
        setattr(block, "forward", run)  # noqa: B010  (a plain assignment is refused by the type checker)


_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
