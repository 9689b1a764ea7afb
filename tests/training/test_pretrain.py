"""The step against the method written out plainly: one call a crop, one loop a loss term."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from eosin.models import DropPath
from eosin.objectives.uniformity import kde
from eosin.optim import make_schedules, parameter_groups
from eosin.tiles import TileBatch, TilePlan, TileStream
from eosin.training import Recipe
from eosin.training.networks import Networks
from eosin.training.parallel import spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import MicroBatch, StepDraws, draw_step, micro_batch, micro_batches, pretrain_step
from eosin.views import render
from eosin.views.transfer import pack, unpack


def step(networks: Networks, optimizer, recipe: Recipe, tiles: TileBatch, draws: StepDraws, values: dict) -> dict:
    """One step of one process in fp32."""
    parallel = spread(networks, recipe, torch.device("cpu"), "fp32")
    batch = micro_batches(recipe, tiles, draws, parallel)
    return pretrain_step(networks, optimizer, recipe, batch, values, parallel)


def changed(recipe: Recipe, part: str, **values: object) -> Recipe:
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update=values)})


def plain_losses(networks: Networks, recipe: Recipe, pixels, address, draws: StepDraws, temperature: float) -> dict:
    """Loss terms of one step, crop by crop, by recipes' formulas, without drop path."""
    goal, views = recipe.objective, recipe.views
    b = len(pixels)
    global_crops, local_crops = render(pixels, draws.views, views)
    masks = torch.from_numpy(draws.masks)

    def balance(logits: torch.Tensor) -> torch.Tensor:
        q = torch.exp(logits.double() / temperature)
        for _ in range(goal.sinkhorn_iterations):
            q = q / q.sum(dim=0, keepdim=True)
            q = q / q.sum(dim=1, keepdim=True)
        return q

    def cross_entropy(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(target * torch.log_softmax(student.double() / goal.student_temperature, dim=-1)).sum()

    with torch.no_grad():
        teacher = [networks.teacher.encoder([crop[None]])[0] for crop in global_crops]
        dino = balance(torch.cat([networks.teacher.dino(tokens.cls).logits() for tokens in teacher]))
        hidden = [tokens.patches[0][mask] for tokens, mask in zip(teacher, masks, strict=True)]
        ibot = balance(networks.teacher.ibot(torch.cat(hidden)).logits()).split([len(h) for h in hidden])
    student = [
        networks.student.encoder([crop[None]], [mask[None]])[0] for crop, mask in zip(global_crops, masks, strict=True)
    ]
    globals_ = [networks.student.dino(tokens.cls).logits()[0] for tokens in student]
    locals_ = [networks.student.dino(networks.student.encoder([c[None]])[0].cls).logits()[0] for c in local_crops]
    pairs = 2 * views.local_count + 2
    dino_global = sum(cross_entropy(globals_[v * b + t], dino[(1 - v) * b + t]) for v in range(2) for t in range(b))
    dino_local = sum(
        cross_entropy(locals_[v * b + t], dino[w * b + t])
        for v in range(views.local_count)
        for w in range(2)
        for t in range(b)
    )
    patches = 0.0
    for row, mask in enumerate(masks):
        if mask.any():
            logits = networks.student.ibot(student[row].patches[0][mask]).logits()
            patches = patches + cross_entropy(logits, ibot[row]) / int(mask.sum())
    cls = torch.cat([tokens.cls for tokens in student])
    spread = kde(cls[:b], goal.kappa, address) + kde(cls[b:], goal.kappa, address)
    return {
        "loss/dino_global": dino_global / b / pairs,
        "loss/dino_local": dino_local / b / pairs,
        "loss/ibot": patches / (2 * b),
        "loss/uniformity": spread,
    }


def test_one_step_equals_the_method_written_out(recipe: Recipe, plan: TilePlan) -> None:
    encoder = recipe.encoder.model_copy(update={"drop_path": 0.0})
    recipe = recipe.model_copy(update={"encoder": encoder})
    networks = Networks(recipe)
    with torch.no_grad():  # the teacher differs from the student, as it does after the first step
        for parameter in networks.teacher.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    tiles = next(iter(TileStream(plan, recipe.run.batch)))
    draws = draw_step(recipe, 0)
    values = make_schedules(recipe.optim, 6, recipe.run.batch).at(3)
    twin = copy.deepcopy(networks)
    expected = plain_losses(
        twin, recipe, tiles.pixels, torch.from_numpy(tiles.address), draws, values["teacher_temperature"]
    )
    goal = recipe.objective
    total = expected["loss/dino_global"] + expected["loss/dino_local"] + expected["loss/ibot"]
    total = total + goal.uniformity_weight * expected["loss/uniformity"]
    total.backward()
    gradients = {name: p.grad for name, p in twin.student.named_parameters()}

    captured: dict[str, torch.Tensor] = {}

    class Capture(torch.optim.SGD):
        def step(self) -> None:
            captured.update({name: p.grad.clone() for name, p in networks.student.named_parameters()})

    loose = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"clip": 1e9})})
    groups = parameter_groups(networks.student.encoder, networks.student.heads, 2)
    losses = step(networks, Capture(groups, lr=0.0), loose, tiles, draws, values)
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), name
    for name, gradient in gradients.items():
        scale = gradient.abs().max()
        assert (captured[name] - gradient).abs().max() <= 2e-4 * scale + 1e-9, name


