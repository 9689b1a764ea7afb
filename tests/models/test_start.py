"""Start weights by one word: files, exports, timm names and repositories, and the line each failure gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from eosin.errors import WeightsError
from eosin.features import export_model
from eosin.models import EncoderConfig, ViT, config_of_timm, open_start
from eosin.training.recipe import load_recipe, shipped_recipes

TABLE = EncoderConfig(width=48, depth=2, heads=3, patch=8, grid=6, registers=2, layer_scale=0.5)
ROTARY = TABLE.model_copy(update={"positions": "rotary", "qkv_bias": "no_key", "norm_eps": 1e-5})


def lively(module: Any, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in module.named_parameters():
            if isinstance(module, ViT) and module.config.qkv_bias == "no_key" and name.endswith("qkv.bias"):
                parameter.chunk(3)[1].zero_()  # training leaves it there
    return module.eval()


@torch.no_grad()
def all_tokens(vit: ViT, images: torch.Tensor) -> torch.Tensor:
    (tokens,) = vit([images])
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)


def exported(vit: ViT, folder: Path) -> Path:
    return export_model(vit, folder, input_size=64, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("config", [TABLE, ROTARY, TABLE.model_copy(update={"interpolation": "offset"})])
def test_an_export_is_a_start(config: EncoderConfig, tmp_path: Path) -> None:
    vit = lively(ViT(config))
    folder = exported(vit, tmp_path / "model")
    start = open_start(str(folder))
    assert (start.layout, start.config, start.rule) == ("timm", config, config.interpolation)
    ours = ViT(config).eval()
    report = start.load_into(ours)
    assert report.kept == ("mask_token",)
    images = torch.randn(1, 3, 40, 96)
    torch.testing.assert_close(all_tokens(ours, images), all_tokens(vit, images), atol=1e-5, rtol=0)


def test_an_export_with_another_grid_is_resampled_by_its_own_rule(tmp_path: Path) -> None:
    vit = lively(ViT(TABLE.model_copy(update={"interpolation": "offset"})))
    start = open_start(str(exported(vit, tmp_path / "model")))
    finer = ViT(TABLE.model_copy(update={"grid": 9, "interpolation": "antialias"})).eval()
    assert "position table 6 -> 9 (offset)" in str(start.load_into(finer))
    images = torch.randn(1, 3, 72, 72)
    torch.testing.assert_close(all_tokens(finer, images), all_tokens(vit, images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_a_start(suffix: str, tmp_path: Path) -> None:
    vit = lively(ViT(ROTARY))
    path = tmp_path / f"weights{suffix}"
    state = vit.state_dict()
    if suffix == ".pth":
        torch.save({"teacher": {f"backbone.{key}": value for key, value in state.items()}}, path)
    else:
        save_file(state, path)
    ours = ViT(ROTARY)
    start = open_start(str(path))
    report = start.load_into(ours)
    assert str(report) == f"{len(state)} tensors in meta layout"
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    with pytest.raises(WeightsError, match=r"weights\S+: these weights have depth 2; the encoder has depth 3"):
        start.load_into(ViT(ROTARY.model_copy(update={"depth": 3})))


def test_a_folder_in_timms_layout_is_a_start(tmp_path: Path) -> None:
    theirs = lively(timm.create_model("test_vit"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    start = open_start(str(tmp_path))
    assert start.config == config_of_timm("test_vit")
    report = start.load_into(ViT(start.config))
    assert (report.layout, set(report.ignored)) == ("timm", {"head.weight", "head.bias"})
    with pytest.raises(WeightsError, match=r"have heads 2; the encoder has heads 4"):
        start.load_into(ViT(start.config.model_copy(update={"heads": 4})))
    # A description of a model that timm does not know is no hindrance: the tensors decide.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_of_tomorrow"}))
    assert open_start(str(tmp_path)).config is None


def test_words_that_name_nothing_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    for name in ("a.pth", "b.pth"):
        torch.save({"x": torch.zeros(1)}, tmp_path / "two" / name)
    (tmp_path / "two" / "config.json").write_text("{}")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    cases = {
        "vit_smal_patch16_224": "is vit_small_patch16_224",
        "vit_small_patch16_dinov3.lvd1": "Invalid pretrained tag",
        "resnet18": "resnet18: not a plain ViT",
        "hf-hub:someone": "write it as hf-hub:OWNER/NAME",
        str(tmp_path / "absent.pth"): "no such file or folder",
        str(tmp_path / "run"): "it is a run",
        str(tmp_path / "two"): r"holds 2 weights files \(a\.pth, b\.pth\); name one of them",
        str(tmp_path / "none"): "holds no weights file",
    }
    for word, said in cases.items():
        with pytest.raises(WeightsError, match=said) as caught:
            open_start(word)
        assert "\n" not in str(caught.value)


def cached(home: Path, repo: str, files: dict[str, Any]) -> None:
    """Lay files into a hub cache as a download would have left them."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        if name.endswith(".json"):
            (snapshot / name).write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, snapshot / name)
        else:
            torch.save(content, snapshot / name)


