"""The whole-slide step, top to bottom: slide labels supervise the tile encoder, exactly, at bounded memory.

Five passes over a slide (design after EXAONE Path 2.0, arXiv 2507.06639; GradCache, Gao et al. 2021, stage by stage):
(a) stage 1 over chunks of tiles without a graph, outputs kept; (b) stage 2 over chunks of regions without a graph,
outputs kept; (c) stage 3 and the heads with an ordinary graph, backward to the region vectors; (d) each region chunk
again with its graph, its slice of the gradient pushed back to the tile vectors; (e) each tile chunk again, its slice
pushed back into stage 1. What each pass computes does not depend on chunks or processes, so their sum is the gradient
of the whole, to rounding. N tiles, R regions, d1, d2, d3 widths of the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from eosin.distributed import World
from eosin.errors import DataError
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_encode import slide_of, tile_shares
from eosin.models.pyramid_tiles import refuse_batch_norm
from eosin.training.whole_slide.attention import attention_spread
from eosin.training.whole_slide.kept import KeptVectors
from eosin.training.whole_slide.objective import SlideObjective
from eosin.training.whole_slide.passes import HeldGraph, Part, Recomputed
from eosin.training.whole_slide.reduce import reduce_gradients
from eosin.training.whole_slide.sample import RegionLoss, SlideSample, TileLoss
from eosin.training.whole_slide.settings import WholeSlideSettings

T = TypeVar("T")


@dataclass(frozen=True)
class SlideResult:
    """What one slide added. Tensors lie on the device without a graph; losses are this slide's part of the step's."""

    slide: str
    tiles: int
    regions: int
    losses: dict[str, Tensor] = field(default_factory=dict)
    """task -> 0-d."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """task -> logits [1, k], for metrics while training."""
    attention: dict[str, Tensor] = field(default_factory=dict)
    """attention/tiles_entropy, _max_times_n, attention/regions_…: 0-d (`attention_spread`)."""
    region_loss: Tensor | None = None
    """0-d, of this process's regions; none where no region of the slide is wanted."""


@dataclass(frozen=True)
class StepResult:
    """What a step added on this process."""

    slides: list[SlideResult]
    tile_loss: Tensor | None = None


def whole_slide_step(
    pyramid: Pyramid,
    samples: Iterable[SlideSample],
    settings: WholeSlideSettings,
    *,
    seed: int,
    step: int,
    objective: SlideObjective | None = None,
    tile_loss: TileLoss | None = None,
    region_loss: RegionLoss | None = None,
    modules: Sequence[nn.Module] = (),
    world: World | None = None,
) -> StepResult:
    """Gradients of one optimiser step, complete on every process; the caller clips and steps.

    samples: of this process where slides are shared out (see `slide_shares`; may be none), the same on all processes
    where regions are. modules: others whose weights `tile_loss` and `region_loss` train. Gradients are added to those
    that are there. An EosinError of one process is raised on all; where one dies, the others hear of it on the hosts,
    before they wait for its gradients.
    """
    world = world or World.here()

    def accumulate() -> list[SlideResult]:
        return [
            accumulate_slide(pyramid, one, settings, SlideDraws(seed, step, one.slide), objective, region_loss, world)
            for one in samples
        ]

    results = world.agree(accumulate) if settings.spread == "slides" else accumulate()
    of_tiles = world.agree(lambda: learned_tiles(tile_loss))
    reduce_gradients([p for module in (pyramid, *modules) for p in module.parameters()], world)
    return StepResult(results, of_tiles)


def learned_tiles(tile_loss: TileLoss | None) -> Tensor | None:
    """Add the gradient of the tile loss, where there is one; returns it, 0-d without a graph."""
    if tile_loss is None:
        return None
    loss = tile_loss()
    loss.backward()
    return loss.detach()


