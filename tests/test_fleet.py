"""Indexing and embedding on a real local Ray: the same result as without, whatever dies on the way.

What a worker does is the real work behind a gate: at a named slide it tells its process id through a pipe and waits, so
a test can kill it in the middle of that slide without a clock.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eosin.features.embed import embed_slides
from eosin.features.embed_run import Embedding
from eosin.features.h5 import read_features
from eosin.fleet import Fleet, FleetError, fleet, part_of, same_place
from eosin.slides import Cohort
from eosin.slides.journal import journal_path
from eosin.slides.synthetic import write_slides

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two cores on this machine; `eosin` uses it, whatever address it is given."""
    module = pytest.importorskip("ray", reason='needs pip install "eosin[ray]"')
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (else its workers starve on a busy machine)
    with fleet("local", 2):
        yield module


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small slides, synthetic-01 … -05."""
    folder = tmp_path_factory.mktemp("fleet") / "slides"
    write_slides(folder, count=5, size_px=512, workers=1)
    return folder


class Gate:
    """Wraps what the workers do.

    stop_at: a slide at which the first worker that comes to it says its process id and waits to be killed.
    deadly: a slide at which each worker kills itself. done: slides in the order in which they were finished.
    """

    def __init__(self, folder: Path, stop_at: str = "", deadly: str = "") -> None:
        self.folder, self.stop_at, self.deadly = folder, stop_at, deadly
        folder.mkdir()
        os.mkfifo(folder / "pipe")

    def use(self, monkeypatch: pytest.MonkeyPatch, name_of: Callable[[Any], str], stop_inside: bool = False) -> None:
        """stop_inside: stop when the slide's first batch is stored, not before it is begun."""
        each, folder, stop_at, deadly = Fleet.each, self.folder, self.stop_at, self.deadly

        def wait_to_be_killed() -> None:
            import os
            import signal

            try:
                pipe = os.open(folder / "pipe", os.O_WRONLY)
            except FileNotFoundError:
                return  # another process waited here and was killed
            os.write(pipe, str(os.getpid()).encode())
            os.close(pipe)
            while True:
                signal.pause()

        def gated(make: Callable[[], Callable[[Any], Any]]) -> Callable[[], Callable[[Any], Any]]:
            def made() -> Callable[[Any], Any]:
                import os
                import signal

                from eosin.features.embed_run import Embedding

                work, store = make(), Embedding._store

                def stop_and_store(self: Any, *words: Any) -> None:
                    store(self, *words)
                    if self.now == stop_at:
                        wait_to_be_killed()

                def do(job: Any) -> Any:
                    name = name_of(job)
                    if name == deadly:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if name == stop_at and not stop_inside:
                        wait_to_be_killed()
                    Embedding.now = name
                    result = work(job)
                    with open(folder / "done", "a") as file:
                        file.write(f"{name}\n")
                    return result

                if stop_inside:
                    Embedding._store = stop_and_store
                return do

            return made

        monkeypatch.setattr(Fleet, "each", lambda self, jobs, make, *rest: each(self, jobs, gated(make), *rest))

    def when_stopped(self, act: Callable[[int], None]) -> threading.Thread:
        """Act on the process that waits; the next one will not wait."""

        def watch() -> None:
            with open(self.folder / "pipe") as pipe:
                process = int(pipe.read())
            (self.folder / "pipe").unlink()
            act(process)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    @property
    def done(self) -> list[str]:
        file = self.folder / "done"
        return file.read_text().split() if file.is_file() else []


