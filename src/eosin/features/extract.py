"""Embeddings of a set of images, in order, batch by batch; kept in a store as they are made, or not at all.

Images are decoded and brought to the encoder's size in worker processes; they may differ in size.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from eosin.errors import DataError, EosinError
from eosin.features.encoder import Encoder, batch_of, resize
from eosin.features.store import FeatureStore, Growing
from eosin.progress import progress_bar


def embed_images(
    encoder: Encoder,
    images: Sequence[npt.NDArray[np.uint8]],
    batch: int = 64,
    workers: int = 0,
    title: str = "embedding",
) -> npt.NDArray[np.float32]:
    """Embeddings float32 [N, dim] of `images`, each uint8 [H, W, 3]; `workers` processes read them (0: this
    one).

    The result does not depend on `workers`. Raises whatever EosinError reading an image raises, and DataError
    where there are no images or an embedding is not finite.
    """
    features = np.empty((len(images), encoder.dim), dtype=np.float32)
    done = 0
    for block in embedded(encoder, images, batch, workers, title):
        features[done : done + len(block)] = block
        done += len(block)
    return features


def kept_embeddings(
    store: FeatureStore,
    key: str,
    encoder: Encoder,
    images: Sequence[npt.NDArray[np.uint8]],
    *,
    device: torch.device | None = None,
    batch: int = 64,
    workers: int = 0,
    title: str = "embedding",
) -> npt.NDArray[np.float32]:
    """The same float32 [N, dim] out of `store`, memory-mapped; what it lacks is made first, on `device` (None: where
    the encoder is).

    `key`: `feature_key` of encoder and images. A killed call loses the batch under way alone; the next one goes on
    behind the last finished batch, and with the same `batch` gives what an uninterrupted one gives.
    """

    def fill(growing: Growing) -> None:
        if device is not None:
            encoder.to(device)
        with closing(embedded(encoder, images, batch, workers, title, growing.done)) as blocks:
            for block in blocks:
                growing.append(block)

    if not len(images):
        raise DataError("no images to embed")
    return store.grow(key, (len(images), encoder.dim), fill)


def embedded(
    encoder: Encoder,
    images: Sequence[npt.NDArray[np.uint8]],
    batch: int = 64,
    workers: int = 0,
    title: str = "embedding",
    first: int = 0,
) -> Generator[npt.NDArray[np.float32], None, None]:
    """Embeddings float32 [B, dim] of `images` from number `first` on, a batch at a time. Raises as `embed_images`."""
    if not len(images):
        raise DataError("no images to embed")
    rest = Subset(_Resized(images, encoder.input_size), range(first, len(images)))
    loader = DataLoader(rest, batch_size=batch, num_workers=workers, collate_fn=list)
    with progress_bar(title, len(images), "images", first) as bar:
        for tiles in loader:
            for tile in tiles:
                if isinstance(tile, EosinError):
                    raise tile
            block = _embed(encoder, tiles)
            if not np.isfinite(block).all():
                row = first + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
                raise DataError(f"{encoder.name} gives NaN or infinite features, first for image {row}")
            yield block
            first += len(tiles)
            bar.advance(len(tiles))


def _embed(encoder: Encoder, tiles: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
    """float32 [B, dim] of tiles that have one size unless the encoder takes raw ones."""
    if len({tile.shape for tile in tiles}) == 1:
        return encoder.embed(np.stack(tiles)).cpu().numpy()
    return np.concatenate([encoder.embed(tile[None]).cpu().numpy() for tile in tiles])


class _Resized(Dataset[Any]):
    """Images at the encoder's input size; an EosinError is handed over as an item, since torch would garble
    its line.
    """

    def __init__(self, images: Sequence[npt.NDArray[np.uint8]], size_px: int | None) -> None:
        self.images = images
        self.size_px = size_px

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8] | EosinError:
        try:
            tile = resize(batch_of(self.images[index][None]), self.size_px)  # [1, 3, S, S]
        except EosinError as error:
            return error
        return np.ascontiguousarray(tile[0].permute(1, 2, 0).numpy())


def find_device(name: str | None = None) -> torch.device:
    """The device called `name` (cpu, cuda, cuda:1 ...); None: the GPU where there is one, else the CPU.

    Raises DataError for a device that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise DataError(f"no device {name!r} on this machine; use cpu or leave it out") from error
    return device
