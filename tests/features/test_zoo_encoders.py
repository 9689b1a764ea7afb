"""Zoo encoders through load_model: files in the owners' names become encoders, strictly; what these say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from eosin.errors import WeightsError
from eosin.features import export_model, load_model
from eosin.features import load as load_module
from eosin.models import open_start
from eosin.models.zoo import zoo

SHAPES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "models" / "zoo_shapes.json").read_text())


def state_of(name: str, depth: int | None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values in the owner's names, with `depth` layers in place of all."""
    told = SHAPES[name]
    shapes = dict(told["outer"])
    for number in range(depth or told.get("depth", 0)):
        shapes |= {key.replace("{}", str(number)): shape for key, shape in told.get("layer", {}).items()}
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.rand(shape, generator=generator).sub_(0.5).mul_(0.2) for key, shape in shapes.items()}
    for key in state:  # of batch norms
        if key.endswith("running_var"):
            state[key] = state[key] + 1.0
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
    return state


def tiles(count: int, size_px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", list(zoo()))
def test_every_entry_loads_a_file_in_its_owners_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really, at full width, with one layer of each where there are layers; all layers: test_small_ones_whole."""
    entry = zoo()[name]
    if entry.encoder is not None:
        entry = entry.model_copy(update={"encoder": entry.encoder.model_copy(update={"depth": 1})})
        monkeypatch.setattr(load_module, "find_entry", lambda word: entry if word == name else None)
    half = {key: value.half() if value.is_floating_point() else value for key, value in state_of(name, 1).items()}
    save_file(half, tmp_path / "weights.safetensors")
    encoder = load_model(name, weights=tmp_path / "weights.safetensors", input_size=112)
    (tmp_path / "weights.safetensors").unlink()
    found = encoder.embed(tiles(2, 112))
    assert found.shape == (2, entry.embedding)
    assert bool(found.isfinite().all())
    assert not torch.equal(found[0], found[1])
    assert (encoder.name, encoder.dim, encoder.pooling) == (name, entry.embedding, entry.pooling)
    assert encoder.transform["mean"] == [round(value, 6) for value in entry.mean]
    assert encoder.transform["std"] == [round(value, 6) for value in entry.std]
    assert (encoder.info["zoo"], encoder.info["licence"]) == (name, entry.licence.name)


@pytest.mark.parametrize("name", ["kaiko/vits16", "facebook/dinov3-vits16plus"])
def test_small_ones_whole(name: str, tmp_path: Path) -> None:
    """Against timm's own network with the same weights, all layers, at the size that the owner uses."""
    entry = zoo()[name]
    state = state_of(name, None)
    save_file(state, tmp_path / "weights.safetensors")
    encoder = load_model(name, weights=tmp_path / "weights.safetensors")
    theirs = timm.create_model(entry.timm.name, num_classes=0, global_pool="token").eval()
    theirs.load_state_dict(state)
    pixels = tiles(1, entry.input_size)
    with torch.inference_mode():
        wanted = theirs(encoder.prepare(pixels))
    torch.testing.assert_close(encoder.embed(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_positions_of_registers_are_added_to_the_registers(tmp_path: Path) -> None:
    """Virchow2's table has rows for its registers; timm's network with the same weights says what they do."""
    args = {"depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 5.3375, "init_values": 0.5, "reg_tokens": 4}
    swiglu = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    theirs = timm.create_model("vit_huge_patch14_224", num_classes=0, dynamic_img_size=True, **args, **swiglu).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    assert theirs.pos_embed.shape[1] == 1 + 4 + 16**2
    config = zoo()["paige/virchow2"].encoder
    assert config is not None
    small = config.model_copy(update={"depth": 2, "width": 48, "heads": 3})
    vit = load_module.open_encoder(small, theirs.state_dict()).eval()
    for size_px in (224, 140):
        images = torch.randn(1, 3, size_px, size_px)
        with torch.no_grad():
            (ours,), wanted = vit([images]), theirs.forward_features(images)
        tokens = torch.cat([ours.cls[:, None], ours.registers, ours.patches], 1)
        torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)


def test_what_an_encoder_says_of_itself(tmp_path: Path) -> None:
    encoder = load_model("lunit_vits16", random_init=True, seed=3)
    assert (encoder.name, encoder.mpp, encoder.info) == (
        "lunit/vits16",
        [0.25, 0.5],
        {"zoo": "lunit/vits16", "random_init": 3},
    )
    again = load_model("lunit/vits16", random_init=True, seed=3, pooling="cls+mean", input_size=112)
    assert again.model_hash == encoder.model_hash
    assert again.embed(tiles(1, 200)).shape == (1, 768)


def test_the_table_of_the_file_counts(tmp_path: Path) -> None:
    """Weights with another grid than the entry's are not resampled twice: the file's own table is kept."""
    state = state_of("kaiko/vits16", None) | {"pos_embed": torch.rand(1, 1 + 9**2, 384)}
    save_file(state, tmp_path / "w.safetensors")
    encoder: Any = load_model("kaiko/vits16", weights=tmp_path / "w.safetensors")
    assert encoder.vit.config.grid == 9
    assert torch.equal(encoder.vit.pos_embed, state["pos_embed"])


def test_an_encoder_of_the_zoo_can_be_exported_and_started_from(tmp_path: Path) -> None:
    save_file(state_of("kaiko/vits16", None), tmp_path / "w.safetensors")
    encoder: Any = load_model("kaiko/vits16", weights=tmp_path / "w.safetensors")
    folder = export_model(
        encoder.vit,
        tmp_path / "model",
        input_size=224,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        info={"start_licence": encoder.info["licence"]},
    )
    pixels = tiles(1, 224)
    torch.testing.assert_close(load_model(folder).embed(pixels), encoder.embed(pixels))
    assert "Kaiko non-commercial" in (folder / "README.md").read_text()
    assert open_start(str(folder)).load_into(encoder.vit).loaded > 100


def test_files_that_do_not_belong_are_one_line(tmp_path: Path) -> None:
    state = state_of("kaiko/vits16", None)
    save_file(state, tmp_path / "whole.safetensors")
    save_file({k: v for k, v in state.items() if "blocks.3.norm1" not in k}, tmp_path / "lacking.safetensors")
    save_file(state | {"extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    cases = [
        ("kaiko/vits16", "lacking", r"2 missing \(blocks\.3\.norm1\.weight, blocks\.3\.norm1\.bias\)"),
        ("kaiko/vits16", "more", r"1 unexpected \(extra\)"),
        ("kaiko/vits16", "other", r"missing .* 1 unexpected \(conv1\.weight\)"),
        ("mahmoodlab/uni", "whole", r"have width 384, depth 12, layer_scale False; the encoder has width 1024"),
        ("kaiko/vits8", "whole", r"have patch 16; the encoder has patch 8"),
        ("torchvision/resnet50", "whole", "does not fit resnet50.tv_in1k"),
        ("kaiko/vits16", "absent", "no such weights file"),
    ]
    for name, file, said in cases:
        with pytest.raises(WeightsError, match=said) as caught:
            load_model(name, weights=tmp_path / f"{file}.safetensors")
        assert "\n" not in str(caught.value)
    for name, said in {
        "kaiko/vitb17": "is 'kaiko/vitb16' meant",
        "vits8": "may mean kaiko/vits8 or lunit/vits8",
    }.items():
        with pytest.raises(WeightsError, match=said):
            load_model(name)
    with pytest.raises(WeightsError, match="input size 225 px is not a multiple of the patch size 14 px"):
        load_model("mahmoodlab/uni2-h", random_init=True, input_size=225)
