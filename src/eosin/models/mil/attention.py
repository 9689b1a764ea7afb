"""Gated attention over the tiles of a bag (Ilse et al. 2018, "Attention-based deep multiple instance learning")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eosin.models.mil.head import Dropout, Drops, MilHead, dropped
from eosin.models.mil.settings import AttentionSettings
from eosin.models.slide_task import SlideTask


class GatedAttention(nn.Module):
    """Scores w · (tanh(V h) ⊙ sigmoid(U h)) of each tile, one for each branch; without `gated`, w · tanh(V h)."""

    def __init__(self, hidden: int, width: int, branches: int, gated: bool) -> None:
        super().__init__()
        self.tanh = nn.Linear(hidden, width)
        self.gate = nn.Linear(hidden, width) if gated else None
        self.scores = nn.Linear(width, branches)

    def forward(self, hidden: Tensor, drops: Drops) -> Tensor:
        """[B, N, hidden] -> scores [B, branches, N], not yet softmaxed."""
        found = dropped(torch.tanh(self.tanh(hidden)), drops, "tanh")  # [B, N, width]
        if self.gate is not None:
            found = found * dropped(torch.sigmoid(self.gate(hidden)), drops, "gate")
        return self.scores(found).transpose(1, 2)


class AttentionHead(MilHead):
    """Features -> hidden ReLU -> gated attention: what ABMIL and CLAM share."""

    settings: AttentionSettings

    def __init__(
        self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: AttentionSettings, attention: int
    ) -> None:
        super().__init__(kind, width, tasks, settings)
        self.attention_width = attention
        self.hidden = nn.Linear(width, settings.hidden)

    def dropouts(self) -> dict[str, Dropout]:
        """One on the hidden tile vectors, one on each of the two halves of the attention network."""
        settings = self.settings
        inner = settings.dropout if settings.attention_dropout is None else settings.attention_dropout
        found = {
            "hidden": Dropout(settings.dropout, settings.hidden),
            "tanh": Dropout(inner, self.attention_width),
            "gate": Dropout(inner, self.attention_width),
        }
        return found if settings.gated else {name: found[name] for name in ("hidden", "tanh")}

    def attend(self, tiles: Tensor, present: Tensor, drops: Drops) -> tuple[Tensor, Tensor, Tensor]:
        """Bags -> hidden tile vectors [B, N, hidden], raw scores and softmaxed attention [B, branches, N]."""
        hidden = dropped(self.activated(self.hidden(tiles)), drops, "hidden")
        scores = self.attention(hidden, drops).masked_fill(~present[:, None], -torch.inf)
        return hidden, scores, torch.softmax(scores, dim=-1)

    def activated(self, hidden: Tensor) -> Tensor:
        """What is done to the hidden tile vectors after their linear."""
        return torch.relu(hidden)
