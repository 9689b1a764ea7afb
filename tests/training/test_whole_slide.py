"""Exact gradients of the whole-slide step: every strategy and chunk size against one ordinary graph over all tiles.

test_whole_slide_processes.py spreads the same step over processes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from eosin.errors import DataError, RecipeError
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_encode import SlideForward, encode_slide
from eosin.models.pyramid_tiles import NetworkTiles
from eosin.models.slide_task import SlideTask
from eosin.randomness import Words
from eosin.tiles.pyramid_grid import RegionGrid
from eosin.training.whole_slide import (
    KeptVectors,
    SlideObjective,
    SlideSample,
    WholeSlideSettings,
    accumulate_slide,
    label_weight,
    slide_shares,
    task_weights,
    whole_slide_step,
)
from eosin.training.whole_slide.attention import attention_spread

from .whole_slide_cases import (
    SEED,
    SIZES,
    STEP,
    TASKS,
    TILE_PX,
    Gradients,
    RegionTerm,
    config,
    objective,
    pyramid,
    sample,
    samples,
    slow_twin,
    step_gradients,
    tile_head,
)

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
STRATEGIES = ["full", "checkpoint", "offload", "multi-pass"]


def distance(dtype: torch.dtype, region_grad: bool, pool: str = "cls", depth: int = 2, **settings: object) -> float:
    """How far the step's gradients are from the slow twin's."""
    network, head = pyramid(dtype, pool=pool, depth=depth), tile_head(dtype)
    expected = slow_twin(network, samples(), head, region_grad)
    assert len(expected) > (60 if depth else 40)
    chosen = WholeSlideSettings(region_grad=region_grad, **settings)  # type: ignore[arg-type]
    return step_gradients(network, samples(), head, chosen).distance(expected)


@pytest.mark.parametrize("region_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_multi_pass_is_the_gradient_of_one_graph(dtype: torch.dtype, chunk: int, region_grad: bool) -> None:
    assert distance(dtype, region_grad, tile_chunk=chunk, region_chunk=max(chunk // 7, 1)) <= LIMIT[dtype]


@pytest.mark.parametrize("region_grad", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_gives_it(strategy: str, region_grad: bool) -> None:
    assert distance(torch.float64, region_grad, strategy=strategy, tile_chunk=7, region_chunk=2) <= 1e-12
    assert distance(torch.float64, region_grad, pool="gated", strategy=strategy, tile_chunk=9) <= 1e-12


@pytest.mark.parametrize("region_grad", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_attention_alone_over_standardised_vectors_gives_it(strategy: str, region_grad: bool) -> None:
    assert distance(torch.float64, region_grad, depth=0, strategy=strategy, tile_chunk=7, region_chunk=2) <= 1e-12


def test_kept_pixels_vectors_on_the_host_and_several_readers_give_it() -> None:
    settings = {"keep_pixels": True, "vectors": "host", "readers": 3, "ahead": 4}
    assert distance(torch.float64, True, tile_chunk=7, region_chunk=2, **settings) <= 1e-12


def test_region_grad_makes_a_difference_and_drop_path_is_on() -> None:
    network, head = pyramid(), tile_head(torch.float64)
    ends = [slow_twin(network, samples(), head, on) for on in (False, True)]
    assert ends[1].distance(ends[0]) > 1e-3
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0] if not name.startswith("0.tile"))
    for one in samples():
        draws = SlideDraws(SEED, STEP, one.slide)
        if one.grid.tiles > 1:
            assert float((draws.tiles(network.tile.rates, one.grid, 0, one.grid.tiles) == 0).double().mean()) > 0.02


def test_randomness_keyed_by_chunk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    network, head = pyramid(), tile_head(torch.float64)
    expected = slow_twin(network, samples(), head, True)
    chunks = Counter[str]()

    def by_chunk(self: SlideDraws, rates: list[float], grid: RegionGrid, first: int, last: int) -> Tensor:
        """What a generator that runs on from chunk to chunk gives."""
        chunks["drawn"] += 1
        keep = 1 - torch.tensor(rates, dtype=torch.float64)[:, None, None]
        numbers = Words(SEED, "chunk", chunks["drawn"]).uniform(len(rates), 2, last - first)
        return (torch.from_numpy(numbers) < keep) / keep

    monkeypatch.setattr(SlideDraws, "tiles", by_chunk)
    settings = WholeSlideSettings(tile_chunk=7, region_chunk=2, region_grad=True)
    assert step_gradients(network, samples(), head, settings).distance(expected) > 0.01


def test_slides_add_up_and_gradients_that_are_there_stay() -> None:
    network, settings = pyramid(), WholeSlideSettings(tile_chunk=7)
    goal = objective(samples())
    whole_slide_step(network, samples(), settings, seed=SEED, step=STEP, objective=goal)
    together = Gradients.of(network)
    for one in reversed(samples()):  # one after another, in another order
        accumulate_slide(network, one, settings, SlideDraws(SEED, STEP, one.slide), goal)
    assert Gradients.of(network).distance(together) <= 1e-12


def test_weighted_losses_are_means_over_all_present_labels() -> None:
    network = pyramid(drop_path=0.0)
    weights = {"subtype": 3**-0.5, "msi": 0.5, "age": 1.0, "os": 3**-0.5}
    assert task_weights(TASKS, {"msi": 0.5}) == pytest.approx(weights)
    divisor = label_weight(TASKS, [one.targets for one in samples()], {"msi": 0.5})
    assert divisor == pytest.approx(2 * weights["subtype"] + 2 * 0.5 + 2 * 1.0 + 2 * weights["os"])
    result = whole_slide_step(
        network, samples(), WholeSlideSettings(), seed=SEED, step=STEP, objective=objective(samples())
    )
    ages = [0.3, math.nan, -0.4]
    for one, age, slide in zip(result.slides, ages, samples(), strict=True):
        logits = encode_slide(network, slide.grid, slide.read).outputs
        torch.testing.assert_close(one.outputs, logits, rtol=1e-10, atol=1e-10)
        wanted = 0.0 if math.isnan(age) else (float(logits["age"]) - age) ** 2 / divisor
        assert float(one.losses["age"]) == pytest.approx(wanted, rel=1e-9)
        assert (one.tiles, one.regions) == (slide.grid.tiles, len(slide.grid))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bf16_goes_the_same_way(strategy: str) -> None:
    network, head = pyramid(torch.float32), tile_head(torch.float32)
    expected = slow_twin(network, samples(), head, True)
    settings = WholeSlideSettings(strategy=strategy, precision="bf16", tile_chunk=16, region_grad=True)  # type: ignore[arg-type]
    found = step_gradients(network, samples(), head, settings)
    assert found.keys() == expected.keys()
    flat = [torch.cat([gradients[name].flatten() for name in expected]) for gradients in (found, expected)]
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.999


def test_bf16_runs_chunks_again_as_they_were() -> None:
    """Held graph and recomputation see the same chunks, so they agree to the last bits of bf16's sums."""
    network, head = pyramid(torch.float32), tile_head(torch.float32)
    ends = [
        step_gradients(network, samples(), head, WholeSlideSettings(strategy=way, precision="bf16", tile_chunk=16))  # type: ignore[arg-type]
        for way in ("full", "multi-pass")
    ]
    assert ends[1].distance(ends[0]) < 1e-4