def test_a_worker_killed_in_the_middle_loses_nothing(
    ray: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Cohort.index(slides, tmp_path / "plain.parquet", workers=0)
    gate = Gate(tmp_path / "gate", stop_at="synthetic-03")
    gate.use(monkeypatch, lambda job: job.slide_id)
    killer = gate.when_stopped(lambda process: os.kill(process, signal.SIGKILL))
    spread = Cohort.index(slides, tmp_path / "ray.parquet", ray="auto")
    killer.join()
    assert spread.hash == plain.hash
    assert spread.table.drop(columns="error").equals(plain.table.drop(columns="error"))
    assert sorted(gate.done) == plain.usable["slide_id"].tolist()  # each once
    assert not journal_path(tmp_path / "ray.parquet").exists()
    assert not list(tmp_path.glob(".fleet-*"))


def test_a_slide_that_kills_each_worker_becomes_its_error(
    ray: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate", deadly="synthetic-02")
    gate.use(monkeypatch, lambda job: job.slide_id)
    cohort = Cohort.index(slides, tmp_path / "c.parquet", ray="auto")
    lost = cohort.table[cohort.table["status"] != "ok"]
    assert lost["slide_id"].tolist() == ["synthetic-02"]
    assert "synthetic-02." in lost["error"].iloc[0]
    assert "the process that read it crashed" in lost["error"].iloc[0]
    assert sorted(gate.done) == ["synthetic-01", "synthetic-03", "synthetic-04", "synthetic-05"]


def test_ctrl_c_stops_the_workers_and_leaves_ray_and_the_rows(
    ray: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path / "gate", stop_at="synthetic-05")
    stopped: list[int] = []

    def interrupt(process: int) -> None:
        stopped.append(process)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        gate.use(patch, lambda job: job.slide_id)
        gate.when_stopped(interrupt)
        Cohort.index(slides, tmp_path / "c.parquet", ray="auto", workers=1)
    _wait_for_the_end_of(stopped[0])
    assert gate.done == [f"synthetic-0{n}" for n in (1, 2, 3, 4)]
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    again = Gate(tmp_path / "again")
    again.use(monkeypatch, lambda job: job.slide_id)
    assert len(Cohort.index(slides, tmp_path / "c.parquet", ray="auto", workers=1)) == 5
    assert again.done == ["synthetic-05"]


def _wait_for_the_end_of(process: int) -> None:
    """Until it is gone, or a zombie that its parent has yet to collect."""
    gone = threading.Event()
    while not gone.wait(0.05):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return


def test_embedding_with_a_worker_killed_inside_a_slide(
    ray: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Embedding, "now", "", raising=False)
    Cohort.index(slides, tmp_path / "c.parquet", workers=0)
    words: dict[str, Any] = {"random_init": True, "input_size": 32, "mpp": 1.0, "size": 32, "batch": 4}
    plain = embed_slides("vit_tiny_patch16_224", tmp_path / "c.parquet", tmp_path / "plain", workers=0, **words)
    cohort = Cohort.read(tmp_path / "c.parquet")
    name = cohort.usable["slide_id"].iloc[2]
    names = cohort.usable["slide_id"].tolist()
    gate = Gate(tmp_path / "gate", stop_at=name)
    gate.use(monkeypatch, lambda number: names[number], stop_inside=True)
    halves: list[Path] = []

    def kill(process: int) -> None:
        halves.extend((tmp_path / "ray").glob(f".{name}.h5.*.tmp"))
        os.kill(process, signal.SIGKILL)

    killer = gate.when_stopped(kill)
    spread = embed_slides("vit_tiny_patch16_224", tmp_path / "c.parquet", tmp_path / "ray", ray="auto", **words)
    killer.join()
    assert len(halves) == 1  # it was killed inside the slide
    assert (spread.slides, spread.tiles, spread.failures) == (plain.slides, plain.tiles, {})
    assert sorted(gate.done) == sorted(names)
    for slide in names:
        one, other = (read_features(tmp_path / folder / f"{slide}.h5") for folder in ("plain", "ray"))
        np.testing.assert_allclose(other.features, one.features, atol=1e-5)
        assert np.array_equal(other.coords, one.coords)  # type: ignore[arg-type]
        assert other.attributes == one.attributes
    assert not list((tmp_path / "ray").glob(".*"))
    again = embed_slides("vit_tiny_patch16_224", tmp_path / "c.parquet", tmp_path / "ray", ray="auto", **words)
    assert (again.slides, again.finished) == (0, 5)


def test_a_worker_that_cannot_see_the_folder_is_one_line(
    ray: Any, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with same_place(tmp_path, [slides]) as place:
        assert place.why_not() is None
        os.unlink(place.marker)
        assert "does not see" in str(place.why_not())
        with fleet("auto") as ships, pytest.raises(FleetError, match=r"does not see .* all machines need it") as told:
            list(ships.each([1, 2], lambda: lambda job: job, place, 2))
        assert "\n" not in str(told.value)
    with same_place(tmp_path, [slides]) as place:
        place.versions["imagecodecs"] = "0.1"
        assert "imagecodecs" in str(place.why_not())
        shutil.move(slides, tmp_path / "gone")
        try:
            assert str(slides) in str(place.why_not())
        finally:
            shutil.move(tmp_path / "gone", slides)


def test_few_units_are_under_way_at_a_time(ray: Any, tmp_path: Path) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for n in range(40):
            taken += 1
            yield n

    seen = []
    with fleet("auto") as ships, same_place(tmp_path) as place:
        for job, result in ships.each(jobs(), lambda: lambda n: n * n, place, 2):
            seen.append((job, result))
            assert taken <= len(seen) + 2
    assert sorted(seen) == [(n, n * n) for n in range(40)]


def test_more_processes_than_the_cluster_has_room_for(ray: Any, tmp_path: Path) -> None:
    """Those that find no room are not waited for."""
    with fleet("auto") as ships, same_place(tmp_path) as place:
        assert (ships.room(), ships.room(2), ships.gpus) == (2, 1, 0)
        with pytest.raises(FleetError, match="no machine of the cluster has 3 cores"):
            ships.room(3)
        assert sorted(ships.each([1, 2, 3], lambda: lambda n: -n, place, 5)) == [(1, -1), (2, -2), (3, -3)]


def test_addresses_that_cannot_be_used() -> None:
    pytest.importorskip("ray")
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            done = _fresh(f"from eosin.fleet import fleet\nwith fleet({address!r}): pass")
            assert f"--ray {address}: nothing answers there" in done
    assert "it is local, auto, HOST:PORT" in _fresh("from eosin.fleet import fleet\nwith fleet('cluster'): pass")


def test_without_ray_one_line() -> None:
    code = "import sys; sys.modules['ray'] = None\nfrom eosin.fleet import fleet\nwith fleet('auto'): pass"
    assert 'pip install "eosin[ray]"' in _fresh(code)


def _fresh(code: str) -> str:
    """The last line that a Python process of its own says on stderr."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/2/3"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(FleetError, match="I/N"):
        part_of(text)
    assert part_of("3/16") == (3, 16)
