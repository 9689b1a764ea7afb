"""What one side of a comparison did in some steps, and how far two such traces are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass
class Trace:
    """Losses, gradients and weights of consecutive steps, by our names (encoder.…, dino.…, ibot.…)."""

    start: State
    losses: list[dict[str, float]] = field(default_factory=list)
    gradients: list[State] = field(default_factory=list)  # after backward
    clipped: list[State] = field(default_factory=list)  # as the optimiser gets them
    students: list[State] = field(default_factory=list)  # after the optimiser
    teachers: list[State] = field(default_factory=list)  # after the moving average
    centers: State = field(default_factory=dict)  # after the last step


def gradients_of(parameters: Iterable[tuple[str, nn.Parameter]]) -> State:
    """Copies of the gradients that there are."""
    return {name: p.grad.detach().cpu().clone() for name, p in parameters if p.grad is not None}


def copies(state: State) -> State:
    """Copies of all tensors."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}


@dataclass(frozen=True)
class Difference:
    """One tensor of one step: `ratio` is max|ours - theirs| over the largest entry of theirs."""

    quantity: str
    step: int
    tensor: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.quantity:16s} step {self.step}  {self.ratio:.2e}  {self.tensor}"


def ratio(ours: Tensor, theirs: Tensor, scale: Tensor | None = None) -> float:
    """max|ours - theirs| / max|scale|, `scale` being theirs if it is not given; 0 for two equal tensors."""
    if ours.shape != theirs.shape:
        return math.inf
    apart = (ours.double() - theirs.double()).abs().max().item()
    largest = (theirs if scale is None else scale).double().abs().max().item()
    if apart == 0.0:
        return 0.0
    return apart / largest if largest > 0 and math.isfinite(apart) else math.inf


def differences(ours: Trace, theirs: Trace) -> list[Difference]:
    """Everything that both recorded, worst first. A tensor that only one side has counts as infinitely far.

    Weights are measured against how far theirs have moved since the start, not against their size.
    """
    found = []
    for step, (a, b) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        for name in b:
            pair = (torch.tensor(side.get(name, math.nan), dtype=torch.float64) for side in (a, b))
            found.append(Difference("loss term", step, name, ratio(*pair)))
    for quantity, a_steps, b_steps in (
        ("gradient", ours.gradients, theirs.gradients),
        ("clipped gradient", ours.clipped, theirs.clipped),
        ("student weight", ours.students, theirs.students),
        ("teacher weight", ours.teachers, theirs.teachers),
    ):
        for step, (a_state, b_state) in enumerate(zip(a_steps, b_steps, strict=True)):
            for name in sorted(a_state.keys() | b_state.keys()):
                if name not in a_state or name not in b_state:
                    side = "ours" if name in a_state else "theirs"
                    found.append(Difference(quantity, step, f"{name} (in {side} only)", math.inf))
                    continue
                moved = None
                if quantity.endswith("weight"):
                    moved = b_state[name] - theirs.start[f"{quantity.split()[0]}.{name}"]
                found.append(Difference(quantity, step, name, ratio(a_state[name], b_state[name], moved)))
    for name in theirs.centers:
        found.append(Difference("center", len(ours.losses) - 1, name, ratio(ours.centers[name], theirs.centers[name])))
    return sorted(found, key=lambda d: -d.ratio)
