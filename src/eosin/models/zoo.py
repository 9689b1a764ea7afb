"""Published encoders by name: what each is, how its owners use it, and where its weights are kept.

The facts are data (`zoo.yaml`), every one with the source it was read from. A name is `owner/model`, an alias, or
the part behind the owner where that is unambiguous; upper case and underscores do not matter. Weights come from the
Hugging Face hub with the user's own login (HF_TOKEN, `hf auth login`), at a pinned revision where one is known; with
HF_HUB_OFFLINE=1 only what is cached is used. How they are loaded is `weights.py`, whose names they use `layouts.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eosin.errors import WeightsError
from eosin.models.layouts import Layout
from eosin.models.vit import EncoderConfig

_Positive = Annotated[float, Field(gt=0)]
_Triple = tuple[_Positive, _Positive, _Positive]
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TimmNetwork(_Data):
    """A network by its timm name and arguments; a SwiGLU in the encoder's settings adds timm's SwiGLUPacked."""

    name: str
    args: dict[str, Any] = {}


class Licence(_Data):
    """What the owner allows."""

    name: str
    url: str


class HubWeights(_Data):
    """Where the owner keeps the weights: a repository of the Hugging Face hub."""

    repo: str
    files: tuple[str, ...] = Field(min_length=1, description="the first that the repository has is taken")
    revision: str | None = Field(None, description="commit that was looked at; none: the newest")
    bytes: int | None = Field(None, gt=0, description="published size of the first file")
    tensors: int | None = Field(None, gt=0, description="published number of tensors in it")

    @property
    def url(self) -> str:
        """Page of the repository."""
        return f"https://huggingface.co/{self.repo}"

    @property
    def origin(self) -> str:
        """Repository and revision, in one word."""
        return self.repo + (f"@{self.revision}" if self.revision else "")


class ZooEntry(_Data):
    """One published encoder. `encoder` are the settings of our `ViT` that equal it; none: timm's own network."""

    name: str
    aliases: tuple[str, ...] = ()
    encoder: EncoderConfig | None = None
    timm: TimmNetwork = Field(description="the same function in timm, as far as it knows its position rule")
    layout: Layout = Field("timm", description="whose names the owner's file uses")
    input_size: int = Field(224, gt=0, description="px")
    mean: _Triple = Field(description="of R, G, B in [0, 1]")
    std: _Triple
    mpp: _Positive | tuple[_Positive, ...] | None = Field(None, description="µm/px of training; none: no slides")
    pooling: Literal["cls", "cls+mean", "mean"] = Field("cls", description="as the owners make their features")
    embedding: int = Field(gt=0, description="length of a tile's vector, as the owners state it")
    licence: Licence
    gated: bool = Field(False, description="the hub asks for consent before it gives the weights")
    weights: HubWeights
    facts: dict[str, tuple[str, ...]] = Field(description="architecture, pixels, mpp ... -> where it was read")
    note: str = ""
    checked: tuple[Literal["definition", "size", "count"], ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = {"architecture", "pixels", "pooling", "licence", "weights"} - set(self.facts)
        if missing:
            raise ValueError(f"{self.name}: no source for {', '.join(sorted(missing))}")
        return self

    @property
    def tested(self) -> str:
        """What the entry was checked against, or `untested`."""
        return ", ".join(self.checked) or "untested"

    @property
    def parameters(self) -> int:
        """Number of weights of the encoder, mask token aside."""
        import timm
        import torch

        from eosin.models.vit import ViT

        with torch.device("meta"):
            network = ViT(self.encoder) if self.encoder else timm.create_model(self.timm.name, num_classes=0)
        return sum(value.numel() for name, value in network.named_parameters() if name != "mask_token")


@lru_cache(maxsize=1)
def zoo() -> dict[str, ZooEntry]:
    """All entries by name, in the order of the data file."""
    data = yaml.safe_load((files("eosin.models") / "zoo.yaml").read_text())
    return {name: _entry(name, told, data) for name, told in data["models"].items()}


def _entry(name: str, told: dict[str, Any], data: dict[str, Any]) -> ZooEntry:
    """An entry with the words of the data file replaced by what they stand for."""
    own = dict(told)
    sources = {fact: (keys,) if isinstance(keys, str) else keys for fact, keys in own.pop("facts").items()}
    return ZooEntry(
        name=name,
        **data["normalisations"][own.pop("normalisation")],
        licence=data["licences"][own.pop("licence")],
        facts={fact: tuple(data["sources"][key] for key in keys) for fact, keys in sources.items()},
        **own,
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@lru_cache(maxsize=1)
def _words() -> dict[str, tuple[str, ...]]:
    """Every word that may be said -> the names it may mean; names and aliases mean one."""
    words: dict[str, tuple[str, ...]] = {}
    for name in zoo():
        short = _plain(name.split("/")[1])
        words[short] = (*words.get(short, ()), name)
    for name, entry in zoo().items():
        words |= {_plain(word): (name,) for word in (name, entry.weights.repo, *entry.aliases)}
    return words


def find_entry(name: str) -> ZooEntry | None:
    """The entry that `name` means; None where it means none. WeightsError where it means several."""
    found = _words().get(_plain(name), ())
    if len(found) > 1:
        raise WeightsError(f"model {name!r} may mean {' or '.join(found)}; write the owner too")
    return zoo()[found[0]] if found else None


def all_words() -> dict[str, str]:
    """Every word that means one entry -> the name of that entry."""
    return {word: names[0] for word, names in _words().items() if len(names) == 1}


def close_names(name: str, count: int = 3) -> list[str]:
    """Names of entries that are spelt like `name`, the closest first."""
    words = _words()
    close = difflib.get_close_matches(_plain(name), list(words), n=2 * count, cutoff=0.65)
    return list(dict.fromkeys(meant for word in close for meant in words[word]))[:count]


def licence_of(start: str) -> str | None:
    """The licence of the published weights that a recipe's `start` names, as a model card says it; None where the
    zoo does not know them.
    """
    word = start.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")[0]
    entry = find_entry(word) or find_entry(f"timm/{word}")
    return None if entry is None else f"{entry.licence.name} ({entry.name})"


def cached_file(entry: ZooEntry) -> Path | None:
    """The weights of an entry in the local hub cache; None where they are not there. Fetches nothing."""
    from huggingface_hub import try_to_load_from_cache

    where = entry.weights
    found = (try_to_load_from_cache(where.repo, file, revision=where.revision) for file in where.files)
    return next((Path(path) for path in found if isinstance(path, str)), None)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from logging each of its tries: what went wrong is told once, as an error."""
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def fetch_weights(entry: ZooEntry) -> Path:
    """The file with the weights of an entry: from the hub's cache, else from the hub.

    Raises WeightsError, one line: what to do where a licence must be accepted first, or the hub is not reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    where = entry.weights
    if (path := cached_file(entry)) is not None:
        return path
    missing: Exception | None = None
    for file in where.files:
        try:
            with quiet_hub():
                return Path(hf_hub_download(where.repo, file, revision=where.revision))
        except LocalEntryNotFoundError as error:  # a subclass of the next one; no other file can be had either
            raise WeightsError(_refusal(entry, error)) from error
        except EntryNotFoundError as error:
            missing = error
        except Exception as error:  # the hub raises many kinds; the user needs one line
            raise WeightsError(_refusal(entry, error)) from error
    raise WeightsError(
        f"{entry.name}: {where.url} has none of {', '.join(where.files)}; give --weights FILE"
    ) from missing


def _refusal(entry: ZooEntry, error: Exception) -> str:
    """One line on why the hub does not give the weights, and what to do."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    url, licence = entry.weights.url, entry.licence.name
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return f"{entry.name}: the weights are gated: accept the licence ({licence}) at {url}, then {_LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{entry.name}: {url} is not there for you: {_LOGIN}, or give --weights FILE"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0].split(". ")[0][:160]
    ask = f"; the licence ({licence}) must be accepted at {url} once" if entry.gated else ""
    return (
        f"{entry.name}: the weights are not in the hub's cache and cannot be had ({first}){ask}; or give --weights FILE"
    )
