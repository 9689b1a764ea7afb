"""The numbers of multi-crop views: every one is drawn before a pixel is touched.

Why: they belong to the global batch and must not depend on how it is spread over ranks, nor on how it is rendered
(multicrop.py). Multi-crop as in DINO (Caron et al., ICCV 2021), probabilities and ranges as in DINOv2 (Oquab et al.,
TMLR 2024). A blur probability is that of blurring, as in DINO (a helper of DINOv2's released code inverts it).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from eosin.randomness import Words
from eosin.views import crops
from eosin.views.config import ViewsConfig

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

TRIES = 10  # RandomResizedCrop gives up after as many


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