def test_the_draws_of_a_step_depend_on_seed_and_step_alone(recipe: Recipe) -> None:
    first, again, later = draw_step(recipe, 4), draw_step(recipe, 4), draw_step(recipe, 5)
    assert (first.masks == again.masks).all()
    assert (first.masks != later.masks).any()
    assert (first.views.globals.jitter_factors == again.views.globals.jitter_factors).all()
    assert isinstance(first.drops, DropPath)
    assert all(torch.equal(a, b) for a, b in zip(first.drops.draws, again.drops.draws, strict=True))


class Crossings(TorchDispatchMode):
    """Counts copies from one device to another."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += func == torch.ops.aten._to_copy.default and args[0].device != out.device
        return out


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("encoder", "drop_path_form", "subset"),
        ("encoder", "drop_path_form", "sample"),
        ("objective", "ibot_weight", 0.0),
    ],
)
def test_what_is_not_pixels_goes_to_the_device_in_one_copy(recipe: Recipe, part: str, name: str, value: Any) -> None:
    """To one without memory, which is not the host either."""
    recipe = changed(recipe, part, **{name: value})
    draws, b = draw_step(recipe, 0), recipe.run.batch
    address = torch.arange(b).numpy()
    parallel = spread(Networks(recipe), recipe, torch.device("cpu"), "fp32")
    here = micro_batch([torch.zeros(2 * b, 3, 32, 32)], draws.masks, draws.drops, address, parallel)
    crops = [torch.zeros(2 * b, 3, 32, 32, device="meta")]
    with Crossings() as seen:
        away = replace(parallel, device=torch.device("meta"))
        there = micro_batch(crops, draws.masks, draws.drops, address, away)
    assert seen.count == 1
    assert len(there.drops.draws) == len(draws.drops.draws) == 2
    for one, other in zip(tensors_of(here), tensors_of(there), strict=True):
        assert (other.shape, other.dtype, other.device.type) == (one.shape, one.dtype, "meta")


def test_on_the_cpu_a_micro_batch_shares_the_memory_of_its_draws(recipe: Recipe) -> None:
    draws, b = draw_step(recipe, 0), recipe.run.batch
    parallel = spread(Networks(recipe), recipe, torch.device("cpu"), "fp32")
    address = torch.arange(b).numpy()
    batch = micro_batch([torch.zeros(2 * b, 3, 32, 32)], draws.masks, draws.drops, address, parallel)
    assert batch.address.data_ptr() == address.ctypes.data
    assert batch.masks.data_ptr() == draws.masks.ctypes.data
    assert [d.data_ptr() for d in batch.drops.draws] == [d.data_ptr() for d in draws.drops.draws]
    counts = draws.masks.sum(axis=1)
    assert batch.hidden.tolist() == [n for n, hidden in enumerate(draws.masks.flatten()) if hidden]
    assert batch.patch_weight.tolist() == pytest.approx([1 / n for n in counts for _ in range(n)])
    arrays = [tensor.numpy() for tensor in tensors_of(batch)]  # as they would travel
    for tensor, array in zip(unpack(pack(arrays), arrays), arrays, strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))


def tensors_of(batch: MicroBatch) -> list[torch.Tensor]:
    """All tensors of a micro-batch, its drop path's last."""
    values = [getattr(batch, field.name) for field in fields(batch)]
    flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
    return [x for x in [*flat, *batch.drops.draws] if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "centering"},
        {"uniformity": "koleo"},
        {"uniformity": "none"},
        {"ibot_weight": 0.0, "targets": "centering", "train_gain": False},
        {"shared_head": True, "ibot_prototypes": 16},
        {"uniformity": "kde-inverted"},
    ],
)
def test_other_objectives_train_too(recipe: Recipe, plan: TilePlan, changes: dict) -> None:
    recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update=changes)})
    networks = Networks(recipe)
    optimizer = make_optimizer(recipe, networks)
    values = make_schedules(recipe.optim, 6, 8).at(3)
    before = copy.deepcopy(networks.state_dict())
    for tiles in TileStream(plan, 8, steps=2):
        losses = step(networks, optimizer, recipe, tiles, draw_step(recipe, tiles.step), values)
    assert torch.isfinite(losses["loss"])
    assert ("loss/ibot" in losses) == (recipe.objective.ibot_weight > 0)
    moved = {name for name, value in networks.state_dict().items() if not torch.equal(value, before[name])}
    assert "student.encoder.blocks.0.attn.qkv.weight" in moved
    assert "teacher.encoder.blocks.0.attn.qkv.weight" in moved
    assert ("dino_center" in moved) == (recipe.objective.targets == "centering")
    assert ("student.dino.last_layer.weight_g" in moved) == recipe.objective.train_gain


