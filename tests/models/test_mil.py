"""MIL heads: ragged bags, missing labels, attention, settings, and slow plain references of CLAM and its losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eosin.errors import DataError, RecipeError
from eosin.models.mil import HEADS, MilHead, build_head
from eosin.models.mil.instances import smooth_top1_svm
from eosin.models.mil.transformer import nystrom, pseudo_inverse
from eosin.models.slide_task import SlideTask, hazard_cuts
from eosin.objectives.multitask import task_losses, total_loss

TASKS = (
    SlideTask("msi", "binary"),
    SlideTask("subtype", "classification", ("a", "b", "c")),
    SlideTask("age", "regression"),
    SlideTask("os", "survival", cuts=(1.0, 2.0, 3.0)),
)
NAN = float("nan")
WIDTH, SIZES = 12, (17, 3, 9)
ATTENDING = [kind for kind in HEADS if "linear" not in kind]


def small(kind: str, **settings: object) -> MilHead:
    """A narrow head of that kind in fp64."""
    widths = {} if "linear" in kind else {"hidden": 16}
    if kind == "transmil":
        widths |= {"heads": 2, "landmarks": 4}
    return build_head(kind, WIDTH, TASKS, **{**widths, **settings}).double()


def bags(kind: str = "abmil") -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Three ragged bags with not-a-number at padding, and labels with gaps."""
    tiles = torch.randn(3, max(SIZES), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    present = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    if kind == "linear":
        tiles, present = tiles[:, :1], present[:, :1]
    targets = {
        "msi": torch.tensor([1, 0, -1]),
        "subtype": torch.tensor([2, -1, 0]),
        "age": torch.tensor([0.5, NAN, -1.0]).double(),
        "os": torch.tensor([[1.5, 1.0], [2.5, 0.0], [NAN, NAN]]).double(),
    }
    return tiles.masked_fill(~present[..., None], NAN), present, targets


def loss_of(head: MilHead, tiles: Tensor, present: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Total loss of a batch."""
    out = head(tiles, present, targets)
    losses = task_losses(out.outputs, targets, head.tasks, reduction="none")
    return total_loss(losses, out.auxiliary, head.bag_weight, {"subtype": 0.5})


@pytest.mark.parametrize(
    ("kind", "subtyping"), [*((kind, False) for kind in HEADS), ("clam-sb", True), ("clam-mb", True)]
)
def test_a_padded_batch_with_missing_labels_equals_slides_one_by_one(kind: str, subtyping: bool) -> None:
    head = small(kind, **({"subtyping": True} if subtyping else {})).eval()
    tiles, present, targets = bags(kind)
    loss = loss_of(head, tiles, present, targets)
    loss.backward()
    together = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    whole = head(tiles, present, targets)
    head.zero_grad(set_to_none=True)
    alone = []
    for number in range(3):
        size = int(present[number].sum())
        one = tiles[number : number + 1, :size], present[number : number + 1, :size]
        mine = {name: values[number : number + 1] for name, values in targets.items()}
        alone.append(loss_of(head, *one, mine) / 3)
        alone[-1].backward()
        out = head(*one, mine)
        for name, logits in out.outputs.items():
            torch.testing.assert_close(whole.outputs[name][number : number + 1], logits, rtol=1e-12, atol=1e-12)
        if out.attention is not None:
            assert whole.attention is not None
            torch.testing.assert_close(whole.attention[number, :, :size], out.attention[0], rtol=1e-12, atol=1e-12)
            assert bool((whole.attention[number, :, size:] == 0).all())
    torch.testing.assert_close(loss, sum(alone), rtol=1e-12, atol=1e-12)
    for name, parameter in head.named_parameters():
        if name in together:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ATTENDING)
def test_padding_draws_no_dropout(kind: str) -> None:
    head = small(kind).train()
    tiles, present, _ = bags()
    more_tiles = torch.cat([tiles, torch.full_like(tiles[:, :5], NAN)], dim=1)
    more_present = torch.cat([present, torch.zeros_like(present[:, :5])], dim=1)
    start = head.generator.get_state()
    first = head(tiles, present)
    head.generator.set_state(start)
    second = head(more_tiles, more_present)
    third = head(more_tiles, more_present)
    for name in first.outputs:
        torch.testing.assert_close(first.outputs[name], second.outputs[name], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(second.outputs[name], third.outputs[name])


@pytest.mark.parametrize("kind", ATTENDING)
def test_attention_is_a_share_of_the_bag_for_each_named_branch(kind: str) -> None:
    head = small(kind).eval()
    tiles, present, _ = bags()
    out = head(tiles, present)
    assert out.attention is not None
    assert out.attention.shape == (3, len(head.branches), max(SIZES))
    torch.testing.assert_close(out.attention.sum(dim=-1), torch.ones(3, len(head.branches)).double())
    many = ("msi: negative", "msi: positive", "subtype: a", "subtype: b", "subtype: c", "age", "os")
    assert head.branches == (many if kind == "clam-mb" else ("all",))


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_built_again_from_its_config_and_scores_tiles_as_bags_of_one(kind: str) -> None:
    head = small(kind)
    again = build_head(**head.config()).double()
    assert head.config() == again.config()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)
    tiles = torch.randn(7, WIDTH, dtype=torch.float64)
    by_tile = head.tile_outputs(tiles, chunk=3)
    one = again.eval()(tiles[4][None, None], torch.ones(1, 1, dtype=torch.bool)).outputs
    for name, logits in by_tile.items():
        torch.testing.assert_close(logits[4:5], one[name])


def reference_instance_loss(head: MilHead, tiles: Tensor, label: int, task: int, loss: str) -> Tensor:
    """CLAM's instance loss of one bag without subtyping, tile by tile, for the class of the label."""
    hidden = torch.relu(tiles @ head.hidden.weight.T + head.hidden.bias)
    out = head.eval()(tiles[None], torch.ones(1, len(tiles), dtype=torch.bool))
    branch = 0
    if head.kind == "clam-mb":
        branch = head.branches.index(f"{head.tasks[task].name}: {head.tasks[task].classes[label]}")
    order = sorted(range(len(tiles)), key=lambda n: float(out.attention[0, branch, n].detach()))
    k = min(8, len(tiles))
    linear = head.instances[task]
    terms = []
    for tile, wanted in [(n, 1) for n in order[-k:]] + [(n, 0) for n in order[:k]]:
        scores = hidden[tile] @ linear.weight[2 * label : 2 * label + 2].T + linear.bias[2 * label : 2 * label + 2]
        if loss == "ce":
            terms.append(torch.log(torch.exp(scores).sum()) - scores[wanted])
        else:
            raised = sum(torch.exp(scores[c] + (0 if c == wanted else 1)) for c in range(2))
            terms.append(torch.log(raised) - scores[wanted])
    return torch.stack(terms).mean()


@pytest.mark.parametrize("kind", ["clam-sb", "clam-mb"])
@pytest.mark.parametrize("loss", ["ce", "svm"])
def test_clams_instance_loss_equals_a_loop_over_tiles_and_clamps_k(kind: str, loss: str) -> None:
    head = small(kind, instance_loss=loss, task_weights={"subtype": 2.0}).eval()
    tiles, present, targets = bags()
    found = head(tiles, present, targets).auxiliary
    assert found is not None
    whole = tiles[0, : SIZES[0]]
    expected = reference_instance_loss(head, whole, 1, 0, loss)
    expected = expected + 2 * reference_instance_loss(head, whole, 2, 1, loss)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(found[1], reference_instance_loss(head, tiles[1, : SIZES[1]], 0, 0, loss))


@pytest.mark.parametrize(
    ("width", "size", "parameters"), [(1024, "small", 790_791), (768, "small", 659_719), (768, "big", 791_175)]
)
def test_clam_sb_has_as_many_parameters_as_published(width: int, size: str, parameters: int) -> None:
    head = build_head("clam-sb", width, TASKS[:1], size=size)
    assert sum(p.numel() for p in head.parameters()) == parameters


@pytest.mark.parametrize("kind", HEADS)
def test_linear_heads_start_at_zero_and_others_at_random(kind: str) -> None:
    tiles = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(0))
    heads = [build_head(kind, 6, TASKS, seed=seed).eval() for seed in (0, 0, 1)]
    first, same, other = (head(tiles, torch.ones(1, 1, dtype=torch.bool)).outputs for head in heads)
    for name, logits in first.items():
        assert torch.equal(logits, same[name])
        if kind.endswith("linear"):
            assert not logits.any()
        else:
            assert not torch.equal(logits, other[name])


def test_clam_without_a_task_of_classes_has_no_instance_loss() -> None:
    head = build_head("clam-sb", WIDTH, [SlideTask("age", "regression")])
    out = head(torch.randn(1, 4, WIDTH), torch.ones(1, 4, dtype=torch.bool), {"age": torch.ones(1)})
    assert out.auxiliary is None
    assert head.bag_weight == 1.0


def test_smooth_svm_nears_the_hinge_as_it_cools_and_is_cross_entropy_without_a_margin() -> None:
    scores = torch.randn(50, 4, dtype=torch.float64) * 3
    labels = torch.arange(50) % 4
    own = scores.gather(1, labels[:, None])[:, 0]
    others = scores.masked_fill(torch.arange(4) == labels[:, None], -torch.inf).amax(dim=1)
    hinge = torch.clamp(others + 1 - own, min=0)
    torch.testing.assert_close(smooth_top1_svm(scores, labels, temperature=1e-4), hinge, rtol=0, atol=2e-4)
    entropy = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    torch.testing.assert_close(smooth_top1_svm(scores, labels, margin=0.0), entropy)


def test_nystrom_is_exact_attention_where_every_token_is_a_landmark() -> None:
    q, k, v = (torch.randn(2, 3, 10, 4, dtype=torch.float64) for _ in range(3))
    present = torch.arange(10) < torch.tensor([10, 6])[:, None]
    found = nystrom(q, k, v, present, landmarks=10, steps=40)
    weights = torch.softmax((q @ k.mT).masked_fill(~present[:, None, None], -torch.inf), dim=-1)
    expected = weights @ v
    torch.testing.assert_close(found[0], expected[0], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found[1, :, :6], expected[1, :, :6], rtol=1e-7, atol=1e-7)
    a = torch.softmax(torch.randn(5, 5, dtype=torch.float64) * 2, dim=-1)
    a[3:], a[:, 3:] = 0, 0
    torch.testing.assert_close(pseudo_inverse(a, 40), torch.linalg.pinv(a), rtol=1e-7, atol=1e-7)


def test_the_transformer_forms_nothing_of_the_size_of_the_bag_squared() -> None:
    head = build_head("transmil", WIDTH, TASKS[:1], hidden=16, heads=2, landmarks=8).eval()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for found in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(found, Tensor):
                    largest = max(largest, found.numel())
            return out

    tiles = 3000
    with Watch(), torch.no_grad():
        head(torch.randn(1, tiles, WIDTH), torch.ones(1, tiles, dtype=torch.bool))
    assert largest <= (tiles + 1) * 48


def test_bad_bags_tasks_and_settings_are_refused_in_one_line() -> None:
    head = small("abmil")
    tiles, present, _ = bags()
    with pytest.raises(DataError, match="an empty bag"):
        head(tiles, present & (torch.arange(3) != 1)[:, None])
    with pytest.raises(DataError, match="an empty bag"):
        head(tiles[:, :0], present[:, :0])
    with pytest.raises(DataError, match=r"\[B, N, 12\], not \[3, 17, 5\]"):
        head(tiles[..., :5], present)
    with pytest.raises(DataError, match="present"):
        head(tiles, present[:, :5])
    with pytest.raises(DataError, match="one vector a slide"):
        small("linear")(tiles, present)
    with pytest.raises(RecipeError, match="unknown head 'clam'"):
        build_head("clam", WIDTH, TASKS)
    with pytest.raises(RecipeError, match="setting droput"):
        build_head("abmil", WIDTH, TASKS, droput=0.1)
    with pytest.raises(DataError, match="given twice"):
        build_head("abmil", WIDTH, [TASKS[0], TASKS[0]])
    with pytest.raises(DataError, match="task_weights"):
        build_head("clam-sb", WIDTH, TASKS, task_weights={"nobody": 1.0})
    with pytest.raises(DataError, match="multiple of 3"):
        build_head("transmil", WIDTH, TASKS, hidden=16, heads=3)


def test_slide_tasks_say_their_outputs_and_refuse_what_does_not_fit() -> None:
    assert [task.outputs for task in TASKS] == [2, 3, 1, 4]
    assert [task.loss for task in TASKS] == ["cross-entropy", "cross-entropy", "mse", "hazard"]
    assert SlideTask("os", "survival").loss == "cox"
    assert SlideTask("os", "survival").outputs == 1
    for task in TASKS:
        assert SlideTask.from_dict(task.to_dict()) == task
    for wrong in (
        {"kind": "classification", "classes": ("one",)},
        {"kind": "binary", "classes": ("a", "b", "c")},
        {"kind": "classification", "classes": ("a", "a")},
        {"kind": "regression", "classes": ("a", "b")},
        {"kind": "binary", "cuts": (1.0,)},
        {"kind": "survival", "cuts": (2.0, 1.0)},
        {"kind": "ranking"},
    ):
        with pytest.raises(DataError, match="task t"):
            SlideTask("t", **wrong)
    with pytest.raises(DataError, match="unknown weight"):
        SlideTask.from_dict({"name": "t", "kind": "binary", "weight": 1})


def test_hazard_cuts_hold_equally_many_events() -> None:
    times = [*range(1, 101), 1000.0, NAN]
    events = [1.0] * 100 + [0.0, 1.0]
    cuts = hazard_cuts(times, events)
    assert cuts == pytest.approx((25.75, 50.5, 75.25))
    with pytest.raises(DataError, match="3 different event times"):
        hazard_cuts([1, 2, 3], [1, 1, 1])
