"""Segmentation: decoders, Dice, windows and the whole way from a table of masks to a row of results."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.evaluation import evaluate
from eosin.evaluation.outcome import Measure
from eosin.evaluation.probes import segmentation_fit
from eosin.evaluation.probes.dice import class_dice, confusion, counts_of, picture_dice, pooled, segmentation_loss
from eosin.evaluation.probes.schedules import lr_factors
from eosin.evaluation.probes.segmentation import segment
from eosin.evaluation.probes.segmentation_decoders import DecoderName, StackedConv, StackedNorm, hsv, new_decoder
from eosin.evaluation.probes.segmentation_fit import (
    Dense,
    Feed,
    SegmentationSettings,
    epochs_of,
    one_head,
    train_fixed,
    watch_one,
)
from eosin.evaluation.probes.segmentation_windows import WindowImages, Windows, lay_out, window_mask
from eosin.evaluation.protocols import PROTOCOLS
from eosin.evaluation.scores import SCORES
from eosin.evaluation.tasks.masks import IGNORE
from eosin.features import FeatureStore, load_model
from eosin.features.patch_tokens import kept_patch_tokens
from eosin.randomness import Words

WIDTH, CLASSES, SIDE = 6, 3, 32


def plain(name: DecoderName, decoder: Any, head: int, tokens: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
    """One head by torch's own layers, enlarged before it is convolved. tokens [B, h, w, D] -> [B, C, H, W]."""
    convolutions = [part for part in decoder.modules() if isinstance(part, StackedConv)]
    norms = [part for part in decoder.modules() if isinstance(part, StackedNorm)]

    def conv(number: int, x: Tensor) -> Tensor:
        part = convolutions[number]
        return F.conv2d(x, part.weight[head], part.bias[head], padding="same")

    def norm(number: int, x: Tensor) -> Tensor:
        part = norms[number]
        return F.batch_norm(x, None, None, part.weight[head], part.bias[head], training=True).relu()

    def doubled(x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")

    maps = tokens.permute(0, 3, 1, 2)
    if name == "1x1":
        return F.interpolate(conv(0, maps), size, mode="bilinear")
    if name == "ms":
        return F.interpolate(conv(1, doubled(conv(0, doubled(maps)))), size, mode="bilinear")
    x = F.interpolate(norm(0, conv(0, doubled(maps))), size, mode="bilinear")
    return conv(3, norm(2, conv(2, norm(1, conv(1, torch.cat([x, images], 1))))))


@pytest.mark.parametrize("name", ["1x1", "ms", "image"])
@pytest.mark.parametrize("shared", [True, False])
def test_stacked_decoders_equal_one_at_a_time(name: DecoderName, shared: bool) -> None:
    torch.manual_seed(0)
    decoder = new_decoder(name, [Words(0, head) for head in range(2)], CLASSES, WIDTH).double()
    many = 1 if shared else 2
    tokens, images = torch.randn(many, 3, 4, 5, WIDTH).double(), torch.randn(many, 3, 3, 40, 50).double()
    found = decoder(tokens, images, (40, 50))
    assert found.shape == (3, 2, CLASSES, 40, 50)
    weights = [part.weight for part in decoder.modules() if isinstance(part, StackedConv)]
    slopes = torch.autograd.grad(found.square().sum(), weights, retain_graph=True)
    wanted = torch.stack(
        [plain(name, decoder, h, tokens[0 if shared else h], images[0 if shared else h], (40, 50)) for h in range(2)], 1
    )
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-8)
    for slope, other in zip(slopes, torch.autograd.grad(wanted.square().sum(), weights), strict=True):
        torch.testing.assert_close(slope, other, atol=1e-8, rtol=1e-6)


def test_decoders_start_as_torch_starts_convolutions() -> None:
    first, second = (new_decoder("ms", [Words(0, "a"), Words(0, "b")], CLASSES, WIDTH) for _ in range(2))
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    weight = first.first.weight
    assert isinstance(weight, Tensor)
    assert not torch.equal(weight[0], weight[1])
    edge = (WIDTH * 9) ** -0.5
    weight = weight.detach()
    assert float(weight.abs().max()) <= edge
    assert float(weight.std()) == pytest.approx(edge / 3**0.5, rel=0.05)


