"""Our segmentation decoders, Dice loss, Dice scores and eva-v2 training beside eva 0.4.5's own, on the same input.

    python benchmarks/eva/segmentation.py decoders|metrics|parity|speed|all [--steps 36]

in an environment with eosin, kaiko-eva[vision]==0.4.5 and jsonargparse==4.50.0.

decoders: logits of stacked decoders against eva's modules with the same weights, features and images; bound 1e-5.
metrics: loss and scores on random label maps, with classes that are missing and pixels of no class; bound 1e-6. parity:
one run of eva's module, trainer, checkpoint and early stopping on synthetic images with a frozen random encoder, with
given first weights and order of images, step by step: weights after every step, val Dice after every epoch, best and
last step, Dice of the best checkpoint. Bound 1e-4. speed: processor seconds of one training step on windows of 224 px
with 384-d tokens, eva's module and optimiser against ours, the best of 5. Exit 0 if all holds, else 1.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from typing import Any

import eva_side
import lightning.pytorch as pl
import numpy as np
import torch
from eva import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, Trainer
from eva.core.data.datamodules.schemas import SamplersSchema
from eva.core.data.datasets import MapDataset
from eva.core.metrics import AverageLoss
from eva.core.metrics.structs import MetricsSchema
from eva.core.models.modules.utils.batch_postprocess import BatchPostProcess
from eva.vision.losses import DiceLoss
from eva.vision.metrics import MonaiDiceScore
from eva.vision.metrics.defaults import MulticlassSegmentationMetrics
from eva.vision.models.modules import SemanticSegmentationModule
from eva.vision.models.networks.decoders import segmentation as theirs
from eva.vision.models.networks.decoders.segmentation.typings import DecoderInputs
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from eosin.evaluation.mil.adam import StackedAdam
from eosin.evaluation.probes import segmentation_fit as fitting
from eosin.evaluation.probes.dice import (
    class_dice,
    class_iou,
    confusion,
    counts_of,
    picture_dice,
    pooled,
    segmentation_loss,
)
from eosin.evaluation.probes.segmentation_decoders import StackedConv, StackedDecoder, new_decoder
from eosin.evaluation.probes.segmentation_fit import Dense, Feed, SegmentationSettings, epochs_of, watch_one
from eosin.evaluation.probes.segmentation_windows import lay_out
from eosin.evaluation.tasks.masks import IGNORE
from eosin.randomness import Words

THEIRS: dict[Any, Any] = {
    "1x1": theirs.ConvDecoder1x1,
    "ms": theirs.ConvDecoderMS,
    "image": theirs.ConvDecoderWithImage,
}
MONITOR = "val/MonaiDiceScore"
SIDE, PATCH, WIDTH = 32, 8, 24
MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)


def decoders() -> bool:
    """Print the largest difference of logits of each decoder; True if all are within 1e-5."""
    held, (count, side, width, classes, size) = True, (2, 14, 192, 5, 224)
    drawn = torch.Generator().manual_seed(0)
    for name, kind in THEIRS.items():
        for shared in (True, False):
            ours = new_decoder(name, [Words(0, head) for head in range(3)], classes, width)
            many = 1 if shared else 3
            tokens = torch.randn(many, count, side, side, width, generator=drawn)
            images = torch.randn(many, count, 3, size, size, generator=drawn)
            found = ours(tokens, images, (size, size))
            worst = 0.0
            for head in range(3):
                own = 0 if shared else head
                module = with_weights_of(ours, head, kind(width, classes))
                maps = tokens[own].permute(0, 3, 1, 2).contiguous()
                wanted = module(DecoderInputs([maps], (size, size), images[own]))
                worst = max(worst, float((wanted - found[:, head]).abs().max()))
            held &= worst <= 1e-5
            seen = "same input" if shared else "own input"
            print(f"decoder {name:6s} 3 heads, {seen:11s} logits max |difference| {worst:.1e}", flush=True)
    return held


def metrics(draws: int = 40) -> bool:
    """Print how far loss and scores are from eva's on random label maps; True if within 1e-6."""
    worst: dict[str, float] = {}
    classes = 5
    for draw in range(draws):
        drawn = np.random.default_rng(draw)
        # Some draws lack a class, some images hold background alone, every third has pixels of no class.
        masks = drawn.integers(0, classes - draw % 2, (6, 20, 24)).astype(np.uint8)
        masks[: draw % 3] = 0
        predicted = np.where(drawn.random(masks.shape) < 0.5, masks, drawn.integers(0, classes, masks.shape))
        predicted = predicted.astype(np.uint8)
        ignored = draw % 3 == 0
        masks[drawn.random(masks.shape) < (0.1 if ignored else 0.0)] = IGNORE
        for name, (value, wanted) in _compared(predicted, masks, classes, ignored, drawn).items():
            worst[name] = max(worst.get(name, 0.0), abs(value - wanted))
    for name, value in worst.items():
        print(f"{name:42s} max |difference| {value:.1e} over {draws} random draws")
    return max(worst.values()) <= 1e-6


