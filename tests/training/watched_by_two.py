"""Run by test_monitor.py: two processes, FSDP, that look at the same teacher together. Imports once, then forks.

python watched_by_two.py PROBE OUT PORT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

TILES = 13  # not divisible by two


def look(probe: str, out: Path, changes: list[str]) -> None:
    """Measure a teacher that is not its start on TILES tiles and on `probe`; OUT/numbers.json, OUT/pictures."""
    from eosin.distributed import World, world
    from eosin.runs import RunFolder
    from eosin.training import load_recipe
    from eosin.training.monitor import Monitor
    from eosin.training.networks import Networks
    from eosin.training.parallel import spread
    from eosin.training.probes import open_probes

    device = torch.device("cpu")
    with world(device):
        recipe = load_recipe("quickstart", changes)[0]
        networks = Networks(recipe)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            for parameter in networks.teacher.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        spread(networks, recipe, device, "fp32")
        tiles = np.random.default_rng(0).integers(0, 256, (TILES, 40, 40, 3), dtype=np.uint8)
        monitor = Monitor(recipe, tiles, open_probes([f"probe={probe}"], None, "knn,logreg", 200))
        values = monitor.measure(networks, 0.05)
        monitor.keep_attention(networks, 0, RunFolder(out))
        assert bool(values) == World.here().is_first
        if values:
            (out / "numbers.json").write_text(json.dumps(values))


def main(rank: int, probe: str, out: Path, port: int) -> None:
    from meeting import join

    from conftest import TINY

    torch.set_num_threads(1)
    join(port, rank, 2)
    look(probe, out, [*TINY, "run.group=1", "parallel.strategy=fsdp"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from meeting import open_stores

    (store,) = open_stores(1)
    words = sys.argv[1], Path(sys.argv[2]), store.port
    child = os.fork()
    if child == 0:
        try:
            main(1, *words)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    main(0, *words)
    sys.exit(os.waitpid(child, 0)[1])
