"""Weights that training can start from, found by one word: a file, an export, a name of the zoo or of timm, a
Hugging Face repository.

Opens and says what it found; `weights.load_encoder` puts it into an encoder. What timm and the hub have to fetch
goes through their own caches; with HF_HUB_OFFLINE=1 nothing is fetched.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eosin.errors import WeightsError
from eosin.models.exported import CONFIG_FILE, POSITION_FILE, STATE_FILE, read_export, read_export_state
from eosin.models.layouts import Layout, State, guess_layout
from eosin.models.positions import Interpolation
from eosin.models.timm_models import config_of_timm
from eosin.models.transformers_models import read_config_of_transformers
from eosin.models.vit import EncoderConfig, ViT
from eosin.models.weights import LoadReport, load_encoder, read_state
from eosin.models.zoo import ZooEntry, close_names, fetch_weights, find_entry

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""Endings of weights files in a folder or a repository."""
USUAL_FILES = (STATE_FILE, "pytorch_model.bin")
"""Weights files that are taken where a folder or a repository holds several."""
HUB = re.compile(r"hf[-_]hub:(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


@dataclass(frozen=True, eq=False)
class StartWeights:
    """The weights of someone's encoder, as `open_start` found them."""

    name: str
    state: State
    layout: Layout
    config: EncoderConfig | None
    """Settings of the source; None where it does not tell them."""
    rule: Interpolation | None = None
    """How the source resamples its position table, where that is known beyond its layout."""

    def load_into(self, vit: ViT) -> LoadReport:
        """Load them into `vit`, strictly (`load_encoder`). Raises WeightsError; `vit` is unchanged then."""
        return load_encoder(vit, self.state, self.layout, self.name, self.config, self.rule)


def open_start(start: str) -> StartWeights:
    """Find and read the weights that `start` names.

    FILE: .safetensors, .pth or .pt, in any layout. FOLDER: an eosin export, or one as timm or the transformers library
    write them. A name of the zoo (`kaiko/vits16`). A timm model name, with or without tag.
    hf-hub:OWNER/NAME[@REVISION][/FILE]: a repository with such files. Raises WeightsError, one line, where the weights
    cannot be had.
    """
    path = Path(start).expanduser()
    if path.is_file():
        return _from_file(start, path)
    if path.is_dir():
        return _from_folder(start, path)
    if start.startswith(("hf-hub:", "hf_hub:")):
        return _from_hub(start)
    if (entry := find_entry(start)) is not None:
        return _from_zoo(start, entry)
    return _from_timm(start)


def _from_file(start: str, path: Path, config: EncoderConfig | None = None) -> StartWeights:
    state = read_state(path)
    return StartWeights(start, state, guess_layout(state), config)


def _from_folder(start: str, folder: Path, file: str | None = None) -> StartWeights:
    """An eosin export, or a folder with config.json of timm or of the transformers library and one weights file
    (`file`, where it is known).
    """
    block = None
    if (folder / CONFIG_FILE).is_file() or file is None:
        block = read_export(folder)
    if block is not None:
        state = read_export_state(folder, block)
        return StartWeights(start, state, "timm", block.encoder, block.encoder.interpolation)
    chosen = file or _weights_file(start, [path.name for path in folder.iterdir() if path.is_file()])
    described = folder / CONFIG_FILE
    return _from_file(start, folder / chosen, _timm_config(described) or read_config_of_transformers(described))


def _weights_file(start: str, files: Sequence[str]) -> str:
    """The one of `files` that holds the weights."""
    usual = next((name for name in USUAL_FILES if name in files), None)
    if usual is not None:
        return usual
    found = sorted(name for name in files if name.endswith(SUFFIXES))
    if len(found) != 1:
        what = f"{len(found)} weights files ({', '.join(found[:3])}); name one of them" if found else "no weights file"
        raise WeightsError(f"{start}: holds {what}")
    return found[0]


def _timm_config(path: Path) -> EncoderConfig | None:
    """Settings from a config.json of timm; None where there is none, or it tells of a model that we do not have.

    The tensors decide what fits: such files often lack what their authors pass as code.
    """
    try:
        told = json.loads(path.read_text())
        return config_of_timm(told["architecture"], **(told.get("model_args") or {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, WeightsError):
        return None


def _from_hub(start: str) -> StartWeights:
    """A repository of the Hugging Face hub: config.json, if there is one, and one weights file."""
    from huggingface_hub import hf_hub_download

    named = HUB.fullmatch(start)
    if named is None:
        raise WeightsError(f"start {start!r}: write it as hf-hub:OWNER/NAME, with @REVISION or /FILE behind it")
    repo, revision, file = named["repo"], named["revision"], named["file"]
    try:
        files = _hub_files(repo, revision)
        chosen = file or _weights_file(start, files)
        beside = [name for name in (CONFIG_FILE, POSITION_FILE) if name in files and "/" not in chosen]
        got = [Path(hf_hub_download(repo, name, revision=revision)) for name in (chosen, *beside)]
    except WeightsError:
        raise
    except Exception as error:  # the hub raises many kinds; the user needs one line
        raise WeightsError(
            f"start {start!r}: the weights cannot be had ({_reason(error)}); give start=FILE, or start=random"
        ) from error
    return _from_folder(start, got[0].parent, PurePosixPath(chosen).name)


def _from_zoo(start: str, entry: ZooEntry) -> StartWeights:
    if entry.encoder is None:
        raise WeightsError(f"start {start!r}: {entry.name} is no ViT; training starts from a ViT")
    state = read_state(fetch_weights(entry))
    return StartWeights(start, state, guess_layout(state), entry.encoder, entry.encoder.interpolation)


def _hub_files(repo: str, revision: str | None) -> list[str]:
    """Names of the files of a repository: of the hub, or of the newest cached snapshot where it is not reached."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        return HfApi().list_repo_files(repo, revision=revision)
    except OSError as error:  # no network, or HF_HUB_OFFLINE
        try:
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except OSError:
            raise error from None
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _from_timm(start: str) -> StartWeights:
    import timm

    if not timm.is_model(start):
        raise WeightsError(_unknown(start))
    config = config_of_timm(start)
    try:
        model = timm.create_model(start, pretrained=True, num_classes=0)
    except Exception as error:  # timm and the hub raise many kinds; the user needs one line
        tags = [name for name in timm.list_pretrained(f"{start.split('.')[0]}.*") if name != start]
        hint = f"; timm has {', '.join(tags[:3])}" if tags and "." in start else ""
        raise WeightsError(
            f"start {start!r}: the weights cannot be had ({_reason(error)}){hint}; give start=FILE, or start=random"
        ) from error
    return StartWeights(start, model.state_dict(), "timm", config)


def _unknown(start: str) -> str:
    import timm

    if start.endswith(SUFFIXES):
        return f"start {start!r}: no such file or folder"
    published = close_names(start)
    close = difflib.get_close_matches(start, [*timm.list_models(), *timm.list_pretrained()], n=3) or published
    hint = f"; is {' or '.join(close)} meant?" if close else ""
    if "/" in start:
        hint = f"; is {' or '.join(published)} meant?" if published else ""
        return f"start {start!r}: no such file or folder, and no name of the zoo{hint}"
    return f"start {start!r} is no weights file, no folder, no model of the zoo or timm, no hf-hub:OWNER/NAME{hint}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__
