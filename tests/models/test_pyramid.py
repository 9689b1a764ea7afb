"""The pyramid: sizes, absent tiles, positions, stage 1 of any kind, and independence of glass and chunks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from eosin.errors import DataError, RecipeError
from eosin.models import EncoderConfig
from eosin.models.positions import rotate
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_config import PYRAMIDS, PyramidConfig, StageConfig
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_encode import SlideForward, SlideVectors, encode_slide
from eosin.models.pyramid_pixels import read_ahead, tile_chunks
from eosin.models.pyramid_stage import GridEncoder, Grids
from eosin.models.pyramid_tiles import NetworkTiles, refuse_batch_norm
from eosin.models.rotary import grid_rotation
from eosin.models.slide_task import SlideTask
from eosin.randomness import Words
from eosin.slides import Foreground
from eosin.tiles.grid import tissue_grid
from eosin.tiles.pyramid_grid import region_grid

TILE_PX, SIDE = 16, 4
TASK = SlideTask("msi", "binary")
TILE = EncoderConfig(width=24, depth=2, heads=2, patch=8, grid=2)


def stage(kind: str, pool: str = "cls") -> StageConfig:
    return StageConfig(width=16, depth=2, heads=2, positions=kind, pool=pool)  # type: ignore[arg-type]


def loud(module: nn.Module) -> nn.Module:
    """Weights large enough that every branch and position matters."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(0.2 * torch.from_numpy(Words(1, number).normal(*parameter.shape)))
    return module.double().eval()


def small(pool: str = "cls") -> Pyramid:
    config = PyramidConfig(tile=TILE, tile_px=TILE_PX, region=stage("table"), slide=stage("rotary", pool), side=SIDE)
    return loud(Pyramid(config, [TASK], generator=torch.Generator().manual_seed(0)))  # type: ignore[return-value]


# --- sizes -----------------------------------------------------------------------------------------------------------


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not is_mask_token(module, parameter))


def is_mask_token(module: nn.Module, parameter: Tensor) -> bool:
    """iBOT's token, which no published tile encoder counts."""
    return any(name.endswith("mask_token") and other is parameter for name, other in module.named_parameters())


def block_size(d: int, ratio: float) -> int:
    hidden = int(d * ratio)
    return 4 * d + (d * 3 * d + 3 * d) + (d * d + d) + (d * hidden + hidden) + (hidden * d + d)


def test_presets_have_the_published_sizes() -> None:
    with torch.device("meta"):
        exaone, hipt = Pyramid(PYRAMIDS["exaone"]), Pyramid(PYRAMIDS["hipt"])
    # ViT-B/16 with 256 patches and ViT-S/16, as published in millions.
    assert round(size_of(exaone.tile) / 1e6, 2) == 85.84
    assert round(size_of(hipt.tile) / 1e6, 2) == 21.69  # 21.67 with HIPT's position table of 14 × 14
    table_14 = 197 * 192
    assert round((size_of(hipt.region) - 257 * 192 + table_14) / 1e6, 2) == 2.78
    # Stages 2 and 3 from first principles: blocks, final norm, CLS, table; no linear where widths are equal.
    assert size_of(exaone.region) == 6 * block_size(768, 4) + 2 * 768 + 768 + 257 * 768
    assert size_of(exaone.slide) == 2 * block_size(768, 4) + 2 * 768 + 768
    gate = 2 * (192 * 192 + 192) + 192 + 1
    assert size_of(hipt.slide) == 192 * 192 + 192 + 2 * block_size(192, 1) + 2 * 192 + gate


def test_norms_are_layer_norms() -> None:
    with torch.device("meta"):
        for name in PYRAMIDS:
            norms = [m for m in Pyramid(PYRAMIDS[name]).modules() if "Norm" in type(m).__name__]
            assert {type(m) for m in norms} == {nn.LayerNorm}


# --- absent tiles ----------------------------------------------------------------------------------------------------


