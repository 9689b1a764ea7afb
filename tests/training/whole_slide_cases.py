"""Small slides, pyramids and losses for the tests of whole-slide training, and the slow twin that they are held to."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eosin.models import EncoderConfig
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_config import PyramidConfig, StageConfig
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_stage import Grids
from eosin.models.slide_task import SlideTask
from eosin.randomness import Words
from eosin.tiles.pyramid_grid import RegionGrid, region_grid
from eosin.training.whole_slide import SlideObjective, SlideSample, WholeSlideSettings, whole_slide_step

TILE_PX, SIDE, SEED, STEP = 16, 4, 3, 11
SIZES = (61, 1, 38)
"""Tiles of the three slides."""
TASKS = (
    SlideTask("subtype", "classification", ("a", "b", "c")),
    SlideTask("msi", "binary"),
    SlideTask("age", "regression"),
    SlideTask("os", "survival", cuts=(1.0, 2.0)),
)
LABELS = [
    {"subtype": 2, "msi": -1, "age": 0.3, "os": (1.5, 1.0)},
    {"subtype": -1, "msi": 1, "age": float("nan"), "os": (2.5, 0.0)},
    {"subtype": 0, "msi": 0, "age": -0.4, "os": (float("nan"), float("nan"))},
]


def config(drop_path: float = 0.1, pool: str = "cls", depth: int = 2) -> PyramidConfig:
    """Three tiny stages of different widths; of depth 0, stages 2 and 3 are gated attention, 2's input standardised."""
    tile = EncoderConfig(width=24, depth=2, heads=2, patch=8, grid=2, drop_path=drop_path, layer_scale=0.3, registers=1)
    return PyramidConfig(
        tile=tile,
        tile_px=TILE_PX,
        region=StageConfig(
            width=16,
            depth=depth,
            heads=2,
            positions="table",
            drop_path=drop_path,
            enter="gelu",
            pool="cls" if depth else "gated",
            standardise=depth == 0,
        ),
        slide=StageConfig(
            width=32, depth=depth, heads=2, positions="rotary", drop_path=drop_path, pool=pool if depth else "gated"
        ),
        side=SIDE,
    )


