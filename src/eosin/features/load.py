"""load_model: a word that names a model -> an Encoder.

A word is an exported folder (ours, or any folder in timm's local-dir layout), a timm name, a name of the zoo, a
baseline (`colour`, `texture`). Nothing is guessed: weights must fit key by key and shape by shape. How files are read
and keys are mapped is models/weights.py; what the zoo knows is models/zoo.py.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from eosin.errors import WeightsError
from eosin.features.baselines import BASELINES
from eosin.features.encoder import POOLINGS, Encoder, TimmEncoder, VitEncoder, has_class_token
from eosin.files import PathLike
from eosin.models import EncoderConfig, ViT
from eosin.models.exported import read_export, read_export_state
from eosin.models.timm_models import config_of_timm
from eosin.models.weights import load_encoder, open_encoder, read_state
from eosin.models.zoo import ZooEntry, all_words, fetch_weights, find_entry, quiet_hub
from eosin.provenance import hash_state


@dataclass(frozen=True)
class _Wish:
    """What the caller wants changed in a model: None and False leave what it comes with."""

    weights: Path | None
    random_init: bool
    pooling: str | None
    input_size: int | None
    seed: int


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

    `weights`: a file to take the weights from instead (safetensors or a plain .pth; in timm's, Meta's or the
    transformers library's layout). `random_init`: the same architecture with fresh weights drawn from `seed`.
    `pooling` and `input_size` (px) override what the model comes with. Raises WeightsError, one line: what was looked
    for, what was found, and for gated weights what to do.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise WeightsError(f"unknown pooling {pooling!r}: {', '.join(POOLINGS)}")
    if weights is not None and random_init:
        raise WeightsError("weights from a file and a random start exclude each other; give one of them")
    if input_size is not None and input_size < 1:
        raise WeightsError(f"input size {input_size} px is not a size")
    wish = _Wish(None if weights is None else Path(weights).expanduser(), random_init, pooling, input_size, seed)
    name = str(model)
    folder = Path(model).expanduser()
    encoder: Encoder
    if name in BASELINES:
        if weights is not None or random_init:
            raise WeightsError(f"{name} has no weights: it is a few numbers worked out from the tile")
        encoder = BASELINES[name]()
    elif folder.is_dir():
        encoder = _from_folder(folder, wish)
    elif timm.is_model(name) or name.startswith(("hf-hub:", "hf_hub:")):
        encoder = _from_timm(name, wish)
    elif (entry := find_entry(name)) is not None:
        encoder = _from_zoo(entry, wish)
    else:
        raise WeightsError(_unknown(name))
    encoder.requires_grad_(False).eval()
    return encoder if device is None else encoder.to(device)


def _from_zoo(entry: ZooEntry, wish: _Wish) -> Encoder:
    """A published encoder: our ViT where that equals it, with the weights of its owner, of a file, or random."""
    # Random weights are under nobody's licence, so none is said of them.
    told: dict[str, Any] = {"zoo": entry.name, "random_init": wish.seed}
    if not wish.random_init:
        told = {"zoo": entry.name, "licence": entry.licence.name, "licence_url": entry.licence.url}
        told["weights"] = str(wish.weights) if wish.weights else entry.weights.origin
        wish = replace(wish, weights=wish.weights or fetch_weights(entry))
    mpp = list(entry.mpp) if isinstance(entry.mpp, tuple) else entry.mpp
    if entry.encoder is None:
        encoder = _from_timm(entry.timm.name, wish)
        encoder.name, encoder.mpp, encoder.info = entry.name, mpp, told
        return encoder
    size = wish.input_size or entry.input_size
    _refuse_size(size, entry.encoder, entry.name)
    if wish.weights is None:
        vit = ViT(entry.encoder, torch.Generator().manual_seed(wish.seed))
    else:
        vit = open_encoder(entry.encoder, read_state(wish.weights), f"{wish.weights} for {entry.name}")
    return VitEncoder(
        vit,
        name=entry.name,
        width=entry.encoder.width,
        pooling=wish.pooling or entry.pooling,
        input_size=size,
        mean=entry.mean,
        std=entry.std,
        mpp=mpp,
        model_hash=hash_state(vit.state_dict()),
        info=told,
    )


def _from_folder(folder: Path, wish: _Wish) -> Encoder:
    """An exported folder: our ViT where config.json has an `eosin` block, else whatever timm makes of it."""
    block = read_export(folder)
    if block is None:
        return _from_timm(f"local-dir:{folder}", wish)
    config = block.encoder
    size = wish.input_size or block.input_size
    _refuse_size(size, config, folder)
    training = block.training.model_dump() if block.training else None
    info = {key: getattr(block, key) for key in ("recipe", "recipe_hash", "cohort_hash", "code_version")}
    info["training"] = training
    state = None if wish.random_init or wish.weights is not None else read_export_state(folder, block)
    vit = ViT(config, torch.Generator().manual_seed(wish.seed))
    if wish.random_init:
        # Nothing was learnt, so nothing of what it was learnt from may be said of it.
        info = {"random_init": wish.seed}
    elif wish.weights is not None:
        info = {"weights": str(wish.weights)}
        load_encoder(vit, read_state(wish.weights), source=str(wish.weights))
    elif state is not None:
        load_encoder(vit, state, layout="timm", source=str(folder))
    return VitEncoder(
        vit,
        name=block.name or folder.name,
        width=config.width,
        pooling=wish.pooling or block.pooling,
        input_size=size,
        mean=block.mean,
        std=block.std,
        mpp=block.mpp,
        model_hash=hash_state(vit.state_dict()) if state is None else block.model_hash,
        info=info,
    )


def _refuse_size(size_px: int, config: EncoderConfig, name: PathLike) -> None:
    if size_px % config.patch:
        raise WeightsError(f"input size {size_px} px is not a multiple of the patch size {config.patch} px of {name}")


def _from_timm(name: str, wish: _Wish) -> Encoder:
    """A timm model: weights from its hub, from a file, or random."""
    network = _build_timm(name, wish.weights is None and not wish.random_init, wish.input_size, wish.seed)
    size = wish.input_size or network.pretrained_cfg["input_size"][-1]
    width = network.num_features if hasattr(network, "num_prefix_tokens") else network.head_hidden_size
    identity: dict[str, Any] = {
        "name": name,
        "width": width,
        "pooling": wish.pooling or ("cls" if has_class_token(network) else "mean"),
        "input_size": size,
        "mean": network.pretrained_cfg["mean"],
        "std": network.pretrained_cfg["std"],
    }
    if identity["pooling"] != "mean" and not has_class_token(network):
        raise WeightsError(f"{name} has no class token; use --pooling mean")
    if wish.weights is None:
        info = {"random_init": wish.seed} if wish.random_init else {"weights": f"timm {timm.__version__}"}
        return TimmEncoder(network, model_hash=hash_state(network.state_dict()), info=info, **identity)
    state = read_state(wish.weights)
    identity["info"] = {"weights": str(wish.weights)}
    config = _plain_vit(name)
    if config is not None:
        vit = ViT(config)
        load_encoder(vit, state, source=str(wish.weights))
        return VitEncoder(vit, model_hash=hash_state(vit.state_dict()), **identity)
    _load_timm(network, state, name, str(wish.weights))
    return TimmEncoder(network, model_hash=hash_state(network.state_dict()), **identity)


def _build_timm(name: str, pretrained: bool, input_size: int | None, seed: int) -> nn.Module:
    arguments: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    with torch.random.fork_rng(devices=[]), quiet_hub():
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
            first = str(error).strip().partition("\n")[0].split(". ")[0].rstrip(".")
            reason = first or type(error).__name__
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
    words = {word: word for word in timm.list_models()} | all_words()
    close = difflib.get_close_matches(name.lower(), words, n=1)
    hint = f"; is {words[close[0]]!r} meant?" if close else "; `eosin zoo list` shows the published encoders"
    baselines = " or ".join(BASELINES)
    return f"no model {name!r}: it is no exported folder, no timm name, no name of the zoo and not {baselines}{hint}"
