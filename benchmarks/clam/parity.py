"""Our CLAM-SB and CLAM-MB beside the published code, on the same weights and bags.

`python benchmarks/clam/parity.py --clam CHECKOUT [--topk CHECKOUT]` from the repository root. CHECKOUT is a checkout
of mahmoodlab/CLAM; `--topk` one of oval-group/smooth-topk, which CLAM's `--inst_loss svm` needs. Both stay outside this
repository and run as published. Shims: none around CLAM, whose `models/model_clam.py` is loaded by path, since the
package around it imports encoders; dropout is off there (their masks come from torch's global generator), and on in
one case each, where the factors that their layers draw are recorded and given to ours. Around smooth-topk:
`future.builtins` (Python 2's) gives the built-in range.

Compared, in fp32 and fp64: logits, attention before and after its softmax, bag vectors, instance loss, and the
gradient of every weight of 0.7 · bag loss + 0.3 · instance loss. A difference is max|a - b| / max|a| of the tensor.
The gradient of the attention's last bias is 0 up to rounding, since a softmax does not see a shift: it counts against
the largest gradient of the head. CLAM_MB gathers its logits in an fp32 tensor whatever the weights are, so fp64 there
is held to the rounding of fp32. Exit 0 if all are within the bounds, else 1.
"""

from __future__ import annotations

import argparse
import builtins
import hashlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from eosin.models.mil import build_head
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import task_losses, total_loss

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-10}
FP32_LOGITS = 5e-7
"""Bound of CLAM_MB in fp64."""
WIDTH = 96


def module_at(path: Path, name: str) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{path} is not there: give a checkout")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_in_clam(ours: str, many: bool, classes: int) -> list[tuple[str, slice]]:
    """Where a weight of ours lies in CLAM's state: their name and the rows of ours, one entry a part."""
    kind = ours.rsplit(".", 1)[1]
    fixed = {
        "hidden": "attention_net.0",
        "attention.tanh": "attention_net.3.attention_a.0",
        "attention.gate": "attention_net.3.attention_b.0",
        "attention.scores": "attention_net.3.attention_c",
    }
    stem = ours.rsplit(".", 1)[0]
    if stem in fixed:
        return [(f"{fixed[stem]}.{kind}", slice(None))]
    if stem == "instances.0":
        return [(f"instance_classifiers.{c}.{kind}", slice(2 * c, 2 * c + 2)) for c in range(classes)]
    if many:
        return [(f"classifiers.{c}.{kind}", slice(c, c + 1)) for c in range(classes)]
    return [(f"classifiers.{kind}", slice(None))]


@contextmanager
def recorded_dropout(model: nn.Module, into: dict[str, Tensor]) -> Iterator[None]:
    """Note the factors that CLAM's three dropout layers apply, by our names."""
    layers = {
        "hidden": model.attention_net[2],
        "tanh": model.attention_net[3].attention_a[2],
        "gate": model.attention_net[3].attention_b[2],
    }

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
            factors = torch.where(given[0] != 0, out / given[0], 0).detach()
            into[name] = factors[None]

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def instance_loss_of(name: str, topk: Path | None) -> nn.Module | None:
    """CLAM's instance loss of that name, or none where its source is not given."""
    if name == "ce":
        return nn.CrossEntropyLoss()
    if topk is None:
        return None
    if str(topk) not in sys.path:
        sys.path.insert(0, str(topk))
        future = ModuleType("future.builtins")
        future.range = builtins.range  # type: ignore[attr-defined]
        sys.modules.setdefault("future", ModuleType("future"))
        sys.modules.setdefault("future.builtins", future)
    from topk.svm import SmoothTop1SVM

    with redirect_stdout(io.StringIO()):  # it announces its temperature
        return SmoothTop1SVM(n_classes=2)


def compare(case: dict[str, Any], clam: Any, loss: nn.Module, dtype: torch.dtype) -> dict[str, float]:
    """Differences of one case, by quantity."""
    many, classes = case["kind"] == "clam-mb", case["classes"]
    rate = 0.25 if case["dropout"] else 0.0
    torch.manual_seed(case["tiles"])
    theirs_class = clam.CLAM_MB if many else clam.CLAM_SB
    theirs = theirs_class(
        size_arg=case["size"],
        dropout=rate,
        k_sample=8,
        n_classes=classes,
        instance_loss_fn=loss,
        subtyping=case["subtyping"],
        embed_dim=WIDTH,
    ).to(dtype)
    task = SlideTask("label", "classification", tuple(f"class {c}" for c in range(classes)))
    ours = build_head(
        case["kind"],
        WIDTH,
        [task],
        size=case["size"],
        dropout=rate,
        instance_loss=case["loss"],
        subtyping=case["subtyping"],
    ).to(dtype)
    state = theirs.state_dict()
    with torch.no_grad():
        for name, value in ours.named_parameters():
            for other, rows in names_in_clam(name, many, classes):
                value[rows] = state[other]
    tiles, label = torch.randn(case["tiles"], WIDTH, dtype=dtype) * 2, torch.tensor([case["label"]])
    drops: dict[str, Tensor] = {}
    if rate:
        with recorded_dropout(theirs, drops):
            logits, _, _, raw, found = theirs(tiles, label=label, instance_eval=True, return_features=True)
    else:
        logits, _, _, raw, found = theirs(tiles, label=label, instance_eval=True, return_features=True)
    (0.7 * nn.functional.cross_entropy(logits, label) + 0.3 * found["instance_loss"]).backward()

    present = torch.ones(1, len(tiles), dtype=torch.bool)
    mine = ours.compute(tiles[None], present, {"label": label}, drops)
    losses = task_losses(mine["outputs"], {"label": label}, [task], reduction="none")
    total_loss(losses, mine["auxiliary"], ours.bag_weight).backward()
    pairs = {
        "logits": (logits, mine["outputs"]["label"]),
        "attention, raw": (raw, mine["attention_logits"][0]),
        "attention": (torch.softmax(raw, dim=1), mine["attention"][0]),
        "bag vector": (found["features"], mine["vector"].flatten(0, -2)),
        "instance loss": (found["instance_loss"], mine["auxiliary"][0]),
    }
    worst = {name: apart(*pair) for name, pair in pairs.items()}
    theirs_named = dict(theirs.named_parameters())
    largest = max(float(value.grad.abs().max()) for value in theirs_named.values() if value.grad is not None)
    gradients = [
        apart(theirs_named[other].grad, value.grad[rows], floor=largest if name == "attention.scores.bias" else 1e-30)
        for name, value in ours.named_parameters()
        for other, rows in names_in_clam(name, many, classes)
    ]
    covered = {other for name, _ in ours.named_parameters() for other, _ in names_in_clam(name, many, classes)}
    if covered != set(theirs_named):
        sys.exit(f"not mapped: {sorted(set(theirs_named) ^ covered)}")
    return {**worst, f"{len(gradients)} gradients": max(gradients)}


