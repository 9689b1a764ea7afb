"""Slide tasks: ABMIL beside a plain one trained by torch alone, bags read from slides, bags that came as features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.evaluation import PROTOCOLS, evaluate
from eosin.evaluation import protocols as protocol_module
from eosin.evaluation.judge import judge, row_of
from eosin.evaluation.kinds.slide_bags import HeldBags, bags_of_slides, drawn_tiles
from eosin.evaluation.probes.bags import BagSettings, FittedBag, abmil, fit_bags, new_head
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task
from eosin.features import load_model
from eosin.models.mil.head import MilHead

from .five_tasks import quick, write_camelyon, write_glass

WIDTH = 20


class Plain(nn.Module):
    """eva's head, written down once more: project, attend, pool, MLP."""

    def __init__(self, head: MilHead, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, 16)
        self.tanh, self.gate, self.score = nn.Linear(16, 12), nn.Linear(16, 12), nn.Linear(12, 1)
        self.mlp = nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, outputs))
        state = {name.removeprefix("classifiers.0."): value for name, value in head.state_dict().items()}
        names = {"hidden": self.project, "attention.tanh": self.tanh, "attention.gate": self.gate}
        for name, layer in {**names, "attention.scores": self.score}.items():
            layer.load_state_dict({"weight": state[f"{name}.weight"], "bias": state[f"{name}.bias"]})
        self.mlp.load_state_dict({name: value for name, value in state.items() if name[0].isdigit()})

    def forward(self, bag: Tensor) -> Tensor:
        hidden = self.project(bag)
        scores = self.score(torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.gate(hidden)))
        return self.mlp((torch.softmax(scores, dim=0) * hidden).sum(dim=0))


HOW = BagSettings(hidden=16, attention=12, mlp=(10, 6), lr=1e-2, batch=8, epochs=7, schedule="third-first", runs=3)


