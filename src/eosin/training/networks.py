"""Student and teacher: an encoder and its heads, twice. Builds and holds them; `pretrain.py` says what they do."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from eosin.errors import WeightsError
from eosin.models import ProjectionHead, ViT
from eosin.models.weights import load_encoder, read_state
from eosin.training.recipe import Recipe


class Branch(nn.Module):
    """An encoder with the heads that read it: `dino` for CLS, `ibot` for masked patches (absent where unused)."""

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        width, goal = recipe.encoder.width, recipe.objective
        self.encoder = ViT(recipe.encoder, generator)
        self.dino = ProjectionHead(
            width, goal.dino_prototypes, goal.head_hidden, goal.dino_bottleneck, 3, goal.train_gain, generator
        )
        self.ibot = (
            ProjectionHead(
                width,
                goal.ibot_prototypes,
                goal.head_hidden,
                goal.ibot_bottleneck,
                3,
                goal.train_gain,
                generator,
            )
            if goal.ibot_weight > 0
            else None
        )

    @property
    def heads(self) -> list[ProjectionHead]:
        return [head for head in (self.dino, self.ibot) if head is not None]

    @property
    def parts(self) -> list[nn.Module]:
        """What gradients are clipped by: encoder, DINO head, iBOT head."""
        return [self.encoder, *self.heads]


class Networks(nn.Module):
    """The student, which learns, and the teacher, its moving average; with the centers of DINO v1's targets."""

    def __init__(self, recipe: Recipe, with_start_weights: bool = True) -> None:
        """Weights are drawn from the recipe's seed; the encoder starts from `recipe.start` unless that is left out
        (a resumed run has its own). Raises WeightsError.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(recipe.run.seed)
        self.student = Branch(recipe, generator)
        if recipe.start != "random" and with_start_weights:
            load_start_weights(self.student.encoder, recipe.start)
        self.teacher = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)
        self.dino_center: Tensor
        self.ibot_center: Tensor
        self.register_buffer("dino_center", torch.zeros(1, recipe.objective.dino_prototypes))
        self.register_buffer("ibot_center", torch.zeros(1, recipe.objective.ibot_prototypes))


def load_start_weights(encoder: ViT, start: str) -> None:
    """Load a weights file, or a timm model's public weights by name, into `encoder`; strict after mapping.

    Raises WeightsError, one line, where the weights cannot be had or do not fit.
    """
    if Path(start).is_file():
        load_encoder(encoder, read_state(start))
        return
    import timm

    try:
        model = timm.create_model(start, pretrained=True, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds; the user needs one line
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"start {start!r} is neither a weights file nor a timm model whose weights can be had ({reason}); "
            "give start=FILE, or start=random"
        ) from error
    load_encoder(encoder, model.state_dict(), layout="timm")
