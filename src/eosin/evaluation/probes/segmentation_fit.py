"""Training decoders on windows: for a fixed number of steps, or to the best checkpoint on watched windows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.evaluation.mil.adam import StackedAdam
from eosin.evaluation.probes.dice import (
    Ignored,
    SegmentationLoss,
    confusion,
    counts_of,
    picture_dice,
    segmentation_loss,
)
from eosin.evaluation.probes.order import even_batches, shuffled_epochs
from eosin.evaluation.probes.schedules import Per, Schedule, lr_factors
from eosin.evaluation.probes.segmentation_decoders import (
    WITH_PIXELS,
    WITHOUT_TOKENS,
    DecoderName,
    StackedConv,
    StackedDecoder,
    StackedNorm,
    new_decoder,
)
from eosin.evaluation.probes.segmentation_windows import Layout, Windows
from eosin.progress import Bar, progress_bar
from eosin.randomness import Words

Ints = npt.NDArray[np.int64]
_LOOK = 32  # windows decoded at once where nothing is learned


@dataclass(frozen=True)
class SegmentationSettings:
    """How decoders are trained and scored. `decoder`, `lr`, `steps`: the grid, all of them together;
    `weight_decay`: AdamW's, one value.

    Windows: `layout`, and what belongs to it: `side_px` of a square in px of the image (None: of the encoder's input
    size, times `mpp` / `native_mpp`, the µm/px that the encoder is to see and that the files have), `views` crops of
    each training image. `norm`: tokens after the encoder's final norm; `standardise`: by mean and sd of the training
    part. `every`: the loss is taken at every so many px of a window's rows and columns. `ignored`: what pixels of no
    class do. `shared_start`: all runs have the same first weights. `schedule` is stepped `per` step or epoch. Of
    checkpoint "best" only: `patience` in epochs (None: a fifth of those there can be), a look after each. `score`:
    label maps of whole images against their masks at full size, or window by window as the encoder sees them.
    `bcss_classes`: the classes as eva maps them. `inner_parts`: held-out parts that choices are made on, at most.
    """

    decoder: Sequence[DecoderName] = ("ms",)
    lr: Sequence[float] = (2e-3,)
    steps: Sequence[int] = (2000,)
    weight_decay: Sequence[float] = (0.01,)
    batch: int = 64
    runs: int = 5
    schedule: Schedule = "constant"
    per: Per = "step"
    loss: SegmentationLoss = "dice"
    ignored: Ignored = "out"
    every: int = 1
    norm: bool = True
    standardise: bool = False
    shared_start: bool = False
    checkpoint: Literal["best", "last"] = "last"
    patience: int | None = None
    layout: Layout = "cover"
    fit_layout: Layout | None = None
    side_px: int | None = None
    native_mpp: float | None = None
    mpp: float | None = None
    views: int = 0
    score: Literal["image", "window"] = "image"
    bcss_classes: Literal["true", "eva"] = "true"
    inner_parts: int = 3


class Dense(NamedTuple):
    """W windows and what is known of them: tokens float32 [W, h, w, D], pixels uint8 [W, S, S, 3] (each None where no
    decoder needs them), masks uint8 [W, S, S]; mean and std by which an encoder normalises pixels, [3] each.
    """

    windows: Windows
    tokens: npt.NDArray[np.float32] | None
    pixels: npt.NDArray[np.uint8] | None
    masks: npt.NDArray[np.uint8]
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]


class Fit(NamedTuple):
    """Trained decoders, one head each, and of each the step of its weights, the last step, and what it scored there on
    the watched windows (None: nothing was watched).
    """

    decoders: list[StackedDecoder]
    best_step: list[int]
    last_step: list[int]
    score: list[float | None]


class Feed:
    """Windows as a decoder of one kind takes them: gathered from memory-mapped arrays, standardised, on a device."""

    def __init__(
        self, name: DecoderName, dense: Dense, scale: tuple[Tensor, Tensor] | None, every: int, device: str
    ) -> None:
        self.name, self.dense, self.scale, self.every, self.device = name, dense, scale, every, device
        self.side = dense.windows.size_px
        self.start = every // 2
        self.size = (len(range(self.start, self.side, every)),) * 2

    def masks(self, rows: Ints) -> Tensor:
        """Masks uint8 [*rows, H, W] at every so many px."""
        found = _gather(self.dense.masks, rows)[..., self.start :: self.every, self.start :: self.every]
        return torch.from_numpy(np.ascontiguousarray(found)).to(self.device)

    def logits(self, decoder: StackedDecoder, rows: Ints) -> Tensor:
        """Logits [B, G, C, H, W] at every so many px; rows [B], or [B, G] where each head has its own windows."""
        heads = np.ascontiguousarray(rows.reshape(len(rows), -1).T)  # [G or 1, B]
        tokens = images = None
        if self.name not in WITHOUT_TOKENS:
            assert self.dense.tokens is not None
            tokens = torch.from_numpy(_gather(self.dense.tokens, heads)).to(self.device)
            if self.scale is not None:
                tokens = (tokens - self.scale[0]) / self.scale[1]
        if self.name in WITH_PIXELS:
            assert self.dense.pixels is not None
            pixels = _gather(self.dense.pixels, heads)
            if self.name == "colour":
                pixels = pixels[..., self.start :: self.every, self.start :: self.every, :]
            values = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float() / 255.0
            if self.name != "colour":
                values = (values - self._on_device(self.dense.mean)) / self._on_device(self.dense.std)
            images = values.movedim(-1, -3)
        if self.name == "image" and self.every > 1:
            whole = decoder(tokens, images, (self.side, self.side))
            return whole[..., self.start :: self.every, self.start :: self.every]
        return decoder(tokens, images, self.size)

    def _on_device(self, values: npt.NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def train_fixed(
    feed: Feed,
    parts: Sequence[Ints],
    classes: int,
    how: SegmentationSettings,
    lr: Sequence[float],
    steps: int,
    key: tuple[int | str, ...],
) -> Fit:
    """Heads after all steps. parts: the windows of each head, or one part for all of them. Batches are full."""
    streams = len(parts)
    seed, *rest = key
    starts = [
        Words(int(seed), *rest, "init", head if streams > 1 and not how.shared_start else 0) for head in range(len(lr))
    ]
    decoder = new_decoder(feed.name, starts, classes, _width(feed)).to(feed.device)
    counts = [len(part) for part in parts]
    batch = min(how.batch, *counts)
    factors = lr_factors(how.schedule, how.per, steps, math.ceil(max(counts) / batch))
    orders = [Words(int(seed), *rest, "order", stream) for stream in range(streams)]
    optimizer = StackedAdam(list(decoder.parameters()), how.weight_decay[0], decoupled=True)
    rates = torch.tensor(list(lr), dtype=torch.float64)
    active = torch.ones(len(lr), dtype=torch.bool)
    decoder.train()
    drawn = islice(even_batches(counts, orders, batch), steps)
    with progress_bar(f"decoder {feed.name} x {len(lr)}", steps, "steps") as bar:
        for factor, picks in zip(factors.tolist(), drawn, strict=True):
            rows = np.stack([part[pick] for part, pick in zip(parts, picks.numpy(), strict=True)], axis=1)  # [B, S]
            _step(feed, decoder, optimizer, rows[:, 0] if streams == 1 else rows, how, rates * factor, active)
            bar.advance()
    decoder.eval()
    heads = [one_head(decoder, head) for head in range(len(lr))]
    return Fit(heads, [steps] * len(lr), [steps] * len(lr), [None] * len(lr))


def train_watched(
    feed: Feed,
    part: Ints,
    watched: tuple[Feed, Ints],
    classes: int,
    how: SegmentationSettings,
    key: tuple[int | str, ...],
) -> Fit:
    """Best checkpoints of `how.runs` heads, one after the other. The last batch of an epoch is what is left over, and
    an epoch that the budget of steps cuts short is not looked at.
    """
    fits = []
    for run in range(how.runs):
        seed, *rest = key
        start = Words(int(seed), *rest, "init", 0 if how.shared_start else run)
        decoder = new_decoder(feed.name, [start], classes, _width(feed)).to(feed.device)
        epochs = epochs_of(feed.dense.windows, part, Words(int(seed), *rest, "order", run))
        with progress_bar(f"decoder {feed.name}, run {run + 1}", how.steps[0], "steps") as bar:
            fits.append(watch_one(feed, decoder, epochs, watched, classes, how, bar))
    return joined(fits)


def joined(fits: Sequence[Fit]) -> Fit:
    """All heads of several fits, in order."""
    return Fit(*([value for part in column for value in part] for column in zip(*fits, strict=True)))


def watch_one(
    feed: Feed,
    decoder: StackedDecoder,
    epochs: Iterator[Ints],
    watched: tuple[Feed, Ints],
    classes: int,
    how: SegmentationSettings,
    bar: Bar | None = None,
) -> Fit:
    """Train one head in place through `epochs` of window numbers; its best checkpoint. These are Lightning's
    ModelCheckpoint (the first of equals) and EarlyStopping.
    """
    optimizer = StackedAdam(list(decoder.parameters()), how.weight_decay[0], decoupled=True)
    active, rate = torch.ones(1, dtype=torch.bool), torch.tensor([how.lr[0]], dtype=torch.float64)
    best, best_step, waited, step = -math.inf, 0, 0, 0
    kept = copy.deepcopy(decoder.state_dict())
    budget, factors, patience = how.steps[0], np.empty(0), how.patience
    for epoch in epochs:
        batches = [epoch[first : first + how.batch] for first in range(0, len(epoch), how.batch)]
        if not len(factors):
            factors = lr_factors(how.schedule, how.per, budget, len(batches))
            patience = math.ceil(0.2 * budget / len(batches)) if patience is None else patience
        decoder.train()
        for rows in batches[: budget - step]:
            _step(feed, decoder, optimizer, rows, how, rate * factors[step], active)
            step += 1
            if bar is not None:
                bar.advance()
        if step % len(batches) == 0:
            score = watched_dice(decoder, *watched, classes, how)
            better = score > best
            waited = 0 if better else waited + 1
            if better:
                best, best_step, kept = score, step, copy.deepcopy(decoder.state_dict())
            if patience is not None and waited >= patience:
                break
        if step >= budget:
            break
    decoder.load_state_dict(kept)
    decoder.eval()
    return Fit([decoder], [best_step], [step], [best])


def epochs_of(windows: Windows, part: Ints, words: Words) -> Iterator[Ints]:
    """Endless shuffled epochs of the windows `part`; of random crops an epoch is one crop of each image, in turn."""
    views = np.bincount(windows.image[part]).max() if windows.layout == "views" else 1
    by_image = part.reshape(-1, views)
    for epoch, order in enumerate(shuffled_epochs([len(by_image)], [words])):
        yield by_image[order[0].numpy(), epoch % views]


def watched_dice(decoder: StackedDecoder, feed: Feed, rows: Ints, classes: int, how: SegmentationSettings) -> float:
    """Mean over windows of their mean Dice over classes that are in them (eva's MonaiDiceScore), one head."""
    values = picture_dice(counts_of(look(decoder, feed, rows, classes, how)[0]))
    there = ~np.isnan(values)
    return float(values[there].mean()) if there.any() else 0.0


@torch.no_grad()
def look(decoder: StackedDecoder, feed: Feed, rows: Ints, classes: int, how: SegmentationSettings) -> Ints:
    """Confusions int64 [G, len(rows), C + 1, C] of each window, at every so many px."""
    decoder.eval()
    tables = np.empty((decoder.heads, len(rows), classes + 1, classes), dtype=np.int64)
    for first in range(0, len(rows), _LOOK):
        some = rows[first : first + _LOOK]
        predicted = feed.logits(decoder, some).argmax(2).cpu().numpy()  # [B, G, H, W]
        masks = feed.masks(some).cpu().numpy()
        for number, mask in enumerate(masks):
            for head in range(decoder.heads):
                tables[head, first + number] = confusion(predicted[number, head], mask, classes, how.ignored)
    return tables


def scale_of(tokens: npt.NDArray[np.float32], rows: Ints, device: str) -> tuple[Tensor, Tensor]:
    """Mean and sd [D] of all tokens of some windows; what does not vary is put to 0."""
    total = np.zeros(tokens.shape[-1])
    square = np.zeros(tokens.shape[-1])
    for first in range(0, len(rows), _LOOK):
        some = tokens[rows[first : first + _LOOK]].reshape(-1, tokens.shape[-1]).astype(np.float64)
        total += some.sum(0)
        square += (some * some).sum(0)
    count = len(rows) * tokens.shape[1] * tokens.shape[2]
    mean = total / count
    sd = np.sqrt(np.maximum(square / count - mean * mean, 0.0))
    sd = np.where(sd > 1e-6 * (1.0 + np.abs(mean)), sd, np.inf)
    return torch.from_numpy(mean).float().to(device), torch.from_numpy(sd).float().to(device)


def one_head(decoder: StackedDecoder, head: int) -> StackedDecoder:
    """A decoder of its own from one head of many."""
    alone = copy.deepcopy(decoder)
    alone.heads = 1
    for module in alone.modules():
        if isinstance(module, StackedConv | StackedNorm):
            module.weight = torch.nn.Parameter(module.weight[head : head + 1].detach().clone())
            module.bias = torch.nn.Parameter(module.bias[head : head + 1].detach().clone())
        if isinstance(module, StackedNorm):
            module.mean, module.variance = (
                values[head : head + 1].clone() for values in (module.mean, module.variance)
            )
    return alone


def _step(
    feed: Feed,
    decoder: StackedDecoder,
    optimizer: StackedAdam,
    rows: Ints,
    how: SegmentationSettings,
    lr: Tensor,
    active: Tensor,
) -> None:
    logits = feed.logits(decoder, rows)
    segmentation_loss(logits, feed.masks(rows), how.loss, how.ignored).sum().backward()
    optimizer.step(lr, active)


def _width(feed: Feed) -> int:
    return 0 if feed.name in WITHOUT_TOKENS or feed.dense.tokens is None else feed.dense.tokens.shape[-1]


def _gather(values: npt.NDArray[Any], rows: Ints) -> npt.NDArray[Any]:
    """values[rows] of a memory map, read in the order in which it lies on disk."""
    order = np.argsort(rows, axis=None, kind="stable")
    found = np.empty((rows.size, *values.shape[1:]), values.dtype)
    found[order] = values[rows.ravel()[order]]
    return found.reshape(*rows.shape, *values.shape[1:])