def make(
    classes: int, count: int = 40, seed: int = 0, loud: float = 2.0
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Bags of 2 to 12 tiles, two of which tell the class."""
    drawn = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    bags = [drawn.normal(size=(drawn.integers(2, 13), WIDTH)).astype(np.float32) for _ in range(count)]
    for bag, label in zip(bags, labels.tolist(), strict=True):
        bag[:2, label] += loud
    return bags, labels.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3])
def test_training_is_torchs_step_by_step(classes: int) -> None:
    """Same start and order: the weights of each run's best epoch are those of AdamW on one head at a time."""
    bags, labels = make(classes)
    train, watch = np.arange(27), np.arange(27, 40)
    heads = [new_head(WIDTH, classes, HOW, 0, 0, run) for run in range(3)]
    orders = [[np.random.default_rng([run, epoch]).permutation(27) for run in range(3)] for epoch in range(7)]
    stream: Iterator[Tensor] = (torch.from_numpy(np.stack(epoch)) for epoch in orders)
    plain = [Plain(head, 1 if classes == 2 else 3) for head in heads]
    found = fit_bags(heads, bags, labels, train, watch, classes, stream, HOW, "cpu")
    for run, model in enumerate(plain):
        optimiser = torch.optim.AdamW(model.parameters(), lr=HOW.lr)
        best, kept, when = -1.0, {}, 0
        for epoch in range(7):
            for group in optimiser.param_groups:
                group["lr"] = HOW.lr / 3 if epoch < 5 else HOW.lr
            for first in range(0, 27, 8):
                rows = train[orders[epoch][run][first : first + 8]]
                logits = torch.stack([model(torch.from_numpy(bags[row])) for row in rows])
                target = torch.from_numpy(labels[rows])
                loss = (
                    nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.float())
                    if classes == 2
                    else nn.functional.cross_entropy(logits, target)
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                logits = torch.stack([model(torch.from_numpy(bags[row])) for row in watch])
            said = (logits[:, 0] > 0).long() if classes == 2 else logits.argmax(dim=1)
            recalls = [(said == label)[labels[watch] == label].float().mean() for label in range(classes)]
            if (score := float(torch.stack(recalls).mean())) > best + 1e-9:
                best, when = score, epoch + 1
                kept = {name: value.clone() for name, value in model.state_dict().items()}
        assert (found[run].best_epoch, found[run].last_epoch) == (when, 7)
        assert found[run].score == pytest.approx(best, abs=1e-6)
        head = new_head(WIDTH, classes, HOW, 0, 0, run)
        head.load_state_dict(found[run].state)
        for name, value in Plain(head, 1 if classes == 2 else 3).state_dict().items():
            if name != "score.bias":  # a softmax does not see it, so its gradient is what rounding leaves
                torch.testing.assert_close(value, kept[name], atol=1e-4, rtol=1e-4)


def test_runs_together_are_what_they_are_alone_and_repeat() -> None:
    bags, labels = make(2, 60, seed=3, loud=1.0)
    parts = (np.arange(40), np.arange(40, 50), np.arange(50, 60))
    words: dict[str, Any] = {
        "hidden": 16,
        "attention": 12,
        "mlp": (10, 6),
        "batch": 16,
        "lr": 1e-2,
        "epochs": 12,
        "patience": 3,
    }
    together = abmil(bags, labels, *parts, 2, runs=4, **words)
    # A budget that holds one run only: each trains alone.
    alone = abmil(bags, labels, *parts, 2, runs=4, stack_gb=1e-6, **words)
    np.testing.assert_allclose(together.scores, alone.scores, atol=1e-6)
    assert together.choices == alone.choices
    assert len(set(together.choices["last_epoch"])) > 1  # some left the stack before others
    again = abmil(bags, labels, *parts, 2, runs=4, **words)
    np.testing.assert_array_equal(together.scores, again.scores)
    assert not np.array_equal(together.scores, abmil(bags, labels, *parts, 2, runs=4, seed=1, **words).scores)


def test_best_checkpoint_and_patience_are_lightnings() -> None:
    one, scores = FittedBag(), [0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7]
    told = [one.look(score, epoch, 3, 0.0) for epoch, score in enumerate(scores, 1)]
    assert [better for better, _ in told] == [True, True, False, False, True, False, False]
    assert all(goes_on for _, goes_on in told)
    assert one.look(0.7, 8, 3, 0.0) == (False, False)
    assert (one.best_epoch, one.last_epoch) == (5, 8)


def test_settings_are_evas_and_midnights() -> None:
    eva = BagSettings(**PROTOCOLS["eva-v2"].of("slide").settings_for("camelyon16-small"))
    assert (eva.lr, eva.weight_decay, eva.batch, eva.epochs, eva.steps) == (1e-3, 0.01, 32, 100, 12_500)
    assert (eva.runs, eva.patience, eva.schedule, eva.per) == (20, 20, "third-first", "epoch")
    assert (eva.hidden, eva.attention, eva.mlp, eva.monitor, eva.cut) == (
        128,
        128,
        (128, 64),
        "eva_accuracy",
        "eva-batches",
    )
    midnight = PROTOCOLS["midnight"].of("slide")
    told = midnight.settings_for("panda-small")
    assert (told.pop("mpp"), told.pop("size_px")) == (0.25, 448)
    panda, camelyon = BagSettings(**told), BagSettings(**midnight.settings_for("camelyon16-small"))
    assert (panda.runs, panda.patience, camelyon.runs, camelyon.patience) == (20, 8, 5, 10)
    assert (panda.schedule, panda.per) == ("cosine", "epoch")
    strict = PROTOCOLS["strict"].of("slide")
    assert (BagSettings(**strict.settings).runs, strict.watch) == (5, "inner")
    off = PROTOCOLS["eva-v2"].without("eva.choose_on_reported").of("slide")
    assert off.watch == "inner"
    assert "knn" not in [name for name, protocol in PROTOCOLS.items() if protocol.judges("slide")]


@pytest.fixture
def camelyon(tmp_path: Path) -> Path:
    write_camelyon(tmp_path / "data" / "camelyon16")
    return tmp_path / "data"


def test_slides_are_read_embedded_and_judged(camelyon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocol_module.PROTOCOLS, "strict", quick())
    words = ("colour", ["camelyon16-small"], "strict", tmp_path / "out", camelyon)
    (row,) = evaluate(*words, any_count=True)
    assert (row["kind"], row["metric"], row["split"], row["n"], row["runs"]) == (
        "slide",
        "balanced_accuracy",
        "test",
        6,
        3,
    )
    assert row["mean"] > 0.9
    assert (row["chance"], row["resampled"], row["features_key"]) == (0.5, "slide", None)
    bags = sorted((tmp_path / "out" / "cache" / "features").iterdir())
    assert len(bags) == 18
    assert all(np.load(bag).shape == (8, 6) for bag in bags)  # of 3 x 3 tiles one is mostly glass; six numbers each
    # A killed call goes on: what lies there is not read from the slides again.
    (tmp_path / "out" / "results.json").unlink()
    for kept in (tmp_path / "out" / "cache" / "outcomes").iterdir():
        kept.unlink()
    bags[0].unlink()
    times = {bag: bag.stat().st_mtime_ns for bag in bags[1:]}
    assert evaluate(*words, any_count=True)[0]["mean"] == row["mean"]
    assert {bag: bag.stat().st_mtime_ns for bag in bags[1:]} == times
    assert bags[0].is_file()


def test_a_slide_without_tissue_is_named(camelyon: Path, tmp_path: Path) -> None:
    write_glass(camelyon / "camelyon16" / "testing" / "images" / "test_003.tif")
    with pytest.raises(DataError, match=r"test_003\.tif: no tile of 224 px at 0\.25 µm/px has tissue"):
        evaluate("colour", ["camelyon16-small"], "strict", tmp_path / "out", camelyon, any_count=True)


def test_bags_hold_the_tiles_of_the_grid_and_few_are_drawn(camelyon: Path, tmp_path: Path) -> None:
    import torch as torch_module

    from eosin.evaluation.kinds import Asked
    from eosin.evaluation.tasks import open_task
    from eosin.evaluation.tasks.slides import SlideFiles
    from eosin.features import FeatureStore
    from eosin.slides import find_foreground, open_slide
    from eosin.tiles.grid import tissue_grid

    task = open_task("camelyon16-small", camelyon, any_count=True)
    assert task.slides is not None
    colour = load_model("colour")
    store = FeatureStore(tmp_path / "store")
    device = torch_module.device("cpu")
    asked = Asked(task, PROTOCOLS["strict"].of("slide"), colour, "colour", "key", store, device, batch=3)
    path = task.slides.paths[0]
    slides = SlideFiles([path], mpp=0.5, tiles=10, size_px=64)
    (bag,) = list(HeldBags(bags_of_slides(asked, slides)))
    with open_slide(path) as slide:
        mpp, size = (slide.mpp_x, slide.mpp_y), (slide.width, slide.height)
        grid = tissue_grid(find_foreground(slide), mpp, size, mpp=0.5, size_px=64)
        few = drawn_tiles(grid, 10, path)
        assert (len(grid), len(few)) == (16, 10)
        assert len({tuple(place) for place in few.coords.tolist()} & {tuple(p) for p in grid.coords.tolist()}) == 10
        pixels = np.stack([slide.region(x, y, 64, 0.5, 1.05) for x, y in few.coords.tolist()])
    np.testing.assert_allclose(bag, colour.embed(pixels).numpy(), atol=1e-6)


def test_bags_that_came_as_features(tmp_path: Path) -> None:
    """A feature folder with labels.csv, by --features."""
    import h5py

    folder = tmp_path / "bags"
    folder.mkdir()
    drawn = np.random.default_rng(0)
    lines = ["slide,patient,label,split"]
    for number in range(30):
        features = drawn.normal(size=(6, 5)).astype(np.float32)
        features[0, 0] += 12.0 * (number % 2)
        with h5py.File(folder / f"s{number}.h5", "w") as file:
            file["features"] = features
            file["coords"] = np.zeros((6, 2), dtype=np.int64)
        split = "train" if number < 18 else "test"
        lines.append(f"s{number},p{number // 2},{'ab'[number % 2]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (row,) = evaluate(None, [], "strict", tmp_path / "out", features=folder)
    assert (row["task"], row["kind"], row["n"], row["n_patients"], row["model"]) == ("bags", "slide", 12, 6, "features")
    assert row["mean"] >= 0.75
    assert len(row["choices"]["best_epoch"][0]) == 5
    with pytest.raises(DataError, match="task bags: protocol logreg does not judge slide tasks"):
        evaluate(None, [], "logreg", tmp_path / "other", features=folder)


def test_cross_validation_of_bags_and_empty_bags() -> None:
    bags, labels = make(2, 30)
    task = Task(
        name="own",
        source=Path("nowhere"),
        samples=bags,  # type: ignore[arg-type]
        ids=np.arange(30).astype(np.str_),
        targets=labels,
        classes=("a", "b"),
        slide=np.arange(30).astype(np.str_),
        kind="slide",
    )
    own = PROTOCOLS["strict"].of("slide")
    protocol = Protocol(**{**own.__dict__, "settings": {**own.settings, "epochs": 2, "runs": 2}, "draws": 100})
    outcome = judge(task, bags, protocol)
    row = row_of(task, protocol, outcome)
    assert (row["split"], row["n"], len(row["choices"]["best_epoch"])) == ("5-fold", 30, 5)
    with pytest.raises(DataError, match="bag 4 is empty"):
        judge(task, [bag if number != 4 else bag[:0] for number, bag in enumerate(bags)], protocol)