def padded_twin(encoder: GridEncoder, vectors: Tensor, grids: Grids, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same stage with background as masked padding: every grid whole, absent places in no softmax."""
    config, places = encoder.config, shape[0] * shape[1]
    out, tokens = [], []
    for rows in torch.arange(len(vectors)).split(list(grids.counts)):
        at = grids.row[rows] * shape[1] + grids.column[rows]
        x = torch.full((places, vectors.shape[1]), 17.0, dtype=vectors.dtype).index_copy(0, at, vectors[rows])
        x = encoder.entered(x)
        everywhere = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
        if encoder.pos_embed is not None:
            x = x + encoder.pos_embed[0, encoder.prefix :]
        seen = torch.zeros(places, dtype=torch.bool)
        seen[at] = True
        if encoder.cls_token is not None:
            head = (
                encoder.cls_token[0] if encoder.pos_embed is None else encoder.cls_token[0] + encoder.pos_embed[0, :1]
            )
            x, seen = torch.cat([head, x]), torch.cat([torch.ones(1, dtype=torch.bool), seen])
            everywhere = torch.cat([torch.zeros(1, 2, dtype=torch.int64), everywhere])
        d = config.width // config.heads
        turn = grid_rotation(everywhere[:, 0], everywhere[:, 1], d, config.rotary_base)
        for block in encoder.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).view(-1, 3, config.heads, d).permute(1, 2, 0, 3).unbind(0)
            if config.positions == "rotary":
                q, k = rotate(q, turn), rotate(k, turn)
            scores = (q @ k.transpose(-2, -1) / d**0.5).masked_fill(~seen, -torch.inf)
            x = x + block.attn.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
            x = x + block.mlp(block.norm2(x))
        x = encoder.norm(x)
        tokens.append(x[encoder.prefix :][at])
        if encoder.gate is not None:
            weights = encoder.gate(tokens[-1][None], {}).softmax(-1)[0, 0]
            out.append(weights @ tokens[-1])
        else:
            out.append(x[0])
    return torch.stack(out), torch.cat(tokens)


@pytest.mark.parametrize(("kind", "pool"), [("table", "cls"), ("rotary", "cls"), ("rotary", "gated")])
def test_absent_places_are_padding_that_nothing_attends_to(kind: str, pool: str) -> None:
    encoder = loud(GridEncoder(12, stage(kind, pool), SIDE))
    counts = (3, 3, 1, 16, 7)
    at = torch.cat([torch.from_numpy(np.sort(Words(2, n).permutations(16)[:c])) for n, c in enumerate(counts)])
    grids = Grids(counts, at // 4, at % 4)
    vectors = torch.from_numpy(Words(3).normal(sum(counts), 12))
    found = encoder(vectors, grids, look=True)
    wanted, tokens = padded_twin(encoder, vectors, grids, (4, 4))  # type: ignore[arg-type]
    torch.testing.assert_close(found.grids, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-12, atol=1e-12)
    sums = torch.stack([part.sum() for part in found.attention.split(counts)]).double()
    torch.testing.assert_close(sums, torch.ones(len(counts), dtype=torch.float64), rtol=1e-5, atol=1e-5)
    # One by one, they are what they are together.
    for number, rows in enumerate(torch.arange(sum(counts)).split(counts)):
        alone = encoder(vectors[rows], Grids((len(rows),), grids.row[rows], grids.column[rows])).grids
        torch.testing.assert_close(alone[0], found.grids[number], rtol=1e-12, atol=1e-12)


def test_without_blocks_a_stage_is_gated_attention_over_standardised_vectors() -> None:
    config = StageConfig(
        width=16, depth=0, heads=2, positions="table", pool="gated", enter="linear", standardise=True, drop_path=0.1
    )
    encoder = loud(GridEncoder(12, config, SIDE))
    assert encoder.pos_embed is None
    assert encoder.rates == ()
    assert {name for name, _ in encoder.named_buffers()} == {"mean", "sd"}
    vectors, counts = 5.0 + torch.from_numpy(Words(3).normal(9, 12)), (6, 3)
    encoder.mean.copy_(vectors.mean(dim=0))
    encoder.sd.copy_(vectors.std(dim=0))
    at = torch.arange(9) % 16
    found = encoder(vectors, Grids(counts, at // 4, at % 4), look=True)
    plain = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0)
    tokens = encoder.norm(encoder.enter(plain))
    for number, bag in enumerate(tokens.split(counts)):
        scores = encoder.gate.scores(torch.tanh(encoder.gate.tanh(bag)) * torch.sigmoid(encoder.gate.gate(bag)))
        weights = scores.softmax(dim=0)
        torch.testing.assert_close(found.grids[number], (weights * bag).sum(dim=0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.attention.split(counts)[number], weights[:, 0], rtol=1e-12, atol=1e-12)
    # Places mean nothing to it.
    moved = encoder(vectors, Grids(counts, at % 4, at // 4)).grids
    assert torch.equal(moved, found.grids)


def test_stages_that_cannot_be_are_refused() -> None:
    same = {"width": 16, "heads": 2, "positions": "rotary"}
    with pytest.raises(ValueError, match="depth 0 needs pool gated"):
        StageConfig(depth=0, **same)
    fine = StageConfig(depth=0, pool="gated", **same)
    with pytest.raises(ValueError, match="only tile vectors can be standardised"):
        PyramidConfig(region=fine, slide=StageConfig(depth=1, standardise=True, **same))
    # What was written before there was a choice is what it was.
    assert "standardise" not in fine.model_dump(mode="json")
    assert StageConfig(depth=1, standardise=True, **same).model_dump(mode="json")["standardise"] is True


def test_attention_of_cls_is_what_the_last_block_uses() -> None:
    encoder = loud(GridEncoder(12, stage("rotary"), SIDE))
    vectors, zeros = torch.from_numpy(Words(3).normal(5, 12)), torch.zeros(5, dtype=torch.int64)
    grids = Grids((5,), torch.arange(5), zeros)
    seen: list[Tensor] = []
    last = encoder.blocks[-1]
    hook = last.norm1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = encoder(vectors, grids, look=True).attention
    hook.remove()
    q, k, _ = last.attn.qkv(seen[-1]).view(6, 3, 2, 8).permute(1, 2, 0, 3).unbind(0)
    turn = grid_rotation(torch.tensor([0, 0, 1, 2, 3, 4]), torch.zeros(6, dtype=torch.int64), 8, 100.0)
    weights = (rotate(q, turn) @ rotate(k, turn).transpose(-2, -1) / 8**0.5).softmax(-1)[:, 0, 1:]  # [heads, 5]
    share = (weights / weights.sum(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(found.double(), share, rtol=1e-5, atol=1e-6)


def test_a_position_table_is_brought_to_views() -> None:
    encoder = loud(GridEncoder(12, stage("table"), SIDE))
    vectors = torch.from_numpy(Words(4).normal(9, 12))
    at = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    view = encoder(vectors, Grids((9,), at[:, 0], at[:, 1]), size=(3, 3)).grids
    own = encoder(vectors, Grids((9,), at[:, 0], at[:, 1])).grids
    assert not torch.allclose(view, own, atol=1e-3)


def test_rotary_positions_know_distances_only() -> None:
    q, k = torch.from_numpy(Words(5).normal(2, 1, 16)).float()
    found = []
    for row, column in [(0, 0), (7, 3), (40, 21)]:
        at_q = grid_rotation(torch.tensor([row]), torch.tensor([column]), 16, 100.0)
        at_k = grid_rotation(torch.tensor([row + 2]), torch.tensor([column + 5]), 16, 100.0)
        found.append(float((rotate(q, at_q) * rotate(k, at_k)).sum()))
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)
    elsewhere = grid_rotation(torch.tensor([3]), torch.tensor([5]), 16, 100.0)
    origin = grid_rotation(torch.tensor([0]), torch.tensor([0]), 16, 100.0)
    assert float((rotate(q, origin) * rotate(k, elsewhere)).sum()) != pytest.approx(found[0], abs=1e-3)


def test_vectors_that_do_not_fit_are_refused() -> None:
    encoder = GridEncoder(12, stage("table"), SIDE)
    at = torch.arange(3)
    with pytest.raises(RecipeError, match="4 vectors do not fit grids of 3 places"):
        encoder(torch.zeros(4, 12), Grids((3,), at, at))
    with pytest.raises(RecipeError, match="drop path was drawn as"):
        encoder(torch.zeros(3, 12), Grids((3,), at, at), factors=torch.ones(2, 2, 5))


# --- a slide ---------------------------------------------------------------------------------------------------------

TISSUE = [(0, 2), (0, 3), (1, 0), (2, 2), (2, 9), (5, 5), (6, 1), (9, 8), (9, 9), (10, 4)]


def encoded(
    pyramid: Pyramid, shift: tuple[int, int], below: tuple[int, int], settings: SlideForward | None = None
) -> SlideVectors:
    """TISSUE on a white canvas, moved down and right by whole tiles, with more white below and beside."""
    side_um = TILE_PX * 0.5
    height, width = 11 + shift[0] + below[0], 10 + shift[1] + below[1]
    mask = np.zeros((height, width), bool)
    canvas = np.full((height * TILE_PX, width * TILE_PX, 3), 255, np.uint8)
    for number, (row, column) in enumerate(TISSUE):
        mask[row + shift[0], column + shift[1]] = True
        y, x = (row + shift[0]) * TILE_PX, (column + shift[1]) * TILE_PX
        canvas[y : y + TILE_PX, x : x + TILE_PX] = Words(9, number).integers(256, TILE_PX, TILE_PX, 3)
    size = canvas.shape[1], canvas.shape[0]
    tiles = tissue_grid(Foreground(mask, side_um), (0.5, 0.5), size, mpp=0.5, size_px=TILE_PX)
    assert len(tiles) == len(TISSUE)
    grid = region_grid(tiles.row, tiles.column, SIDE)

    def read(region: int) -> npt.NDArray[np.uint8]:
        corners = tiles.coords[grid.order[grid.span(region)]].tolist()
        return np.stack([canvas[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])

    return encode_slide(pyramid, grid, read, settings)


@pytest.mark.parametrize("pool", ["cls", "gated"])
def test_tissue_moved_over_the_glass_and_more_glass_change_nothing(pool: str) -> None:
    pyramid = small(pool)
    here = encoded(pyramid, (0, 0), (0, 0))
    assert here.slide.shape == (16,)
    for shift, below in [((5, 0), (0, 0)), ((0, 7), (0, 0)), ((3, 1), (0, 0)), ((0, 0), (9, 13)), ((2, 6), (4, 1))]:
        there = encoded(pyramid, shift, below)
        for one, other in zip(here, there, strict=True):
            if isinstance(one, Tensor):
                assert torch.equal(one, other)
            else:
                assert torch.equal(one["msi"], other["msi"])


def test_chunks_and_readers_change_nothing() -> None:
    pyramid = small()
    here = encoded(pyramid, (0, 0), (0, 0))
    for settings in [
        SlideForward(tile_chunk=1, region_chunk=1, ahead=0),
        SlideForward(tile_chunk=3, region_chunk=2, ahead=5, readers=3),
    ]:
        there = encoded(pyramid, (0, 0), (0, 0), settings)
        torch.testing.assert_close(there.slide, here.slide, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(there.tiles, here.tiles, rtol=1e-12, atol=1e-12)


def test_tile_vectors_come_in_the_order_of_the_list() -> None:
    pyramid = small()
    order = sorted(range(len(TISSUE)), key=lambda number: TISSUE[number])
    pixels = np.stack([Words(9, number).integers(256, TILE_PX, TILE_PX, 3) for number in order]).astype(np.uint8)
    with torch.no_grad():
        wanted = pyramid.tile(torch.from_numpy(pixels))
    found = encoded(pyramid, (1, 1), (0, 0))
    torch.testing.assert_close(found.tiles, wanted, rtol=1e-12, atol=1e-12)
    assert float(found.tile_attention.sum()) == pytest.approx(1, abs=1e-5)


# --- drop path -------------------------------------------------------------------------------------------------------


def test_draws_belong_to_places_not_to_chunks() -> None:
    grid = region_grid(*np.divmod(Words(1).permutations(400)[:150], 20), side=4)
    rates = [0.0, 0.3, 0.5]
    draws = SlideDraws(0, 5, "a")
    whole = draws.tiles(rates, grid, 0, 150)
    for size in (1, 7, 64):
        spans = [(first, min(first + size, 150)) for first in range(0, 150, size)]
        parts = [SlideDraws(0, 5, "a").tiles(rates, grid, *span) for span in spans]
        assert torch.equal(torch.cat(parts, dim=2), whole)
    part = grid.pick([3, 5])
    rows = np.r_[grid.span(3), grid.span(5)]
    assert torch.equal(draws.tiles(rates, part, 0, part.tiles), whole[..., rows])
    whole_regions = draws.regions(rates, grid, 0, len(grid))
    assert torch.equal(draws.regions(rates, part, 1, 2)[..., 0], whole_regions[..., 5])
    others = [SlideDraws(1, 5, "a"), SlideDraws(0, 6, "a"), SlideDraws(0, 5, "b")]
    assert not any(torch.equal(other.tiles(rates, grid, 0, 150), whole) for other in others)
    assert draws.tiles([0.0, 0.0], grid, 0, 150) is None


def test_draws_have_the_asked_rates() -> None:
    grid = region_grid(*np.divmod(np.arange(6400), 80))
    factors = SlideDraws(0, 0, "a").tiles([0.0, 0.1, 0.4], grid, 0, 6400)
    dropped = (factors == 0).double().mean(dim=2)  # [layers, 2]
    assert dropped[0].tolist() == [0, 0]
    assert dropped[1].tolist() == pytest.approx([0.1, 0.1], abs=0.015)
    assert dropped[2].tolist() == pytest.approx([0.4, 0.4], abs=0.025)
    assert factors[2].max() == pytest.approx(1 / 0.6)
    # Layers and branches draw apart.
    assert not torch.equal(factors[2, 0] == 0, factors[2, 1] == 0)


# --- stage 1 of any kind ---------------------------------------------------------------------------------------------


def network(norm: nn.Module) -> nn.Module:
    conv = nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm, nn.Dropout(0.5), nn.GELU())
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_another_network_runs_with_its_random_layers_off() -> None:
    tiles = NetworkTiles(network(nn.GroupNorm(1, 8)), 8, TILE_PX, (0.5,) * 3, (0.5,) * 3)
    config = PyramidConfig(tile=None, region=stage("table"), slide=stage("rotary"), side=SIDE)
    pyramid = Pyramid(config, [TASK], tiles).train()
    pixels = torch.from_numpy(Words(2).integers(256, 5, 20, 20, 3).astype(np.uint8))
    assert torch.equal(pyramid.tile(pixels), pyramid.tile(pixels))
    assert pyramid.region.enter is not None  # 8 → 16
    assert pyramid.tile(pixels).requires_grad


def test_batch_norm_that_learns_is_refused_and_a_frozen_one_is_not() -> None:
    norm = nn.BatchNorm2d(8)
    with pytest.raises(RecipeError, match=r"BatchNorm that learns \(0.1\): its output depends on the chunk"):
        NetworkTiles(network(norm), 8, TILE_PX, (0.5,) * 3, (0.5,) * 3)
    tiles = NetworkTiles(network(norm.requires_grad_(False)), 8, TILE_PX, (0.5,) * 3, (0.5,) * 3).train()
    refuse_batch_norm(tiles)
    pixels = torch.from_numpy(Words(2).integers(256, 5, TILE_PX, TILE_PX, 3).astype(np.uint8))
    torch.testing.assert_close(tiles(pixels)[:2], tiles(pixels[:2]))


def test_wrong_tiles_and_vectors_are_refused() -> None:
    tiles = NetworkTiles(network(nn.GroupNorm(1, 8)), 9, TILE_PX, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(DataError, match=r"stage 1 gave \[2, 8\] for 2 tiles, not \[B, 9\]"):
        tiles(torch.zeros(2, TILE_PX, TILE_PX, 3, dtype=torch.uint8))
    with pytest.raises(DataError, match="tiles must be uint8"):
        tiles(torch.zeros(2, 3, TILE_PX, TILE_PX))
    with pytest.raises(RecipeError, match="one of the two"):
        Pyramid(PyramidConfig(tile=TILE, region=stage("table"), slide=stage("rotary")), [TASK], tiles)


# --- pixels ----------------------------------------------------------------------------------------------------------


def test_regions_are_read_ahead_in_order_and_an_error_comes_at_its_region() -> None:
    started: list[int] = []

    def read(region: int) -> npt.NDArray[np.uint8]:
        started.append(region)
        if region == 4:
            raise DataError("region 4 is gone")
        return np.full((1, 2, 2, 3), region, np.uint8)

    regions = read_ahead(read, range(9), ahead=2, threads=2)
    assert [int(next(regions)[0, 0, 0, 0]) for _ in range(3)] == [0, 1, 2]
    assert max(started) <= 5
    next(regions)
    with pytest.raises(DataError, match="region 4 is gone"):
        next(regions)
    assert max(started) <= 7


def test_a_region_with_another_number_of_tiles_is_refused() -> None:
    grid = region_grid([0, 0], [0, 1])
    with pytest.raises(DataError, match="a region of 2 tiles was read as uint8"):
        list(tile_chunks(grid, iter([np.zeros((3, 2, 2, 3), np.uint8)]), 4))


def test_the_first_gradients_of_stage_3_are_not_those_of_its_cls_alone() -> None:
    config = StageConfig(width=96, depth=1, heads=3, positions="rotary")
    encoder = GridEncoder(96, config, SIDE, torch.Generator().manual_seed(0))
    vectors = torch.from_numpy(Words(2, "regions").normal(8 * 40, 96)).float()
    place = torch.arange(40).repeat(8)
    seen = encoder(vectors, Grids((40,) * 8, place // 8, place % 8)).grids
    logits = seen @ torch.from_numpy(0.02 * Words(2, "head").normal(96, 2)).float()
    nn.functional.cross_entropy(logits, place[:8] % 2).backward()
    size = {name: float(one.grad.norm()) for name, one in encoder.named_parameters() if one.grad is not None}
    assert 0 < size["cls_token"] < 0.5 * sum(value**2 for value in size.values()) ** 0.5