def test_what_was_fetched_before_is_found_offline(tmp_path: Path) -> None:
    """In a process of its own: the hub reads HF_HUB_OFFLINE and HF_HOME once."""
    theirs = lively(timm.create_model("test_vit")).state_dict()
    meta = lively(ViT(ROTARY)).state_dict()
    folder = exported(lively(ViT(TABLE)), tmp_path / "model")
    cached(tmp_path, "timm/test_vit.r160_in1k", {"model.safetensors": theirs})
    cached(tmp_path, "lab/timm", {"pytorch_model.bin": theirs, "config.json": {"architecture": "test_vit"}})
    cached(tmp_path, "lab/meta", {"dino.pth": meta, "config.json": {"model_type": "none"}})
    cached(tmp_path, "lab/two", {"a.pth": meta, "b.pth": meta})
    cached(tmp_path, "lab/eosin", {})
    snapshot = tmp_path / "hub" / "models--lab--eosin" / "snapshots" / ("0" * 40)
    for path in folder.iterdir():
        path.rename(snapshot / path.name)
    words = ["test_vit.r160_in1k", "test_vit", "hf-hub:lab/timm", "hf-hub:lab/meta", "hf-hub:lab/two/b.pth"]
    words += ["hf-hub:lab/eosin", "hf-hub:lab/two", "hf-hub:lab/absent", "vit_small_patch16_dinov3.lvd1689m"]
    code = f"""
import json
from eosin.errors import WeightsError
from eosin.models import ViT, open_start, EncoderConfig, config_of_timm
configs = {{"timm": config_of_timm("test_vit"), "meta": EncoderConfig(**{ROTARY.model_dump()})}}
for word in {words}:
    try:
        start = open_start(word)
        print(start.load_into(ViT(start.config or configs[start.layout])))
    except WeightsError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    count = len(theirs) - 2
    assert lines[:2] == [f"{count} tensors in timm layout; not in the source: mask_token"] * 2
    assert lines[2].startswith(f"{count} tensors in timm layout; left out head.")
    assert lines[3:5] == [f"{len(meta)} tensors in meta layout"] * 2
    assert lines[5].endswith("tensors in timm layout; not in the source: mask_token")
    assert lines[6] == "hf-hub:lab/two: holds 2 weights files (a.pth, b.pth); name one of them"
    for line in lines[7:]:
        assert "the weights cannot be had (" in line
        assert line.endswith("give start=FILE, or start=random")
    assert len(lines) == len(words)


def test_shipped_recipes_start_from_weights_of_their_own_encoder() -> None:
    """Without the weights: the settings that loading them would compare, and the grid."""
    compared = ("width", "depth", "heads", "patch", "grid", "registers", "ffn", "ffn_hidden", "positions", "norm_eps")
    seen = 0
    for name in shipped_recipes():
        recipe, _ = load_recipe(name)
        if timm.is_model(recipe.start):
            theirs = config_of_timm(recipe.start)
            assert [getattr(recipe.encoder, key) for key in compared] == [getattr(theirs, key) for key in compared]
            assert (recipe.encoder.layer_scale is None) == (theirs.layer_scale is None)
            seen += 1
    assert seen
