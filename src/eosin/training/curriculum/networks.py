"""Student and teacher of a curriculum run: the pyramid with two DINO heads, and the moving average of what DINO reads.

The teacher has stages 1 and 2 alone: nothing teaches stage 3 and the heads but the labels. Built so that the loop, the
monitor and the checkpoints of pre-training take them as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from eosin.models import ProjectionHead, ViT
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_stage import GridEncoder
from eosin.models.pyramid_tiles import VitTiles
from eosin.models.slide_task import SlideTask
from eosin.training.curriculum.lora import add_lora
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.networks import Branch, Networks


class _Stages(Branch):
    """Stages 1 and 2 and the DINO heads that read them; called as a `Branch`, stage 1 answers."""

    region_dino: ProjectionHead
    masks = False
    ibot = None

    def __init__(self) -> None:
        nn.Module.__init__(self)

    @property
    def tile(self) -> VitTiles:
        raise NotImplementedError

    @property
    def region(self) -> GridEncoder:
        raise NotImplementedError

    @property
    def encoder(self) -> ViT:  # type: ignore[override]
        """Stage 1."""
        return self.tile.vit

    @property
    def averaged(self) -> list[nn.Module]:
        """What the teacher has of the student."""
        return [self.tile, self.region, self.dino, self.region_dino]


class StudentStages(_Stages):
    """The whole pyramid."""

    def __init__(self, recipe: CurriculumRecipe, tasks: Sequence[SlideTask], generator: torch.Generator) -> None:
        super().__init__()
        self.pyramid = Pyramid(recipe.stages, tasks, generator=generator)
        self.encoder.mask_token.requires_grad_(False)
        self.dino = _dino_head(recipe, recipe.encoder.width, generator)
        self.region_dino = _dino_head(recipe, recipe.pyramid.region.width, generator)

    @property
    def tile(self) -> VitTiles:
        tile = self.pyramid.tile
        assert isinstance(tile, VitTiles)
        return tile

    @property
    def region(self) -> GridEncoder:
        return self.pyramid.region

    @property
    def parts(self) -> list[nn.Module]:
        """What gradients are clipped by."""
        return [*self.pyramid.stages.values(), self.dino, self.region_dino]


class TeacherStages(_Stages):
    """Copies of what DINO reads."""

    def __init__(self, student: StudentStages) -> None:
        super().__init__()
        self.own_tile, self.own_region, self.dino, self.region_dino = (copy.deepcopy(p) for p in student.averaged)

    @property
    def tile(self) -> VitTiles:
        return self.own_tile

    @property
    def region(self) -> GridEncoder:
        return self.own_region


class CurriculumNetworks(Networks):
    """Student, teacher, and the centers of the two DINO terms."""

    student: StudentStages
    teacher: TeacherStages

    def __init__(self, recipe: CurriculumRecipe, tasks: Sequence[SlideTask]) -> None:
        """Weights are drawn from the recipe's seed; `start_stage1` puts others in their place."""
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(recipe.run.seed)
        self.student = StudentStages(recipe, tasks, generator)
        if recipe.lora.rank:
            add_lora(self.student.encoder, recipe.lora.rank, recipe.lora.alpha, generator)
        self.follow()
        self.region_center: torch.Tensor
        for name in ("dino_center", "region_center"):
            self.register_buffer(name, torch.zeros(1, recipe.objective.dino_prototypes))

    def follow(self) -> None:
        """Make the teacher the student as it stands."""
        self.teacher = TeacherStages(self.student)
        self.teacher.requires_grad_(False)


def _dino_head(recipe: CurriculumRecipe, width: int, generator: torch.Generator) -> ProjectionHead:
    goal = recipe.objective
    return ProjectionHead(
        width, goal.dino_prototypes, goal.head_hidden, goal.dino_bottleneck, 3, goal.train_gain, generator
    )
