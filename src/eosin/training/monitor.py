"""What a run watches while it learns: label-free metrics of the teacher, how its prototypes are used, labelled probes
(probes.py), attention maps.

The tiles are drawn once from the run's own plan with another seed, so that numbers of different steps compare. Uses the
same evaluation code as `eosin eval`. Several processes share the work and make the same number of calls, as FSDP needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.distributed import World
from eosin.features import label_free
from eosin.features.encoder import Features, VitEncoder
from eosin.files import atomic_path
from eosin.models import Scores
from eosin.objectives.precision import at_least_fp32
from eosin.progress import progress_bar
from eosin.randomness import Words
from eosin.runs import RunFolder
from eosin.tiles import Source, TileBatch, TilePlan, TileStream
from eosin.training.attention import attention_to_patches, keep_attention
from eosin.training.networks import Networks
from eosin.training.probes import Probe, measure_probes, own_share
from eosin.training.recipe import Recipe
from eosin.views import denormalise, draw_views, render

SHOWN_TILES = 64  # tiles kept for the report
SHOWN_VIEWS = 8  # of them with their views
SHOWN_ATTENTION = 8  # of them with attention maps
BATCH = 64  # tiles embedded at once


def watched_tiles(plan: TilePlan, recipe: Recipe) -> TileBatch:
    """The tiles that label-free metrics look at: drawn from the run's sources with a seed of their own.

    `tiles.distinct_tiles` does not limit them: on ten distinct tiles no RankMe could be above ten. Nor do they share
    visits, which one batch could not use.
    """
    sources = TilePlan([_unlimited(source) for source in plan.sources], _watch_seed(plan.seed), plan.weights)
    return next(iter(TileStream(sources, recipe.run.monitor_tiles, steps=1)))


def _unlimited(source: Source) -> Source:
    unlimited = copy(source)
    unlimited.config = source.config.model_copy(update={"distinct_tiles": None, "tiles_per_visit": 1})
    return unlimited


def _watch_seed(seed: int) -> int:
    return int(Words(seed, "watched tiles").integers(2**40, 1)[0])


def keep_sample(batch: TileBatch, recipe: Recipe, run: RunFolder) -> None:
    """Keep some tiles, and the views of a few, in pictures/sample.npz for the report."""
    shown = min(SHOWN_VIEWS, len(batch.pixels))
    plan = draw_views(recipe.views, shown, Words(recipe.run.seed, "shown views"))
    crops = [denormalise(c, recipe.views) for c in render(batch.pixels[:shown], plan, recipe.views)]
    crops = [c.reshape(-1, shown, *c.shape[1:]).swapaxes(0, 1) for c in crops]  # [tiles, views, h, w, 3]
    arrays = {
        "tiles": batch.pixels[:SHOWN_TILES],
        "slide": np.array(batch.names[:SHOWN_TILES]),
        "mpp": batch.mpp[:SHOWN_TILES],
        **dict(zip(("globals", "locals"), crops, strict=False)),
    }
    with atomic_path(run.pictures / "sample.npz") as temporary, open(temporary, "wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


class CutShort(Exception):
    """The run stops, and there is no time left to watch. In all processes alike."""


class Monitor:
    """Looks at the teacher, on the watched tiles and on labelled probes. Every process calls it alike."""

    def __init__(self, recipe: Recipe, tiles: npt.NDArray[np.uint8], probes: Sequence[Probe] = ()) -> None:
        """tiles: uint8 [N, S, S, 3] for the label-free metrics."""
        self._recipe = recipe
        self._tiles = tiles
        self._probes = probes

    @torch.no_grad()
    def measure(
        self, networks: Networks, temperature: float, stopping: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """The numbers of the teacher as it stands; in the first process, the others get none.

        rankme, odcorr, uniformity of its CLS; teacher_entropy and prototypes_used (`Use`) of its DINO scores at
        `temperature`, that of its targets, and with `/ibot` behind the name of its iBOT scores; what the probes say
        (`measure_probes`). Where `stopping`, asked before each batch, says so in any process, all raise CutShort.
        """
        world, encoder = World.here(), teacher_encoder(networks, self._recipe, stopping)
        z, uses = self._embed(networks, encoder, temperature)
        told = measure_probes(self._probes, encoder, BATCH)
        if not world.is_first:
            return {}
        values = {name: float(getattr(label_free, name)(z)) for name in ("rankme", "odcorr", "uniformity")}
        for name, use in uses.items():
            values[f"teacher_entropy{name}"], values[f"prototypes_used{name}"] = use.mean_entropy, use.share
        return {**values, **told}

    def _embed(self, networks: Networks, encoder: VitEncoder, temperature: float) -> tuple[Tensor, dict[str, Use]]:
        """CLS [N, D] of all watched tiles, on every process, and how each head's prototypes are used.

        iBOT's are asked about one patch a tile, at another place in each.
        """
        teacher, count = networks.teacher, len(self._tiles)
        heads = {"": teacher.dino} | ({"/ibot": teacher.ibot or teacher.dino} if teacher.masks else {})
        mine = own_share(count)
        found: list[tuple[Tensor, ...]] = []
        with progress_bar("watching", len(mine), "tiles") as bar:
            for first in range(0, len(mine), BATCH):
                rows = mine[first : first + BATCH]
                seen = encoder.features(encoder.prepare(self._tiles[rows]))
                patches = seen.patches.flatten(1, 2)  # [b, n, D]
                one_each = patches[torch.arange(len(rows)), torch.from_numpy(rows) % patches.shape[1]]
                assert seen.cls is not None
                tokens = {"": seen.cls, "/ibot": one_each}
                asked = [entropy_and_winner(head(tokens[name]), temperature) for name, head in heads.items()]
                found.append((seen.cls.float(), *(part for pair in asked for part in pair)))
                bar.advance(len(rows))
        world = World.here()
        z, *told = (world.gather(torch.cat(parts))[:count].cpu() for parts in zip(*found, strict=True))
        sizes = [len(head.last_layer.weight_v) for head in heads.values()]
        uses = [Use(*pair) for pair in zip(told[::2], told[1::2], sizes, strict=True)]
        return z, dict(zip(heads, uses, strict=True))

    @torch.no_grad()
    def keep_attention(self, networks: Networks, step: int, run: RunFolder) -> None:
        """Attention maps of the first watched tiles into RUN/pictures, by the first process. Raises OutputError."""
        encoder = teacher_encoder(networks, self._recipe)
        maps = attention_to_patches(networks.teacher.encoder, encoder.prepare(self._tiles[:SHOWN_ATTENTION]))
        if World.here().is_first:
            keep_attention(maps, step, run)


class Use(NamedTuple):
    """How N tokens of the teacher use K prototypes, before targets are balanced over a batch.

    The entropy is between 0, every token on one prototype, and ln K, no token on any. Few prototypes in use while the
    entropy is low means that tokens are no longer told apart.
    """

    entropy: Tensor
    """[N] nats of each token's distribution."""
    winner: Tensor
    """[N] number of its strongest prototype."""
    prototypes: int

    @property
    def mean_entropy(self) -> float:
        return float(self.entropy.mean())

    @property
    def share(self) -> float:
        """Prototypes that are some token's strongest, of those that could be: min(N, K)."""
        return len(self.winner.unique()) / min(len(self.winner), self.prototypes)