def apart(theirs: Tensor | None, ours: Tensor, floor: float = 1e-30) -> float:
    """max|a - b| / max(max|a|, floor); a gradient that CLAM never touched (none) counts as zeros."""
    a = torch.zeros_like(ours) if theirs is None else theirs.detach()
    if a.shape != ours.shape:
        return float("inf")
    return float((a - ours.detach()).abs().max() / a.abs().max().clamp(min=floor))


def cases() -> Iterator[dict[str, Any]]:
    """Kinds, sizes, instance losses, subtyping, classes, bag sizes from k tiles on, with and without dropout."""
    for kind in ("clam-sb", "clam-mb"):
        for loss in ("ce", "svm"):
            common = {"kind": kind, "loss": loss, "size": "small", "label": 1, "dropout": False}
            yield {**common, "classes": 2, "subtyping": False, "tiles": 300}
            yield {**common, "classes": 2, "subtyping": True, "tiles": 8}
            yield {**common, "classes": 3, "subtyping": True, "tiles": 2000, "label": 2}
            yield {**common, "classes": 3, "subtyping": False, "tiles": 11, "label": 0, "size": "big"}
            yield {**common, "classes": 2, "subtyping": True, "tiles": 300, "dropout": True}


def small_bag(clam: Any) -> bool:
    """Say what the two do with 5 tiles and k = 8; ours must give a finite loss."""
    tiles, label = torch.randn(5, WIDTH), torch.tensor([1])
    try:
        clam.CLAM_SB(embed_dim=WIDTH)(tiles, label=label, instance_eval=True)
        theirs = "runs"
    except RuntimeError as error:
        theirs = f"RuntimeError ({str(error).splitlines()[0][:60]})"
    ours = build_head("clam-sb", WIDTH, [SlideTask("label", "binary")])
    found = ours(tiles[None], torch.ones(1, 5, dtype=torch.bool), {"label": label}).auxiliary
    good = found is not None and bool(torch.isfinite(found).all())
    print(f"{'PASS' if good else 'FAIL'}  a bag of 5 tiles, k 8: CLAM {theirs}; ours uses k 5")
    return good


def mark_of(path: Path) -> str:
    """Name and start of the SHA-256 of a file, which says what was compared whether or not the checkout has git."""
    return f"{path.name} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


def main() -> int:
    """Print a line for each case and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clam", type=Path, required=True, help="checkout of mahmoodlab/CLAM")
    parser.add_argument(
        "--topk", type=Path, help="checkout of oval-group/smooth-topk; without it SVM cases are skipped"
    )
    args = parser.parse_args()
    clam = module_at(args.clam / "models" / "model_clam.py", "published_clam")
    topk = mark_of(args.topk / "topk" / "svm.py") if args.topk else "not given"
    print(f"CLAM {mark_of(args.clam / 'models' / 'model_clam.py')}; smooth-topk {topk}")
    narrow, wide = BOUNDS[torch.float32], BOUNDS[torch.float64]
    print(f"torch {torch.__version__}; bounds fp32 {narrow:g}, fp64 {wide:g} (CLAM_MB {FP32_LOGITS:g})")
    good, skipped = True, 0
    for case in cases():
        for dtype, bound in BOUNDS.items():
            loss = instance_loss_of(case["loss"], args.topk)
            if loss is None:
                skipped += 1
                continue
            bound = FP32_LOGITS if case["kind"] == "clam-mb" and dtype == torch.float64 else bound
            found = compare(case, clam, loss, dtype)
            passed = all(value <= bound for value in found.values())
            good &= passed
            words = [case["kind"], case["loss"], case["size"], f"{case['classes']} classes", f"{case['tiles']} tiles"]
            words += ["subtyping"] * case["subtyping"] + ["dropout"] * case["dropout"]
            print(f"{'PASS' if passed else 'FAIL'}  {str(dtype)[6:]}  {', '.join(words)}")
            print("      " + "; ".join(f"{name} {value:.1e}" for name, value in found.items()))
    good &= small_bag(clam)
    print(f"{'PASS' if good else 'FAIL'}: all cases" + (f", {skipped} SVM runs skipped" if skipped else ""))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
