"""Embeddings of a set of images, in order, batch by batch.

Images are decoded and brought to the encoder's size in worker processes; they may differ in size. Keeps
nothing: store.py does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from eosin.errors import DataError, EosinError
from eosin.features.encoder import Encoder, batch_of, resize
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
    if not len(images):
        raise DataError("no images to embed")
    features = np.empty((len(images), encoder.dim), dtype=np.float32)
    loader = DataLoader(_Resized(images, encoder.input_size), batch_size=batch, num_workers=workers, collate_fn=list)
    done = 0
    with progress_bar(title, len(images), "images") as bar:
        for tiles in loader:
            for tile in tiles:
                if isinstance(tile, EosinError):
                    raise tile
            features[done : done + len(tiles)] = _embed(encoder, tiles)
            done += len(tiles)
            bar.advance(len(tiles))
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"{encoder.name} gives NaN or infinite features, first for image {row}")
    return features


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
