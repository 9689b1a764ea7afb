"""Drop path against a crop-by-crop loop, and its independence of how a batch is spread."""

from __future__ import annotations

import pytest
import torch

from eosin.errors import RecipeError
from eosin.models import EncoderConfig, ViT, draw_drop_path
from eosin.models.drop_path import DropPath, Packing
from eosin.randomness import Words

TILES, GROUP, VIEWS = 8, 4, (2, 3)


def config_of(form: str, rate: float = 0.4, **more: object) -> EncoderConfig:
    return EncoderConfig(
        width=16,
        depth=3,
        heads=2,
        patch=8,
        grid=2,
        layer_scale=0.7,
        drop_path=rate,
        drop_path_form=form,
        **more,
    )


def lively(config: EncoderConfig) -> ViT:
    generator = torch.Generator().manual_seed(0)
    vit = ViT(config, generator)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return vit


def crops() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(TILES * views, 3, side, side, generator=generator)
        for views, side in zip(VIEWS, (16, 8), strict=True)
    ]


def factors_of(drops: DropPath, layer: int, branch: int, size: int) -> list[float]:
    """What each crop's branch output is multiplied by, read from the draw one crop at a time."""
    factors = [0.0] * (drops.crops[size] * drops.tiles)
    draw = drops.draws[size][layer, branch]
    if drops.form == "sample":
        for view in range(drops.crops[size]):
            for tile in range(drops.tiles):
                factors[view * drops.tiles + tile] = draw[view, tile].item()
        return factors
    for group, kept in enumerate(draw.tolist()):
        for number in kept:
            view, tile = divmod(number, drops.group)
            factors[view * drops.tiles + group * drops.group + tile] = drops.crops[size] * drops.group / len(kept)
    return factors


def slow(vit: ViT, images: list[torch.Tensor], drops: DropPath) -> list[torch.Tensor]:
    """Every crop alone, every branch computed and multiplied by its factor."""
    out = []
    for size, tokens in enumerate(vit.embed(images)):
        rows = []
        for row, x in enumerate(tokens):
            packing = Packing((1,), (len(x),))
            for layer, block in enumerate(vit.blocks):
                x = x + factors_of(drops, layer, 0, size)[row] * block.attention_branch(x, packing)
                x = x + factors_of(drops, layer, 1, size)[row] * block.ffn_branch(x, packing)
            rows.append(vit.norm(x))
        out.append(torch.stack(rows))
    return out


def patches_and_cls(vit: ViT, images: list[torch.Tensor], drops: DropPath | None) -> list[torch.Tensor]:
    return [torch.cat([t.cls[:, None], t.patches], 1) for t in vit(images, None, drops)]


@pytest.mark.parametrize("form", ["sample", "subset"])
def test_equals_a_loop_over_crops_with_gradients(form: str) -> None:
    config = config_of(form)
    vit = lively(config)
    drops = draw_drop_path(config, Words(1, "drop"), TILES, VIEWS, GROUP)
    gradients = []
    for run in (patches_and_cls, slow):
        vit.zero_grad()
        outs = run(vit, crops(), drops)
        sum(out.pow(3).sum() for out in outs).backward()
        gradients.append(([o.detach() for o in outs], [p.grad.clone() for p in vit.parameters() if p.grad is not None]))
    (fast_out, fast_grad), (slow_out, slow_grad) = gradients
    torch.testing.assert_close(fast_out, slow_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast_grad, slow_grad, atol=1e-3, rtol=1e-4)
    plain = patches_and_cls(vit, crops(), None)
    assert not torch.allclose(plain[0], fast_out[0], atol=1e-3)


def test_subset_runs_branches_on_the_kept_crops_only() -> None:
    """The rate is saved work: count the tokens that reach the linears."""
    config = config_of("subset", rate=0.4)
    vit = lively(config)
    seen: list[int] = []
    for block in vit.blocks:
        block.mlp.fc1.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    vit(crops(), None, draw_drop_path(config, Words(1), TILES, VIEWS, GROUP))
    # Two groups, in each 8 crops of 5 tokens keep int(4.8) = 4, 12 of 2 tokens keep int(7.2) = 7.
    assert seen == [2 * (4 * 5 + 7 * 2)] * 3