def test_learning_lowers_the_loss_on_repeated_tiles(recipe: Recipe, plan: TilePlan) -> None:
    networks = Networks(recipe)
    optimizer = make_optimizer(recipe, networks)
    values = {
        **make_schedules(recipe.optim, 6, 8).at(3),
        "lr": 3e-3,
        "encoder_lr": 3e-3,
        "last_layer_lr": 3e-3,
        "momentum": 0.99,
    }
    tiles, draws = next(iter(TileStream(plan, 8))), draw_step(recipe, 0)
    losses = [step(networks, optimizer, recipe, tiles, draws, values)["loss"].item() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3


def test_a_shared_head_is_the_dino_head_for_both(recipe: Recipe, plan: TilePlan) -> None:
    shared = changed(recipe, "objective", shared_head=True, ibot_prototypes=16)
    networks = Networks(shared)
    assert networks.student.ibot is None
    own = Networks(changed(recipe, "objective", ibot_prototypes=16))
    own.load_state_dict(
        {**networks.state_dict()}
        | {name.replace("dino.", "ibot."): value for name, value in networks.state_dict().items() if ".dino." in name}
    )
    tiles, draws = next(iter(TileStream(plan, 8))), draw_step(recipe, 0)
    values = {**make_schedules(recipe.optim, 6, 8).at(3), "momentum": 1.0}
    losses = step(networks, make_optimizer(shared, networks), shared, tiles, draws, values)
    twin = step(own, make_optimizer(recipe, own), recipe, tiles, draws, values)
    assert losses["loss"].item() == pytest.approx(twin["loss"].item(), rel=1e-6)


def test_heads_first_leaves_the_encoder_alone(recipe: Recipe, plan: TilePlan) -> None:
    recipe = changed(recipe, "optim", freeze_encoder_steps=2, warmup_steps=0, freeze_last_layer_steps=0)
    networks, schedules = Networks(recipe), make_schedules(recipe.optim, 6, 8)
    optimizer = make_optimizer(recipe, networks)
    before = copy.deepcopy(networks.state_dict())
    moved = []
    for tiles in TileStream(plan, 8, steps=3):
        step(networks, optimizer, recipe, tiles, draw_step(recipe, tiles.step), schedules.at(tiles.step))
        after = networks.state_dict()
        moved.append({name for name in after if not torch.equal(after[name], before[name])})
    for early in moved[:2]:
        assert "student.dino.mlp.0.weight" in early
        assert not any(".encoder." in name for name in early)
    assert "student.encoder.blocks.0.attn.qkv.weight" in moved[2]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_blocks_give_the_same_step(recipe: Recipe, plan: TilePlan, recompute: str) -> None:
    tiles, draws = next(iter(TileStream(plan, 8))), draw_step(recipe, 0)
    values = make_schedules(recipe.optim, 6, 8).at(3)
    ends = []
    for kind in ("none", recompute):
        chosen = changed(recipe, "parallel", recompute=kind)
        networks = Networks(chosen)
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: (kept.append(x), x)[1], lambda x: x):
            losses = step(networks, make_optimizer(chosen, networks), chosen, tiles, draws, values)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
        ends.append((losses["loss"], networks.state_dict(), sum(storages.values())))
    assert torch.equal(ends[0][0], ends[1][0])
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in ends[0][1])
    assert ends[1][2] < 0.8 * ends[0][2]
