"""Writes tests/models/zoo_shapes.json: the tensors of every zoo entry as the libraries that define them have them.

    python benchmarks/zoo_shapes.py --dinov2 CHECKOUT --dino CHECKOUT

Needs timm (a dependency) and transformers, and for the two entries in Meta's names checkouts of facebookresearch's
dinov2 and dino. Networks are built on the meta device, or with one layer, so nothing of their size is allocated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open

from eosin.models.zoo import ZooEntry, zoo

OUT = Path(__file__).parents[1] / "tests" / "models" / "zoo_shapes.json"
Shapes = dict[str, list[int]]


def of_timm(entry: ZooEntry) -> tuple[str, Shapes]:
    """Names and shapes of timm's network."""
    args: dict[str, Any] = dict(entry.timm.args)
    if entry.encoder is not None and entry.encoder.ffn == "swiglu" and entry.encoder.positions == "table":
        args |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    with torch.device("meta"):
        state = timm.create_model(entry.timm.name, num_classes=0, **args).state_dict()
    told = ", ".join([entry.timm.name, *(f"{key}={value}" for key, value in entry.timm.args.items())])
    return f"timm {timm.__version__}: {told}", {key: list(value.shape) for key, value in state.items()}


def of_transformers(entry: ZooEntry) -> tuple[str, Shapes]:
    """Names and shapes of the file that the transformers library writes, every layer like the one that is built."""
    import transformers

    config = entry.encoder
    assert config is not None
    common: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": 1,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.grid * config.patch,
    }
    if config.layer_scale is None:
        model = transformers.ViTModel(transformers.ViTConfig(**common, intermediate_size=config.ffn_hidden))
    else:
        kind = "Dinov2WithRegisters" if config.registers else "Dinov2"
        common |= {"num_register_tokens": config.registers} if config.registers else {}
        settings = getattr(transformers, f"{kind}Config")(**common, use_swiglu_ffn=config.ffn == "swiglu")
        model = getattr(transformers, f"{kind}Model")(settings)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(f"{folder}/model.safetensors", "pt") as file:
            shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return f"transformers {transformers.__version__}: {type(model).__name__}", repeated(shapes, config.depth)


def of_meta(entry: ZooEntry, dinov2: Path, dino: Path) -> tuple[str, Shapes]:
    """Names and shapes of Meta's own networks."""
    config = entry.encoder
    assert config is not None
    folder = dino if config.layer_scale is None else dinov2
    sys.path.insert(0, str(folder))
    if config.layer_scale is None:
        import vision_transformer  # cannot be built on the meta device

        network, what = vision_transformer.vit_base(patch_size=config.patch), "facebookresearch/dino: vit_base"
    else:
        from dinov2.models.vision_transformer import vit_giant2

        what = "facebookresearch/dinov2: vit_giant2, 4 registers, SwiGLU"
        with torch.device("meta"):
            network = vit_giant2(
                *(config.patch, config.registers),
                img_size=224,
                init_values=1.0,
                ffn_layer="swiglufused",
                block_chunks=0,
            )
    return what, {key: list(value.shape) for key, value in network.state_dict().items()}


def repeated(shapes: Shapes, depth: int) -> Shapes:
    """The same with layer 0 `depth` times."""
    out: Shapes = {}
    for key, shape in shapes.items():
        for number in range(depth if ".0." in key else 1):
            out[key.replace(".0.", f".{number}.", 1)] = shape
    return out


def packed(what: str, shapes: Shapes, depth: int | None) -> dict[str, Any]:
    """One layer for all where all are alike, `{}` in place of its number."""
    count = sum(torch.Size(shape).numel() for shape in shapes.values())
    told = {"source": what, "tensors": len(shapes), "values": count}
    if depth is None:
        return told | {"outer": shapes}
    layer = re.compile(r"^((?:\w+\.)*(?:blocks|layers?)\.)(\d+)\.")
    outer = {key: shape for key, shape in shapes.items() if not layer.match(key)}
    inner = {layer.sub(r"\1{}.", key, count=1): shape for key, shape in shapes.items() if layer.match(key)}
    whole = outer | {key.replace("{}", str(n)): shape for key, shape in inner.items() for n in range(depth)}
    assert whole == shapes, what
    return told | {"depth": depth, "outer": outer, "layer": inner}


def main() -> None:
    """Build, pack, write."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--dinov2", type=Path, required=True)
    words.add_argument("--dino", type=Path, required=True)
    given = words.parse_args()
    lines = []
    for name, entry in zoo().items():
        if entry.layout == "meta":
            found = of_meta(entry, given.dinov2, given.dino)
        else:
            found = (of_timm if entry.layout == "timm" else of_transformers)(entry)
        told = packed(*found, entry.encoder.depth if entry.encoder else None)
        print(f"{name}: {told['tensors']} tensors, {told['values']:,} values, {told['source']}")
        lines.append(f" {json.dumps(name)}: {json.dumps(told, separators=(',', ':'))}")
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
