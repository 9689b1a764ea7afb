"""The step on a GPU: the CPU's numbers in fp32, close ones in bf16, the same compiled or sharded, and nothing waits.

What can be seen without a GPU is tested without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from eosin.distributed import World
from eosin.optim import make_schedules
from eosin.tiles import TilePlan, TileStream
from eosin.training import Recipe, load_recipe
from eosin.training.networks import Networks
from eosin.training.parallel import Parallel, _shard, spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import MicroBatch, draw_step, micro_batch, micro_batches, pretrain_step
from eosin.views import render

from .conftest import TINY

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=GPU)]
WIDER = ["encoder.width=128", "encoder.heads=2"]  # heads of 64 channels, which fused attention takes
OBJECTIVES = {
    "sinkhorn and kde": [],
    "micro-batches and koleo": ["parallel.accumulate=2", "objective.uniformity=koleo"],
    "recomputed": ["parallel.recompute=selective"],
    "dino v1": [
        "objective.ibot_weight=0",
        "objective.targets=centering",
        "objective.uniformity=none",
        "encoder.drop_path_form=sample",
        "optim.clip_by=tensor",
        "optim.last_layer_freeze=gradient",
        "optim.freeze_last_layer_steps=6",
    ],
}


def recipe_with(*changes: str) -> Recipe:
    return load_recipe("quickstart", [*TINY, *WIDER, *changes])[0]


class Side:
    """Networks on a device, ready for the first step on the same crops everywhere: those of the CPU."""

    def __init__(self, recipe: Recipe, plan: TilePlan, device: str, precision: str = "fp32") -> None:
        self.recipe = recipe
        self.networks = Networks(recipe)
        with torch.no_grad():  # the teacher differs from the student, as it does after the first step
            generator = torch.Generator().manual_seed(1)
            for parameter in self.networks.teacher.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        place = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
        self.parallel = spread(self.networks, recipe, place, precision)
        self.tiles = next(iter(TileStream(plan, recipe.run.batch)))

    def batch(self) -> list[MicroBatch]:
        """All micro-batches of step 0."""
        draws = draw_step(self.recipe, 0)
        count = self.recipe.run.batch // self.recipe.parallel.accumulate
        parts = []
        for first in range(0, self.recipe.run.batch, count):
            own, rows = draws.rows(first, first + count), slice(first, first + count)
            crops = render(self.tiles.pixels[rows], own.views, self.recipe.views)
            parts.append(micro_batch(crops, own.masks, own.drops, self.tiles.address[rows], self.parallel))
        return parts

    def run(self, steps: int = 1) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Losses and gradients of the last of `steps` steps on the same tiles."""
        optimizer, values = make_optimizer(self.recipe, self.networks), self.values
        for _ in range(steps):
            losses = pretrain_step(self.networks, optimizer, self.recipe, self.batch(), values, self.parallel)
        gradients = {
            name: (p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad).float().cpu()
            for name, p in self.networks.student.named_parameters()
            if p.grad is not None
        }
        return {name: value.item() for name, value in losses.items()}, gradients

    @property
    def values(self) -> dict[str, float]:
        return make_schedules(self.recipe.optim, 6, self.recipe.run.batch).at(3)


def assert_equal_sides(
    one: tuple[dict[str, float], dict[str, Tensor]], other: tuple[dict[str, float], dict[str, Tensor]]
) -> None:
    """Losses to 1e-4 of their size, gradients to 1e-3 of the largest of their tensor."""
    assert one[0] == pytest.approx(other[0], rel=1e-4, abs=1e-6)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        scale = gradient.abs().max().item() + 1e-7
        assert (gradient - other[1][name]).abs().max().item() <= 1e-3 * scale, name


