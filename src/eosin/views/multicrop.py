"""Multi-crop views of a batch of tiles: draw every number first, then render.

Why: the numbers belong to the global batch and must not depend on how it is spread over ranks; the pictures
are batched tensor work on any device. Multi-crop as in DINO (Caron et al., ICCV 2021), photometric chain in
DINOv2's order (Oquab et al., TMLR 2024) with HED jitter before colour jitter. A blur probability is that of
blurring, as in DINO (a helper of DINOv2's released code inverts it). The pixel work is in crops.py, stain.py
and color.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.randomness import Words
from eosin.views import color, crops, stain
from eosin.views.config import ViewsConfig
from eosin.views.transfer import tensor_to

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Route = Literal["auto", "matrix", "native"]

TRIES = 10  # RandomResizedCrop gives up after as many
# Views rendered at once: on a CPU what its caches hold, elsewhere what bounds memory.
_CHUNK_BYTES = {"cpu": 4 << 20, "gpu": 256 << 20}


@dataclass(frozen=True)
class CropPlan:
    """All numbers of V crops of each of B tiles, for one crop size. Arrays are [V, B, ...]."""

    tries: FloatArray  # [V, B, 10, 2] share of the tile's area, width / height
    place: FloatArray  # [V, B, 2] top and left within the free room, in [0, 1)
    horizontal_flip: BoolArray
    vertical_flip: BoolArray
    quarter_turns: IntArray  # 0..3, counter-clockwise
    hed: BoolArray
    hed_alpha: FloatArray  # [V, B, 3] by stain
    hed_beta: FloatArray  # [V, B, 3]
    jitter: BoolArray
    jitter_order: IntArray  # [V, B, 4] which of brightness 0, contrast 1, saturation 2, hue 3 comes first, second, ...
    jitter_factors: FloatArray  # [V, B, 4] brightness, contrast, saturation factors; hue shift
    grey: BoolArray
    blur: BoolArray
    blur_sigma: FloatArray  # pixels of the crop
    solarise: BoolArray

    def rows(self, first: int, last: int) -> CropPlan:
        """The same for tiles first..last-1."""
        return CropPlan(**{field.name: getattr(self, field.name)[:, first:last] for field in fields(self)})

    def boxes(self, config: ViewsConfig, height: int, width: int) -> IntArray:
        """Crop boxes in tiles of `height` × `width` px: [V, B, 4] top, left, height, width."""
        return crops.crop_boxes(self.tries, self.place, height, width, config.ratio)


@dataclass(frozen=True)
class ViewPlan:
    """The numbers of all views of a batch of tiles. `locals` is None in a recipe without local crops."""

    globals: CropPlan
    locals: CropPlan | None

    @property
    def tiles(self) -> int:
        """How many tiles the plan is for."""
        return int(self.globals.grey.shape[1])

    def rows(self, first: int, last: int) -> ViewPlan:
        """The plan of tiles first..last-1: a rank's share of the global batch."""
        if not 0 <= first <= last <= self.tiles:
            raise ValueError(f"rows {first}..{last} are not within the plan's {self.tiles} tiles")
        return ViewPlan(self.globals.rows(first, last), self.locals and self.locals.rows(first, last))


def draw_views(config: ViewsConfig, tiles: int, words: Words) -> ViewPlan:
    """Draw all views of a global batch of `tiles` from one stream of words.

    Every step draws its numbers even where it is switched off, so a changed strength or probability changes
    nothing else about a run.
    """
    first, later, local = config.blur_probability
    views = config.global_count
    plan = _draw_crops(
        config,
        config.global_scale,
        tiles,
        words,
        blur=np.array([first] + [later] * (views - 1)),
        solarise=np.array([0.0] + [config.solarise_probability] * (views - 1)),
    )
    if config.local_count == 0:
        return ViewPlan(plan, None)
    blur = np.full(config.local_count, local)
    return ViewPlan(
        plan,
        _draw_crops(config, config.local_scale, tiles, words, blur, solarise=np.zeros(config.local_count)),
    )


def _draw_crops(
    config: ViewsConfig,
    scale: tuple[float, float],
    tiles: int,
    words: Words,
    blur: FloatArray,
    solarise: FloatArray,
) -> CropPlan:
    """Draw the crops of one size; `blur` and `solarise` are probabilities by view [V]."""
    shape = (len(blur), tiles)
    area = words.between(*scale, *shape, TRIES)
    aspect = np.exp(words.between(np.log(config.ratio[0]), np.log(config.ratio[1]), *shape, TRIES))
    sigma = config.hed_sigma
    place = words.uniform(*shape, 2)
    horizontal_flip = words.chance(config.horizontal_flip, *shape)
    vertical_flip = words.chance(config.vertical_flip, *shape)
    quarter_turns = words.integers(4, *shape) * int(config.quarter_turns)
    hed = words.chance(config.hed_probability, *shape) & (sigma > 0)
    hed_alpha = words.between(-sigma, sigma, *shape, 3)
    hed_beta = words.between(-sigma, sigma, *shape, 3)
    jitter = words.chance(config.jitter_probability, *shape)
    jitter_order = words.permutations(4, *shape)
    width = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    low = np.array([*np.maximum(1.0 - width[:3], 0.0), -config.hue])
    high = np.array([*(1.0 + width[:3]), config.hue])
    jitter_factors = low + (high - low) * words.uniform(*shape, 4)
    return CropPlan(
        tries=np.stack([area, aspect], axis=-1),
        place=place,
        horizontal_flip=horizontal_flip,
        vertical_flip=vertical_flip,
        quarter_turns=quarter_turns,
        hed=hed,
        hed_alpha=hed_alpha,
        hed_beta=hed_beta,
        jitter=jitter,
        jitter_order=jitter_order,
        jitter_factors=jitter_factors,
        grey=words.chance(config.grey_probability, *shape),
        blur=words.uniform(*shape) < blur[:, None],
        blur_sigma=words.between(*config.blur_sigma, *shape),
        solarise=words.uniform(*shape) < solarise[:, None],
    )


