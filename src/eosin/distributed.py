"""This process among those of a run: rank, size, and the few collectives that eosin needs, on torch.distributed.

Everything also works in one process without torch.distributed, so callers ask nothing. Control messages and checkpoints
travel over gloo, gradients over NCCL where there are GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from eosin.errors import DataError, EosinError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others before the run fails: longer than the slowest probe."""


@dataclass(frozen=True)
class World:
    """The processes of a run; each holds the rows rank·n/size … of a global batch of n."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> World:
        """The world that this process belongs to: torch.distributed's, or a world of one."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """First and last + 1 of the `count` rows that this process holds."""
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def sum_(self, x: Tensor) -> Tensor:
        """Replace `x` by its sum over all processes; returns it."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def max_(self, x: Tensor) -> Tensor:
        """Replace `x` by its elementwise maximum over all processes; returns it."""
        if self.size > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Rows of all processes in rank order: [n, …] -> [size·n, …]; the same n everywhere. Carries no gradient."""
        if self.size == 1:
            return x.detach()
        x = x.detach().contiguous()
        out = x.new_empty((self.size * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out

    def gather_with_own_gradient(self, x: Tensor) -> Tensor:
        """Rows of all processes, of which this process's own carry their gradient.

        For a loss of all rows that every process computes alike: each gets the gradient of its own rows, complete,
        and adding up the processes' parameter gradients gives that of the whole.
        """
        if self.size == 1:
            return x
        rows = list(self.gather(x).split(len(x)))
        rows[self.rank] = x
        return torch.cat(rows)

    def gather_objects(self, value: T) -> list[T]:
        """Small picklable values of all processes in rank order, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_control_group())
        return values

    def first(self, value: T) -> T:
        """The first process's value, on every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_control_group())
        return values[0]

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process, once it has gone well in all of them; it must not wait for the others.

        Raises the EosinError of the first process that refuses, in all processes alike: none waits for one that left.
        """
        found: list[T] = []
        refused: EosinError | None = None
        try:
            found.append(work())
        except EosinError as error:
            refused = error
        told = self.gather_objects(refused)
        for rank, refusal in enumerate(told):
            if refusal is not None:
                raise refusal if None not in told else type(refusal)(f"process {rank}: {refusal}")
        return found[0]

    def from_first(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, which alone does it, on every process; its EosinError too."""
        found = self.agree(lambda: [work()] if self.is_first else [])
        return self.first(found)[0]

    def any(self, flag: bool) -> bool:
        """Whether any process says so. Waits for the processes' hosts, not for their GPUs."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=_control_group())
        return bool(votes.item())

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.any(False)


def is_sharded(x: Tensor) -> bool:
    """Whether `x` is spread over processes (FSDP)."""
    return isinstance(x, DTensor)


def local_part(x: Tensor) -> Tensor:
    """The part of `x` that this process holds; `x` itself where it is not spread."""
    return x.to_local() if isinstance(x, DTensor) else x


_groups: dict[str, Any] = {}


def _control_group() -> Any:
    """A group on the hosts, for messages that must not wait for a GPU."""
    return _group("control")


def checkpoint_group() -> Any:
    """A group on the hosts for checkpoints that are written while training goes on; None in one process."""
    return _group("checkpoint") if World.here().size > 1 else None


def _group(name: str) -> Any:
    if name not in _groups:
        _groups[name] = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _groups[name]


def own_device(device: torch.device, gpus: int) -> torch.device:
    """The device of this process. Under torchrun each takes the GPU of its number on its machine, which has `gpus`.

    Raises DataError where there are fewer GPUs than processes, or where `device` names another one.
    """
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    number = int(os.environ["LOCAL_RANK"])
    if device.index not in (None, number):
        raise DataError(f"under torchrun each process takes the GPU of its number: leave {device} out, or give cuda")
    if number >= gpus:
        wanted = os.environ.get("LOCAL_WORLD_SIZE", str(number + 1))
        raise DataError(f"{wanted} processes on a machine with {gpus} GPUs: give torchrun --nproc-per-node {gpus}")
    return torch.device("cuda", number)


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the processes that torchrun started (its environment variables), for the length of the block.

    Without torchrun, or inside an existing group, nothing is started. `device`, if a GPU, is the current one inside.
    """
    on_gpu = device.type == "cuda"
    with torch.cuda.device(device) if on_gpu else nullcontext():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
            yield World.here()
            return
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        # Every process makes its groups at the same point, here.
        _control_group()
        checkpoint_group()
        failed = True
        try:
            yield World.here()
            failed = False
        finally:
            _groups.clear()
            if failed and on_gpu:
                # Leaving in good order waits for what is under way, which never ends where a process is gone.
                dist.distributed_c10d._abort_process_group()
            else:
                dist.destroy_process_group()