def _compared(
    predicted: np.ndarray[Any, Any], masks: np.ndarray[Any, Any], classes: int, ignored: bool, drawn: Any
) -> dict[str, tuple[float, float]]:
    known = torch.from_numpy(np.where(masks == IGNORE, classes, masks).astype(np.int64))
    index = classes if ignored else None
    collection = MulticlassSegmentationMetrics(num_classes=classes + ignored, ignore_index=index)
    collection.update(torch.from_numpy(predicted.astype(np.int64)), known)
    told = {name: float(value) for name, value in collection.compute().items()}
    single = MonaiDiceScore(num_classes=classes + ignored, ignore_index=index, include_background=False)
    single.update(torch.from_numpy(predicted.astype(np.int64)), known)
    tables = np.stack([confusion(p, m, classes, "eva") for p, m in zip(predicted, masks, strict=True)])
    counts = counts_of(tables)
    of_pictures = picture_dice(counts)
    logits = torch.from_numpy(drawn.normal(size=(len(masks), classes, *masks.shape[1:])).astype(np.float32))
    loss = DiceLoss(softmax=True, batch=True, ignore_index=index)(logits, known.clone())
    ours = segmentation_loss(logits[:, None], torch.from_numpy(masks), "dice", "eva")[0]
    found = {
        "MonaiDiceScore": (float(np.nanmean(of_pictures)), told["MonaiDiceScore"]),
        "MonaiDiceScore, alone": (float(np.nanmean(of_pictures)), float(single.compute())),
        "DiceLoss": (float(ours), float(loss)),
    }
    if not ignored:  # torchmetrics means over images here, ours pools: compared on one image
        first = counts[-1]
        macro = MulticlassSegmentationMetrics(num_classes=classes)
        macro.update(torch.from_numpy(predicted[-1:].astype(np.int64)), known[-1:])
        of_one = {name: float(value) for name, value in macro.compute().items()}
        if (first[2, 1:] > 0).all():
            found["DiceScore (macro), one image"] = (float(pooled(class_dice(first))), of_one["DiceScore (macro)"])
            found["MeanIoU, one image"] = (float(pooled(class_iou(first))), of_one["MeanIoU"])
    return found


class Pictures(MapDataset[Any]):
    """Synthetic images, normalised, and masks, in the order given."""

    def __init__(self, images: Tensor, masks: Tensor) -> None:
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], self.masks[index], {}


class Frozen(nn.Module):
    """A random patch projection in place of an encoder: a list of one feature map, as eva's wrappers give it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.projection = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [[B, D, h, w]]."""
        return [self.projection(images)]