def render(
    pixels: npt.NDArray[np.uint8] | Tensor,
    plan: ViewPlan,
    config: ViewsConfig,
    device: str | torch.device = "cpu",
    route: Route = "auto",
) -> list[Tensor]:
    """The views of tiles `pixels` uint8 [b, S, S, 3] (RGB) under `plan` for the same b tiles.

    Returns [globals [G·b, 3, g, g], locals [L·b, 3, l, l]] (no second entry without local crops): float32 on
    `device`, normalised by the recipe's mean and std, view-major (row v·b + t is view v of tile t).
    `route` says how crops are cut: by "matrix" products ("auto" off the CPU) or "native" kernels on the CPU.
    Raises ValueError when pixels are not such a batch or the plan is for another number of tiles.
    """
    batch = torch.as_tensor(pixels)
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 [tiles, height, width, 3], not {batch.dtype} {tuple(batch.shape)}")
    if len(batch) != plan.tiles:
        raise ValueError(f"{len(batch)} tiles do not match a view plan for {plan.tiles}")
    device = torch.device(device)
    if route == "auto":
        route = "native" if device.type == "cpu" else "matrix"
    batch = tensor_to(batch, torch.device("cpu") if route == "native" else device)
    sizes = [(plan.globals, config.global_px), (plan.locals, config.local_px)]
    return [_render_crops(batch, crop_plan, px, config, device, route) for crop_plan, px in sizes if crop_plan]


def _render_crops(
    batch: Tensor, plan: CropPlan, size_px: int, config: ViewsConfig, device: torch.device, route: Route
) -> Tensor:
    """Views of one crop size: float32 [V·b, 3, size, size]. Goes through the batch a few tiles at a time."""
    views, tiles = plan.grey.shape
    boxes = plan.boxes(config, batch.shape[1], batch.shape[2])
    turns = crops.turns_of(plan.horizontal_flip, plan.vertical_flip, plan.quarter_turns)
    mean, gain = _normalisation(config.mean, config.std, device)
    out = torch.empty(views, tiles, 3, size_px, size_px, device=device)
    step = max(1, _CHUNK_BYTES["cpu" if device.type == "cpu" else "gpu"] // (views * 3 * size_px**2 * 4))
    for first in range(0, tiles, step):
        rows = slice(first, first + step)
        some = batch[rows], boxes[:, rows], crops.Turns(*(part[:, rows] for part in turns))
        if route == "native":
            cut = crops.crop_native(*some, size_px, config.interpolation).to(device)
        else:
            cut = crops.crop_by_matrices(*some, size_px, config.interpolation)
        photometric_(cut.view(-1, 3, size_px, size_px), plan.rows(first, first + step), config)
        torch.mul(cut.sub_(mean), gain, out=out[:, rows])
    return out.flatten(0, 1)


def photometric_(images: Tensor, plan: CropPlan, config: ViewsConfig) -> Tensor:
    """Stain and colour steps on crops [V·b, 3, n, n] in [0, 1], in place, each where it was drawn."""
    blur = partial(color.blur_, kernel_px=config.blur_kernel_px)
    blurred = [color.choose(blur, plan.blur.ravel(), plan.blur_sigma.ravel())]
    hed = (plan.hed.ravel(), plan.hed_alpha.reshape(-1, 3), plan.hed_beta.reshape(-1, 3))
    order = plan.jitter_order.reshape(-1, 4)
    factors = plan.jitter_factors.reshape(-1, 4)
    jitters = [
        color.choose(step, plan.jitter.ravel() & (order[:, position] == kind), factors[:, kind])
        for position in range(4)
        for kind, step in enumerate(color.JITTERS)
    ]
    solarise = partial(color.solarise_, threshold=config.solarise_threshold)
    choices = [
        *(blurred if config.blur_order == "before" else []),
        color.choose(stain.jitter_hed_, *hed),
        *jitters,
        color.choose(color.grey_, plan.grey.ravel()),
        *(blurred if config.blur_order == "after" else []),
        color.choose(solarise, plan.solarise.ravel()),
    ]
    return color.apply_(images, choices)


@lru_cache(maxsize=16)
def _normalisation(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std, [3, 1, 1] each; kept, since the host waits for the GPU whenever they are copied there."""
    with torch.inference_mode(False):
        return torch.tensor(mean, device=device)[:, None, None], 1.0 / torch.tensor(std, device=device)[:, None, None]


def denormalise(batch: Tensor, config: ViewsConfig) -> npt.NDArray[np.uint8]:
    """Pictures of normalised views [N, 3, h, w]: uint8 [N, h, w, 3], for people to look at."""
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    pictures = batch.detach().float().cpu() * std + mean
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