class Counted:
    """Reads of each region."""

    def __init__(self, inner: SlideSample) -> None:
        self.inner, self.reads = inner, Counter[int]()
        self.sample = replace(inner, read=self.read)

    def read(self, region: int) -> npt.NDArray[np.uint8]:
        self.reads[region] += 1
        return self.inner.read(region)


def test_pixels_are_read_twice_or_kept_and_frozen_stages_are_not_run_again() -> None:
    network, goal = pyramid(), objective(samples())
    draws = SlideDraws(SEED, STEP, samples()[0].slide)

    def reads(**settings: object) -> set[int]:
        counted = Counted(samples()[0])
        accumulate_slide(network, counted.sample, WholeSlideSettings(**settings), draws, goal)  # type: ignore[arg-type]
        assert len(counted.reads) == len(counted.inner.grid)
        return set(counted.reads.values())

    assert reads() == {2}
    assert reads(keep_pixels=True) == {1}
    assert reads(strategy="full") == {1}
    Gradients.of(network)
    expected_heads = None
    for strategy in STRATEGIES:
        network.tile.requires_grad_(False)
        assert reads(strategy=strategy) == {1}
        found = Gradients.of(network)
        assert {name.split(".")[1] for name in found} == {"region", "slide", "heads"}
        network.region.requires_grad_(False)
        assert reads(strategy=strategy) == {1}
        found = Gradients.of(network)
        assert {name.split(".")[1] for name in found} == {"slide", "heads"}
        expected_heads = expected_heads or found
        assert found.distance(expected_heads) <= 1e-12
        network.requires_grad_(True)


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_vectors_of_a_stage_1_that_stands_still_are_made_once(strategy: str, depth: int) -> None:
    network, goal = pyramid(drop_path=0.0, depth=depth), objective(samples())
    network.tile.requires_grad_(False)
    settings, kept, found = WholeSlideSettings(strategy=strategy, tile_chunk=7), KeptVectors(1.0), []
    for place in (None, kept, kept):
        counted = Counted(samples()[0])
        draws = SlideDraws(SEED, STEP, counted.sample.slide)
        accumulate_slide(network, counted.sample, settings, draws, goal, kept=place)
        found.append((Gradients.of(network), sum(counted.reads.values())))
    assert [reads for _, reads in found] == [len(counted.inner.grid)] * 2 + [0]
    for gradients, _ in found[1:]:
        assert gradients.distance(found[0][0]) <= 1e-12
    kept.forget()
    assert kept.get(counted.sample.slide) is None
    small = KeptVectors(1e-3)
    small.put("large", torch.zeros(1000, 2))
    assert small.get("large") is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_labels_only_wanted_regions_are_read(strategy: str) -> None:
    network, counted = pyramid(), Counted(samples()[0])
    regions = RegionTerm(network)
    settings = WholeSlideSettings(strategy=strategy, tile_chunk=7, region_chunk=2, region_grad=True)  # type: ignore[arg-type]
    draws = SlideDraws(SEED, STEP, counted.inner.slide)
    result = accumulate_slide(network, counted.sample, settings, draws, region_loss=regions)
    found, one = Gradients.of(network), counted.inner
    assert set(counted.reads) == {r for r in range(len(one.grid)) if regions.wants(one.slide, r)}
    total = torch.zeros((), dtype=torch.float64)
    again = RegionTerm(network)
    for region in counted.reads:
        span = one.grid.span(region)
        again.see(one.slide, one.grid, region, one.read(region))
        factors = draws.tiles(network.tile.rates, one.grid, span.start, span.stop)
        vectors = network.tile(torch.from_numpy(one.read(region)), factors)
        total = total + again.loss(one.slide, one.grid, region, vectors)
    total.backward()
    assert found.distance(Gradients.of(network)) <= 1e-12
    assert result.losses == {}
    assert result.region_loss is not None
    assert float(result.region_loss) == pytest.approx(float(total.detach()), rel=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_network_as_stage_1(strategy: str) -> None:
    inner = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 4, 4), torch.nn.GELU(), torch.nn.Dropout(0.5), torch.nn.Flatten(), torch.nn.Linear(96, 10)
    )
    tiles = NetworkTiles(inner, 10, TILE_PX, (0.5,) * 3, (0.2,) * 3)
    generator = torch.Generator().manual_seed(0)
    network = Pyramid(config().model_copy(update={"tile": None}), TASKS, tiles, generator).double().train()
    goal, one = objective(samples()), samples()[0]
    draws = SlideDraws(SEED, STEP, one.slide)
    settings = WholeSlideSettings(strategy=strategy, tile_chunk=7, region_chunk=2)  # type: ignore[arg-type]
    accumulate_slide(network, one, settings, draws, goal)
    found, grid = Gradients.of(network), one.grid
    pixels = torch.from_numpy(np.concatenate([one.read(region) for region in range(len(grid))]))
    regions = network.encode_regions(
        network.tile(pixels), grid, 0, len(grid), draws.regions(network.region.rates, grid, 0, len(grid))
    )
    top = network.encode_slide(regions.grids, grid, draws.slide(network.slide.rates)).grids
    torch.stack(list(goal.terms(network.predict(top), one.targets).values())).sum().backward()
    assert found.distance(Gradients.of(network)) <= 1e-12
    tiles.network.append(torch.nn.BatchNorm1d(10))
    with pytest.raises(RecipeError, match="BatchNorm that learns"):
        accumulate_slide(network, one, settings, draws, goal)


