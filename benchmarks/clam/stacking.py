"""S heads trained together against one after another: `python benchmarks/clam/stacking.py [--heads 4] [--threads 1]`.

A step is forward, losses, backward and fused Adam on one bag a head, dropout on. The two ways alternate in one
process; CPU time is measured. Printed: best and median of the rounds, and how far the weights of the two end apart.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from eosin.models.mil import StackedHeads, build_head
from eosin.models.slide_task import SlideTask
from eosin.objectives.multitask import task_losses, total_loss

TASKS = (SlideTask("label", "binary"),)


def one_by_one(kind: str, width: int, seeds: int, bags: Tensor, labels: Tensor) -> tuple[Callable[[], None], list]:
    """A step of every head in turn, and the heads."""
    heads = [build_head(kind, width, TASKS, seed=seed).train() for seed in range(seeds)]
    adams = [torch.optim.Adam(head.parameters(), lr=1e-4, weight_decay=1e-5, fused=True) for head in heads]
    present = torch.ones(1, bags.shape[1], dtype=torch.bool)

    def step() -> None:
        for number, (head, adam) in enumerate(zip(heads, adams, strict=True)):
            targets = {"label": labels[number]}
            out = head(bags[number][None], present, targets)
            losses = task_losses(out.outputs, targets, TASKS, reduction="none")
            adam.zero_grad()
            total_loss(losses, out.auxiliary, head.bag_weight).backward()
            adam.step()

    return step, heads


def together(
    kind: str, width: int, seeds: int, bags: Tensor, labels: Tensor
) -> tuple[Callable[[], None], StackedHeads]:
    """The same step for all heads at once, and the stack."""
    stack = StackedHeads([build_head(kind, width, TASKS, seed=seed) for seed in range(seeds)]).train()
    adam = torch.optim.Adam(stack.parameters(), lr=1e-4, weight_decay=1e-5, fused=True)
    present, targets = torch.ones(seeds, 1, bags.shape[1], dtype=torch.bool), {"label": labels}

    def step() -> None:
        out = stack(bags[:, None], present, targets)
        losses = task_losses(out.outputs, targets, TASKS, reduction="none")
        adam.zero_grad()
        total_loss(losses, out.auxiliary, stack.bag_weight).sum().backward()
        adam.step()

    return step, stack


def main() -> None:
    """Print one line for each head and bag size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", default=["clam-sb", "clam-mb", "abmil", "mean-linear", "transmil"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), {args.heads} heads, ms a step of all heads")
    for tiles, width, steps in ((150, 192, 10), (2000, 384, 2)):
        for kind in args.kinds:
            generator = torch.Generator().manual_seed(0)
            bags = torch.randn(args.heads, tiles, width, generator=generator)
            labels = torch.arange(args.heads)[:, None] % 2
            alone, heads = one_by_one(kind, width, args.heads, bags, labels)
            joint, stack = together(kind, width, args.heads, bags, labels)
            taken: dict[str, list[float]] = {"alone": [], "joint": []}
            for _ in range(args.rounds):
                for name, step in (("alone", alone), ("joint", joint)):
                    started = time.process_time()
                    for _ in range(steps):
                        step()
                    taken[name].append((time.process_time() - started) / steps * 1e3)
            apart = max(
                float((stack.state_of(number)[name] - value).abs().max())
                for number, head in enumerate(heads)
                for name, value in head.state_dict().items()
            )
            best = {name: min(values) for name, values in taken.items()}
            middle = {name: statistics.median(values) for name, values in taken.items()}
            print(
                f"{kind:12s} {tiles:5d} x {width}: one by one {best['alone']:7.2f} (median {middle['alone']:7.2f}), "
                f"together {best['joint']:7.2f} (median {middle['joint']:7.2f}), "
                f"{best['alone'] / best['joint']:.2f}x faster; weights apart {apart:.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
