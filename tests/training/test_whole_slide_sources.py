"""What a whole-slide step is fed from: slide files and encoders that eosin can load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from eosin.errors import RecipeError
from eosin.features.encoder import TimmEncoder, VitEncoder
from eosin.models import EncoderConfig, ViT
from eosin.models.pyramid import Pyramid
from eosin.models.pyramid_draws import SlideDraws
from eosin.models.pyramid_encode import encode_slide
from eosin.models.slide_task import SlideTask
from eosin.randomness import Words
from eosin.slides import Foreground, open_slide
from eosin.tiles.grid import tissue_grid
from eosin.training.whole_slide import (
    SlideObjective,
    WholeSlideSettings,
    accumulate_slide,
    slide_sample,
    tile_stage,
)

from .whole_slide_cases import TILE_PX, Gradients, config

TASK = SlideTask("msi", "binary")


def vit_encoder(pooling: str = "cls") -> VitEncoder:
    settings = EncoderConfig(width=24, depth=2, heads=2, patch=8, grid=2, drop_path=0.3, drop_path_form="subset")
    vit = ViT(settings, torch.Generator().manual_seed(0))
    encoder = VitEncoder(
        vit, name="small", width=24, pooling=pooling, input_size=16, mean=(0.7, 0.5, 0.6), std=(0.2,) * 3
    )
    return encoder.requires_grad_(False).eval()


def test_a_slide_file_gives_its_regions_and_learns(tmp_path: Path) -> None:
    side = 5 * TILE_PX
    canvas = np.full((side * 2, side * 2, 3), 255, np.uint8)
    canvas[TILE_PX:side, TILE_PX : 2 * side - 7] = Words(0).integers(256, side - TILE_PX, 2 * side - 7 - TILE_PX, 3)
    tifffile.imwrite(tmp_path / "one.tif", canvas, photometric="rgb", tile=(32, 32), compression="deflate")
    mask = (canvas < 255).any(axis=2)[::8, ::8]
    with open_slide(tmp_path / "one.tif", mpp=0.5) as slide:
        tiles = tissue_grid(Foreground(mask, 4.0), (0.5, 0.5), (side * 2, side * 2), mpp=0.5, size_px=TILE_PX)
        one = slide_sample(slide, "one", tiles, {"msi": torch.tensor([1])}, side=4)
        assert one.grid.tiles == len(tiles) == 4 * 9
        for region in range(len(one.grid)):
            corners = tiles.coords[one.grid.order[one.grid.span(region)]].tolist()
            wanted = np.stack([canvas[y : y + TILE_PX, x : x + TILE_PX] for x, y in corners])
            assert np.array_equal(one.read(region), wanted)
        network = Pyramid(config(), [TASK], generator=torch.Generator().manual_seed(0))
        settings = WholeSlideSettings(readers=2, tile_chunk=5)
        goal = SlideObjective.of_step([TASK], [one.targets])
        accumulate_slide(network, one, settings, SlideDraws(0, 0, "one"), goal)
        assert all(float(g.abs().max()) > 0 for name, g in Gradients.of(network).items() if "mask_token" not in name)
        assert encode_slide(network, one.grid, one.read, settings).tiles.shape == (36, 24)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_our_vit_as_stage_1_sees_what_the_encoder_sees(pooling: str) -> None:
    encoder = vit_encoder(pooling)
    pixels = Words(1).integers(256, 3, 40, 40, 3).astype(np.uint8)
    stage = tile_stage(encoder, drop_path=0.1)
    assert stage.width == encoder.dim
    assert stage.rates == (0.1, 0.1)
    found = stage(torch.from_numpy(pixels))
    torch.testing.assert_close(found, encoder.embed(pixels), rtol=1e-6, atol=1e-6)
    assert found.requires_grad
    assert not tile_stage(encoder, trained=False)(torch.from_numpy(pixels)).requires_grad


def test_a_timm_network_as_stage_1() -> None:
    import timm

    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, drop_path_rate=0.5)
    encoder = TimmEncoder(network, name="tiny", width=192, pooling="cls", input_size=32, std=(0.5,) * 3)
    stage = tile_stage(encoder).train()
    pixels = Words(1).integers(256, 3, 40, 40, 3).astype(np.uint8)
    torch.testing.assert_close(stage(torch.from_numpy(pixels)), encoder.embed(pixels), rtol=1e-6, atol=1e-6)
    with pytest.raises(RecipeError, match="nothing of it can be dropped"):
        tile_stage(encoder, drop_path=0.1)
    encoder.input_size = None
    with pytest.raises(RecipeError, match="tiny has no input size"):
        tile_stage(encoder)


def test_a_network_with_batch_norm_must_be_frozen() -> None:
    import timm

    network = timm.create_model("resnet10t", pretrained=False)
    encoder = TimmEncoder(network, name="resnet10t", width=512, pooling="mean", input_size=32)
    with pytest.raises(RecipeError, match="BatchNorm that learns"):
        tile_stage(encoder)
    assert tile_stage(encoder, trained=False).train()(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape == (2, 512)