def test_glass_changes_no_gradient() -> None:
    """The same tissue elsewhere on the slide: the same network drops the same branches."""
    network, one = pyramid(), samples()[0]
    settings, goal = WholeSlideSettings(), objective(samples())
    ends = []
    for shift in ((0, 0), (37, 5)):
        moved = sample(0, SIZES[0], shift)
        accumulate_slide(network, moved, settings, SlideDraws(SEED, STEP, one.slide), goal)
        ends.append(Gradients.of(network))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_attention_is_told() -> None:
    network, one = pyramid(), samples()[0]
    goal = objective(samples())
    told = accumulate_slide(network, one, WholeSlideSettings(), SlideDraws(0, 0, "a"), goal).attention
    seen = encode_slide(pyramid(drop_path=0.0), one.grid, one.read)
    assert set(told) == {
        f"attention/{part}_{what}" for part in ("tiles", "regions") for what in ("entropy", "max_times_n")
    }
    weights = seen.tile_attention.double()
    wanted = attention_spread(weights, "tiles")
    assert float(wanted["attention/tiles_max_times_n"]) == pytest.approx(float(weights.max()) * len(weights))
    assert 0 < float(told["attention/tiles_entropy"]) < 1
    even = attention_spread(torch.full((8,), 1 / 8), "x")
    assert [float(value) for value in even.values()] == pytest.approx([1, 1])
    single = attention_spread(torch.tensor([0.0, 1.0]), "x")
    assert [float(value) for value in single.values()] == [0, 2]