def entropy_and_winner(scores: Scores, temperature: float) -> tuple[Tensor, Tensor]:
    """Entropy in nats [n] of softmax(logits / temperature) of each token, and its strongest prototype [n]."""
    logits = at_least_fp32(scores.logits())  # [n, K]
    logs = torch.log_softmax(logits / temperature, dim=-1)
    return -(logs.exp() * logs).sum(dim=-1), logits.argmax(dim=-1)


class _Stoppable(VitEncoder):
    """The teacher as long as the run goes on: CutShort where it stops, in all processes at the same batch."""

    def __init__(self, networks: Networks, stopping: Callable[[], bool], **identity: Any) -> None:
        super().__init__(networks.teacher.encoder, **identity)
        self._stopping = stopping

    def features(self, images: Tensor) -> Features:
        self._ask()
        return super().features(images)

    def unnormed(self, images: Tensor) -> Tensor:
        self._ask()
        return super().unnormed(images)

    def _ask(self) -> None:
        if World.here().any(self._stopping()):
            raise CutShort


def teacher_encoder(networks: Networks, recipe: Recipe, stopping: Callable[[], bool] = lambda: False) -> VitEncoder:
    """The teacher as it will be exported: CLS token, the recipe's global size and normalisation."""
    return _Stoppable(
        networks,
        stopping,
        name=recipe.name,
        width=recipe.encoder.width,
        input_size=recipe.views.global_px,
        mean=recipe.views.mean,
        std=recipe.views.std,
        pooling="cls",
    ).to(networks.dino_center.device)