class NoReading(TorchDispatchMode):
    """Refuses operations that a GPU's host would have to wait for: a value read back, a size that depends on values."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero")
    FROM_HOST = "lift_fresh"

    def __init__(self, arrays: bool = False) -> None:
        """arrays: host arrays may become tensors (how they travel is tested with `transfer`)."""
        super().__init__()
        self.refused = self.REFUSED if arrays else (*self.REFUSED, self.FROM_HOST)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.refused), f"{func} makes the host wait"
        indices = args[1] if "index.Tensor" in str(func) or "index_put" in str(func) else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), (
            f"{func} by a mask makes the host wait"
        )
        return func(*args, **(kwargs or {}))


def test_the_guard_against_reading_sees_reading() -> None:
    x = torch.arange(4.0)
    for reads in (x.sum().item, lambda: x[x > 1], lambda: torch.tensor(3.0), lambda: bool(x.sum() > 0), x.nonzero):
        with pytest.raises(AssertionError, match="wait"), NoReading():
            reads()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_reads_nothing_back(name: str, plan: TilePlan) -> None:
    side = Side(recipe_with(*OBJECTIVES[name]), plan, "cpu")
    optimizer, batch = make_optimizer(side.recipe, side.networks), side.batch()
    for attempt in range(2):  # what is worked out once and kept may wait in the first step
        with NoReading() if attempt else torch.autograd.profiler.record_function("first"):
            pretrain_step(side.networks, optimizer, side.recipe, batch, side.values, side.parallel)


def test_views_read_nothing_back(plan: TilePlan) -> None:
    """By the route that GPUs take."""
    recipe = recipe_with("views.hed_sigma=0.05", "views.solarise_probability=0.5")
    tiles, draws = next(iter(TileStream(plan, recipe.run.batch))), draw_step(recipe, 0)
    pixels = torch.from_numpy(tiles.pixels)
    render(pixels, draws.views, recipe.views, route="matrix")
    with NoReading(arrays=True):
        render(pixels, draws.views, recipe.views, route="matrix")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_host_never_waits_in_a_step(name: str, precision: str, plan: TilePlan) -> None:
    side = Side(recipe_with(*OBJECTIVES[name]), plan, "cuda", precision)
    optimizer, batch = make_optimizer(side.recipe, side.networks), side.batch()
    for _ in range(2):
        pretrain_step(side.networks, optimizer, side.recipe, batch, side.values, side.parallel)
    with refusing_to_wait():
        losses = pretrain_step(side.networks, optimizer, side.recipe, batch, side.values, side.parallel)
    assert torch.isfinite(losses["loss"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", ["subset", "sample"])
def test_the_host_never_waits_while_micro_batches_are_made(form: str, plan: TilePlan) -> None:
    """Views, masks, drop path: none of them keeps the host."""
    recipe = recipe_with("views.hed_sigma=0.05", "views.solarise_probability=0.5", f"encoder.drop_path_form={form}")
    side, draws = Side(recipe, plan, "cuda"), draw_step(recipe, 0)
    (first,) = micro_batches(recipe, side.tiles, draws, side.parallel)
    with refusing_to_wait():
        (again,) = micro_batches(recipe, side.tiles, draws, side.parallel)
    for a, b in zip(first.crops, again.crops, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(again.masks.cpu(), torch.from_numpy(draws.masks))
    assert torch.equal(again.address.cpu(), torch.from_numpy(side.tiles.address))
    for moved, draw in zip(again.drops.draws, draws.drops.draws, strict=True):
        assert torch.equal(moved.cpu(), draw)


class refusing_to_wait:
    """Within it, whatever makes the host wait for the GPU raises."""

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OBJECTIVES)
def test_in_fp32_a_gpu_computes_what_the_cpu_computes(name: str, plan: TilePlan) -> None:
    recipe = recipe_with(*OBJECTIVES[name])
    assert_equal_sides(Side(recipe, plan, "cpu").run(), Side(recipe, plan, "cuda").run())


@pytest.mark.parametrize("device", DEVICES)
def test_in_bf16_a_step_is_finite_and_close(device: str, plan: TilePlan) -> None:
    recipe = recipe_with()
    losses, gradients = Side(recipe, plan, "cpu").run()
    coarse, slopes = Side(recipe, plan, device, "bf16").run()
    assert coarse == pytest.approx(losses, rel=0.02)
    for name in gradients:
        assert torch.isfinite(slopes[name]).all(), name
    flat, other = (torch.cat([g[name].flatten() for name in gradients]) for g in (gradients, slopes))
    assert torch.nn.functional.cosine_similarity(flat, other, dim=0) > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_blocks_take_the_same_step(plan: TilePlan) -> None:
    eager, compiled = (recipe_with(f"parallel.compile={value}") for value in ("false", "true"))
    assert_equal_sides(Side(eager, plan, "cuda").run(), Side(compiled, plan, "cuda").run())


@pytest.fixture(params=DEVICES)
def world_of_one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A process group of this process alone, over NCCL on a GPU; yields the device."""
    device: str = request.param
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated", "ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_wrapped_in_a_world_of_one_a_step_is_the_same(way: str, world_of_one: str, plan: TilePlan) -> None:
    recipe = recipe_with()
    plain, side = Side(recipe, plan, world_of_one), Side(recipe, plan, world_of_one)
    networks, given = side.networks, side.parallel
    student: torch.nn.Module = networks.student
    sharded: tuple[Any, ...] = ()
    if way == "fsdp":
        mesh = init_device_mesh(world_of_one, (1,))
        sharded = (*_shard(networks.student, mesh, False), *_shard(networks.teacher, mesh, True))
    else:
        ids = [0] if world_of_one == "cuda" else None
        student = DistributedDataParallel(student, ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    side.parallel = Parallel(World.here(), given.device, given.autocast, given.dtype, 1, student, sharded)
    assert_equal_sides(plain.run(), side.run())
    # Adam makes large steps of gradients near zero, so what differs in the last digit grows.
    assert plain.run(2)[0] == pytest.approx(side.run(2)[0], rel=1e-3)