def test_hsv_is_pythons() -> None:
    import colorsys

    drawn = np.random.default_rng(0)
    colours = np.concatenate([drawn.random((50, 3)), [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.2], [0.2, 0.5, 0.5]]])
    found = hsv(torch.from_numpy(colours.T[:, None])).numpy()[:, 0].T
    np.testing.assert_allclose(found, [colorsys.rgb_to_hsv(*colour) for colour in colours], atol=1e-6)


def slow_loss(logits: Tensor, masks: Tensor, ignored: str) -> float:
    """1 - Dice of the softmax, class by class and pixel by pixel."""
    classes = logits.shape[1]
    values = []
    for label in range(classes):
        overlap = predicted = true = 0.0
        for picture in range(len(logits)):
            for place in np.ndindex(*masks.shape[1:]):
                said, known = logits[picture][(slice(None), *place)], int(masks[picture][place])
                if known == IGNORE and ignored == "out":
                    continue
                chance = 1 / classes if known == IGNORE else float(torch.softmax(said, 0)[label])
                is_it = (0 if known == IGNORE else known) == label
                overlap, predicted, true = overlap + chance * is_it, predicted + chance, true + is_it
        values.append(1 - (2 * overlap + 1e-5) / (predicted + true + 1e-5))
    return float(np.mean(values))


@pytest.mark.parametrize("ignored", ["out", "eva"])
def test_loss_against_a_loop(ignored: Any) -> None:
    torch.manual_seed(1)
    logits, masks = torch.randn(2, 2, CLASSES, 4, 5), torch.randint(0, 2, (2, 4, 5), dtype=torch.uint8)
    masks[0, :2, 0] = IGNORE
    found = segmentation_loss(logits, masks, "dice", ignored)
    assert found.tolist() == pytest.approx([slow_loss(logits[:, head], masks, ignored) for head in range(2)], abs=1e-5)
    more = segmentation_loss(logits, masks, "dice+ce")
    known = torch.where(masks == IGNORE, -100, masks.long())
    both = segmentation_loss(logits, masks)
    for head in range(2):
        wanted = float(both[head] + F.cross_entropy(logits[:, head], known, ignore_index=-100))
        assert float(more[head]) == pytest.approx(wanted, abs=1e-5)


def test_scores_of_label_maps() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 2, 2, IGNORE]], dtype=np.uint8)
    said = np.array([[0, 1, 1, 1], [0, 2, 0, 2]], dtype=np.uint8)
    counts = counts_of(confusion(said, mask, 4))
    np.testing.assert_allclose(class_dice(counts), [2 * 2 / (3 + 3), 2 * 2 / (3 + 2), 2 * 1 / (1 + 2), np.nan])
    assert pooled(class_dice(counts)) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert picture_dice(counts) == pytest.approx((4 / 5 + 2 / 3) / 2)
    eva = counts_of(confusion(said, mask, 4, "eva"))
    assert class_dice(eva)[2] == pytest.approx(2 * 1 / (2 + 2))  # what is said where nothing is known is wrong
    # A class that is predicted and nowhere true counts in the pooled score, not in that of a picture (MONAI).
    wrong = counts_of(confusion(np.full((2, 2), 3, np.uint8), np.ones((2, 2), np.uint8), 4))
    assert pooled(class_dice(wrong)) == 0.0
    assert picture_dice(wrong) == 0.0
    assert math.isnan(picture_dice(counts_of(confusion(said * 0, mask * 0, 4))))


def test_pooled_scores_of_resamples() -> None:
    counts = np.random.default_rng(0).integers(1, 50, (6, 3, 2)).astype(np.float64)
    counts[:, 0] = np.minimum(counts[:, 1], counts[:, 2]) // 2
    weights = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 3, 1, 0]], dtype=np.float64)
    sums = np.einsum("wn,nkc->wkc", weights, counts).reshape(2, 1, 6)
    right, predicted, true = np.moveaxis(np.einsum("wn,nkc->wkc", weights, counts), 1, 0)
    dice, iou = 2 * right / (predicted + true), right / (predicted + true - right)
    np.testing.assert_allclose(SCORES["dice"].of_sums(sums), dice.mean(1))
    np.testing.assert_allclose(SCORES["iou"].of_sums(sums), iou.mean(1))


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (100, 64), (20, 50)])
def test_windows_cover_every_pixel_once(size: tuple[int, int]) -> None:
    windows = lay_out(np.array([size]), "cover", SIDE, SIDE)
    owners = np.zeros(size, dtype=int)
    for (top, left, height, width), (first, last, begin, end) in zip(windows.boxes, windows.owned, strict=True):
        owners[first:last, begin:end] += 1
        assert top <= first
        assert last <= top + height
        assert left <= begin
        assert end <= left + width
    assert (owners == 1).all()


