"""Exported folders: equal outputs in timm and in load_model, and nothing half-written or overwritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from eosin.errors import OutputError, WeightsError
from eosin.features import export_model, load_model
from eosin.models import EncoderConfig, ViT, open_start

SIZE_PX = 64
HALF = [0.5, 0.5, 0.5]
ROTARY = {"positions": "rotary", "norm_eps": 1e-5}

ENCODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "registers": {"registers": 4},
    "registers, no class position": {"registers": 4, "class_position": False, "layer_scale": 0.5},
    "swiglu": {"ffn": "swiglu", "layer_scale": 0.5},
    "offset rule": {"interpolation": "offset"},
    "offset rule, same grid": {"interpolation": "offset", "grid": 8},
    "no qkv bias": {"qkv_bias": "none"},
    "rotary": {**ROTARY, "registers": 4, "layer_scale": 0.5, "qkv_bias": "no_key"},
    "rotary, key bias": {**ROTARY},
    "rotary, swiglu": {**ROTARY, "registers": 1, "ffn": "swiglu", "mlp_ratio": 6.0, "qkv_bias": "none"},
}


def make_vit(**settings: Any) -> ViT:
    """A small ViT in which no parameter is zero or near it, so that a lost one is seen."""
    config = EncoderConfig(**{"width": 48, "depth": 3, "heads": 3, "patch": 8, "grid": 6, **settings})
    vit = ViT(config, torch.Generator().manual_seed(1)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    for parameter in vit.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return vit


def export(vit: ViT, folder: Path, **changes: Any) -> Path:
    settings = {"input_size": SIZE_PX, "mean": HALF, "std": HALF, "pooling": "cls"}
    return export_model(vit, folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(
        0, 256, (2, SIZE_PX, SIZE_PX, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5


@pytest.mark.parametrize("kind", ENCODERS)
def test_timm_opens_the_folder_with_equal_outputs(kind: str, tmp_path: Path, pixels: torch.Tensor) -> None:
    vit = make_vit(**ENCODERS[kind])
    folder = export(vit, tmp_path / "model")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = vit([normalised(pixels)])[0]
    with torch.inference_mode():
        tokens = theirs.forward_features(normalised(pixels))
        pooled = theirs(normalised(pixels))
    assert (tokens[:, 0] - ours.cls).abs().max() <= 1e-5
    assert (pooled - ours.cls).abs().max() <= 1e-5
    assert (tokens[:, theirs.num_prefix_tokens :] - ours.patches).abs().max() <= 1e-5
    data = timm.data.resolve_data_config(model=theirs)
    assert tuple(data["input_size"]) == (3, SIZE_PX, SIZE_PX)
    assert list(data["mean"]) == list(data["std"]) == HALF


def test_what_timm_has_no_model_for_says_so(tmp_path: Path, pixels: torch.Tensor) -> None:
    vit = make_vit(positions="rotary", norm_eps=1e-4)
    folder = export(vit, tmp_path / "model")
    torch.testing.assert_close(load_model(folder).embed(pixels), vit([normalised(pixels)])[0].cls, atol=1e-5, rtol=0)
    config = json.loads((folder / "config.json").read_text())
    assert "architecture" not in config
    assert "norm_eps 1e-05, this encoder 0.0001" in config["eosin"]["timm"]
    card = (folder / "README.md").read_text()
    assert config["eosin"]["timm"] in card
    assert "timm.create_model" not in card
    assert "library_name: eosin" in card
    assert "timm.create_model" in (export(make_vit(), tmp_path / "other") / "README.md").read_text()


@pytest.mark.parametrize("kind", ENCODERS)
def test_load_model_equals_the_trained_vit_at_any_size(kind: str, tmp_path: Path) -> None:
    vit = make_vit(**ENCODERS[kind])
    folder = export(vit, tmp_path / "model")
    for size in (SIZE_PX, 40, 96):
        pixels = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
        encoder = load_model(folder, input_size=size)
        ours = vit([normalised(pixels)])[0]
        torch.testing.assert_close(encoder.embed(pixels), ours.cls, atol=1e-5, rtol=0)
        tokens = encoder.patch_tokens(pixels)
        assert tokens.shape == (2, size // 8, size // 8, 48)
        torch.testing.assert_close(tokens.flatten(1, 2), ours.patches, atol=1e-5, rtol=0)


def test_pooling_of_the_export_is_the_default_and_can_be_changed(tmp_path: Path, pixels: torch.Tensor) -> None:
    vit = make_vit()
    folder = export(vit, tmp_path / "model", pooling="cls+mean")
    ours = vit([normalised(pixels)])[0]
    wanted = {"cls": ours.cls, "mean": ours.patches.mean(1)}
    wanted["cls+mean"] = torch.cat([wanted["cls"], wanted["mean"]], 1)
    assert load_model(folder).pooling == "cls+mean"
    for pooling, vector in wanted.items():
        encoder = load_model(folder, pooling=pooling)
        assert encoder.dim == vector.shape[1]
        torch.testing.assert_close(encoder.embed(pixels.numpy()), vector, atol=1e-5, rtol=0)


def test_provenance_travels_with_the_folder(tmp_path: Path) -> None:
    info = {
        "name": "tiny",
        "recipe": "quickstart",
        "recipe_hash": "abc",
        "cohort_hash": "def",
        "mpp": [0.5, 1.0],
        "training": {"tasks": ["colon"], "patients": ["7"]},
        "start_licence": "Apache-2.0",
        "scores": [
            {
                "task": "colon",
                "split": "val",
                "protocol": "knn",
                "metric": "balanced_accuracy",
                "mean": 0.41234,
            }
            | {"ci_low": 0.4, "ci_high": None}
        ],
    }
    folder = export(make_vit(), tmp_path / "model", info=info)
    encoder = load_model(folder)
    assert (encoder.name, encoder.mpp) == ("tiny", [0.5, 1.0])
    assert encoder.info["recipe_hash"] == "abc"
    assert encoder.info["training"]["tasks"] == ["colon"]
    assert encoder.model_hash == json.loads((folder / "config.json").read_text())["eosin"]["model_hash"]
    card = (folder / "README.md").read_text()
    for said in ("Research only", "Apache-2.0", "abc", "def", "0.412", "it has seen images of: colon"):
        assert said in card
    fresh = load_model(folder, random_init=True, seed=5)
    assert fresh.info == {"random_init": 5}
    assert fresh.model_hash != encoder.model_hash
    assert fresh.model_hash == load_model(folder, random_init=True, seed=5).model_hash
    assert fresh.model_hash != load_model(folder, random_init=True, seed=6).model_hash


def test_exchanged_or_broken_weights_are_refused(tmp_path: Path) -> None:
    folder = export(make_vit(), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    save_file({**state, "norm.bias": state["norm.bias"] + 1}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="is not the file"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_model(folder)


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"encoder": None}, "eosin.encoder"),
    ({"encoder": {"width": 48}}, "eosin.encoder.depth: Field required"),
    ({"encoder.width": 47}, "width 47 is not divisible by 3 heads"),
    ({"encoder.width": 96}, "these weights have width 48; the encoder has width 96"),
    ({"encoder.width": 3 * 10**12}, "have width 48"),
    ({"encoder.depth": 10**9}, "have depth 3"),
    ({"encoder.grid": 10**6}, "encoder.grid 1000000, its position table 6"),
    ({"encoder.mlp_ratio": float("inf")}, "eosin.encoder.mlp_ratio"),
    ({"encoder.positions": "rotary"}, "have positions table"),
    ({"encoder.colour": 1}, "eosin.encoder.colour: Extra inputs"),
    ({"input_size": 0}, "eosin.input_size"),
    ({"input_size": "large"}, "eosin.input_size"),
    ({"mean": [0.5]}, "eosin.mean"),
    ({"mean": "grey"}, "eosin.mean"),
    ({"std": [0.5, 0.5, 0]}, "eosin.std.2: Input should be greater than 0"),
    ({"std": [0.5, 0.5, float("nan")]}, "eosin.std.2"),
    ({"pooling": "max"}, "eosin.pooling"),
    ({"pooling": ["cls"]}, "eosin.pooling"),
    ({"mpp": "fine"}, "eosin.mpp"),
    ({"training": ["colon"]}, "eosin.training"),
    ({"name": 3}, "eosin.name"),
    ({"model_hash": None}, "eosin.model_hash"),
    ({"model_hash": "0"}, "is not the file"),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(make_vit(), tmp_path_factory.mktemp("sound") / "model")


@pytest.mark.parametrize(("changes", "said"), DAMAGE, ids=[said for _, said in DAMAGE])
def test_damaged_descriptions_are_one_line(changes: dict[str, Any], said: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        at = config["eosin"]
        *path, last = key.split(".")
        for part in path:
            at = at[part]
        at[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    for opened_by in (load_model, open_start):
        with pytest.raises(WeightsError) as caught:
            opened_by(str(folder))
        assert said in str(caught.value)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_input_size_that_is_no_multiple_of_the_patch_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    text = (folder / "config.json").read_text().replace('"input_size": 64', '"input_size": 63')
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match="63 px is not a multiple of the patch size 8 px"):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"eosin": 3}', '{"eosin": []}', '{"eosin": {', "\udcff"])
def test_what_is_no_description_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"config\.json is not a model description"):
        load_model(tmp_path)


def test_a_damaged_position_table_is_one_line(tmp_path: Path) -> None:
    folder = export(make_vit(interpolation="offset"), tmp_path / "model")
    for content in (b"", b"nothing", (folder / "position.npy").read_bytes()[:500], None):
        (folder / "position.npy").unlink()
        if content is not None:
            (folder / "position.npy").write_bytes(content)
        with pytest.raises(WeightsError, match=r"position\.npy: is missing or damaged"):
            load_model(folder)
        (folder / "position.npy").touch()


def test_impossible_exports_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for changes in ({"input_size": 63}, {"pooling": "max"}, {"info": {"colour": 1}}):
        with pytest.raises(WeightsError):
            export(make_vit(), folder, **changes)
    assert not folder.exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"):
        export(make_vit(), tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    export(make_vit(), folder)
    export(make_vit(registers=2), folder)
    assert load_model(folder).vit.config.registers == 2
