"""What has been learned from the slides of a step so far, on disk: a step of many slides may take hours.

One file for each process, replaced whole after a slide: gradients, the region teacher's sums, and what is written down
of the slides. With the checkpoint of the same step it is all that the rest of the step depends on. Belongs to one
number of processes; where that has changed, the step begins again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eosin.distributed import World
from eosin.errors import OutputError
from eosin.files import atomic_path
from eosin.runs import RunFolder

GRADIENT, SUM = "gradient.", "sum."


@dataclass
class Partial:
    """done: slides of the step that are in the gradients. rows: what is written down of them. sums: other tensors."""

    step: int
    done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)


class PartialFile:
    """This process's file in a run folder. identity: what the gradients belong to; others are never read."""

    def __init__(self, run: RunFolder, identity: str) -> None:
        here = World.here()
        self._folder: Path = run.checkpoints
        self.path: Path = self._folder / f"slides-rank{here.rank}.safetensors"
        self._identity = f"{identity} {here.size}"

    def write(self, partial: Partial, module: nn.Module) -> None:
        """The gradients of `module` as they are, and `partial`. Raises OutputError."""
        tensors = {f"{SUM}{name}": value.contiguous().cpu() for name, value in partial.sums.items()}
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                tensors[f"{GRADIENT}{name}"] = parameter.grad.contiguous().cpu()
        told = {"step": partial.step, "done": partial.done, "rows": partial.rows, "losses": partial.losses}
        with atomic_path(self.path) as temporary:
            try:
                save_file(tensors, temporary, metadata={"identity": self._identity, "told": json.dumps(told)})
            except SafetensorError as error:
                raise OutputError(f"cannot write {self.path}: {' '.join(str(error).split())}") from error

    def read(self, step: int, module: nn.Module) -> Partial | None:
        """What was saved in step `step`, its gradients put into `module`; None where nothing of this step is there."""
        if not self.path.is_file():
            return None
        parameters = dict(module.named_parameters())
        try:
            with safe_open(self.path, framework="pt") as file:
                known = file.metadata() or {}
                told = json.loads(known.get("told", "{}"))
                if known.get("identity") != self._identity or told.get("step") != step:
                    return None
                sums, gradients = {}, {}
                for name in file.keys():  # noqa: SIM118  (no mapping)
                    if name.startswith(GRADIENT):
                        gradients[name.removeprefix(GRADIENT)] = file.get_tensor(name)
                    else:
                        sums[name.removeprefix(SUM)] = file.get_tensor(name)
        except (SafetensorError, OSError, ValueError):
            return None  # torn: the step begins again
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.to(parameters[name])
        return Partial(step, told["done"], told["rows"], sums, told["losses"])

    def drop(self) -> None:
        """Remove the files of all processes, also of an earlier start that had more of them."""
        for path in self._folder.glob("slides-rank*.safetensors"):
            path.unlink(missing_ok=True)


def zero_gradients(module: nn.Module) -> None:
    """No gradient anywhere."""
    for parameter in module.parameters():
        parameter.grad = None


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Inside the block the parameters of these modules learn nothing, and cost no backward pass."""
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def as_float(values: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors as numbers: exact in JSON, which keeps every digit of a double."""
    return {name: float(torch.as_tensor(value).double()) for name, value in values.items()}