def test_windows_are_pieces_of_image_and_mask() -> None:
    drawn = np.random.default_rng(0)
    image, mask = drawn.integers(0, 255, (50, 40, 3), dtype=np.uint8), drawn.integers(0, 3, (50, 40), dtype=np.uint8)
    windows = lay_out(np.array([[50, 40]]), "cover", SIDE, SIDE)
    pieces = WindowImages([image], windows)
    for number, (top, left, *_) in enumerate(windows.boxes):
        assert np.array_equal(pieces[number], image[top : top + SIDE, left : left + SIDE])
        assert np.array_equal(window_mask(mask, windows, number), mask[top : top + SIDE, left : left + SIDE])
    small = lay_out(np.array([[20, 40]]), "cover", SIDE, SIDE)
    assert np.array_equal(WindowImages([image[:20]], small)[0][20:], image[19:7:-1, :SIDE])
    assert (window_mask(mask[:20], small, 0)[20:] == IGNORE).all()
    # A square of 40 px that is seen as 32: classes are picked, never mixed.
    larger = lay_out(np.array([[50, 40]]), "grid", SIDE, 40)
    assert larger.boxes.tolist() == [[0, 0, 40, 40]]
    assert set(np.unique(window_mask(mask, larger, 0))) <= {0, 1, 2}
    whole = lay_out(np.array([[50, 40]]), "crop", SIDE, SIDE)
    assert whole.place(0) == (5, 0, 40, 40)
    encoder_sees = load_model("colour")
    encoder_sees.input_size = SIDE
    wanted = encoder_sees.prepare(image[None])[0].permute(1, 2, 0) * 255
    np.testing.assert_array_equal(WindowImages([image], whole)[0], wanted.round().numpy())


