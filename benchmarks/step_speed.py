"""Our DINOv2 step beside Meta's, in one run, turn by turn: images a second, and on a GPU memory and MFU.

python benchmarks/step_speed.py --dinov2 CHECKOUT [--device cuda] [--model vit_large_patch14] [--precision fp32 bf16]

Both sides get the same ready crops and masks on the device, and do the whole of a step from there: schedule values,
drop-path draws, teacher, targets, student, losses (KoLeo on both), backward, clip, AdamW, teacher's average. Theirs is
SSLMetaArch of facebookresearch/dinov2 with the calls of its training loop in their order, inside the shim that
benchmarks/parity lists. Reading tiles and making crops is outside on both sides, reading the losses is inside on theirs
as in their loop. bf16 is autocast on both sides: theirs would take FSDP's mixed precision. On a GPU "fp32" multiplies
in TF32 on both sides, which their code switches on.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.parity import dinov2_side, ours, shim
from benchmarks.parity.inputs import StepInput, step_inputs

from eosin.models import PRESETS, draw_drop_path
from eosin.optim import make_schedules
from eosin.randomness import Words
from eosin.training import Recipe, load_recipe
from eosin.training.estimate import flops_of
from eosin.training.networks import Networks
from eosin.training.parallel import spread
from eosin.training.prepare import make_optimizer
from eosin.training.pretrain import pretrain_step

DATASHEET_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of GPUs by a part of their name."""
DROP_PATH = {"small": 0.1, "base": 0.2, "large": 0.4, "giant": 0.4}
STEP = 50
"""The step whose schedule values are used: past warm-up, nothing frozen."""


@dataclass(frozen=True)
class Side:
    """One of the two: a name, and what runs one step."""

    name: str
    step: Callable[[], Any]


def recipe_of(args: argparse.Namespace) -> Recipe:
    """midnight-12k with KoLeo, in the asked size: the recipe that both sides run."""
    encoder = PRESETS[args.model].model_copy(
        update={"drop_path": DROP_PATH[args.model.split("_")[1]], "grid": 224 // 14}
    )
    recipe, _ = load_recipe(
        "midnight-12k",
        [
            "start=random",
            "objective.uniformity=koleo",
            "objective.uniformity_weight=0.1",
            f"objective.dino_prototypes={args.prototypes}",
            f"objective.ibot_prototypes={args.prototypes}",
            "optim.eps=1.0e-8",
            "optim.lr_rule=sqrt-1024",
            "optim.warmup_steps=10",
            "optim.teacher_temperature_steps=30",
            "optim.freeze_last_layer_steps=10",
            f"run.batch={args.batch}",
            f"run.group={args.batch}",
            "run.steps=1000",
            "parallel.accumulate=1",
            f"parallel.compile={args.compile}",
            f"parallel.recompute={args.recompute}",
        ],
    )
    return recipe.model_copy(update={"encoder": encoder})


def our_side(recipe: Recipe, networks: Networks, given: StepInput, device: torch.device, precision: str) -> Side:
    """eosin's step."""
    parallel = spread(networks, recipe, device, precision)
    optimizer = make_optimizer(recipe, networks)
    schedules = make_schedules(recipe.optim, recipe.run.steps, recipe.run.batch)
    numbers = itertools.count()
    crops = [crop.to(device) for crop in given.crops]

    def step() -> dict[str, torch.Tensor]:
        words = Words(recipe.run.seed, "drop path", next(numbers))
        drops = draw_drop_path(recipe.encoder, words, recipe.run.batch, given.drops.crops, recipe.run.group)
        batch = ours.batch_of(StepInput(crops, given.masks, drops), recipe.run.batch, parallel)
        return pretrain_step(networks, optimizer, recipe, batch, schedules.at(STEP), parallel)

    return Side("eosin", step)


def their_side(recipe: Recipe, networks: Networks, given: StepInput, device: torch.device, precision: str) -> Side:
    """The body of their training loop, in its order; the losses are read once a step, as it does."""
    train, architecture = import_module("dinov2.train.train"), import_module("dinov2.train.ssl_meta_arch")
    cfg = dinov2_side.settings_of(recipe, epoch=10)
    model = dinov2_side.build(recipe, cfg)
    dinov2_side.give_weights(model, networks)
    model.to(device).train()
    optimizer = train.build_optimizer(cfg, model.get_params_groups())
    schedules = train.build_schedulers(cfg)
    data = dinov2_side.collated(given, recipe, torch.float32)
    data = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in data.items()}
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def backward(loss: torch.Tensor) -> None:
        with torch.autocast(device.type, enabled=False):
            loss.backward()

    model.backprop_loss = backward

    def step() -> dict[str, float]:
        with ExitStack() as stack:
            stack.enter_context(shim.on_this_device(device))
            stack.enter_context(shim.without_fsdp(architecture))
            lr, weight_decay, momentum, temperature, last_layer_lr = (schedule[STEP] for schedule in schedules)
            train.apply_optim_scheduler(optimizer, lr, weight_decay, last_layer_lr)
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                losses = model.forward_backward(data, teacher_temp=temperature)
            for part in model.student.values():
                part.clip_grad_norm_(cfg.optim.clip_grad)
            optimizer.step()
            model.update_teacher(momentum)
            return {name: value.item() for name, value in losses.items()}

    return Side("dinov2", step)


