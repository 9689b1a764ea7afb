"""A transformer over the bag after TransMIL (Shao et al. 2021), with Nyström attention (Xiong et al. 2021).

Features -> 512 ReLU -> CLS token before the tiles -> x + Nyström(LN x) -> CLS + attention(LN x) -> LN -> a linear a
task. What differs from the published TransMIL, and why: it has no convolutional position encoding (PPEG) and no
convolution of the values, since both read the order of tiles in a file as geometry and refold the bag with its length;
the bag is not padded to a square with copies of its first tiles; landmarks are means of equal runs of the tiles that
are present, so padding changes nothing; the pseudo-inverse is scaled for each bag, not by a maximum over the batch;
and the last layer, of which the CLS token alone is read, attends exactly. Tiles have no positions, but landmarks
follow the order of the file. A bag of at most `landmarks` - 1 tiles is attended to exactly, up to the pseudo-inverse.
Nothing of size N x N is formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.models.mil.head import Dropout, Drops, MilHead, dropped
from eosin.models.mil.settings import TransformerSettings
from eosin.models.slide_task import SlideTask


class TransformerHead(MilHead):
    """Kind `transmil`. Attention branch "all": what the CLS token attends to in the last layer, averaged over heads.

    The CLS token's attention to itself is left out, and the rest scaled to sum 1 over the tiles.
    """

    branches = ("all",)
    settings: TransformerSettings

    def __init__(self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: TransformerSettings) -> None:
        super().__init__(kind, width, tasks, settings)
        hidden = settings.hidden
        if hidden % settings.heads:
            raise DataError(f"hidden {hidden} is not a multiple of {settings.heads} attention heads")
        self.hidden = nn.Linear(width, hidden)
        self.cls = nn.Parameter(torch.empty(1, 1, hidden))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.mix = nn.Linear(hidden, 3 * hidden, bias=False)
        self.mix_out = nn.Linear(hidden, hidden)
        self.read = nn.Linear(hidden, 3 * hidden, bias=False)
        self.read_out = nn.Linear(hidden, hidden)
        self.classifiers = nn.ModuleList(nn.Linear(hidden, task.outputs) for task in self.tasks)

    def dropouts(self) -> dict[str, Dropout]:
        """On the output of the Nyström layer (tiles, CLS) and of the last layer (CLS)."""
        rate, hidden = self.settings.dropout, self.settings.hidden
        return {
            "mix": Dropout(rate, hidden),
            "mix_cls": Dropout(rate, hidden, of_tiles=False),
            "read": Dropout(rate, hidden, of_tiles=False),
        }

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """See MilHead.compute; targets are not read."""
        settings = self.settings
        x = torch.relu(self.hidden(tiles))
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], dim=1)  # [B, 1 + N, hidden]
        present = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        q, k, v = split_heads(self.mix(self.norms[0](x)), settings.heads)
        mixed = self.mix_out(merge_heads(nystrom(q, k, v, present, settings.landmarks, settings.pinv_steps)))
        if drops:
            mixed = mixed * torch.cat([drops["mix_cls"], drops["mix"]], dim=1)
        x = x + mixed
        q, k, v = split_heads(self.read(self.norms[1](x)), settings.heads)
        scores = (q[:, :, :1] @ k.transpose(-1, -2)).masked_fill(~present[:, None, None], -torch.inf)
        weights = torch.softmax(scores, dim=-1)  # [B, heads, 1, 1 + N]
        read = dropped(self.read_out(merge_heads(weights @ v)), drops, "read")
        vector = self.norms[2](x[:, :1] + read)[:, 0]
        outputs = {task.name: linear(vector) for task, linear in zip(self.tasks, self.classifiers, strict=True)}
        attention = weights.mean(dim=1)[..., 1:]  # [B, 1, N]
        return {"outputs": outputs, "attention": attention / attention.sum(dim=-1, keepdim=True), "vector": vector}


def split_heads(x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, 3 · W] -> queries (scaled by 1 / sqrt d), keys and values, each [B, heads, T, d]."""
    q, k, v = x.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q * q.shape[-1] ** -0.5, k, v


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, T, d] -> [B, T, heads · d]."""
    return x.transpose(1, 2).flatten(2)


def nystrom(q: Tensor, k: Tensor, v: Tensor, present: Tensor, landmarks: int, steps: int) -> Tensor:
    """softmax(Q K̃ᵀ) · pinv(softmax(Q̃ K̃ᵀ)) · softmax(Q̃ Kᵀ) · V with landmarks Q̃, K̃: O(T · landmarks).

    q (scaled), k, v [B, heads, T, d]; present [B, T]. A bag of n present tokens has min(landmarks, n) landmarks: means
    of runs of tokens that follow each other, equal in length up to one. Rows of absent tokens mean nothing.
    """
    slots = min(landmarks, present.shape[1])
    count = present.sum(dim=1, keepdim=True)  # [B, 1]
    run = (present.cumsum(dim=1) - 1).clamp(min=0) * count.clamp(max=landmarks) // count  # [B, T], 0 .. slots - 1
    filled = torch.arange(slots, device=q.device) < count  # [B, slots]
    sizes = torch.zeros_like(filled, dtype=q.dtype).scatter_add(1, run, present.to(q.dtype))
    q_mean, k_mean = (run_means(x, run, present, sizes) for x in (q, k))
    hidden_slots = ~filled[:, None, None]
    to_landmarks = torch.softmax((q @ k_mean.transpose(-1, -2)).masked_fill(hidden_slots, -torch.inf), dim=-1)
    between = torch.softmax((q_mean @ k_mean.transpose(-1, -2)).masked_fill(hidden_slots, -torch.inf), dim=-1)
    between = between * filled[:, None, :, None]
    from_landmarks = (q_mean @ k.transpose(-1, -2)).masked_fill(~present[:, None, None], -torch.inf)
    gathered = torch.softmax(from_landmarks, dim=-1) @ v  # [B, heads, slots, d]
    return to_landmarks @ (pseudo_inverse(between, steps) @ gathered)


def run_means(x: Tensor, run: Tensor, present: Tensor, sizes: Tensor) -> Tensor:
    """Means of x [B, heads, T, d] over the present tokens of each run: [B, heads, slots, d], 0 in empty slots."""
    kept = x * present[:, None, :, None]
    sums = x.new_zeros(*x.shape[:2], sizes.shape[1], x.shape[3])
    sums = sums.scatter_add(2, run[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]), kept)
    return sums / sizes.clamp(min=1)[:, None, :, None]


def pseudo_inverse(a: Tensor, steps: int) -> Tensor:
    """Moore-Penrose inverse of a [..., m, m] by the third-order iteration of Razavi et al. 2014.

    Rows and columns of zeros stay zeros in the inverse, so unfilled landmarks take no part.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    scale = a.abs().sum(dim=-1).amax(dim=-1) * a.abs().sum(dim=-2).amax(dim=-1)
    inverse = a.transpose(-1, -2) / scale[..., None, None]
    for _ in range(steps):
        product = a @ inverse
        inner = product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - inner))
    return inverse