def accumulate_slide(
    pyramid: Pyramid,
    sample: SlideSample,
    settings: WholeSlideSettings,
    draws: SlideDraws,
    objective: SlideObjective | None = None,
    region_loss: RegionLoss | None = None,
    world: World | None = None,
    kept: KeptVectors | None = None,
) -> SlideResult:
    """Add the gradient of one slide's losses to the weights of this process; exchanges no gradients.

    Without an `objective` only the regions that the region loss wants are read. Drop path is drawn from `draws`,
    whatever mode the pyramid is in. kept: given where stage 1 stands still and drops nothing; tile vectors that lie
    there are not made again.
    """
    world = world or World.here()
    refuse_batch_norm(pyramid)
    spread = world.size > 1 and settings.spread == "regions"
    numbers = list(range(*sample.grid.shares(world.size)[world.rank])) if spread else list(range(len(sample.grid)))
    if objective is None:
        numbers = [n for n in numbers if region_loss is not None and region_loss.wants(sample.slide, n)]
    passes = whole = None
    if numbers:
        make = Recomputed if settings.strategy == "multi-pass" else HeldGraph
        part = Part(sample, numbers, settings.keep_pixels and make is Recomputed)
        whole = kept if len(numbers) == len(sample.grid) else None
        passes = make(pyramid, part, draws, settings, region_loss, whole.get(sample.slide) if whole else None)

    def together(work: Callable[[], T]) -> T:
        """What may fail is reading; where regions are shared out, all processes stop if one has to."""
        return world.agree(work) if spread else work()

    # (a) and (b): stages 1 and 2, forward.
    forward = partial(passes.forward, objective is not None) if passes is not None else lambda: (None, None)
    regions, shares = together(forward)
    if passes is not None and whole is not None:
        whole.put(sample.slide, passes.vectors)

    # (c) Stage 3 and the heads. Where regions are shared out, every process does this on all of them, one for all.
    result, slopes = SlideResult(sample.slide, sample.grid.tiles, len(sample.grid)), None
    if objective is not None:
        if spread:
            regions, shares = gathered(pyramid, sample, numbers, regions, shares, world)
        assert regions is not None
        assert shares is not None
        leads = not spread or world.is_first
        result, every = supervise(pyramid, sample, settings, draws, objective, regions, shares, leads)
        slopes = every[numbers[0] : numbers[-1] + 1] if numbers else None

    # (d) and (e): back through stages 2 and 1.
    term = together(partial(passes.backward, slopes) if passes is not None else lambda: None)
    if passes is not None and passes.wanted:
        result = replace(result, region_loss=term)
    return result


def supervise(
    pyramid: Pyramid,
    sample: SlideSample,
    settings: WholeSlideSettings,
    draws: SlideDraws,
    objective: SlideObjective,
    regions: Tensor,
    shares: Tensor,
    leads: bool,
) -> tuple[SlideResult, Tensor]:
    """Pass (c): the slide's losses from its region vectors [R, d2], and their gradient on them [R, d2].

    leads: add the gradient of stage 3 and the heads to their weights; another process has done so otherwise.
    """
    leaf = regions.detach().requires_grad_()
    with torch.enable_grad():
        seen, outputs = slide_of(pyramid, leaf, sample.grid, settings, draws)
        terms = objective.terms(outputs, sample.targets)
        total = torch.stack(list(terms.values())).sum()
    if leads:
        total.backward()
        slopes = leaf.grad
    else:
        (slopes,) = torch.autograd.grad(total, [leaf])
    assert slopes is not None
    assert seen.attention is not None
    of_tiles = tile_shares(seen.attention, shares, sample.grid)
    spread = {**attention_spread(of_tiles, "tiles"), **attention_spread(seen.attention, "regions")}
    result = SlideResult(
        sample.slide,
        sample.grid.tiles,
        len(sample.grid),
        {name: term.detach() for name, term in terms.items()},
        {name: logits.detach() for name, logits in outputs.items()},
        spread,
    )
    return result, slopes


def gathered(
    pyramid: Pyramid,
    sample: SlideSample,
    numbers: Sequence[int],
    regions: Tensor | None,
    shares: Tensor | None,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Region vectors [R, d2] and tile shares [N] of the whole slide; each process gives those of its regions.

    They are added up with zeros elsewhere, so processes may have any number of regions.
    """
    grid, like = sample.grid, pyramid.tile.mean
    vectors = like.new_zeros(len(grid), pyramid.config.region.width)
    of_tiles = torch.zeros(grid.tiles, device=like.device)
    if regions is not None and shares is not None:
        vectors[numbers[0] : numbers[-1] + 1] = regions
        of_tiles[int(grid.start[numbers[0]]) : int(grid.start[numbers[-1] + 1])] = shares.float()
    return world.sum_(vectors), world.sum_(of_tiles)


def slide_shares(tiles: Sequence[int], processes: int) -> list[list[int]]:
    """Which slides each process takes, so that tiles are spread evenly: largest first, to whoever has fewest.

    tiles: of each slide of the step. Raises DataError for a slide without tiles.
    """
    if any(count < 1 for count in tiles):
        raise DataError(f"slide {list(tiles).index(min(tiles))} of the step has no tile; leave it out")
    loads, taken = [0] * processes, [list[int]() for _ in range(processes)]
    for slide in sorted(range(len(tiles)), key=lambda number: (-tiles[number], number)):
        least = loads.index(min(loads))
        loads[least] += tiles[slide]
        taken[least].append(slide)
    return [sorted(some) for some in taken]
