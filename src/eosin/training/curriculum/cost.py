"""What a curriculum costs, worked out from its values: FLOPs and hours of both steps, memory of a process.

Counts as `training/estimate.py` does: a multiply-add is two, matrix products only. Nothing is run. Of slides it takes
how many tiles and regions they have on average; of step 1 without a cohort, regions that are full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from eosin.models.pyramid_config import StageConfig
from eosin.training.curriculum.config import RegionViews
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.estimate import (
    COMPUTE_BYTES,
    Precision,
    block_bytes,
    flops_of,
    forward_flops,
    layer_flops,
    memory_of,
)


@dataclass(frozen=True)
class SlideSizes:
    """Of the slides that step 2 takes. visits: slides in all of its optimiser steps together."""

    steps: int
    visits: int
    tiles: float
    """A slide, on average."""
    regions: float
    """A slide, on average."""
    largest: int
    """Tiles of the largest slide."""


@dataclass(frozen=True)
class CurriculumFlops:
    """Floating-point operations of all of step 1 and all of step 2, on all processes together."""

    step1: float
    step2: float


def curriculum_flops(recipe: CurriculumRecipe, sizes: SlideSizes | None) -> CurriculumFlops:
    """sizes: of the slides; without, step 2 is 0."""
    one, two = recipe.step1, recipe.step2
    tile = flops_of(recipe, recipe.parallel.accumulate).executed * recipe.run.batch
    first = tile * (one.tile_weight > 0) + _region_flops(recipe, one.regions) * (one.region_weight > 0)
    step1 = recipe.run.steps * first
    if sizes is None:
        return CurriculumFlops(step1, 0.0)
    a_step = tile * (two.tile_weight > 0) + _region_flops(recipe, two.regions) * (two.region_weight > 0)
    frozen = min(two.tile_frozen_slides, sizes.visits)
    # Without a graph, again with it, and back, which is twice as much; held graphs need no first pass.
    passes = {"multi-pass": 4, "checkpoint": 4, "offload": 4, "full": 3}[recipe.whole_slide.strategy]
    stage1 = forward_flops(recipe.encoder, recipe.pyramid.tile_px) * sizes.tiles
    tokens = sizes.tiles / max(sizes.regions, 1) + 1
    above = sizes.regions * stage_flops(recipe.pyramid.region, tokens)
    above += stage_flops(recipe.pyramid.slide, sizes.regions + 1)
    slides = (sizes.visits - frozen) * passes * stage1 + frozen * stage1 + sizes.visits * passes * above
    return CurriculumFlops(step1, sizes.steps * a_step + slides)


def stage_flops(stage: StageConfig, tokens: float) -> float:
    """One forward of stage 2 or 3 over a grid of so many tokens."""
    return stage.depth * layer_flops(stage.width, 2 * stage.mlp_ratio * stage.width**2, tokens)


def _region_flops(recipe: CurriculumRecipe, views: RegionViews) -> float:
    """DINO on the regions of one optimiser step: stage 1 of student and teacher, stage 2 of all views."""
    tiles = views.count * views.side**2
    stage1 = forward_flops(recipe.encoder, recipe.pyramid.tile_px) * (5 if recipe.whole_slide.region_grad else 2)
    wide = stage_flops(recipe.pyramid.region, views.global_side**2 + 1)
    small = stage_flops(recipe.pyramid.region, views.local_side**2 + 1)
    return tiles * stage1 + views.count * (2 * wide * 4 + views.local_count * small * 3)


@dataclass(frozen=True)
class CurriculumMemory:
    """Bytes that one process holds. DINO's batch and a chunk of a slide are there one after the other."""

    states: float
    """Student, teacher, gradients, both averages of Adam."""
    dino_batch: float
    slide_chunk: float
    """Stage 1 over `whole_slide.tile_chunk` tiles, or stage 2 over `region_chunk` regions, with a graph."""
    vectors: float
    """Tile vectors of the largest slide and their gradients."""
    saved: float
    """On disk, each time that gradients are saved between slides."""

    @property
    def total(self) -> float:
        return self.states + max(self.dino_batch, self.slide_chunk) + self.vectors


def curriculum_memory(
    recipe: CurriculumRecipe, processes: int, accumulate: int, precision: Precision, largest: int = 0
) -> CurriculumMemory:
    """Memory of each of `processes` processes; largest: tiles of the largest slide. For the multi-pass strategy."""
    with torch.device("meta"):
        networks = CurriculumNetworks(recipe, ())
    student = list(networks.student.parameters())
    learned = sum(p.numel() for p in student if p.requires_grad)
    whole = sum(p.numel() for p in student) + sum(p.numel() for p in networks.teacher.parameters())
    compute, master = COMPUTE_BYTES[precision], max(4, COMPUTE_BYTES[precision])
    dino = memory_of(recipe, processes, accumulate, "none", False, precision)
    patches = (recipe.pyramid.tile_px // recipe.encoder.patch) ** 2
    tokens = recipe.whole_slide.tile_chunk * (1 + recipe.encoder.registers + patches)
    stage1 = recipe.encoder.depth * tokens * sum(block_bytes(recipe.encoder, precision))
    region = recipe.pyramid.region
    numbers = compute * (8 + 2 * region.mlp_ratio) * region.width + master * 2 * region.width
    stage2 = region.depth * recipe.whole_slide.region_chunk * (recipe.pyramid.side**2 + 1) * numbers
    return CurriculumMemory(
        states=master * (whole + 3.0 * learned),
        dino_batch=dino.crops + dino.activations + dino.logits,
        slide_chunk=max(stage1, stage2),
        vectors=2.0 * master * recipe.encoder.width * largest * (recipe.whole_slide.vectors == "device"),
        saved=master * float(learned),
    )
