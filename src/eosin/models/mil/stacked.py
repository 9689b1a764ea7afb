"""S heads of one architecture as one problem: seeds and folds of a slide task train together.

The weights of the heads lie stacked, [S, ...], and `torch.func.vmap` turns their products into batched ones. On a CPU,
long bags run head after head inside the step, which is faster there. Each head keeps its own bags and its own dropout
generator, so training S heads together gives what training them one after another gives, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from eosin.errors import DataError
from eosin.models.mil.head import Drops, HeadOutput, MilHead, Targets, as_output

LONG_BAG = 1024
"""Tiles of a head's batch from which a CPU runs the heads in turn."""


class StackedHeads(nn.Module):
    """The heads of `heads`, which may differ in weights, seed and generator only.

    `parameters()` are the stacked weights: one element-wise optimiser (Adam, SGD) over them is S optimisers. The heads
    given are copied, their generators are not: `generators[s]` is that of head s.
    """

    def __init__(self, heads: Sequence[MilHead]) -> None:
        super().__init__()
        if not heads:
            raise DataError("no heads to stack")
        first, configs = heads[0], [{**head.config(), "seed": 0} for head in heads]
        if any(config != configs[0] for config in configs):
            raise DataError("stacked heads must agree in kind, width, tasks and settings; only their seeds may differ")
        self.names = [name for name, _ in first.named_parameters()]
        states = [dict(head.named_parameters()) for head in heads]
        self.stacked = nn.ParameterList(
            nn.Parameter(laid_out(torch.stack([state[name].detach() for state in states]))) for name in self.names
        )
        self.generators = [head.generator for head in heads]
        self.tasks, self.branches, self.bag_weight = first.tasks, first.branches, first.bag_weight
        # In a tuple, so that the template's weights are not among the parameters.
        self._template = (_Compute(copy_of(first)),)

    def __len__(self) -> int:
        return len(self.generators)

    def forward(self, tiles: Tensor, present: Tensor, targets: Targets | None = None) -> HeadOutput:
        """Bags of each head: tiles [S, B, N, D], present bool [S, B, N], targets task -> [S, B] or [S, B, 2].

        Returns HeadOutput with S before B in every tensor. Raises DataError as the heads do.
        """
        if tiles.ndim != 4 or len(tiles) != len(self) or present.shape != tiles.shape[:3]:
            raise DataError(
                f"{len(self)} stacked heads need tiles [{len(self)}, B, N, D] and present to match, "
                f"not {list(tiles.shape)} and {list(present.shape)}"
            )
        template, sizes = self._template[0], tiles.shape[:2]
        weight = self.stacked[0]
        flat, there = template.head.prepared(tiles.flatten(0, 1), present.flatten(0, 1), like=weight)
        tiles, present = flat.unflatten(0, sizes), there.unflatten(0, sizes)
        drops = self.draw(present) if self.training else [{} for _ in self.generators]
        weights = dict(zip(template.names(self.names), self.stacked, strict=True))
        given = {name: values.to(weight.device) for name, values in (targets or {}).items()}
        if self.batched(tiles):
            stacked_drops = {name: torch.stack([mine[name] for mine in drops]) for name in drops[0]}
            found = vmap(partial(run, template))(weights, tiles, present, given, stacked_drops)
        else:
            # unbind, not indexing: its backward stacks S gradients where S indexings would add S full ones.
            each = {name: value.unbind(0) for name, value in weights.items()}
            found = stacked_results(
                run(
                    template,
                    {name: value[number] for name, value in each.items()},
                    tiles[number],
                    present[number],
                    {name: value[number] for name, value in given.items()},
                    drops[number],
                )
                for number in range(len(self))
            )
        return as_output(found, template.head)

    def batched(self, tiles: Tensor) -> bool:
        """Whether batched products are the faster way for bags [S, B, N, D].

        On a CPU a long bag keeps one head's products busy, and S of them side by side only leave the cache.
        """
        return tiles.device.type != "cpu" or tiles.shape[1] * tiles.shape[2] < LONG_BAG

    def draw(self, present: Tensor) -> list[Drops]:
        """Dropout factors of each head from its own generator; present [S, B, N]."""
        head, dtype = self._template[0].head, self.stacked[0].dtype
        return [head.draw(mine, own, dtype) for mine, own in zip(present, self.generators, strict=True)]

    def state_of(self, number: int) -> dict[str, Tensor]:
        """A copy of the weights of head `number`, as its `state_dict` names them."""
        return {
            name: value[number].detach().clone(memory_format=torch.contiguous_format)
            for name, value in zip(self.names, self.stacked, strict=True)
        }

    @torch.no_grad()
    def load_state_of(self, number: int, state: dict[str, Tensor]) -> None:
        """Put weights made by `state_of` back into head `number`."""
        for name, value in zip(self.names, self.stacked, strict=True):
            value[number].copy_(state[name])

    def head(self, number: int) -> MilHead:
        """Head `number` on its own: a new head with a copy of the weights and the same generator object."""
        head = copy_of(self._template[0].head).to_empty(device=self.stacked[0].device)
        head.to(self.stacked[0].dtype)
        head.load_state_dict(self.state_of(number))
        head.generator = self.generators[number]
        return head.train(self.training)


def run(template: _Compute, weights: dict[str, Tensor], *bags: Any) -> Any:
    """One head's results with weights that are not the template's own."""
    return functional_call(template, weights, bags)


def stacked_results(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The results of S heads with S before the other dimensions, as `vmap` gives them."""
    results = list(found)
    names = results[0].keys() - {"outputs"}
    stacked: dict[str, Any] = {name: torch.stack([result[name] for result in results]) for name in names}
    logits = {task: torch.stack([result["outputs"][task] for result in results]) for task in results[0]["outputs"]}
    return {**stacked, "outputs": logits}


class _Compute(nn.Module):
    """`MilHead.compute` as a forward, which is what `functional_call` calls."""

    def __init__(self, head: MilHead) -> None:
        super().__init__()
        self.head = head

    @staticmethod
    def names(names: list[str]) -> list[str]:
        """Names of the head's parameters here."""
        return [f"head.{name}" for name in names]

    def forward(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        return self.head.compute(tiles, present, targets, drops)


def laid_out(stacked: Tensor) -> Tensor:
    """The same numbers with a matrix's two dimensions swapped in memory.

    A batched product gives the gradient of a linear's weight in that layout; in the other it would be transposed, which
    costs as much as the product itself.
    """
    return stacked.mT.contiguous().mT if stacked.ndim == 3 else stacked


def copy_of(head: MilHead) -> MilHead:
    """A head of the same configuration without weights (on the meta device)."""
    from eosin.models.mil.build import build_head

    with torch.device("meta"):
        return build_head(**head.config())