def pyramid(dtype: torch.dtype = torch.float64, **settings: object) -> Pyramid:
    """Weights large enough that every branch matters."""
    made = Pyramid(config(**settings), TASKS, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            noise = torch.from_numpy(Words(1, number).normal(*parameter.shape))
            parameter.add_(0.15 * noise)
        if made.config.region.standardise:
            made.region.mean.copy_(torch.from_numpy(Words(1, "mean").normal(made.tile.width)))
            made.region.sd.copy_(torch.from_numpy(0.5 + Words(1, "sd").uniform(made.tile.width)))
    return made.to(dtype)


def targets_of(labels: dict[str, object]) -> dict[str, Tensor]:
    """One slide's labels as the losses take them."""
    return {
        task.name: torch.tensor([labels[task.name]], dtype=torch.int64 if task.has_classes else torch.float64)
        for task in TASKS
    }


def places(number: int, count: int, extent: int = 11) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`count` places on an extent × extent grid, with holes and whole regions missing."""
    chosen = Words(5, "places", number).permutations(extent * extent)[:count]
    return chosen // extent, chosen % extent


def pixels_of(number: int, count: int) -> npt.NDArray[np.uint8]:
    """Tiles of a slide, uint8 [count, S, S, 3], in the order of its list."""
    return Words(6, "pixels", number).integers(256, count, TILE_PX, TILE_PX, 3).astype(np.uint8)


def sample(number: int, count: int, shift: tuple[int, int] = (0, 0)) -> SlideSample:
    """Slide `number` with `count` tiles, its tissue moved down and right by whole tiles."""
    row, column = places(number, count)
    grid = region_grid(row + shift[0], column + shift[1], side=SIDE)
    pixels = pixels_of(number, count)

    def read(region: int) -> npt.NDArray[np.uint8]:
        return pixels[grid.order[grid.span(region)]]

    return SlideSample(f"slide-{number}", grid, read, targets_of(LABELS[number]))


def samples() -> list[SlideSample]:
    """The slides of a step."""
    return [sample(number, count) for number, count in enumerate(SIZES)]


def objective(samples: Iterable[SlideSample]) -> SlideObjective:
    """The loss of these slides."""
    return SlideObjective.of_step(TASKS, [one.targets for one in samples], {"msi": 0.5})


class TileTerm:
    """Stands for the DINO batch: a loss of some other tiles, with weights of its own."""

    def __init__(self, network: Pyramid, head: nn.Linear, share: tuple[int, int] = (0, 6)) -> None:
        self.network, self.head, self.share = network, head, share

    def __call__(self) -> Tensor:
        pixels = torch.from_numpy(pixels_of(99, 6))[slice(*self.share)]
        if not len(pixels):
            return self.head.weight.sum() * 0.0
        return (self.head(self.network.tile(pixels)) ** 2).sum() / 6


class RegionTerm:
    """Stands for region DINO: a loss on a view of every other region, through stage 2, against a teacher."""

    def __init__(self, network: Pyramid) -> None:
        self.network = network
        self.seen: dict[tuple[str, int], Tensor] = {}

    def wants(self, slide: str, region: int) -> bool:
        return region % 2 == 0

    def see(self, slide: str, grid: RegionGrid, region: int, pixels: npt.NDArray[np.uint8]) -> None:
        assert (slide, region) not in self.seen
        assert len(pixels) == grid.counts[region]
        self.seen[slide, region] = torch.from_numpy(pixels.mean(axis=(0, 1, 2)) / 255.0)

    def loss(self, slide: str, grid: RegionGrid, region: int, vectors: Tensor) -> Tensor:
        rows = grid.span(region)
        keep = torch.from_numpy((grid.row[rows] < 3) | (grid.column[rows] < 3))
        row, column = (torch.from_numpy(x[rows])[keep] for x in (grid.row, grid.column))
        view = self.network.region(vectors[keep], Grids((int(keep.sum()),), row, column), size=(SIDE, SIDE)).grids
        return 0.1 * ((view[0, :3] - self.seen[slide, region].to(view)) ** 2).sum()


class Gradients(dict[str, Tensor]):
    """Name of a weight -> its gradient."""

    @classmethod
    def of(cls, *modules: nn.Module) -> Gradients:
        """Those that there are, taken off the weights."""
        found = cls()
        for number, module in enumerate(modules):
            for name, parameter in module.named_parameters():
                # Softmax does not see a constant added to all scores: that gradient is 0, to rounding.
                if parameter.grad is not None and not name.endswith("gate.scores.bias"):
                    found[f"{number}.{name}"] = parameter.grad.detach().clone()
                parameter.grad = None
        return found

    def distance(self, other: Gradients) -> float:
        """Largest max|Δ| / max|g| over all weights."""
        assert self.keys() == other.keys()
        return max(
            float((self[name] - other[name]).abs().max() / other[name].abs().max().clamp(min=1e-300)) for name in other
        )


def slow_twin(network: Pyramid, samples: list[SlideSample], head: nn.Linear, region_grad: bool) -> Gradients:
    """One ordinary graph: all tiles in one batch, all regions in another, the sum of all losses, one backward."""
    total = TileTerm(network, head)()
    goal, regions = objective(samples), RegionTerm(network)
    for one in samples:
        grid, draws = one.grid, SlideDraws(SEED, STEP, one.slide)
        read = [one.read(region) for region in range(len(grid))]
        pixels = torch.from_numpy(np.concatenate(read))
        tiles = network.tile(pixels, draws.tiles(network.tile.rates, grid, 0, grid.tiles))
        factors = draws.regions(network.region.rates, grid, 0, len(grid))
        vectors = network.encode_regions(tiles, grid, 0, len(grid), factors).grids
        top = network.encode_slide(vectors, grid, draws.slide(network.slide.rates)).grids
        total = total + torch.stack(list(goal.terms(network.predict(top), one.targets).values())).sum()
        for region in range(len(grid)):
            if regions.wants(one.slide, region):
                regions.see(one.slide, grid, region, read[region])
                inward = tiles[grid.span(region)]
                total = total + regions.loss(one.slide, grid, region, inward if region_grad else inward.detach())
    total.backward()
    return Gradients.of(network, head)


def step_gradients(
    network: Pyramid, samples: list[SlideSample], head: nn.Linear, settings: WholeSlideSettings
) -> Gradients:
    """The same by the step."""
    whole_slide_step(
        network,
        samples,
        settings,
        seed=SEED,
        step=STEP,
        objective=objective(samples),
        tile_loss=TileTerm(network, head),
        region_loss=RegionTerm(network),
        modules=[head],
    )
    return Gradients.of(network, head)


def tile_head(dtype: torch.dtype) -> nn.Linear:
    """Weights that only the batch of tiles trains."""
    head = nn.Linear(24, 5).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(Words(8, "head").normal(5, 24)))
        head.bias.zero_()
    return head
