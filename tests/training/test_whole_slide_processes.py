"""Two gloo processes and one give the same gradients, with uneven and empty shares of slides and of regions.

Run as a script it is one of the processes: RANK SIZE RENDEZVOUS OUT. They meet in a file, so no port is chosen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from whole_slide_cases import (  # type: ignore[import-not-found]
        SEED,
        STEP,
        Gradients,
        RegionTerm,
        TileTerm,
        objective,
        pyramid,
        samples,
        tile_head,
    )
else:
    from .whole_slide_cases import Gradients, pyramid, samples, slow_twin, tile_head

from eosin.distributed import World
from eosin.errors import DataError
from eosin.training.whole_slide import SlideSample, WholeSlideSettings, reduce_gradients, whole_slide_step

SLIDES: dict[str, list[list[int]]] = {"uneven": [[0, 1], [2]], "empty": [[], [2, 0, 1]]}
"""Which slides each process takes."""
REGIONS = {"whole": [0, 1, 2], "one-region": [1]}
"""Slides whose regions are shared out; slide 1 has one region, so a process has none."""
CASES = [
    ("slides", "uneven", "multi-pass"),
    ("slides", "uneven", "full"),
    ("slides", "empty", "multi-pass"),
    ("regions", "whole", "multi-pass"),
    ("regions", "whole", "full"),
    ("regions", "one-region", "multi-pass"),
]


def run(rank: int, out: Path) -> None:
    every, world = samples(), World.here()
    for spread, name, strategy in CASES:
        mine = [every[number] for number in (SLIDES[name][rank] if spread == "slides" else REGIONS[name])]
        network, head = pyramid(), tile_head(torch.float64)
        network.heads[1].requires_grad_(False)
        settings = WholeSlideSettings(strategy=strategy, spread=spread, tile_chunk=7, region_chunk=2, region_grad=True)  # type: ignore[arg-type]
        used = every if spread == "slides" else [every[number] for number in REGIONS[name]]
        result = whole_slide_step(
            network,
            mine,
            settings,
            seed=SEED,
            step=STEP,
            objective=objective(used),
            tile_loss=TileTerm(network, head, [(0, 6), (6, 6)][rank] if name == "empty" else [(0, 2), (2, 6)][rank]),
            region_loss=RegionTerm(network),
            modules=[head],
        )
        terms = [value for one in result.slides for value in one.losses.values()]
        save_file(
            {"loss": sum(terms, torch.zeros(1, dtype=torch.float64))}, out / f"{spread}-{name}-{strategy}-{rank}.loss"
        )
        save_file(dict(Gradients.of(network, head)), out / f"{spread}-{name}-{strategy}-{rank}.safetensors")
    only_first(rank, out)
    refused(rank, every, out)
    assert world.size == 2


def only_first(rank: int, out: Path) -> None:
    """A weight whose gradient one process alone has, and one that none has."""
    weights = [
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    weights[1].grad = torch.full((4,), 1.0 + rank)
    if rank == 0:
        weights[0].grad = torch.arange(6.0).view(2, 3)
    reduce_gradients(weights)
    assert weights[2].grad is None
    save_file({str(n): weights[n].grad for n in (0, 1)}, out / f"reduced-{rank}.safetensors")


def refused(rank: int, every: list[SlideSample], out: Path) -> None:
    """A slide that one process cannot read stops both, with its one line; so does its loss of tiles."""

    def gone(region: int) -> None:
        raise DataError("slide-0: gone")

    for spread in ("slides", "regions"):
        network = pyramid()
        bad = SlideSample("slide-0", every[0].grid, gone, every[0].targets) if rank == 0 else every[0]  # type: ignore[arg-type]
        settings = WholeSlideSettings(spread=spread)  # type: ignore[arg-type]
        try:
            whole_slide_step(network, [bad], settings, seed=0, step=0, objective=objective(every))
        except DataError as error:
            (out / f"refused-{spread}-{rank}").write_text(str(error))
        term = bad_tile if rank == 1 else TileTerm(network, tile_head(torch.float64), (0, 2))
        try:
            whole_slide_step(network, every[:1], settings, seed=0, step=0, objective=objective(every), tile_loss=term)
        except DataError as error:
            (out / f"tile-refused-{spread}-{rank}").write_text(str(error))


def bad_tile() -> torch.Tensor:
    raise DataError("tile 7: no pixels")


def main(rank: int, size: int, rendezvous: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=timedelta(minutes=30)
    )
    run(rank, Path(out))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found."""
    out = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [[sys.executable, __file__, str(rank), "2", str(out / "meeting"), str(out)] for rank in range(2)]
    started = [subprocess.Popen(each, env=environment, stderr=subprocess.PIPE, text=True) for each in words]
    told = [process.communicate(timeout=1800)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-3000:] for text in told)
    return out


@pytest.fixture(scope="module")
def one() -> dict[str, Gradients]:
    """What one ordinary graph gives, of all slides and of slide 1 alone."""
    found = {}
    for name, chosen in {"all": [0, 1, 2], "second": [1]}.items():
        network, head = pyramid(), tile_head(torch.float64)
        network.heads[1].requires_grad_(False)
        found[name] = slow_twin(network, [samples()[number] for number in chosen], head, region_grad=True)
    return found


@pytest.mark.parametrize(("spread", "name", "strategy"), CASES)
def test_two_processes_give_the_gradients_of_one(
    spread: str, name: str, strategy: str, two: Path, one: dict[str, Gradients]
) -> None:
    wanted = one["second" if name == "one-region" else "all"]
    for rank in range(2):
        found = Gradients(load_file(two / f"{spread}-{name}-{strategy}-{rank}.safetensors"))
        assert found.distance(wanted) <= 1e-12


def test_losses_add_up_over_processes(two: Path) -> None:
    def loss(spread: str, name: str, rank: int) -> float:
        return float(load_file(two / f"{spread}-{name}-multi-pass-{rank}.loss")["loss"])

    whole = loss("regions", "whole", 0)
    assert loss("regions", "whole", 1) == pytest.approx(whole, rel=1e-12)
    for name in SLIDES:
        assert loss("slides", name, 0) + loss("slides", name, 1) == pytest.approx(whole, rel=1e-12)


def test_a_gradient_that_one_process_has_is_everybody_s(two: Path) -> None:
    for rank in range(2):
        found = load_file(two / f"reduced-{rank}.safetensors")
        assert found["0"].flatten().tolist() == [0, 1, 2, 3, 4, 5]
        assert found["1"].tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("spread", ["slides", "regions"])
def test_a_slide_that_one_process_cannot_read_stops_both(spread: str, two: Path) -> None:
    for rank in range(2):
        assert "slide-0: gone" in (two / f"refused-{spread}-{rank}").read_text()
        assert (two / f"tile-refused-{spread}-{rank}").read_text() == "process 1: tile 7: no pixels"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