def test_random_crops_stay_inside() -> None:
    sizes = np.array([[81, 90], *[[400, 100]] * 80])
    windows = lay_out(sizes, "views", SIDE, SIDE, only=np.arange(1, 81), views=3, words=Words(0))
    assert (windows.image == np.repeat(np.arange(1, 81), 3)).all()
    top, left, height, width = windows.boxes.T
    assert (top >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 100).all()
    assert (height * width).min() < 0.2 * 400 * 100 < (height * width).max()
    epochs = epochs_of(windows, np.arange(240), Words(1))
    three = [next(epochs) for _ in range(3)]
    assert [set(epoch % 3) for epoch in three] == [{0}, {1}, {2}]
    assert all(sorted(epoch // 3) == list(range(80)) for epoch in three)


def discs(count: int, side: int = SIDE, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images of a disc of class 1 or 2, which differ in colour, and their masks."""
    drawn = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    pixels, masks = np.empty((count, side, side, 3)), np.zeros((count, side, side), dtype=np.uint8)
    for number in range(count):
        at, label = drawn.integers(8, side - 8, 2), 1 + number % 2
        masks[number][(rows - at[0]) ** 2 + (columns - at[1]) ** 2 < 64] = label
        pixels[number] = np.array([[220, 220, 220], [200, 60, 120], [60, 60, 200]])[masks[number]]
        pixels[number] += drawn.normal(0, 10, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8), masks


def dense(count: int = 24) -> Dense:
    """Windows with tokens that are mean colours of 4 x 4 px."""
    pixels, masks = discs(count)
    tokens = pixels.reshape(count, 8, 4, 8, 4, 3).mean(axis=(2, 4)) / 255.0
    windows = lay_out(np.full((count, 2), SIDE), "cover", SIDE, SIDE)
    return Dense(windows, tokens.astype(np.float32), pixels, masks, np.zeros(3, np.float32), np.ones(3, np.float32))


@pytest.mark.parametrize("schedule", ["third-first", "polynomial"])
def test_watched_training_step_by_step(schedule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against torch's layers, AdamW and scheduler with the same first weights and order of windows."""
    data, steps, batch = dense(20), 12, 8
    how = SegmentationSettings(
        ("ms",), (2e-3,), (steps,), batch=batch, schedule=schedule, per="epoch", checkpoint="best", patience=99
    )
    orders = list(islice(epochs_of(data.windows, np.arange(16), Words(4)), 6))
    decoder = new_decoder("ms", [Words(2)], CLASSES, 3)
    first, second = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, CLASSES, 3, padding=1)
    with torch.no_grad():
        for layer, own in ((first, decoder.first), (second, decoder.second)):
            assert isinstance(own, StackedConv)
            layer.weight.copy_(own.weight[0])
            layer.bias.copy_(own.bias[0])
    model = nn.Sequential(nn.Upsample(scale_factor=2), first, nn.Upsample(scale_factor=2), second)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    scheduler: Any = (
        torch.optim.lr_scheduler.ConstantLR(optimizer)
        if schedule == "third-first"
        else torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    )
    assert data.tokens is not None
    maps, masks = torch.from_numpy(data.tokens).permute(0, 3, 1, 2), torch.from_numpy(data.masks)
    wanted = []
    for epoch in orders:
        for rows in np.split(epoch, 2):
            optimizer.zero_grad()
            segmentation_loss(model(maps[rows])[:, None], masks[rows]).sum().backward()
            optimizer.step()
            wanted.append(first.weight.detach().clone())
        scheduler.step()
    seen: list[Tensor] = []
    real = segmentation_fit._step

    def step(feed: Feed, own: Any, *rest: Any) -> None:
        real(feed, own, *rest)
        seen.append(own.first.weight[0].detach().clone())

    monkeypatch.setattr(segmentation_fit, "_step", step)
    feed = Feed("ms", data, None, 1, "cpu")
    fit = watch_one(feed, decoder, iter(orders), (feed, np.arange(16, 20)), CLASSES, how)
    assert fit.last_step == [steps]
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_heads_trained_together_are_those_trained_alone() -> None:
    data = dense()
    how = SegmentationSettings(("ms",), steps=(6,), batch=4, schedule="cosine", every=4)
    feed = Feed("ms", data, None, how.every, "cpu")
    rows = np.arange(20)
    together = train_fixed(feed, [rows], CLASSES, how, [1e-3, 1e-2], 6, (0, "x"))
    alone = train_fixed(feed, [rows], CLASSES, how, [1e-2], 6, (0, "x"))
    torch.testing.assert_close(together.decoders[1].first.weight, alone.decoders[0].first.weight, atol=1e-5, rtol=1e-4)
    runs = train_fixed(feed, [rows, rows], CLASSES, how, [1e-3, 1e-3], 6, (0, "x"))
    weights = [decoder.first.weight for decoder in runs.decoders]
    assert not torch.equal(*weights)
    assert one_head(together.decoders[0], 0).heads == 1


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_the_probe_finds_what_is_there(checkpoint: Any) -> None:
    data = dense()
    how = SegmentationSettings(
        ("1x1", "ms") if checkpoint == "last" else ("ms",),
        (1e-2,),
        (40,),
        batch=8,
        runs=2,
        schedule="cosine",
        every=2,
        standardise=True,
        checkpoint=checkpoint,
        score="image" if checkpoint == "last" else "window",
    )
    arguments: dict[str, Any] = {"inner": [(np.arange(10), np.arange(10, 16))], "watch": np.arange(10, 16), "how": how}
    found = segment(
        data, data, np.arange(16), np.arange(16, 24), CLASSES, lambda row: data.masks[row], shown=[17], **arguments
    )
    again = segment(data, data, np.arange(16), np.arange(16, 24), CLASSES, lambda row: data.masks[row], **arguments)
    assert np.array_equal(found.tables, again.tables)
    assert found.tables.shape == (2, 8, CLASSES + 1, CLASSES)
    assert found.tables.sum() == 2 * 8 * SIDE * SIDE
    assert (pooled(class_dice(counts_of(found.tables.sum(1)))) > 0.6).all()
    assert found.maps.keys() == {17}
    assert (found.maps[17] == data.masks[17]).mean() > 0.85
    with pytest.raises(DataError, match="one class only"):
        blank = data._replace(masks=np.zeros_like(data.masks))
        segment(blank, blank, np.arange(16), np.arange(16, 24), CLASSES, lambda row: data.masks[row], **arguments)


def test_label_maps_of_images_larger_than_a_window() -> None:
    drawn = [discs(1, 90, seed) for seed in range(20)]
    images, masks = [pixels[0, :70] for pixels, _ in drawn], [mask[0, :70] for _, mask in drawn]
    windows = lay_out(np.full((20, 2), (70, 90)), "cover", SIDE, SIDE)
    pieces = np.stack(list(WindowImages(images, windows)))
    tokens = pieces.reshape(-1, 8, 4, 8, 4, 3).mean(axis=(2, 4)).astype(np.float32) / 255.0
    of_windows = np.stack([window_mask(masks[windows.image[row]], windows, row) for row in range(len(windows))])
    data = Dense(windows, tokens, None, of_windows, np.zeros(3, np.float32), np.ones(3, np.float32))
    how = SegmentationSettings(("1x1",), (3e-2,), (60,), batch=8, runs=1, schedule="cosine", every=2, standardise=True)
    train, test = np.arange(16), np.arange(16, 20)
    found = segment(data, data, train, test, 2, lambda row: masks[row], how=how, shown=test.tolist())
    for row in test:
        assert (found.maps[row] == masks[row]).mean() > 0.97
    assert (class_dice(counts_of(found.tables[0]))[:, 1] > 0.55).all()


def test_polynomial_schedule_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, 20, power=0.9)
    wanted = []
    for _ in range(20):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(lr_factors("polynomial", "step", 20, 5), wanted, rtol=1e-9)


def test_tokens_before_the_norm_are_timms(tmp_path: Path) -> None:
    encoder = load_model("vit_tiny_patch16_224", random_init=True, input_size=SIDE)
    pixels = np.random.default_rng(0).integers(0, 255, (3, SIDE, SIDE, 3), dtype=np.uint8)
    images = encoder.prepare(pixels)
    network: Any = encoder.network
    with torch.no_grad():
        (wanted,) = network.get_intermediate_layers(images, n=1, reshape=True, norm=False)
    torch.testing.assert_close(encoder.patch_tokens(pixels, norm=False), wanted.permute(0, 2, 3, 1))
    store = FeatureStore(tmp_path)
    kept = kept_patch_tokens(store, encoder, list(pixels), "x", norm=False, batch=2)
    np.testing.assert_allclose(kept, wanted.permute(0, 2, 3, 1), atol=1e-5)
    assert isinstance(kept_patch_tokens(store, encoder, list(pixels), "x", norm=False, batch=2), np.memmap)
    assert not np.allclose(kept_patch_tokens(store, encoder, list(pixels), "x", batch=2), kept)


def write_task(folder: Path, count: int = 12, side: int = 40) -> Path:
    """A table of images and masks, one of them of another size, with three classes; split by thirds."""
    pixels, masks = discs(count, side)
    (folder / "classes.txt").write_text("background\npink\nblue\n")
    lines = ["file,mask,split"]
    for number in range(count):
        Image.fromarray(pixels[number, : side - number % 2]).save(folder / f"{number}.png")
        Image.fromarray(masks[number, : side - number % 2]).save(folder / f"{number}_mask.png")
        lines.append(f"{number}.png,{number}_mask.png,{'test' if number >= 8 else 'val' if number >= 6 else 'train'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder / "table.csv"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocols with few steps."""
    for name in ("strict", "eva-v2"):
        settings = PROTOCOLS[name].of("segmentation").settings
        monkeypatch.setitem(settings, "steps", [4] if name == "eva-v2" else [40])
        monkeypatch.setitem(settings, "batch", 4)
        monkeypatch.setitem(settings, "lr", [0.1])
        monkeypatch.setitem(settings, "runs", 2)


@pytest.mark.usefixtures("quick")
def test_from_a_table_to_results(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    rows = evaluate("colour", [f"mine={task}"], "strict", tmp_path / "out")
    assert [row["metric"] for row in rows] == ["dice", "dice_per_image", "iou"]
    assert rows[0]["n"] == 4
    assert rows[0]["mean"] > 0.6
    assert rows[0]["ci_low"] <= rows[0]["mean"] <= rows[0]["ci_high"]
    assert list(rows[0]["per_class"]) == ["background", "pink", "blue"]
    masks = np.concatenate([np.asarray(Image.open(tmp_path / f"{n}_mask.png")).ravel() for n in range(8, 12)])
    pink, blue = (2 * (masks == label).mean() / (1 + (masks == label).mean()) / 2 for label in (1, 2))
    assert rows[0]["best_constant"]["dice"] == pytest.approx(max(pink, blue))
    folder = tmp_path / "out" / "segmentation" / "mine" / "strict" / rows[0]["model_hash"]
    index = json.loads((folder / "overlays.json").read_text())
    assert [entry["sample"] for entry in index["images"]] == ["8.png", "9.png", "10.png", "11.png"]
    for entry in index["images"]:
        with Image.open(folder / entry["truth"]) as truth, Image.open(folder / entry["prediction"]) as said:
            with Image.open(tmp_path / entry["sample"].replace(".png", "_mask.png")) as mask:
                assert np.array_equal(np.asarray(truth), np.asarray(mask))
            assert said.mode == "P"
            assert said.size == truth.size
            assert (np.asarray(said) == np.asarray(truth)).mean() > 0.8
    again = evaluate("colour", [f"mine={task}"], "strict", tmp_path / "out")
    assert [(row["mean"], row["seconds"]) for row in again] == [(row["mean"], row["seconds"]) for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_eva_v2_on_a_small_vit(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    rows = evaluate(
        "vit_tiny_patch16_224", [f"mine={task}"], "eva-v2", tmp_path / "out", random_init=True, input_size=SIDE
    )
    assert [row["metric"] for row in rows] == ["dice_per_window", "dice", "iou"]
    assert rows[0]["choices"]["last_step"] == [[4, 4]]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("size", r"the mask of 3.png has 20 x 20 px, its image 40 x 39"),
        ("value", r"3_mask.png holds the value 7, which is no class"),
        ("missing", r"files of .* are missing, first line 5: looked for .*3_mask.png"),
        ("one", r"the masks of a training part hold one class only"),
    ],
)
def test_wrong_masks_give_one_line(tmp_path: Path, wrong: str, line: str) -> None:
    task = write_task(tmp_path)
    mask = tmp_path / "3_mask.png"
    if wrong == "size":
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(mask)
    elif wrong == "value":
        Image.fromarray(np.full((39, 40), 7, np.uint8)).save(mask)
    elif wrong == "missing":
        mask.unlink()
    else:
        for number in range(8):
            Image.fromarray(np.zeros((40 - number % 2, 40), np.uint8)).save(tmp_path / f"{number}_mask.png")
    with pytest.raises(DataError, match=line) as caught:
        evaluate("colour", [f"mine={task}"], "strict", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_texture_has_places() -> None:
    texture = load_model("texture")
    rows, columns = np.mgrid[:64, :64]
    stripes = np.where(columns < 32, np.sin(columns * 2 * np.pi / 4), np.sin(rows * 2 * np.pi / 16))
    tile = np.repeat((127 + 100 * stripes).astype(np.uint8)[:, :, None], 3, axis=2)[None]
    tokens = texture.patch_tokens(tile)
    assert tokens.shape == (1, 8, 8, 12)
    left, right = tokens[0, 2:6, 1:3].mean((0, 1)), tokens[0, 2:6, 5:7].mean((0, 1))
    assert left[1] > right[1] + 1  # waves of about 4 px
    assert right[8] > left[8] + 1  # of about 12 and 17 px


def test_windows_and_measures_have_their_shapes() -> None:
    windows = lay_out(np.array([[64, 64], [32, 32]]), "cover", SIDE, SIDE)
    assert isinstance(windows, Windows)
    assert windows.of(np.array([1])).tolist() == [4]
    assert len(Measure("dice", 0.0, np.zeros(1), np.zeros((1, 3, 6)))) == 3
