"""Encoder: uint8 tiles in, one float32 vector a tile out, whatever network stands behind it.

The pixel path is eva's (kaiko's evaluation framework): short side to `input_size`, bilinear with antialias,
then centre crop, then mean and std. Opens no files (load.py does), keeps nothing on disk (store.py does).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as pixels_of

from eosin.errors import DataError, WeightsError
from eosin.models.exported import Pooling

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
Pixels: TypeAlias = npt.NDArray[np.uint8] | Tensor


class Features(NamedTuple):
    """What a network makes of a batch: class token [B, D] (None where it has none) and patch tokens [B, h, w,
    D].
    """

    cls: Tensor | None
    patches: Tensor


class Encoder(nn.Module, ABC):
    """A frozen encoder with all that is needed to use it and to say later which one it was.

    `input_size`: side of the square that the network sees, px; None = the tile as it is. `mpp`: µm/px that it
    was trained for, where known. `pooling`: what a tile's vector is made of. `dim`: length of that vector.
    `model_hash`: hash of the weights. `info`: provenance (recipe and cohort hashes, training tasks ...).
    """

    mean: Tensor
    std: Tensor
    places: ClassVar[Literal["patches", "pixels"]] = "patches"
    """What `patch_tokens` tells apart: patches of the image, or single pixels."""

    def __init__(
        self,
        *,
        name: str,
        width: int,
        pooling: str,
        input_size: int | None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        mpp: float | list[float] | None = None,
        model_hash: str = "",
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.pooling = pooling
        self.input_size = input_size
        self.dim = 2 * width if pooling == "cls+mean" else width
        self.mpp = mpp
        self.model_hash = model_hash
        self.info = info or {}
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    @property
    def transform(self) -> dict[str, Any]:
        """What is done to pixels and tokens beside the network; part of the key of stored features."""
        return {
            "resize": "none" if self.input_size is None else "short side, bilinear antialias, centre crop",
            "input_size": self.input_size,
            "mean": [round(value, 6) for value in self.mean.flatten().tolist()],
            "std": [round(value, 6) for value in self.std.flatten().tolist()],
            "pooling": self.pooling,
        }

    @torch.no_grad()
    def embed(self, pixels: Pixels) -> Tensor:
        """Embeddings float32 [B, dim] of uint8 tiles [B, H, W, 3] (array or tensor). Batching is the
        caller's.

        Raises DataError where `pixels` is not uint8 [B, H, W, 3].
        """
        return self.vector(self.features(self.prepare(pixels))).float()

    @torch.no_grad()
    def patch_tokens(self, pixels: Pixels, norm: bool = True) -> Tensor:
        """Patch tokens (or the last feature map of a convolutional network) float32 [B, h, w, D] of uint8
        tiles; without `norm` as the last block of a transformer leaves them, which segmentation heads read.
        """
        images = self.prepare(pixels)
        return (self.features(images).patches if norm else self.unnormed(images)).float()

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Class token and patch tokens of normalised images [B, 3, S, S], after the final norm."""

    def unnormed(self, images: Tensor) -> Tensor:
        """Patch tokens [B, h, w, D] before the final norm, where there is one; else those of `features`."""
        return self.features(images).patches

    def vector(self, features: Features) -> Tensor:
        """The tiles' vectors [B, dim] by `pooling`, of what `features` gave.

        Raises WeightsError where the pooling needs a class token and there is none.
        """
        mean = features.patches.mean(dim=(1, 2))  # [B, D]
        if self.pooling == "mean":
            return mean
        if features.cls is None:
            raise WeightsError(f"{self.name} has no class token; use --pooling mean")
        return features.cls if self.pooling == "cls" else torch.cat([features.cls, mean], dim=1)

    def prepare(self, pixels: Pixels) -> Tensor:
        """uint8 [B, H, W, 3] -> normalised float32 [B, 3, S, S] on the encoder's device."""
        batch = resize(batch_of(pixels).to(self.mean.device), self.input_size)
        return (batch.float() / 255.0 - self.mean) / self.std


class VitEncoder(Encoder):
    """Our own ViT (`eosin.models.ViT`) as an encoder."""

    def __init__(self, vit: nn.Module, **identity: Any) -> None:
        super().__init__(**identity)
        self.vit = vit

    def features(self, images: Tensor) -> Features:
        tokens = self.vit([images.to(self.vit.cls_token.dtype)])[0]
        rows = images.shape[2] // self.vit.config.patch
        return Features(tokens.cls, tokens.patches.unflatten(1, (rows, -1)))

    def unnormed(self, images: Tensor) -> Tensor:
        tokens = self.vit([images.to(self.vit.cls_token.dtype)], norm=False)[0]
        return tokens.patches.unflatten(1, (images.shape[2] // self.vit.config.patch, -1))


class TimmEncoder(Encoder):
    """Any timm network as an encoder; convolutional ones know the pooling `mean` only, which is timm's own
    head.
    """

    def __init__(self, network: nn.Module, **identity: Any) -> None:
        super().__init__(**identity)
        self.network = network

    def features(self, images: Tensor) -> Features:
        found = self.network.forward_features(images)
        if found.ndim == 4:  # [B, D, h, w], or [B, h, w, D] where timm says so
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return Features(None, found if last else found.permute(0, 2, 3, 1))
        prefix = self.network.num_prefix_tokens
        side = int(round((found.shape[1] - prefix) ** 0.5))
        cls = found[:, 0] if has_class_token(self.network) else None
        return Features(cls, found[:, prefix:].unflatten(1, (side, -1)))

    def unnormed(self, images: Tensor) -> Tensor:
        if not hasattr(self.network, "num_prefix_tokens") or not hasattr(self.network, "forward_intermediates"):
            return self.features(images).patches
        found = self.network.forward_intermediates(images, indices=1, norm=False, intermediates_only=True)
        return found[-1].permute(0, 2, 3, 1)

    def vector(self, features: Features) -> Tensor:
        if hasattr(self.network, "num_prefix_tokens"):
            vector = super().vector(features)
            if not hasattr(self.network, "fc_norm"):
                return vector
            # Some timm ViTs normalise after pooling and not before; for the others fc_norm is the identity.
            return self.network.fc_norm(vector.unflatten(1, (-1, features.patches.shape[-1]))).flatten(1)
        last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        found = features.patches if last else features.patches.permute(0, 3, 1, 2)
        return self.network.forward_head(found, pre_logits=True)


def has_class_token(network: nn.Module) -> bool:
    """Whether a timm network has a class token in front of its patch tokens."""
    return getattr(network, "cls_token", None) is not None and getattr(network, "num_prefix_tokens", 0) > 0


def batch_of(pixels: Pixels) -> Tensor:
    """uint8 [B, H, W, 3] (array or tensor) as a tensor [B, 3, H, W]; DataError for any other shape or type."""
    if isinstance(pixels, np.ndarray):
        # torch shares memory with arrays and warns about read-only ones (memory maps); those are copied.
        pixels = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != torch.uint8:
        raise DataError(f"tiles must be uint8 [B, H, W, 3], got {pixels.dtype} {tuple(pixels.shape)}")
    return pixels.permute(0, 3, 1, 2)


def resize(batch: Tensor, size_px: int | None) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, 3, S, S]: short side to `size_px` (bilinear, antialias), centre crop; None =
    as it is.
    """
    if size_px is None or batch.shape[-2:] == (size_px, size_px):
        return batch
    if min(batch.shape[-2:]) != size_px:
        batch = pixels_of.resize(batch, [size_px], antialias=True)
    return pixels_of.center_crop(batch, [size_px])
