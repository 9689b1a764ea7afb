"""Outputs of the zoo's networks beside timm's and the transformers library's, on the same random weights.

    python benchmarks/zoo_parity.py [--layers 2] [--only NAME]       # needs transformers

Each network has its published width, heads and FFN, and the given number of layers. Weights are drawn, put into the
library's network, and read from there in its own names. Compared are all tokens after the final norm, at the entry's
input size and, where positions are resampled, at another one: in fp32, relative to the largest value, and in fp64
(where the libraries themselves resample positions and turn by rotary ones in fp32).
"""

from __future__ import annotations

import argparse
import platform
from typing import Any

import timm
import torch

from eosin.models import EncoderConfig
from eosin.models.weights import open_encoder
from eosin.models.zoo import ZooEntry, zoo

DINOV3 = {"facebook/dinov3-vits16", "facebook/dinov3-vits16plus", "facebook/dinov3-vitb16"}
"""Compared with the transformers library as well, which has them too."""


def drawn(network: Any) -> Any:
    """The same network with every parameter moved: no LayerScale of 1e-5 may hide a wrong block."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            sd = 0.5 if parameter.ndim == 1 and ("gamma" in name or "lambda" in name or "scale" in name) else 0.03
            parameter += sd * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def of_timm(entry: ZooEntry, config: EncoderConfig) -> Any:
    """timm's network; it resamples positions by its own rule, so it is compared at its native size alone."""
    args: dict[str, Any] = entry.timm.args | {"depth": config.depth, "num_classes": 0}
    if config.ffn == "swiglu" and config.positions == "table":
        args |= {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.create_model(entry.timm.name, dynamic_img_size=True, **args)


def of_transformers(entry: ZooEntry, config: EncoderConfig) -> Any:
    """The transformers library's network."""
    import transformers

    common: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.patch * config.grid,
    }
    if config.positions == "rotary":
        swiglu = config.ffn == "swiglu"
        common |= {"intermediate_size": config.ffn_hidden, "num_register_tokens": config.registers}
        settings = transformers.DINOv3ViTConfig(**common, use_gated_mlp=swiglu, hidden_act="silu" if swiglu else "gelu")
        return transformers.DINOv3ViTModel(settings)
    if config.layer_scale is None:
        settings = transformers.ViTConfig(**common, intermediate_size=config.ffn_hidden, layer_norm_eps=config.norm_eps)
        return transformers.ViTModel(settings)
    common |= {"use_swiglu_ffn": config.ffn == "swiglu"}
    if config.registers:
        settings = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=config.registers)
        return transformers.Dinov2WithRegistersModel(settings)
    return transformers.Dinov2Model(transformers.Dinov2Config(**common))


def difference(entry: ZooEntry, config: EncoderConfig, library: str) -> list[tuple[int, float, float]]:
    """(px, largest difference / largest value in fp32, the same in fp64) at each compared size."""
    theirs = drawn((of_timm if library == "timm" else of_transformers)(entry, config))
    if library == "transformers" and config.positions == "rotary":
        config = config.model_copy(update={"qkv_bias": "no_key"})
    ours = open_encoder(config, theirs.state_dict(), entry.name).eval()
    resampled = config.layer_scale is not None and (library == "transformers" or config.interpolation == "antialias")
    sizes = [entry.input_size, entry.input_size * 7 // 8] if resampled else [config.grid * config.patch]
    found = {size_px - size_px % config.patch: [0.0, 0.0] for size_px in sizes}
    for column, dtype in enumerate((torch.float32, torch.float64)):
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        for size_px in found:
            images = torch.randn(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(1)).to(dtype)
            with torch.inference_mode():
                (tokens,) = ours([images])
                wanted = theirs.forward_features(images) if library == "timm" else theirs(images).last_hidden_state
            all_tokens = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], 1)
            found[size_px][column] = float((all_tokens - wanted).abs().max() / wanted.abs().max())
    return [(size_px, single, double) for size_px, (single, double) in found.items()]


def main() -> None:
    """One line each comparison, and the largest difference of all."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--layers", type=int, default=2)
    words.add_argument("--only", help="part of a name")
    given = words.parse_args()
    torch.set_num_threads(1)
    import transformers

    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}, CPU")
    print(
        f"{platform.machine()}, {given.layers} layers of each, random weights;"
        " max |difference| / max |value| over all tokens"
    )
    worst = [0.0, 0.0]
    for name, entry in zoo().items():
        if entry.encoder is None or (given.only and given.only not in name):
            continue
        config = entry.encoder.model_copy(update={"depth": given.layers})
        libraries = ["transformers"] if entry.layout == "transformers" else ["timm"]
        libraries += ["transformers"] * (name in DINOV3)
        for library in libraries:
            for size_px, single, double in difference(entry, config, library):
                worst = [max(worst[0], single), max(worst[1], double)]
                print(f"{name:<38} {library:<12} {size_px:>4} px  fp32 {single:.1e}  fp64 {double:.1e}", flush=True)
    print(f"largest: fp32 {worst[0]:.1e}, fp64 {worst[1]:.1e}")


if __name__ == "__main__":
    main()