def seconds(step: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Time of one call until the device is done: by the clock, and of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start, processor = time.perf_counter(), time.process_time()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - processor


def measure(recipe: Recipe, args: argparse.Namespace, precision: str) -> dict[str, dict[str, float]]:
    """Both sides turn by turn; on a GPU each side's peak memory in steps of its own before that."""
    device = torch.device(args.device)
    given = step_inputs(recipe, 1)[0]
    given = StepInput([crop.float() for crop in given.crops], given.masks, given.drops)
    builders = {"eosin": our_side, "dinov2": their_side}
    found: dict[str, dict[str, float]] = {name: {} for name in builders}
    if device.type == "cuda":
        for name, build in builders.items():
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            side = build(recipe, Networks(recipe), given, device, precision)
            for _ in range(2):
                side.step()
            found[name]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            del side
    sides = [build(recipe, Networks(recipe), given, device, precision) for build in builders.values()]
    warmup, steps = (5, 20) if device.type == "cuda" else (3, 5)  # until the allocator holds what a step needs
    for _ in range(warmup):
        for side in sides:
            side.step()
    times: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for turn in range(args.steps or steps):
        for side in sides if turn % 2 == 0 else sides[::-1]:
            times[side.name].append(seconds(side.step, device))
    for name, values in times.items():
        clock, processor = zip(*values, strict=True)
        found[name]["img_s"] = recipe.run.batch / statistics.median(clock)
        found[name]["slowest_over_fastest"] = max(clock) / min(clock)
        if device.type == "cpu":
            found[name]["img_per_processor_s"] = recipe.run.batch / statistics.median(processor)
    peak = next((peak for key, peak in DATASHEET_BF16.items() if key in _device_name(device)), None)
    if peak is not None and precision == "bf16":
        for row in found.values():
            row["mfu"] = row["img_s"] * flops_of(recipe).executed / peak
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dinov2", type=Path, required=True, help="checkout of facebookresearch/dinov2")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="vit_small_patch14", choices=[name for name in PRESETS if "patch14" in name])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prototypes", type=int, default=4096)
    parser.add_argument("--steps", type=int, help="timed steps of each side; 5 on a CPU, 20 on a GPU without")
    parser.add_argument("--threads", type=int, help="processor threads; torch's choice without")
    parser.add_argument("--compile", action="store_true", help="our blocks through torch.compile")
    parser.add_argument("--recompute", default="none", choices=["none", "selective", "full"], help="in our blocks")
    parser.add_argument(
        "--their-attention",
        default="sdpa",
        choices=["sdpa", "plain"],
        help="what stands in for xFormers: plain is faster in bf16 on a CPU",
    )
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    return parser.parse_args()


def main() -> None:
    """Print one line a side and precision, and the ratios. On a busy machine, one thread and the processor's time."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    dinov2_side.load(args.dinov2, device)
    shim.attention = shim.sdpa if args.their_attention == "sdpa" else shim.plain_attention
    warnings.simplefilter("ignore")
    recipe = recipe_of(args)
    flops = flops_of(recipe)
    print(
        f"{args.model}, batch {args.batch}, {args.prototypes} prototypes, 2x224 + 8x98, drop path"
        f" {recipe.encoder.drop_path}, {flops.executed / 1e9:.0f} GF a tile executed; {_device_name(device)},"
        f" {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    )
    results: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(args).items()}}
    for precision in args.precision:
        found = results[precision] = measure(recipe, args, precision)
        for name, row in found.items():
            print(f"{precision} {name:7s} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
        for key in ("img_s", "img_per_processor_s"):
            if key in found["eosin"]:
                print(f"{precision} ratio of {key}: {found['eosin'][key] / found['dinov2'][key]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
