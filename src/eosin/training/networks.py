"""Student and teacher: an encoder and its heads, twice. Builds and holds them; `pretrain.py` says what they do."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eosin.models import DropPath, ProjectionHead, Scores, ViT
from eosin.training.recipe import Recipe


class Seen(NamedTuple):
    """What a branch makes of the crops of B tiles; G global crops and L local crops a tile."""

    cls: Tensor  # [G·B, D] of the global crops, before the head
    dino: Scores  # of the CLS tokens of all crops, [(G+L)·B] rows
    ibot: Scores | None  # of the hidden patches, [P] rows; None in a recipe without masked patches


class Branch(nn.Module):
    """An encoder with the heads that read it: `dino` for CLS, `ibot` for masked patches.

    `ibot` is absent where patches are not masked, and where they go through the same head.
    """

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        goal = recipe.objective
        self.encoder = ViT(recipe.encoder, generator)
        self.masks = goal.ibot_weight > 0
        if not self.masks:
            self.encoder.mask_token.requires_grad_(False)

        def head(prototypes: int, bottleneck: int) -> ProjectionHead:
            return ProjectionHead(
                recipe.encoder.width, prototypes, goal.head_hidden, bottleneck, 3, goal.train_gain, generator
            )

        self.dino = head(goal.dino_prototypes, goal.dino_bottleneck)
        own = self.masks and not goal.shared_head
        self.ibot = head(goal.ibot_prototypes, goal.ibot_bottleneck) if own else None

    def forward(
        self, crops: list[Tensor], masks: Tensor | None, drops: DropPath | None, hidden: Tensor | None = None
    ) -> Seen:
        """crops: of one or two sizes, globals first, [V·B, 3, H, W] each; masks: bool [G·B, N] of the globals, hidden
        from this branch; drops: drop path of exactly these crops; hidden: [P] positions in the flattened [G·B · N]
        whose patches are scored (none without it).
        """
        tokens = self.encoder(crops, [masks, *[None] * (len(crops) - 1)], drops)
        cls = torch.cat([part.cls for part in tokens])
        if hidden is None or not self.masks:
            return Seen(tokens[0].cls, self.dino(cls), None)
        patches = tokens[0].patches.flatten(0, 1).index_select(0, hidden)
        if self.ibot is not None:
            return Seen(tokens[0].cls, self.dino(cls), self.ibot(patches))
        both = self.dino(torch.cat([cls, patches]))
        return Seen(tokens[0].cls, both.rows(0, len(cls)), both.rows(len(cls), len(cls) + len(patches)))

    @property
    def heads(self) -> list[ProjectionHead]:
        return [head for head in (self.dino, self.ibot) if head is not None]

    @property
    def parts(self) -> list[nn.Module]:
        """What gradients are clipped by: encoder, DINO head, iBOT head."""
        return [self.encoder, *self.heads]


class Networks(nn.Module):
    """The student, which learns, and the teacher, its moving average; with the centers of DINO v1's targets."""

    def __init__(self, recipe: Recipe) -> None:
        """Weights are drawn from the recipe's seed; `start.py` puts others in their place."""
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.run.seed)
        self.student = Branch(recipe, generator)
        self.teacher = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)
        self.dino_center: Tensor
        self.ibot_center: Tensor
        self.register_buffer("dino_center", torch.zeros(1, recipe.objective.dino_prototypes))
        self.register_buffer("ibot_center", torch.zeros(1, recipe.objective.ibot_prototypes))