class InDouble(Feed):
    """Tokens and images in double precision, as eva's side has them."""

    def __init__(self, tokens: Tensor, images: Tensor, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tokens, self.images = tokens.double(), images.double()

    def logits(self, decoder: StackedDecoder, rows: Any) -> Tensor:
        """Logits [B, 1, C, H, W]."""
        return decoder(self.tokens[rows][None], self.images[rows][None], self.size)


class Recorder(pl.Callback):
    """The decoder's weights after every step, val Dice after every epoch."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.scores: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.weights.append(flat(module.decoder))

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.scores.append((trainer.global_step, float(trainer.callback_metrics[MONITOR])))


def parity(steps: int) -> bool:
    """Print a line for each decoder and schedule; True if all hold.

    The decoder with batch norm is compared in double precision: a bias ahead of a batch norm has no slope but rounding,
    which Adam brings to full size, so that in single precision no two ways of adding up stay together.
    """
    columns = f"{'steps':>5s} {'weights':>9s} {'val Dice':>9s}  best/last step, Dice"
    print(f"{'decoder':8s} {'schedule':12s} {'no class':9s} {columns}")
    cases = [
        ("1x1", "third-first", False),
        ("ms", "third-first", False),
        ("ms", "polynomial", True),
        ("image", "third-first", False),
        ("image", "third-first", True),
    ]
    found = [_beside(name, schedule, ignored, steps) for name, schedule, ignored in cases]
    return all(found)


def _beside(name: Any, schedule: Any, ignored: bool, steps: int) -> bool:
    classes, count, held_out, batch = 4, 40, 12, 16
    pixels, masks = pictures(count + held_out, classes, ignored)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0 - mean) / std
    encoder = Frozen().requires_grad_(False)
    tokens = encoder(images)[0].permute(0, 2, 3, 1).contiguous().numpy()
    windows = lay_out(np.full((count + held_out, 2), SIDE), "cover", SIDE, SIDE)
    dense = Dense(windows, tokens, pixels, masks, np.float32(MEAN), np.float32(STD))
    how = SegmentationSettings(
        decoder=(name,), steps=(steps,), batch=batch, runs=1, schedule=schedule, per="epoch", loss="dice",
        ignored="eva", checkpoint="best", patience=5, score="window",
    )  # fmt: skip
    train, watched = np.arange(count), np.arange(count, count + held_out)
    orders = list(islice(epochs_of(windows, train, Words(3, "order")), -(-steps // -(-count // batch)) + 1))
    decoder = new_decoder(name, [Words(3, "start")], classes, WIDTH)
    module = with_weights_of(decoder, 0, THEIRS[name](WIDTH, classes))
    if name == "image":
        images, decoder, module, encoder = images.double(), decoder.double(), module.double(), encoder.double()
    recorder, final = traced(module, encoder, images, masks, count, classes, ignored, how, orders)

    seen: list[Tensor] = []
    scores: list[float] = []
    feed = Feed(name, dense, None, 1, "cpu")
    if name == "image":
        feed = InDouble(encoder(images)[0].permute(0, 2, 3, 1), images, name, dense, None, 1, "cpu")
    real_step, real_dice = fitting._step, fitting.watched_dice

    def step(feed_: Any, decoder_: StackedDecoder, *rest: Any) -> None:
        real_step(feed_, decoder_, *rest)
        seen.append(flat_ours(decoder_))

    def dice(*arguments: Any) -> float:
        scores.append(real_dice(*arguments))
        return scores[-1]

    fitting._step, fitting.watched_dice = step, dice
    try:
        fit = watch_one(feed, decoder, iter(orders), (feed, watched), classes, how)
    finally:
        fitting._step, fitting.watched_dice = real_step, real_dice
    far = max(float((a - b).abs().max()) for a, b in zip(seen, recorder.weights, strict=True))
    looks = dict(recorder.scores)
    apart = max(abs(a - b) for a, b in zip(scores, looks.values(), strict=True))
    best = max(looks, key=lambda at: (looks[at], -at))
    same = (fit.best_step[0], fit.last_step[0]) == (best, len(recorder.weights))
    ours = fit.score[0]
    assert ours is not None
    fits = far <= 1e-4 and apart <= 1e-4 and same and abs(ours - final) <= 1e-4
    said = "" if fits else f"  OUT OF BOUNDS: ours {fit.best_step[0]}/{fit.last_step[0]}, {ours:.4f}"
    print(
        f"{name:8s} {schedule:12s} {'some' if ignored else 'none':9s} {len(seen):5d} {far:9.1e} {apart:9.1e}"
        f"  {best}/{len(recorder.weights)}, {final:.4f}{said}",
        flush=True,
    )
    return fits


def traced(
    decoder: nn.Module, encoder: nn.Module, images: Tensor, masks: Any, count: int, classes: int, ignored: bool,
    how: SegmentationSettings, orders: list[Any],
) -> tuple[Recorder, float]:  # fmt: skip
    """One run of eva, put together as its online configuration files do: the record, Dice of its best checkpoint."""
    known = torch.from_numpy(np.where(masks == IGNORE, classes, masks).astype(np.int64))
    index = classes if ignored else None
    loader = partial(DataLoader, batch_size=how.batch, num_workers=0, persistent_workers=False, prefetch_factor=None)
    data = DataModule(
        DatasetsSchema(train=Pictures(images[:count], known[:count]), val=Pictures(images[count:], known[count:])),
        DataloadersSchema(train=loader(shuffle=False), val=loader(shuffle=False)),
        SamplersSchema(train=eva_side.GivenOrder([torch.from_numpy(order) for order in orders])),
    )
    more: dict[str, Any] = {}
    if how.schedule == "polynomial":
        more["lr_scheduler"] = partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=how.steps[0], power=0.9)
    module = SemanticSegmentationModule(
        decoder=decoder,
        criterion=DiceLoss(softmax=True, batch=True, ignore_index=index),
        encoder=encoder,
        optimizer=partial(torch.optim.AdamW, lr=how.lr[0]),
        metrics=MetricsSchema(
            common=[AverageLoss()],
            evaluation=[MulticlassSegmentationMetrics(num_classes=classes + ignored, ignore_index=index)],
        ),
        postprocess=BatchPostProcess(predictions_transforms=[partial(torch.argmax, dim=1)]),
        **more,
    )
    recorder = Recorder()
    watched = {"monitor": MONITOR, "mode": "max"}
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            default_root_dir=root, n_runs=1, max_steps=how.steps[0], accelerator="cpu", devices=1,
            checkpoint_type="best", logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[
                ModelCheckpoint(filename="best", save_top_k=1, **watched),
                EarlyStopping(min_delta=0, patience=how.patience, **watched),
                recorder,
            ],
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        (scores,) = trainer.validate(module, datamodule=data, ckpt_path="best", verbose=False)
    return recorder, float(scores[MONITOR])


def speed(repeats: int = 5) -> None:
    """Print processor seconds of a step: eva's, ours, five heads of ours at once, ours at every fourth px."""
    size, side, width, classes = 224, 14, 384, 5
    print(f"{'decoder':8s} {'batch':>5s} {'eva':>7s} {'ours':>7s} {'5 heads':>8s} {'every 4th px':>13s}")
    for name, batch in (("1x1", 64), ("ms", 64), ("image", 2)):
        drawn = torch.Generator().manual_seed(0)
        tokens = torch.randn(batch, side, side, width, generator=drawn)
        images = torch.randn(batch, 3, size, size, generator=drawn)
        masks = torch.randint(0, classes, (batch, size, size), generator=drawn).to(torch.uint8)
        module, criterion = THEIRS[name](width, classes), DiceLoss(softmax=True, batch=True)
        optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
        maps = tokens.permute(0, 3, 1, 2).contiguous()

        def eva_step(
            module: Any = module, criterion: Any = criterion, optimizer: Any = optimizer, maps: Any = maps,
            images: Any = images, masks: Any = masks,
        ) -> None:  # fmt: skip
            optimizer.zero_grad()
            criterion(module(DecoderInputs([maps], (size, size), images)), masks.long()).backward()
            optimizer.step()

        def our_step(
            decoder: Any, own: Any, every: int, name: str = name, tokens: Any = tokens, images: Any = images,
            masks: Any = masks,
        ) -> None:  # fmt: skip
            at = slice(every // 2, None, every)
            small = masks[:, at, at].contiguous()
            target = (size, size) if name == "image" else tuple(small.shape[1:])
            logits = decoder(tokens[None], images[None], target)
            logits = logits if logits.shape[-2:] == small.shape[1:] else logits[..., at, at]
            segmentation_loss(logits, small).sum().backward()
            heads = decoder.heads
            own.step(torch.full((heads,), 2e-3), torch.ones(heads, dtype=torch.bool))

        found = [_seconds(eva_step, repeats)]
        for heads, every in ((1, 1), (5, 1), (1, 4)):
            decoder = new_decoder(name, [Words(0, head) for head in range(heads)], classes, width)
            own = StackedAdam(list(decoder.parameters()), 0.01, decoupled=True)
            few = 1 if heads > 1 and name == "image" else repeats
            found.append(_seconds(partial(our_step, decoder, own, every), few))
        print(f"{name:8s} {batch:5d} {found[0]:7.3f} {found[1]:7.3f} {found[2]:8.3f} {found[3]:13.3f}", flush=True)


def _seconds(step: Any, repeats: int) -> float:
    """Processor seconds of one call, the best of `repeats` behind a first one."""
    step()
    taken = []
    for _ in range(repeats):
        before = time.process_time()
        step()
        taken.append(time.process_time() - before)
    return min(taken)


def pictures(count: int, classes: int, ignored: bool) -> tuple[Any, Any]:
    """Images uint8 [N, S, S, 3] of coloured discs, and masks uint8 [N, S, S] that say which."""
    drawn = np.random.default_rng(11)
    colours = drawn.integers(40, 216, (classes, 3))
    pixels, masks = np.empty((count, SIDE, SIDE, 3)), np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        for _ in range(5):
            at, radius = drawn.integers(0, SIDE, 2), drawn.integers(3, 9)
            inside = (rows - at[0]) ** 2 + (columns - at[1]) ** 2 < radius**2
            masks[number][inside] = drawn.integers(0, classes)
        pixels[number] = colours[masks[number]] + drawn.normal(0, 40, (SIDE, SIDE, 3))
        if ignored:
            masks[number, : drawn.integers(1, 7)] = IGNORE
    return pixels.clip(0, 255).astype(np.uint8), masks


def with_weights_of(ours: StackedDecoder, head: int, module: nn.Module) -> nn.Module:
    """eva's module with the weights of one of our heads."""
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    stacked = [part for part in ours.modules() if isinstance(part, StackedConv)]
    with torch.no_grad():
        for theirs_, own in zip(convolutions, stacked, strict=True):
            theirs_.weight.copy_(own.weight[head])
            theirs_.bias.copy_(own.bias[head])
    return module


def flat(module: nn.Module) -> Tensor:
    """All weights of eva's decoder, convolution by convolution, norm by norm, in order."""
    parts = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    values = [value for part in (*parts, *norms) for value in (part.weight, part.bias)]
    values += [value for part in norms for value in (part.running_mean, part.running_var)]
    return torch.cat([value.detach().flatten() for value in values])


def flat_ours(decoder: StackedDecoder) -> Tensor:
    """The same of one head of ours."""
    parts = [part for part in decoder.modules() if isinstance(part, StackedConv)]
    norms = [part for part in decoder.modules() if hasattr(part, "variance")]
    values: list[Any] = [value for part in (*parts, *norms) for value in (part.weight, part.bias)]
    values += [value for part in norms for value in (part.mean, part.variance)]
    return torch.cat([value.detach().flatten() for value in values])


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decoders", "metrics", "parity", "speed", "all"))
    parser.add_argument("--steps", type=int, default=36)
    chosen = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    held = True
    if chosen.what in ("decoders", "all"):
        held &= decoders()
    if chosen.what in ("metrics", "all"):
        held &= metrics()
    if chosen.what in ("parity", "all"):
        held &= parity(chosen.steps)
    if chosen.what == "speed":
        speed()
        return 0
    print("PASS" if held else "FAIL")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
