"""An optimiser step of the curriculum, top to bottom (after EXAONE Path 2.0, arXiv 2507.06639).

Step 1: DINO on a batch of tiles through stage 1, DINO on small regions through stage 2. Step 2: the same DINO on tiles,
DINO on large regions of the step's slides, and the slide labels through all three stages, exactly (`whole_slide`).
Weights stand still until all slides of the step are through: then one sum over processes, clip, AdamW, teacher. So
slides can be worked off one at a time, and what they gave is saved in between. All draws are functions of the seed, the
step, the slide and the place, so neither the order nor the number of processes changes the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eosin.distributed import World
from eosin.models.pyramid_draws import SlideDraws
from eosin.objectives.targets import target, update_center
from eosin.optim import clip_gradients, forget_last_layer, set_step_values, update_teacher
from eosin.progress import say
from eosin.randomness import Words
from eosin.tiles import TileBatch
from eosin.training.curriculum.config import RegionViews
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.partial import Partial, PartialFile, as_float, frozen, zero_gradients
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.curriculum.regions import RegionDino
from eosin.training.curriculum.slides import CurriculumSlides, SlideOrder, draw_regions, draw_small_regions
from eosin.training.curriculum.targets import SlideLabels
from eosin.training.method import StoppedWithinStep, Stopping
from eosin.training.parallel import Parallel
from eosin.training.pretrain import MicroBatch, dino_losses, draw_step, micro_batches, offset_of, weighted
from eosin.training.whole_slide import (
    KeptVectors,
    SlideObjective,
    SlideResult,
    WholeSlideSettings,
    accumulate_slide,
    label_weight,
    reduce_gradients,
    slide_shares,
)

ATTENTION = tuple(f"attention/{of}_{what}" for of in ("tiles", "regions") for what in ("entropy", "max_times_n"))


@dataclass
class Learning:
    """What every step of a run works with."""

    recipe: CurriculumRecipe
    networks: CurriculumNetworks
    optimizer: torch.optim.Optimizer
    parallel: Parallel
    settings: WholeSlideSettings
    slides: CurriculumSlides
    labels: SlideLabels
    order: SlideOrder | None
    file: PartialFile
    kept: KeptVectors

    @property
    def first_of_step2(self) -> int:
        """The optimiser step with which step 2 begins."""
        return self.recipe.run.steps


@dataclass(frozen=True)
class Work:
    """What one optimiser step learns from. slides: all of the step, of all processes."""

    step: int
    slides: Sequence[int]
    side: int
    views: RegionViews
    wanted: Mapping[int, Set[int]]
    weights: tuple[float, float]
    """Of DINO on tiles and on regions."""
    objective: SlideObjective | None = None
    still: tuple[torch.nn.Module, ...] = ()
    """Stages that learn nothing in this step."""


def work_of(learning: Learning, step: int) -> Work:
    """What optimiser step `step` of the run learns from."""
    recipe, slides, seed = learning.recipe, learning.slides, learning.recipe.run.seed
    if step < learning.first_of_step2:
        one = recipe.step1
        views, words = one.regions, Words(seed, "small regions", step)
        wanted = draw_small_regions(slides, views.side, views.count, views.min_tiles, words)
        return Work(step, sorted(wanted), views.side, views, wanted, (one.tile_weight, one.region_weight))
    two, place = recipe.step2, step - learning.first_of_step2
    assert learning.order is not None
    chosen = learning.order.of_step(place)
    views, words = two.regions, Words(seed, "regions", step)
    wanted = draw_regions(slides, chosen, views.side, views.count, views.min_tiles, words)
    tasks, weights = learning.labels.tasks, learning.labels.weights
    divisor = label_weight(tasks, [learning.labels.targets(slide) for slide in chosen], weights)
    objective = SlideObjective(tasks, divisor, weights, two.slide_weight) if two.slide_weight else None
    pyramid, seen = learning.networks.student.pyramid, place * learning.order.a_step
    still = [pyramid.tile] if seen < two.tile_frozen_slides else []
    still += [pyramid.region] if seen < two.region_frozen_slides else []
    weights_of_dino = (two.tile_weight, two.region_weight)
    return Work(step, chosen, views.side, views, wanted, weights_of_dino, objective, tuple(still))


def curriculum_step(
    learning: Learning, tiles: TileBatch, step: int, values: Mapping[str, float], stopping: Stopping
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """One optimiser step; `tiles`: of the DINO batch, this process's. values: the row of the schedules.

    Returns 0-d tensors whose mean over the processes is told, and a row for each slide that was learned from. Raises
    StoppedWithinStep, in all processes alike.
    """
    networks, recipe, world = learning.networks, learning.recipe, learning.parallel.world
    set_step_values(learning.optimizer, values)
    work = work_of(learning, step)
    region_dino = RegionDino(
        networks,
        work.views,
        {learning.slides.names[slide]: regions for slide, regions in work.wanted.items()},
        key=(recipe.run.seed, step),
        weight=work.weights[1],
        temperatures=(recipe.objective.student_temperature, values["teacher_temperature"]),
        autocast=learning.parallel.autocast,
        tile_chunk=learning.settings.tile_chunk,
    )
    with frozen(*work.still):
        done = learn_slides(learning, work, region_dino, stopping)
        losses = tile_dino(learning, tiles, step, values, work.weights[0])

    # What every process has learned, together; then the weights move, once.
    reduce_gradients(networks.student.parameters(), world)
    grad_norm = clip_gradients(networks.student.parts, recipe.optim.clip, recipe.optim.clip_by)
    learning.optimizer.step()
    if values["last_layer_frozen"] and recipe.optim.last_layer_freeze == "gradient":
        forget_last_layer(learning.optimizer)
    for taught, student in zip(networks.teacher.averaged, networks.student.averaged, strict=True):
        update_teacher(taught, student, values["momentum"])
    move_region_center(networks, region_dino, recipe.objective.center_momentum, world)
    zero_gradients(networks.student)

    device = grad_norm.device
    told = {name: torch.tensor(value * world.size, device=device) for name, value in done.losses.items()} | losses
    scale = {"loss/dino_global": work.weights[0], "loss/dino_local": work.weights[0]}  # the others hold their weight
    terms = [scale.get(name, 1.0) * value for name, value in told.items() if name.startswith("loss/")]
    return {"loss": torch.stack([torch.zeros_like(grad_norm), *terms]).sum(), **told, "grad_norm": grad_norm}, done.rows


def learn_slides(learning: Learning, work: Work, region_dino: RegionDino, stopping: Stopping) -> Partial:
    """Gradients of the slides of this process, from where an earlier start left off."""
    networks, world, every = learning.networks, learning.parallel.world, learning.recipe.step2.save_slides
    spread_slides = learning.settings.spread == "slides"
    counts = [tiles_to_learn(learning, work, slide) for slide in work.slides]
    mine = slide_shares(counts, world.size)[world.rank] if spread_slides else list(range(len(work.slides)))
    zero_gradients(networks.student)
    known = learning.file.read(work.step, networks.student) if work.objective is not None else None
    if not spread_slides and len(set(world.gather_objects(known.done if known else 0))) > 1:
        zero_gradients(networks.student)
        known = None  # files of different slides: begin again, together
    partial = known or Partial(work.step, losses=dict.fromkeys(told_of(learning, work), 0.0))
    if known is not None:
        say(f"{known.done} slides of optimiser step {work.step} had been learned from already")
        region_dino.logit_sum += known.sums["region_logits"].to(region_dino.logit_sum)
        region_dino.logit_count = int(known.sums["region_count"])

    def go_on() -> bool:
        """Learn from the slides that are left; whether it was asked to stop before the last one."""
        for slide in [work.slides[place] for place in mine][partial.done :]:
            stop = stopping() if spread_slides else world.any(stopping())
            if stop and work.objective is not None:
                return True
            result = learn_slide(learning, work, slide, region_dino)
            take(partial, learning, work, slide, result)
            if work.objective is not None and every and partial.done % every == 0 and partial.done < len(mine):
                if spread_slides:
                    save(learning, partial, region_dino)
                else:
                    world.agree(lambda: save(learning, partial, region_dino))
        return False

    stopped = world.agree(go_on) if spread_slides else go_on()
    stopped = world.any(stopped)
    if every and (stopped or work.objective is not None):  # what one process cannot write stops all
        world.agree(lambda: save(learning, partial, region_dino) if stopped or partial.done else None)
    if stopped:
        zero_gradients(networks.student)
        raise StoppedWithinStep
    return partial


def told_of(learning: Learning, work: Work) -> list[str]:
    """What the slides of the step are told by; the same on every process, whether or not it has a slide."""
    if work.objective is None:
        return ["loss/region"]
    return [*(f"loss/task/{task.name}" for task in learning.labels.tasks), "loss/region", *ATTENTION]


def tiles_to_learn(learning: Learning, work: Work, slide: int) -> int:
    """Tiles of a slide that the step runs through stage 1."""
    grid = learning.slides.regions(slide, work.side)
    assert grid is not None
    if work.objective is not None:
        return grid.tiles
    return max(int(sum(grid.counts[region] for region in work.wanted.get(slide, ()))), 1)


def learn_slide(learning: Learning, work: Work, slide: int, region_dino: RegionDino) -> SlideResult:
    """Add the gradient of one slide."""
    targets = learning.labels.targets(slide) if work.objective is not None else {}
    draws = SlideDraws(learning.recipe.run.seed, work.step, learning.slides.names[slide])
    with learning.slides.sample(slide, work.side, targets) as sample:
        return accumulate_slide(
            learning.networks.student.pyramid,
            sample,
            learning.settings,
            draws,
            work.objective,
            region_dino if work.views.count and work.weights[1] else None,
            learning.parallel.world if learning.settings.spread == "regions" else World(),
            kept_of(learning, work),
        )


def kept_of(learning: Learning, work: Work) -> KeptVectors | None:
    """Where tile vectors are kept: while stage 1 learns nothing and nothing of it is dropped."""
    tile = learning.networks.student.pyramid.tile
    if tile in work.still and not any(tile.rates):
        return learning.kept
    learning.kept.forget()
    return None


def take(partial: Partial, learning: Learning, work: Work, slide: int, result: SlideResult) -> None:
    """Write down what a slide gave: its part of the losses, and a row of labels and outputs."""
    partial.done += 1
    # Where regions are shared out, every process has the whole slide's losses, but its own regions' alone.
    share = 1.0 if learning.settings.spread == "slides" else 1.0 / learning.parallel.world.size
    for name, value in as_float(result.losses).items():
        partial.losses[f"loss/task/{name}"] += share * value
    if result.region_loss is not None:
        partial.losses["loss/region"] += float(result.region_loss.double())
    attention = as_float(result.attention)
    for name, value in attention.items():
        partial.losses[name] += share * value / len(work.slides)
    if work.objective is not None and (share == 1.0 or learning.parallel.world.is_first):
        outputs = {name: [float(x) for x in logits[0].float()] for name, logits in result.outputs.items()}
        row = {"step": work.step, "number": slide, "slide": result.slide, "tiles": result.tiles}
        partial.rows.append({**row, "outputs": outputs, **{k: round(v, 6) for k, v in attention.items()}})


def save(learning: Learning, partial: Partial, region_dino: RegionDino) -> None:
    """Save what the slides of this step gave so far."""
    partial.sums = {"region_logits": region_dino.logit_sum, "region_count": torch.tensor(region_dino.logit_count)}
    learning.file.write(partial, learning.networks.student)


def tile_dino(
    learning: Learning, tiles: TileBatch, step: int, values: Mapping[str, float], weight: float
) -> dict[str, Tensor]:
    """Add the gradient of `weight` times DINO on a batch of tiles; the terms, means over this process's tiles.

    What fails in one process stops all, before any of them waits for its gradients.
    """
    recipe, networks, parallel = learning.recipe, learning.networks, learning.parallel
    goal, temperature = recipe.objective, values["teacher_temperature"]
    if weight == 0:
        return {}

    def teach() -> tuple[list[MicroBatch], list[Tensor]]:
        batch = micro_batches(recipe, tiles, draw_step(recipe, step), parallel)
        with torch.no_grad(), parallel.autocast:
            return batch, [networks.teacher(part.crops[:1], None, None).dino.logits() for part in batch]

    batch, logits = parallel.world.agree(teach)  # [G·B, K] each
    offset = offset_of(logits, networks.dino_center, goal, temperature)

    def learn() -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for part, taught in zip(batch, logits, strict=True):
            with parallel.autocast:
                seen = networks.student(part.crops, None, part.drops)
            losses = dino_losses(seen.dino, target(taught, offset, temperature), part.tiles, goal)
            (weight * weighted(losses, goal) / len(batch) / parallel.world.size).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() / len(batch)
        return sums

    sums = parallel.world.agree(learn)
    if goal.targets == "centering":
        networks.dino_center.copy_(update_center(networks.dino_center, logits, goal.center_momentum))
    return sums


@torch.no_grad()
def move_region_center(networks: CurriculumNetworks, seen: RegionDino, momentum: float, world: World) -> None:
    """The center of DINO on regions follows the mean of the teacher's logits over the step's regions."""
    count = seen.logit_sum.new_tensor([float(seen.logit_count)])
    both = world.sum_(torch.cat([seen.logit_sum.flatten(), count]))
    if both[-1] > 0:
        networks.region_center.lerp_((both[:-1] / both[-1])[None], 1 - momentum)
