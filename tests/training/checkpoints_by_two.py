"""Run by test_checkpoint.py: two gloo processes that save and load FSDP checkpoints while disks and folders fail.

    python checkpoints_by_two.py OUT PORT

Writes OUT/told_RANK.json: for each case what this process was told, "" where all went well, and after how many polls.
All cases run in one process group: where the two did not stop alike, the next case hangs or fails.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from meeting import join, open_stores

import eosin.distributed
from conftest import TINY
from eosin.distributed import World, local_part, world
from eosin.errors import EosinError
from eosin.runs import RunFolder
from eosin.training import Recipe, checkpoint_shards, load_recipe
from eosin.training.checkpoint import CheckpointWriter, load_checkpoint, training_state
from eosin.training.networks import Networks
from eosin.training.parallel import spread
from eosin.training.prepare import make_optimizer

Told = dict[str, tuple[str, int]]


class Case:
    """Networks spread over the two, and what may happen to their checkpoints."""

    def __init__(self, out: Path, recipe: Recipe, here: World) -> None:
        self.out, self.recipe, self.rank, self.here = out, recipe, here.rank, here
        self.networks, self.optimizer = self.fresh()
        self.told: Told = {}

    def fresh(self) -> tuple[Networks, torch.optim.Optimizer]:
        networks = Networks(self.recipe)
        spread(networks, self.recipe, torch.device("cpu"), "fp32")
        return networks, make_optimizer(self.recipe, networks)

    def save(self, name: str, root: Path, step: int) -> None:
        """Save, polling as a training loop does."""
        polls = 0
        try:
            with CheckpointWriter(RunFolder(root), self.networks, self.optimizer) as writer:
                writer.start(step, {"identity": {}}, 9, None)
                while writer._writing is not None:
                    writer.poll()
                    polls += 1
                    time.sleep(0.01)
            self.told[name] = "", polls
        except EosinError as error:
            self.told[name] = f"{type(error).__name__}: {error}", polls
        self.here.barrier()

    def load(self, name: str, root: Path) -> None:
        try:
            networks, optimizer = self.fresh()
            load_checkpoint(RunFolder(root), 2, networks, optimizer)
            own = training_state(self.networks, self.optimizer)
            for key, value in training_state(networks, optimizer).items():
                assert torch.equal(local_part(value), local_part(own[key])), key
            self.told[name] = "", 0
        except EosinError as error:
            self.told[name] = f"{type(error).__name__}: {error}", 0
        self.here.barrier()

    def damaged(self, name: str) -> tuple[Path, list[Path]]:
        """A copy of the good run that only this case uses, and the files of its checkpoint."""
        root = self.out / name
        if self.rank == 0:
            shutil.copytree(self.out / "good", root)
        self.here.barrier()
        return root, sorted(RunFolder(root).checkpoint(2).glob("*.safetensors"))


@contextmanager
def full_disk(full: bool) -> Iterator[None]:
    """No file of this process may grow past 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16 if full else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def all_cases(case: Case) -> None:
    out, rank = case.out, case.rank
    case.save("save", out / "good", 2)
    case.load("load", out / "good")

    root, files = case.damaged("missing")
    if rank == 0:
        files[1].unlink()
    case.here.barrier()
    case.load("missing", root)

    root, files = case.damaged("flipped")
    if rank == 0:
        content = bytearray(files[1].read_bytes())
        content[-100] ^= 4
        files[1].write_bytes(content)
    case.here.barrier()
    case.load("flipped", root)

    root, _ = case.damaged("one_blind")
    case.load("one_blind", root if rank == 0 else out / "nowhere")

    root, _ = case.damaged("full")
    with full_disk(rank == 1):
        case.save("full", root, 4)
    case.save("full_again", root, 4)

    checkpoint_shards.PATIENCE_S = 0.5
    case.save("local_disks", out / f"machine_{rank}", 2)

    root, _ = case.damaged("no_place")
    if rank == 0:  # the folder cannot be made
        (root / "checkpoints" / ".step_00000004.tmp").write_text("")
    case.here.barrier()
    case.save("no_place", root, 4)

    root, _ = case.damaged("no_name")
    if rank == 0:  # the complete checkpoint cannot get its name
        for name in ("step_00000004", ".step_00000004.old"):
            (root / "checkpoints" / name).mkdir()
            (root / "checkpoints" / name / "x").write_text("")
    case.here.barrier()
    case.save("no_name", root, 4)


def main(rank: int, out: Path, port: int) -> None:
    torch.set_num_threads(1)
    eosin.distributed.TIMEOUT = timedelta(seconds=60)
    join(port, rank, 2)
    recipe, _ = load_recipe("quickstart", [*TINY, "parallel.strategy=fsdp"])
    with world(torch.device("cpu")) as here:
        case = Case(out, recipe, here)
        all_cases(case)
    (out / f"told_{rank}.json").write_text(json.dumps(case.told))


if __name__ == "__main__":
    (store,) = open_stores(1)
    words = Path(sys.argv[1]), store.port
    if (child := os.fork()) == 0:
        try:
            main(1, *words)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    main(0, *words)
    sys.exit(os.waitpid(child, 0)[1] != 0)
