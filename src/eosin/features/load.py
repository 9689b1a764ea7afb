"""load_model: a word that names a model -> an Encoder.

A word is an exported folder (ours, or any folder in timm's local-dir layout), a timm name, or `colour`.
Nothing is guessed: weights must fit key by key and shape by shape. How files are read and keys are mapped is
models/weights.py.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from eosin.errors import WeightsError
from eosin.features.encoder import POOLINGS, ColourEncoder, Encoder, TimmEncoder, VitEncoder, has_class_token
from eosin.files import PathLike
from eosin.models import EncoderConfig, ViT
from eosin.models.exported import read_export, read_export_state
from eosin.models.timm_models import config_of_timm
from eosin.models.weights import load_encoder, read_state
from eosin.provenance import hash_state


def load_model(
    model: PathLike,
    weights: PathLike | None = None,
    random_init: bool = False,
    pooling: str | None = None,
    input_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> Encoder:
    """The encoder named `model`, frozen and in evaluation mode, on `device` (CPU by default).

    `weights`: a file to take the weights from instead (safetensors or a plain .pth; timm's or Meta's layout).
    `random_init`: the same architecture with fresh weights drawn from `seed`. `pooling` and `input_size` (px)
    override what the model comes with. Raises WeightsError, one line: what was looked for, what was found.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise WeightsError(f"unknown pooling {pooling!r}: {', '.join(POOLINGS)}")
    if weights is not None and random_init:
        raise WeightsError("weights from a file and a random start exclude each other; give one of them")
    if input_size is not None and input_size < 1:
        raise WeightsError(f"input size {input_size} px is not a size")
    name = str(model)
    folder = Path(model).expanduser()
    if name == "colour":
        if weights is not None or random_init:
            raise WeightsError("colour has no weights: it is six numbers of the tile")
        encoder: Encoder = ColourEncoder()
    elif folder.is_dir():
        encoder = _from_folder(folder, weights, random_init, pooling, input_size, seed)
    elif timm.is_model(name) or name.startswith(("hf-hub:", "hf_hub:")):
        encoder = _from_timm(name, weights, random_init, pooling, input_size, seed)
    else:
        raise WeightsError(_unknown(name))
    encoder.requires_grad_(False).eval()
    return encoder if device is None else encoder.to(device)


def _from_folder(
    folder: Path,
    weights: PathLike | None,
    random_init: bool,
    pooling: str | None,
    input_size: int | None,
    seed: int,
) -> Encoder:
    """An exported folder: our ViT where config.json has an `eosin` block, else whatever timm makes of it."""
    block = read_export(folder)
    if block is None:
        return _from_timm(f"local-dir:{folder}", weights, random_init, pooling, input_size, seed)
    config = block.encoder
    size = input_size or block.input_size
    if size % config.patch:
        raise WeightsError(f"input size {size} px is not a multiple of the patch size {config.patch} px of {folder}")
    training = block.training.model_dump() if block.training else None
    info = {key: getattr(block, key) for key in ("recipe", "recipe_hash", "cohort_hash", "code_version")}
    info["training"] = training
    state = None if random_init or weights is not None else read_export_state(folder, block)
    vit = ViT(config, torch.Generator().manual_seed(seed))
    if random_init:
        # Nothing was learnt, so nothing of what it was learnt from may be said of it.
        info = {"random_init": seed}
    elif weights is not None:
        info = {"weights": str(weights)}
        load_encoder(vit, read_state(Path(weights)), source=str(weights))
    elif state is not None:
        load_encoder(vit, state, layout="timm", source=str(folder))
    return VitEncoder(
        vit,
        name=block.name or folder.name,
        width=config.width,
        pooling=pooling or block.pooling,
        input_size=size,
        mean=block.mean,
        std=block.std,
        mpp=block.mpp,
        model_hash=hash_state(vit.state_dict()) if state is None else block.model_hash,
        info=info,
    )


def _from_timm(
    name: str,
    weights: PathLike | None,
    random_init: bool,
    pooling: str | None,
    input_size: int | None,
    seed: int,
) -> Encoder:
    """A timm model: weights from its hub, from a file, or random."""
    network = _build_timm(name, weights is None and not random_init, input_size, seed)
    size = input_size or network.pretrained_cfg["input_size"][-1]
    width = network.num_features if hasattr(network, "num_prefix_tokens") else network.head_hidden_size
    identity: dict[str, Any] = {
        "name": name,
        "width": width,
        "pooling": pooling or ("cls" if has_class_token(network) else "mean"),
        "input_size": size,
        "mean": network.pretrained_cfg["mean"],
        "std": network.pretrained_cfg["std"],
    }
    if identity["pooling"] != "mean" and not has_class_token(network):
        raise WeightsError(f"{name} has no class token; use --pooling mean")
    if weights is None:
        info = {"random_init": seed} if random_init else {"weights": f"timm {timm.__version__}"}
        return TimmEncoder(network, model_hash=hash_state(network.state_dict()), info=info, **identity)
    state = read_state(Path(weights))
    identity["info"] = {"weights": str(weights)}
    config = _plain_vit(name)
    if config is not None:
        vit = ViT(config)
        load_encoder(vit, state, source=str(weights))
        return VitEncoder(vit, model_hash=hash_state(vit.state_dict()), **identity)
    _load_timm(network, state, name, str(weights))
    return TimmEncoder(network, model_hash=hash_state(network.state_dict()), **identity)


def _build_timm(name: str, pretrained: bool, input_size: int | None, seed: int) -> nn.Module:
    arguments: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if input_size is None:
                return timm.create_model(name, **arguments)
            try:
                return timm.create_model(name, img_size=input_size, **arguments)
            except TypeError:  # convolutional networks take any size and have no such argument
                return timm.create_model(name, **arguments)
        except Exception as error:
            # A hub that cannot be reached fails in a dozen types of exceptions; each means the same to the
            # user.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            what = "get the weights of" if pretrained else "build"
            raise WeightsError(f"cannot {what} {name}: {reason}; use --weights FILE or --random-init") from error


def _plain_vit(name: str) -> EncoderConfig | None:
    """Settings of our ViT that equal the timm model `name`; None where it is another kind of network."""
    try:
        return config_of_timm(name)
    except WeightsError:
        return None


def _load_timm(network: nn.Module, state: dict[str, torch.Tensor], name: str, source: str) -> None:
    """Strict load into a timm network; only its classifier may be left over."""
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    kept = {key: value for key, value in state.items() if not (heads and key.startswith(heads))}
    try:
        network.load_state_dict(kept, strict=True)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"{source}: does not fit {name}: {reason[:200]}") from error


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=1)
    hint = f"; is {close[0]!r} meant?" if close else ""
    return f"no model {name!r}: it is neither an exported folder nor a timm name nor `colour`{hint}"
