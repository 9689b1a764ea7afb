"""The parts of a run page that show pixels: tiles, views, patch-token pictures, nearest neighbours.

Each returns a `Section`. The arithmetic (`pca_rgb`, `nearest`) is numpy on arrays, so it can be checked
by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin import figures
from eosin.report.page import Html, Section, element, figure, picture

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

SHOWN_PATCH_TILES = 12
SHOWN_QUERIES = 8
NEIGHBOURS = 6


class Encoder(Protocol):
    """What the page asks of an encoder (eosin.features.Encoder has it)."""

    def embed(self, pixels: Array) -> Any:
        """uint8 [B, H, W, 3] -> float [B, D]."""

    def patch_tokens(self, pixels: Array) -> Any:
        """uint8 [B, H, W, 3] -> float [B, h, w, D]."""


@dataclass(frozen=True)
class Sample:
    """RUN/pictures/sample.npz: the tiles that a run set aside for looking at."""

    tiles: Array  # uint8 [N, S, S, 3]
    slide: list[str]  # [N]
    mpp: FloatArray  # [N] µm/px
    globals: Array  # uint8 [V, G, g, g, 3], crops of the first V tiles
    locals: Array  # uint8 [V, L, l, l, 3]; L may be 0

    @classmethod
    def read(cls, path: Path) -> Sample:
        """Raises OSError, KeyError or ValueError where the file is absent or is not such a sample."""
        with np.load(path, allow_pickle=False) as data:
            return cls(
                data["tiles"],
                [str(name) for name in data["slide"]],
                data["mpp"].astype(np.float32),
                data["globals"],
                data["locals"] if "locals" in data else np.zeros((len(data["globals"]), 0, 1, 1, 3), np.uint8),
            )

    def name(self, n: int) -> str:
        """Slide and scale of tile n, as written under it."""
        return f"{self.slide[n]} · {self.mpp[n]:.3g}\u00a0µm/px"


def tiles_section(sample: Sample) -> Section:
    """Every tile of the sample with its slide and scale."""
    shown = [
        figure(picture(tile, f"Tile {n + 1} from slide {sample.slide[n]}", 192), sample.name(n))
        for n, tile in enumerate(sample.tiles)
    ]
    slides = len(set(sample.slide))
    how = (
        f"{len(shown)} tiles drawn as those of the training, from {slides} slide{'s' * (slides != 1)}: they "
        "should be tissue in focus, from many slides; glass, pen marks and black edges mean that the filters "
        "let too much through."
    )
    return Section("tiles", "Tiles", how, [element("div", shown, class_="tiles")])


def views_section(sample: Sample) -> Section:
    """The crops of the first tiles, as the student and the teacher see them."""
    rows = []
    for n in range(len(sample.globals)):
        parts = [figure(picture(sample.tiles[n], f"Tile {n + 1}"), sample.name(n))]
        parts += [
            figure(picture(view, f"Global crop {k + 1} of tile {n + 1}"), f"global crop {k + 1}")
            for k, view in enumerate(sample.globals[n])
        ]
        crops = sample.locals[n]
        columns = -(-len(crops) // 2)
        if columns > 0:
            sheet = figures.contact_sheet(crops, columns, cell_px=crops.shape[1], gap_px=1)
            parts.append(
                figure(
                    picture(sheet, f"{len(crops)} local crops of tile {n + 1}", 480),
                    f"{len(crops)} local crops",
                )
            )
        # Two rows of local crops are as high as one global crop when half as wide as they are many.
        rows.append(element("div", parts, class_="view", style=f"--locals: {max(columns, 1) / 2}fr"))
    how = (
        "A tile (left) and the crops made of it: the network is asked to describe all crops of a row "
        "alike, so whatever differs within a row (place, size, orientation, stain) is what it learns to "
        "ignore; tissue must stay recognisable."
    )
    return Section("views", "Views", how, rows)


def patches_section(sample: Sample, encoders: dict[str, Encoder]) -> Section:
    """Patch tokens as colours beside their tiles, one picture for each named encoder."""
    chosen = spread_over_slides(sample.slide, SHOWN_PATCH_TILES)
    tiles = sample.tiles[chosen]
    painted = {}
    for name, encoder in encoders.items():
        tokens = in_batches(encoder.patch_tokens, tiles)  # [T, h, w, D]
        painted[name] = pca_rgb(tokens, foreground=tissue_cells(tiles, tokens.shape[1], tokens.shape[2]))
    trios = []
    for row, n in enumerate(chosen):
        parts = [figure(picture(tiles[row], f"Tile {n + 1}", class_="real"), sample.name(n))]
        for name, images in painted.items():
            alt = f"Patch tokens of tile {n + 1}, {name}: three principal components as red, green, blue"
            parts.append(figure(_blocks(images[row], alt), name))
        trios.append(element("div", parts, class_="trio"))
    how = (
        "Each square is one patch token, coloured by the first three principal components over all shown "
        "tiles: one tissue should keep one colour within and across tiles, and borders should follow the "
        "tissue; colours of different encoders cannot be compared."
    )
    grid = element("div", trios, class_="trios patches" + (" two" if len(encoders) == 1 else ""))
    return Section("patches", "Patch tokens", how, [grid])


def _blocks(image: figures.Image, alt: str) -> Html:
    """A small picture whose pixels the browser shows as squares, with no blur between them."""
    size = max(1, 96 // image.shape[0])
    return picture(image.repeat(size, axis=0).repeat(size, axis=1), alt, most_px=512, lossless=True)


def neighbours_section(sample: Sample, encoders: dict[str, Encoder]) -> Section:
    """Query tiles and their nearest tiles by the first of the named encoders; own-slide shares for all of
    them.
    """
    vectors = {name: in_batches(encoder.embed, sample.tiles) for name, encoder in encoders.items()}
    queries = spread_over_slides(sample.slide, SHOWN_QUERIES)
    order, similarity = nearest(next(iter(vectors.values())), sample.slide, queries, NEIGHBOURS)
    rows = []
    for row, n in enumerate(queries):
        parts = [figure(picture(sample.tiles[n], f"Query: tile {n + 1}", 160), sample.name(n), class_="query")]
        for m, cosine in zip(order[row], similarity[row], strict=True):
            same = sample.slide[m] == sample.slide[n]
            words = f"{cosine:.2f} · {sample.slide[m]}" + (" (same slide)" if same else "")
            content = picture(sample.tiles[m], f"Tile {m + 1}, similarity {cosine:.2f}", 160)
            parts.append(figure(content, words, class_="same" if same else None))
        rows.append(element("div", parts, class_="row"))
    how = (
        "A query tile (left) and the tiles nearest to it by cosine similarity, those of other slides "
        "first: they should show the same tissue; if they share only stain or blur, the encoder has learnt "
        "the scanner."
    )
    return Section("neighbours", "Nearest neighbours", how, [*rows, *_own_slide_note(vectors, sample.slide)])


def _own_slide_note(vectors: dict[str, FloatArray], slide: Sequence[str]) -> list[Html]:
    """How often the nearest tile of all comes from the query's own slide, beside what chance gives."""
    if len(set(slide)) < 2:
        return []
    names = np.asarray(slide)
    alike = names[:, None] == names[None, :]
    np.fill_diagonal(alike, False)
    chance = float(alike.sum() / (len(names) * (len(names) - 1)))
    shares = [f"{name} {own_slide_share(z, slide):.0%}" for name, z in vectors.items()]
    text = (
        f"Nearest tile of all from the same slide: {', '.join(shares)}; chance {chance:.0%}. "
        "Far above chance means that slides are told apart more than tissues."
    )
    return [element("p", text, class_="how")]


