"""Where the processes of a test find each other: stores on ports that the system chose, so that none is guessed."""

from __future__ import annotations

import os

from torch.distributed import TCPStore


def open_stores(count: int) -> list[TCPStore]:
    """So many stores, each for one group of processes; served by this process for as long as they are kept."""
    return [TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(count)]


def join(port: int, rank: int, size: int) -> None:
    """Set what torchrun sets, for the next group that this process joins: its store is served by another one."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
