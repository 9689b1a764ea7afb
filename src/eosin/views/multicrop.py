"""Multi-crop views of a batch of tiles: pictures from the numbers of plan.py.

Why: on an accelerator the pictures are batched tensor work (crops.py, stain.py, color.py), on a CPU OpenCV's, crop by
crop (opencv.py); the recipe is one. The photometric chain has DINOv2's order (Oquab et al., TMLR 2024) with HED jitter
before colour jitter. Both routes make the same views, but for the 8 bits to which a CPU rounds a crop after resizing.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.views import color, crops, opencv, stain
from eosin.views.config import ViewsConfig
from eosin.views.plan import CropPlan, ViewPlan
from eosin.views.transfer import tensor_to

Route = Literal["auto", "matrix", "opencv"]

# Views rendered at once: on a CPU what its caches hold, elsewhere what bounds memory.
_CHUNK_BYTES = {"cpu": 4 << 20, "gpu": 256 << 20}


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
    `route` says how: by "matrix" products and batched tensor steps on `device` ("auto" off the CPU), or by "opencv"
    on the CPU, whose views do not depend on the number of threads.
    Raises ValueError when pixels are not such a batch or the plan is for another number of tiles.
    """
    batch = torch.as_tensor(pixels)
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 [tiles, height, width, 3], not {batch.dtype} {tuple(batch.shape)}")
    if len(batch) != plan.tiles:
        raise ValueError(f"{len(batch)} tiles do not match a view plan for {plan.tiles}")
    device = torch.device(device)
    if route == "auto":
        route = "opencv" if device.type == "cpu" else "matrix"
    sizes = [(crop_plan, px) for crop_plan, px in ((plan.globals, config.global_px), (plan.locals, config.local_px))]
    wanted = [(crop_plan, px) for crop_plan, px in sizes if crop_plan]
    if route == "opencv":
        return [tensor_to(views, device) for views in opencv.render_crops(batch.cpu().numpy(), wanted, config)]
    batch = tensor_to(batch, device)
    return [_render_crops(batch, crop_plan, px, config, device) for crop_plan, px in wanted]


def _render_crops(batch: Tensor, plan: CropPlan, size_px: int, config: ViewsConfig, device: torch.device) -> Tensor:
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