@pytest.mark.parametrize("form", ["sample", "subset"])
def test_rows_of_a_global_draw_do_not_depend_on_the_spread(form: str) -> None:
    config = config_of(form)
    vit = lively(config)
    drops = draw_drop_path(config, Words(9), TILES, VIEWS, GROUP)
    whole = patches_and_cls(vit, crops(), drops)
    for first in range(0, TILES, GROUP):
        last = first + GROUP
        part = [
            x.unflatten(0, (views, TILES))[:, first:last].flatten(0, 1) for x, views in zip(crops(), VIEWS, strict=True)
        ]
        got = patches_and_cls(vit, part, drops.rows(first, last))
        for out, full, views in zip(got, whole, VIEWS, strict=True):
            wanted = full.unflatten(0, (views, TILES))[:, first:last].flatten(0, 1)
            torch.testing.assert_close(out, wanted, atol=1e-5, rtol=0)


def test_rows_of_rows() -> None:
    drops = draw_drop_path(config_of("subset"), Words(2), 16, VIEWS, 4)
    twice, once = drops.rows(4, 16).rows(4, 8), drops.rows(8, 12)
    assert all(torch.equal(a, b) for a, b in zip(twice.draws, once.draws, strict=True))


@pytest.mark.parametrize("form", ["sample", "subset"])
def test_expectation_is_the_undropped_branch(form: str) -> None:
    """Mean factor of every crop is 1 over many draws; in the subset form exactly 1 within each group."""
    config = config_of(form, rate=0.3)
    factors = torch.stack(
        [
            torch.tensor([factors_of(drops, layer, branch, 0) for layer in range(3) for branch in (0, 1)])
            for drops in (draw_drop_path(config, Words(4, n), 4, (2,), 4) for n in range(300))
        ]
    )  # [draws, layer and branch, crops]
    assert (factors.mean(0) - 1).abs().max() < 0.15  # sd of a mean is about sqrt(.43 / 300) = .04
    if form == "subset":
        torch.testing.assert_close(factors.sum(-1), torch.full((300, 6), 8.0))
    # Layers and branches draw on their own.
    flat = (factors == 0).float().flatten(2)
    assert all((flat[:, i] != flat[:, j]).any() for i in range(6) for j in range(i))


def test_subset_keeps_at_least_one() -> None:
    drops = draw_drop_path(config_of("subset", rate=0.9), Words(0), 4, (1,), 2)
    assert drops.draws[0].shape == (3, 2, 2, 1)


def test_linear_law_rises_from_no_drop() -> None:
    drops = draw_drop_path(config_of("sample", 0.5, drop_path_law="linear"), Words(0), 400, (1,), 4)
    dropped = (drops.draws[0] == 0).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(dropped, torch.tensor([0.0, 0.25, 0.5]), atol=0.05, rtol=0)
    highest = torch.tensor([1.0, 1 / 0.75, 2.0], dtype=torch.float64)
    torch.testing.assert_close(drops.draws[0].amax(dim=(1, 2, 3)), highest)


def test_rate_zero_drops_nothing() -> None:
    config = config_of("subset", rate=0.0)
    vit = lively(config)
    drops = draw_drop_path(config, Words(0), TILES, VIEWS, GROUP).rows(0, TILES)
    for a, b in zip(patches_and_cls(vit, crops(), drops), patches_and_cls(vit, crops(), None), strict=True):
        assert torch.equal(a, b)


def test_groups_are_not_cut() -> None:
    drops = draw_drop_path(config_of("subset"), Words(0), TILES, VIEWS, GROUP)
    with pytest.raises(RecipeError, match="cut through a group of 4"):
        drops.rows(0, 6)
    with pytest.raises(RecipeError, match="10 tiles is not divisible by group 4"):
        draw_drop_path(config_of("subset"), Words(0), 10, VIEWS, 4)
    with pytest.raises(RecipeError, match="asked of a batch of 8"):
        drops.rows(4, 12)
