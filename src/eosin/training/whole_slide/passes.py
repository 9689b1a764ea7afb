"""Stages 1 and 2 of a slide, forward and back, under each strategy: one interface, the same gradient.

`Recomputed` is the multi-pass strategy (GradCache, Gao et al. 2021, applied stage by stage): chunks run without a
graph, their outputs are kept as leaves, and chunks run again, one at a time, when the gradient of those is known.
`HeldGraph` keeps one graph over all tiles: as it is, with blocks that keep their input only (Chen et al. 2016), or with
those inputs in host memory as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_encode import region_spans, regions_of, tile_vectors
from eosin.models.pyramid_pixels import Pixels
from eosin.models.vit import Block
from eosin.tiles.pyramid_grid import RegionGrid
from eosin.training.whole_slide.sample import RegionLoss, SlideSample
from eosin.training.whole_slide.settings import WholeSlideSettings


class Part:
    """The regions of a slide that this process works on. numbers: theirs in the slide's grid, rising."""

    def __init__(self, sample: SlideSample, numbers: list[int], keep_pixels: bool) -> None:
        self.sample = sample
        self.numbers = numbers
        self.grid: RegionGrid = sample.grid.pick(numbers)
        self._kept: dict[int, Pixels] | None = {} if keep_pixels else None

    def read(self, place: int) -> Pixels:
        """Pixels of the region at `place` in `numbers`."""
        number = self.numbers[place]
        if self._kept is None:
            return self.sample.read(number)
        if number not in self._kept:
            self._kept[number] = self.sample.read(number)
        return self._kept[number]


class Passes(ABC):
    """Stages 1 and 2 over one part of a slide: `forward` once, then `backward` once."""

    vectors: Tensor
    """Of all tiles, once `forward` is through."""

    def __init__(
        self,
        pyramid: Pyramid,
        part: Part,
        draws: SlideDraws,
        settings: WholeSlideSettings,
        region_loss: RegionLoss | None,
        known: Tensor | None = None,
    ) -> None:
        """known: vectors of all tiles of the part, where a stage 1 that stands still has made them before."""
        self.pyramid, self.part, self.draws, self.settings = pyramid, part, draws, settings
        self.known = known
        self.grid = part.grid
        self.region_loss = region_loss
        slide = part.sample.slide
        self.wanted = {
            place
            for place, number in enumerate(part.numbers)
            if region_loss is not None and region_loss.wants(slide, number)
        }

    @abstractmethod
    def forward(self, regions: bool) -> tuple[Tensor, Tensor]:
        """Region vectors [R, d2] without a graph, and each tile's share in its region [N].

        regions: whether stage 2 is wanted at all; without, both are empty.
        """

    @abstractmethod
    def backward(self, slopes: Tensor | None) -> Tensor:
        """Add to the weights' gradients: what `slopes` [R, d2], the gradient of the region vectors, asks for, and the
        region loss. Returns the region loss, 0-d."""

    def see(self, place: int, pixels: Pixels) -> None:
        """Show the pixels of a wanted region to the region loss."""
        if place in self.wanted:
            assert self.region_loss is not None
            self.region_loss.see(self.part.sample.slide, self.part.sample.grid, self.part.numbers[place], pixels)

    def region_term(self, place: int, vectors: Tensor) -> Tensor:
        """The region loss of one region; vectors: of its tiles."""
        assert self.region_loss is not None
        inward = vectors if self.settings.region_grad else vectors.detach()
        sample = self.part.sample
        return self.region_loss.loss(sample.slide, sample.grid, self.part.numbers[place], inward)

    def rows(self, first: int, last: int) -> slice:
        """The tiles of regions first..last-1."""
        return slice(int(self.grid.start[first]), int(self.grid.start[last]))

    def tiles(self, first_time: bool) -> Iterator[tuple[slice, Tensor]]:
        """Stage 1, chunk by chunk: which tiles, and their vectors."""
        if self.known is not None and not self.wanted:
            yield slice(0, len(self.known)), self.known.to(self.pyramid.device)
            return
        seen = self.see if first_time else None
        for chunk in tile_vectors(self.pyramid, self.grid, self.part.read, self.settings, self.draws, seen):
            yield slice(chunk.first, chunk.last), chunk.vectors