def test_slides_are_shared_out_evenly() -> None:
    tiles = [100, 5, 40, 60, 1, 30]
    shares = slide_shares(tiles, 3)
    assert sorted(number for share in shares for number in share) == list(range(6))
    assert max(sum(tiles[number] for number in share) for share in shares) == 100
    assert [len(share) for share in slide_shares([7], 3)].count(0) == 2
    with pytest.raises(DataError, match="slide 1 of the step has no tile"):
        slide_shares([3, 0], 2)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(RecipeError, match="survival needs time cuts"):
        SlideObjective((SlideTask("os", "survival"),), 1.0)
    with pytest.raises(RecipeError, match="no slide of this step has a label"):
        SlideObjective(TASKS, 0.0)
    with pytest.raises(RecipeError, match="a weight is given for task grade"):
        SlideObjective(TASKS, 1.0, {"grade": 1.0})
    with pytest.raises(RecipeError, match="weight of task msi must be above 0"):
        SlideObjective(TASKS, 1.0, {"msi": 0.0})
    broken = replace(samples()[0], read=lambda region: np.zeros((1, TILE_PX, TILE_PX, 3), np.uint8))
    with pytest.raises(DataError, match=r"a region of \d+ tiles was read as"):
        accumulate_slide(pyramid(), broken, WholeSlideSettings(), SlideDraws(0, 0, "a"), objective(samples()))


def test_settings_of_inference_are_part_of_the_step_s() -> None:
    assert set(SlideForward.model_fields) < set(WholeSlideSettings.model_fields)