def in_batches(function: Callable[[Array], Any], tiles: Array, batch: int = 16) -> FloatArray:
    """`function` over uint8 tiles [N, H, W, 3], gathered as float32 numpy [N, ...]; no gradients are kept."""
    import torch

    parts = []
    with torch.no_grad():
        for first in range(0, len(tiles), batch):
            found = function(np.ascontiguousarray(tiles[first : first + batch]))
            parts.append(np.asarray(torch.as_tensor(found).detach().cpu().float()))
    return np.concatenate(parts)


def spread_over_slides(slide: Sequence[str], count: int) -> list[int]:
    """Up to `count` tile numbers: the first tile of each slide, then the second of each, and so on. No
    picking by eye.
    """
    seen: dict[str, int] = {}
    turns = []
    for n, name in enumerate(slide):
        turns.append((seen.get(name, 0), n))
        seen[name] = seen.get(name, 0) + 1
    return [n for _, n in sorted(turns)[:count]]


def tissue_cells(tiles: Array, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    """Which cells of a rows × columns grid over each uint8 tile [T, S, S, 3] are coloured rather than
    glass: [T, r, c].

    A cell is tissue where its mean spread between the colour channels is above 15 of 255 (glass and fat
    are grey).
    """
    import cv2

    spread = (tiles.max(axis=-1) - tiles.min(axis=-1)).astype(np.float32)  # [T, S, S]
    cells = [cv2.resize(one, (columns, rows), interpolation=cv2.INTER_AREA) for one in spread]
    return np.stack(cells) > 15


def pca_rgb(tokens: Array, foreground: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.uint8]:
    """First three principal components of patch tokens [T, h, w, D] as colours: uint8 [T, h, w, 3].

    Axes and scale come from the `foreground` tokens bool [T, h, w] (from all, if those are fewer than a
    tenth): each component runs from 0 at its 2nd to 255 at its 98th percentile there. The sign of an axis
    is fixed by its largest entry, so equal tokens give equal pictures. A component without any spread is
    shown as mid-grey. The picture is that of the DINOv2 paper (Oquab et al. 2023, figure 1), without its
    thresholding step.
    """
    flat = np.asarray(tokens, dtype=np.float64).reshape(-1, tokens.shape[-1])  # [N, D]
    keep = np.ones(len(flat), dtype=bool) if foreground is None else np.asarray(foreground).reshape(-1)
    if keep.sum() < max(2, len(flat) // 10):
        keep = np.ones(len(flat), dtype=bool)
    flat = flat - flat[keep].mean(axis=0)
    values, vectors = np.linalg.eigh(flat[keep].T @ flat[keep])  # ascending
    count = min(3, flat.shape[1])
    axes = vectors[:, ::-1][:, :count]  # [D, count]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(count)])
    parts = flat @ axes  # [N, count]
    low, high = np.percentile(parts[keep], [2, 98], axis=0)
    real = values[::-1][:count] > max(float(values[-1]), 1e-12) * 1e-10
    scaled = np.where(real, (parts - low) / np.where(high > low, high - low, 1.0), 0.5)
    colours = np.full((len(flat), 3), 0.5)
    colours[:, :count] = np.clip(scaled, 0.0, 1.0)
    return np.round(colours * 255).astype(np.uint8).reshape(*tokens.shape[:3], 3)


def nearest(
    vectors: Array, slide: Sequence[str], queries: Sequence[int], count: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Numbers and cosine similarities [Q, k] of the tiles nearest to each query, k = min(count, N − 1).

    Tiles of other slides come first, by similarity; where there are too few of them, tiles of the query's
    own slide follow. The query itself is never among them. `vectors` is [N, D].
    """
    cosine = _cosines(vectors)  # [N, N]
    names = np.asarray(slide)
    k = min(count, len(names) - 1)
    order = np.zeros((len(queries), k), dtype=np.int64)
    for row, n in enumerate(queries):
        own = (names == names[n]).astype(int)
        own[n] = 2  # behind all others
        order[row] = np.lexsort((-cosine[n], own))[:k]
    return order, np.take_along_axis(cosine[list(queries)], order, axis=1).astype(np.float32)


def own_slide_share(vectors: Array, slide: Sequence[str]) -> float:
    """Share of tiles, 0–1, whose nearest other tile by cosine similarity comes from the same slide."""
    cosine = _cosines(vectors)
    np.fill_diagonal(cosine, -np.inf)
    names = np.asarray(slide)
    return float((names[cosine.argmax(axis=1)] == names).mean())


def _cosines(vectors: Array) -> npt.NDArray[np.float64]:
    unit = np.asarray(vectors, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T