class Recomputed(Passes):
    """What grows with the slide: tile vectors and their gradients, 2 · 4 · d1 bytes a tile."""

    def forward(self, regions: bool) -> tuple[Tensor, Tensor]:
        """See Passes."""
        self.vectors = self.room()
        empty = torch.empty(0, device=self.pyramid.device, dtype=self.vectors.dtype)
        found, shares = [empty], [empty]
        # On a CPU in bf16, attention takes another kernel where there is a graph (`vit.attend`); a chunk must run as it
        # will run again, so there it has a graph that is dropped at once.
        graph = self.settings.precision == "bf16" and self.pyramid.device.type == "cpu"
        with torch.set_grad_enabled(graph):
            for rows, vectors in self.tiles(first_time=True):
                self.vectors[rows] = vectors.detach()
            for span in region_spans(self.grid, self.settings.region_chunk) if regions else ():
                grids, share = self.regions(self.leaf(span), span, look=True)
                found.append(grids.detach())
                shares.append(share)
        return torch.cat(found), torch.cat(shares)

    def backward(self, slopes: Tensor | None) -> Tensor:
        """See Passes."""
        reaches_tiles = learns(self.pyramid.tile) and (
            slopes is not None or bool(self.wanted and self.settings.region_grad)
        )
        of_tiles = self.room() if reaches_tiles else None
        total = torch.zeros((), dtype=self.vectors.dtype, device=self.pyramid.device)
        if reaches_tiles or learns(self.pyramid.region) or self.wanted:
            for span in region_spans(self.grid, self.settings.region_chunk):
                leaf = self.leaf(span).requires_grad_(reaches_tiles)
                if slopes is not None and (reaches_tiles or learns(self.pyramid.region)):
                    torch.autograd.backward([self.regions(leaf, span)[0]], [slopes[slice(*span)]])
                total += self.region_losses(leaf, span)
                if of_tiles is not None:
                    rows = self.rows(*span)
                    of_tiles[rows] = leaf.grad if leaf.grad is not None else 0.0
        if of_tiles is not None:
            for rows, vectors in self.tiles(first_time=False):
                vectors.backward(of_tiles[rows].to(vectors.device, non_blocking=True))
        return total

    def region_losses(self, leaf: Tensor, span: tuple[int, int]) -> Tensor:
        """The region loss of a span's regions, each with its own backward into `leaf`."""
        total = torch.zeros((), dtype=leaf.dtype, device=leaf.device)
        begin = int(self.grid.start[span[0]])
        for place in sorted(self.wanted.intersection(range(*span))):
            own = self.grid.span(place)
            term = self.region_term(place, leaf[own.start - begin : own.stop - begin])
            term.backward()
            total += term.detach().to(total)
        return total

    def regions(self, leaf: Tensor, span: tuple[int, int], look: bool = False) -> tuple[Tensor, Tensor]:
        """Stage 2 of a span: region vectors, and each tile's share in its region (empty unless asked for)."""
        found = regions_of(self.pyramid, leaf, self.grid, span, self.settings, self.draws, look)
        return found.grids, found.attention if found.attention is not None else leaf.new_empty(0)

    def leaf(self, span: tuple[int, int]) -> Tensor:
        """Tile vectors of regions first..last-1, on the device, without history."""
        return self.vectors[self.rows(*span)].to(self.pyramid.device, non_blocking=True).detach()

    def room(self) -> Tensor:
        """Memory for a vector a tile."""
        on_host = self.settings.vectors == "host"
        device = torch.device("cpu") if on_host else self.pyramid.device
        pinned = on_host and self.pyramid.device.type == "cuda"
        shape = self.grid.tiles, self.pyramid.tile.width
        return torch.empty(*shape, dtype=self.pyramid.tile.mean.dtype, device=device, pin_memory=pinned)


class HeldGraph(Passes):
    """One graph over all tiles."""

    def forward(self, regions: bool) -> tuple[Tensor, Tensor]:
        """See Passes."""
        with self.saving(), torch.enable_grad():
            self.vectors = torch.cat([vectors for _, vectors in self.tiles(first_time=True)])
            empty = self.vectors.new_empty(0)
            self.of_regions, shares = empty, [empty]
            if regions:
                found = [
                    regions_of(
                        self.pyramid, self.vectors[self.rows(*span)], self.grid, span, self.settings, self.draws, True
                    )
                    for span in region_spans(self.grid, self.settings.region_chunk)
                ]
                self.of_regions = torch.cat([grids.grids for grids in found])
                shares = [grids.attention for grids in found if grids.attention is not None]
        return self.of_regions.detach(), torch.cat(shares)

    def backward(self, slopes: Tensor | None) -> Tensor:
        """See Passes."""
        with self.saving():
            terms = [self.region_term(place, self.vectors[self.grid.span(place)]) for place in sorted(self.wanted)]
        ends: list[Tensor] = list(terms)
        given: list[Tensor | None] = [None] * len(terms)
        if slopes is not None and self.of_regions.requires_grad:
            ends, given = [*ends, self.of_regions], [*given, slopes]
        if ends:
            torch.autograd.backward(ends, given)
        total = torch.zeros((), dtype=self.vectors.dtype, device=self.pyramid.device)
        return total + sum(term.detach() for term in terms)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What the graph keeps while it is built."""
        with ExitStack() as stack:
            if self.settings.strategy in ("checkpoint", "offload"):
                stack.enter_context(recomputed_blocks(self.pyramid))
            if self.settings.strategy == "offload":
                pinned = self.pyramid.device.type == "cuda"
                stack.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=pinned))
            yield


@contextmanager
def recomputed_blocks(pyramid: Pyramid) -> Iterator[None]:
    """Transformer blocks keep their input and are run again in backward; a stage 1 without blocks is one block."""
    blocks: list[tuple[nn.Module, str]] = [(m, "forward") for m in pyramid.modules() if isinstance(m, Block)]
    if not any(isinstance(module, Block) for module in pyramid.tile.modules()):
        blocks.append((pyramid.tile, "encode"))
    before = [vars(module).get(name) for module, name in blocks]
    for module, name in blocks:
        run = _block if isinstance(module, Block) else _whole
        setattr(module, name, partial(run, getattr(module, name)))
    try:
        yield
    finally:
        for (module, name), old in zip(blocks, before, strict=True):
            if old is None:
                delattr(module, name)
            else:
                setattr(module, name, old)


def _block(run: Any, pieces: list[Tensor], *rest: Any) -> list[Tensor]:
    """A block whose inputs are saved as tensors one by one, so that hooks on saved tensors see them."""
    return checkpoint(  # type: ignore[no-any-return]
        lambda *each: run(list(each), *rest), *pieces, use_reentrant=False, preserve_rng_state=False
    )


def _whole(run: Any, images: Tensor, factors: Tensor | None) -> Tensor:
    return checkpoint(run, images, factors, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]


def learns(module: nn.Module) -> bool:
    """Whether any of its weights is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())
