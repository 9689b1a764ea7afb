"""Mean and sd of tile vectors, measured once, when step 2 begins (`pyramid.region.standardise`).

The vectors of a pre-trained ViT have a large part in common, and the final norm gives every tile the same length. An
attention over them sees that part first: what sets one tile in a hundred apart is small beside it, and a few dozen
slides do not teach an attention to find it. Standardised, each number says how far a tile lies from the others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.distributed import World
from eosin.models.pyramid_pixels import Pixels
from eosin.randomness import Words
from eosin.tiles.grid_stream import read_tiles, with_retries
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.slides import CurriculumSlides
from eosin.training.whole_slide import WholeSlideSettings

SLIDES, TILES = 64, 64
"""Slides that are drawn, and tiles of each: 4,096 of them give a mean to 1.6 % of an sd."""
LEAST_SD = 1e-6
"""Below it a number of the vectors is taken as constant and left in its unit."""


def measure_tile_vectors(
    networks: CurriculumNetworks,
    slides: CurriculumSlides,
    numbers: npt.NDArray[np.int64],
    settings: WholeSlideSettings,
    seed: int,
    world: World,
) -> int:
    """Measure the student's stage 1 on tiles of `numbers`, which have some, and set both networks; returns tiles.

    Which tiles is a function of the seed. Processes share out the slides, and all have the same numbers then. Raises
    SlideError, in all processes alike.
    """
    chosen = numbers[np.sort(Words(seed, "standardise").permutations(len(numbers))[:SLIDES])]
    pyramid = networks.student.pyramid

    def mine() -> Tensor:
        sums = torch.zeros(3, pyramid.tile.width, dtype=torch.float64, device=pyramid.device)
        for slide in chosen[world.rank :: world.size].tolist():
            pixels = tiles_of(slides, slide, seed)
            for part in torch.from_numpy(pixels).split(settings.tile_chunk):
                with torch.no_grad(), settings.autocast(pyramid.device):
                    vectors = pyramid.tile(part.to(pyramid.device)).double()
                sums += torch.stack([torch.ones_like(vectors), vectors, vectors**2]).sum(dim=1)
        return sums

    count, total, squares = world.sum_(world.agree(mine))
    mean = total / count
    sd = (squares / count - mean**2).clamp(min=0).sqrt()
    for stage in (networks.student.region, networks.teacher.region):
        stage.mean.copy_(mean)
        stage.sd.copy_(torch.where(sd > LEAST_SD, sd, 1.0))
    return int(count[0])


def tiles_of(slides: CurriculumSlides, slide: int, seed: int) -> Pixels:
    """Up to `TILES` tiles of a slide, uint8 [n, S, S, 3], drawn from all of them."""
    grid = slides.grid(slide)
    drawn = np.sort(Words(seed, "standardise", slides.names[slide]).permutations(len(grid))[:TILES])
    pixels = np.empty((len(drawn), grid.size_px, grid.size_px, 3), np.uint8)
    opened = slides.open(slide)
    try:
        with_retries(lambda: read_tiles(opened, grid.coords[drawn], grid.size_px, grid.mpp, pixels))
    finally:
        opened.close()
    return pixels
