"""Patch tokens of a set of images, kept as they are made: what decoders of segmentation read.

One array float32 [N, h, w, D] a (model, transform, images, norm) in a FeatureStore, memory-mapped: it may be far larger
than memory. A killed call goes on behind its last finished batch. Byte arrays that belong to it (pixels, masks) lie
beside it, whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from eosin.errors import DataError, EosinError
from eosin.features.encoder import Encoder
from eosin.features.store import FeatureStore, Growing
from eosin.files import atomic_path
from eosin.progress import progress_bar, say
from eosin.provenance import hash_of

Pictures = Sequence[npt.NDArray[np.uint8]]
_SAID_ABOVE = 2**31


def kept_patch_tokens(
    store: FeatureStore,
    encoder: Encoder,
    images: Pictures,
    content_hash: str,
    *,
    norm: bool = True,
    device: torch.device | None = None,
    batch: int = 64,
    workers: int = 0,
    title: str = "patch tokens",
) -> npt.NDArray[np.float32]:
    """Patch tokens float32 [N, h, w, D] of `images`, uint8 [S, S, 3] of one size each, out of `store`.

    `norm`: after the encoder's final norm. `content_hash`: of the images. Raises DataError where there are no images,
    or a token is not finite, and whatever EosinError reading an image raises.
    """
    if not len(images):
        raise DataError("no images to embed")
    seen = {key: value for key, value in encoder.transform.items() if key != "pooling"}
    key = hash_of([encoder.model_hash, seen, content_hash, "patch tokens", norm])
    found = store.get(key)
    if found is not None:
        return found
    if device is not None:
        encoder.to(device)
    shape = (len(images), *encoder.patch_tokens(images[0][None], norm).shape[1:])
    if (size := 4 * int(np.prod(shape))) > _SAID_ABOVE:
        say(f"{title}: {size / 2**30:.1f} GiB of patch tokens go to {store.folder}")

    def fill(growing: Growing) -> None:
        for block in _tokens(encoder, images, norm, batch, workers, title, growing.done):
            growing.append(block)

    return store.grow(key, shape, fill)


def kept_bytes(
    store: FeatureStore, key: str, shape: Sequence[int], make: Callable[[], Iterable[npt.NDArray[np.uint8]]]
) -> npt.NDArray[np.uint8]:
    """The array uint8 `shape` [N, …] of `key` out of `store`, memory-mapped; where there is none, `make`
    gives its rows in order.
    """
    path = store.folder / f"{key}.u1.npy"
    if not path.is_file():
        with atomic_path(path) as temporary:
            made = np.lib.format.open_memmap(temporary, "w+", np.uint8, tuple(shape))
            for number, row in enumerate(make()):
                made[number] = row
            made.flush()
            del made
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}; delete it and run again") from error


def _tokens(
    encoder: Encoder, images: Pictures, norm: bool, batch: int, workers: int, title: str, first: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Tokens [B, h, w, D] from image `first` on, a batch at a time."""
    rest = Subset(_Read(images), range(first, len(images)))
    loader = DataLoader(rest, batch_size=batch, num_workers=workers, collate_fn=list)
    with progress_bar(title, len(images), "windows", first) as bar:
        for tiles in loader:
            for tile in tiles:
                if isinstance(tile, EosinError):
                    raise tile
            block = encoder.patch_tokens(np.stack(tiles), norm).cpu().numpy()
            if not np.isfinite(block).all():
                raise DataError(f"{encoder.name} gives NaN or infinite patch tokens, among windows from {first} on")
            yield block
            first += len(tiles)
            bar.advance(len(tiles))


class _Read(Dataset[npt.NDArray[np.uint8] | EosinError]):
    """Images; an EosinError is handed over as an item, since torch would garble its line."""

    def __init__(self, images: Pictures) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8] | EosinError:
        try:
            return self.images[index]
        except EosinError as error:
            return error
