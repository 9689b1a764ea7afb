"""Key maps against timm's own models and Meta's published names; what does not fit is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from eosin.errors import WeightsError
from eosin.models import (
    EncoderConfig,
    ViT,
    config_of_timm,
    from_meta,
    from_timm,
    load_encoder,
    read_state,
    timm_arch,
    to_timm,
)

SMALL = EncoderConfig(width=32, depth=4, heads=2, patch=14, grid=5, registers=2, layer_scale=0.3)


def lively(module: torch.nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


@torch.no_grad()
def all_tokens(vit: ViT, images: torch.Tensor) -> torch.Tensor:
    (tokens,) = vit([images])
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)


def meta_state(config: EncoderConfig, chunks: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    """A state with the names and shapes that Meta publishes for DINOv2."""
    d, hidden = config.width, config.ffn_hidden
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, config.grid**2 + 1, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, config.patch, config.patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if config.registers:
        shapes["register_tokens"] = (1, config.registers, d)
    ffn = {"fc1": (hidden, d), "fc2": (d, hidden)}
    if config.ffn == "swiglu":
        ffn = {"w12": (2 * hidden, d), "w3": (d, hidden)}
    linears = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)} | {f"mlp.{name}": s for name, s in ffn.items()}
    for n in range(config.depth):
        chunk = f"{n // (config.depth // chunks)}." if chunks else ""
        at = f"blocks.{chunk}{n}."
        for name, shape in linears.items():
            shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{at}{name}.weight": (d,), f"{at}{name}.bias": (d,)}
        shapes |= {f"{at}ls1.gamma": (d,), f"{at}ls2.gamma": (d,)}
    generator = torch.Generator().manual_seed(1)
    return {prefix + key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "args", "sizes"),
    [
        ("vit_small_patch14_reg4_dinov2", {}, [(518, 518), (98, 140)]),
        ("vit_small_patch14_dinov2", {"depth": 4}, [(518, 518), (98, 98)]),
        ("vit_tiny_patch16_224", {}, [(224, 224), (96, 96), (256, 256)]),
        ("vit_small_patch8_224", {"depth": 2}, [(224, 224), (96, 96)]),
        (
            "vit_giant_patch14_dinov2",
            {"depth": 2, "embed_dim": 384, "num_heads": 6},
            [(518, 518), (224, 224)],
        ),
        ("vit_giant_patch14_reg4_dinov2", {"depth": 1}, [(224, 224)]),
    ],
)
def test_outputs_equal_timms_both_ways(name: str, args: dict[str, Any], sizes: list[tuple[int, int]]) -> None:
    theirs = lively(timm.create_model(name, dynamic_img_size=True, **args))
    config = config_of_timm(name, **args)
    vit = ViT(config).eval()
    report = load_encoder(vit, theirs.state_dict())
    assert report.layout == "timm"
    assert report.kept == ("mask_token",)
    assert set(report.ignored) <= {"head.weight", "head.bias"}
    arch, model_args = timm_arch(config)
    back = timm.create_model(arch, **model_args).eval()
    back.load_state_dict(to_timm(vit.state_dict(), config), strict=True)
    for size in sizes:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted = theirs.forward_features(images)
            again = back.forward_features(images)
        got = all_tokens(vit, images)
        assert wanted.abs().max() > 1
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
        torch.testing.assert_close(again, got, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("class_position", [True, False])
def test_export_to_timm_keeps_the_function(ffn: str, registers: int, class_position: bool) -> None:
    config = SMALL.model_copy(
        update={"ffn": ffn, "registers": registers, "class_position": class_position, "layer_scale": None}
    )
    vit = lively(ViT(config))
    arch, args = timm_arch(config)
    model = timm.create_model(arch, **args).eval()
    model.load_state_dict(to_timm(vit.state_dict(), config), strict=True)
    images = torch.randn(2, 3, 42, 98)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), all_tokens(vit, images), atol=1e-5, rtol=0)
    twin = ViT(config).eval()
    load_encoder(twin, to_timm(vit.state_dict(), config), "timm")
    torch.testing.assert_close(all_tokens(twin, images), all_tokens(vit, images), atol=1e-5, rtol=0)


def test_export_with_the_offset_rule_is_equal_at_its_image_size() -> None:
    config = SMALL.model_copy(update={"interpolation": "offset"})
    vit = lively(ViT(config))
    arch, args = timm_arch(config, img_size=112)
    model = timm.create_model(arch, **args).eval()
    model.load_state_dict(to_timm(vit.state_dict(), config, img_size=112), strict=True)
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), all_tokens(vit, images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize(("chunks", "prefix"), [(0, ""), (2, ""), (0, "backbone."), (4, "teacher.backbone.")])
def test_metas_names_find_their_place(ffn: str, chunks: int, prefix: str) -> None:
    config = SMALL.model_copy(update={"ffn": ffn})
    state = meta_state(config, chunks, prefix)
    if prefix == "teacher.backbone.":  # a whole training checkpoint
        state |= {key.replace("teacher.", "student."): torch.zeros_like(value) for key, value in state.items()}
        state["teacher.dino_head.mlp.0.weight"] = torch.zeros(3)
    vit = ViT(config)
    report = load_encoder(vit, state)
    assert (report.layout, report.kept) == ("meta", ())
    ours = vit.state_dict()
    for key, value in meta_state(config).items():
        assert torch.equal(ours[key], value), key
    assert len(ours) == len(meta_state(config))
    mapped = from_meta(state, config)
    assert mapped.keys() == ours.keys()


def test_dino_v1_has_no_mask_token() -> None:
    config = SMALL.model_copy(update={"registers": 0, "layer_scale": None})
    state = {k: v for k, v in meta_state(config).items() if ".ls" not in k and k != "mask_token"}
    wrapped = {f"backbone.{k}": v for k, v in state.items()} | {"head.last_layer.weight_v": torch.zeros(2)}
    vit = ViT(config)
    report = load_encoder(vit, wrapped)
    assert report.kept == ("mask_token",)
    assert report.ignored == ("head.last_layer.weight_v",)
    assert "left out head.last_layer.weight_v" in str(report)


def test_class_row_is_folded_or_added_without_changing_the_function() -> None:
    state = meta_state(SMALL)
    with_row, without = (ViT(SMALL.model_copy(update={"class_position": flag})).eval() for flag in (True, False))
    load_encoder(with_row, state, "meta")
    load_encoder(without, state, "meta")
    images = torch.randn(2, 3, 70, 56)
    wanted = all_tokens(with_row, images)
    torch.testing.assert_close(all_tokens(without, images), wanted, atol=1e-5, rtol=0)
    load_encoder(with_row, without.state_dict(), "eosin")
    assert not with_row.pos_embed[:, 0].any()
    torch.testing.assert_close(all_tokens(with_row, images), wanted, atol=1e-5, rtol=0)
    reg4 = from_timm({"cls_token": state["cls_token"], "pos_embed": state["pos_embed"][:, 1:]}, SMALL)
    assert reg4["pos_embed"].shape == (1, 26, 32)


@pytest.mark.parametrize("rule", ["antialias", "offset"])
def test_position_table_is_resampled_as_the_source_does(rule: str) -> None:
    """Meta's DINOv2 without registers has one rule, with registers another, whatever the encoder's own rule is."""
    registers, other = (0, "antialias") if rule == "offset" else (2, "offset")
    config = SMALL.model_copy(update={"interpolation": rule, "registers": registers})
    source = ViT(config).eval()
    load_encoder(source, meta_state(config))
    images = torch.randn(1, 3, 112, 112)
    for own in (rule, other):
        finer = ViT(config.model_copy(update={"grid": 8, "interpolation": own})).eval()
        report = load_encoder(finer, meta_state(config))
        assert (report.resized, report.rule) == ((5, 8), rule)
        assert f"position table 5 -> 8 ({rule})" in str(report)
        torch.testing.assert_close(all_tokens(finer, images), all_tokens(source, images), atol=1e-5, rtol=0)
    # Names that tell nothing: the encoder's own rule, or the one that is asked for.
    plain = {key: value for key, value in source.state_dict().items() if key != "mask_token"}
    for asked in (None, "antialias", "offset"):
        finer = ViT(config.model_copy(update={"grid": 8}))
        assert load_encoder(finer, plain, "timm", rule=asked).rule == (asked or rule)


def test_what_does_not_fit_is_named() -> None:
    vit = ViT(SMALL)
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    state = meta_state(SMALL)
    lacking = {k: v for k, v in state.items() if not k.startswith(("blocks.2.norm", "blocks.3.norm"))}
    with pytest.raises(WeightsError, match=r"a\.pth: .* 8 missing \(blocks\.2\.norm1\.weight, .*, …\)"):
        load_encoder(vit, lacking, source="a.pth")
    with pytest.raises(WeightsError, match=r"1 unexpected \(blocks\.0\.extra\)"):
        load_encoder(vit, state | {"blocks.0.extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"1 of another shape \(norm\.weight \(7,\) instead of \(32,\)\)"):
        load_encoder(vit, state | {"norm.weight": torch.zeros(7)})
    with pytest.raises(WeightsError, match="of another shape"):
        load_encoder(vit, state | {"pos_embed": torch.zeros(1, 24, 32)})
    with pytest.raises(WeightsError, match=r"unexpected \(dino_head\.x\)"):  # only where a layout allows it
        load_encoder(vit, vit.state_dict() | {"dino_head.x": torch.zeros(1)}, "eosin")
    with pytest.raises(WeightsError, match=r"1 missing \(mask_token\)"):
        load_encoder(vit, {k: v for k, v in vit.state_dict().items() if k != "mask_token"}, "eosin")
    with pytest.raises(WeightsError, match="unknown weight layout 'hf'"):
        load_encoder(vit, state, "hf")  # type: ignore[arg-type]
    assert all(torch.equal(before[key], value) for key, value in vit.state_dict().items())


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"width": 64, "depth": 3}, "have width 64, depth 3; the encoder has width 32, depth 4"),
    ({"patch": 16}, "have patch 16; the encoder has patch 14"),
    ({"registers": 0}, "have registers 0; the encoder has registers 2"),
    ({"ffn": "swiglu", "mlp_ratio": 6.0}, "have ffn swiglu; the encoder has ffn mlp"),
    ({"mlp_ratio": 3.0}, "have ffn_hidden 96; the encoder has ffn_hidden 128"),
]


@pytest.mark.parametrize(("changes", "said"), OTHERS)
def test_another_encoder_is_named_by_its_settings(changes: dict[str, Any], said: str) -> None:
    state = meta_state(SMALL.model_copy(update=changes))
    with pytest.raises(WeightsError, match=f"^other.pth: these weights {said}; choose") as caught:
        load_encoder(ViT(SMALL), state, source="other.pth")
    assert "\n" not in str(caught.value)


def test_what_tensors_do_not_tell_is_compared_where_it_is_known() -> None:
    bare = {key: value for key, value in meta_state(SMALL).items() if ".ls" not in key}
    with pytest.raises(WeightsError, match="have layer_scale False; the encoder has layer_scale True"):
        load_encoder(ViT(SMALL), bare)
    published = SMALL.model_copy(update={"heads": 4, "norm_eps": 1e-5})
    load_encoder(ViT(SMALL), meta_state(SMALL), published=SMALL)
    with pytest.raises(WeightsError, match="have heads 4, norm_eps 1e-05; the encoder has heads 2, norm_eps 1e-06"):
        load_encoder(ViT(SMALL), meta_state(SMALL), published=published)


@pytest.mark.parametrize("wrap", [(), ("teacher",), ("model",), ("model", "state_dict")])
def test_files_are_read(tmp_path: Path, wrap: tuple[str, ...]) -> None:
    state = meta_state(SMALL)
    whole: Any = state
    for key in reversed(wrap):
        whole = {key: whole, "epoch": 3}
    torch.save(whole, tmp_path / "w.pth")
    got = read_state(tmp_path / "w.pth")
    assert got.keys() == state.keys()
    assert torch.equal(got["pos_embed"], state["pos_embed"])
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_state(tmp_path / "w.safetensors")["pos_embed"], state["pos_embed"])


class Malicious:
    """Runs a command where a pickle is loaded without care."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_code_in_a_weights_file_is_refused_and_not_run(tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "bad.pth"
    content = {"model": {"pos_embed": torch.zeros(3), "payload": Malicious(proof)}}
    torch.save(content, path)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Malicious(proof), protocol=2))
    for file in (path, bare):
        with pytest.raises(WeightsError, match=r"needs code to run \((posix|nt)\.system\)") as caught:
            read_state(file)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)
        assert not proof.exists()


def test_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(meta_state(SMALL), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    contents = {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "empty.safetensors": b"",
        "text.pth": b"not weights\n" * 10,
        "text.safetensors": b"not weights\n" * 10,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"model": 3}, tmp_path / "number.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name in (*contents, "number.pth", "list.pth", "absent.pth"):
        with pytest.raises(WeightsError) as caught:
            read_state(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
