"""Work spread over a Ray cluster: one process of each machine's cores or GPUs, one unit of work at a time each.

A unit whose process dies (killed, out of memory, machine gone) is tried again elsewhere by Ray; one that takes its
process down every time comes back as `Lost`. As many units are under way as there are processes, so neither tasks nor
results pile up. All machines must see the same folders at the same paths, which each process proves before it starts.
Knows nothing of slides or models. Ray is imported only here, and only when it is used.
"""

from __future__ import annotations

import logging
import os
import platform
import secrets
import socket
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from eosin.errors import EosinError
from eosin.files import PathLike, write_text
from eosin.progress import say
from eosin.provenance import versions

TRIES = 3
"""Processes that one unit of work may take down before it is given up."""

_ANSWER_S = 10.0  # how long an address may take to answer
_LOCAL_STARTS = 2  # a machine under load may miss Ray's own deadline for its parts once
_STORE_BYTES = 256 * 2**20  # of a local Ray; results are rows and counts
_LOOK_S = 30.0  # how often to look whether the cluster still has machines
_MAY_DIFFER = frozenset({"machine", "python", "torch", "numpy"})

Job = TypeVar("Job")
Result = TypeVar("Result")


class FleetError(EosinError):
    """A Ray cluster that is not there, does not fit, or broke."""


@dataclass(frozen=True)
class Lost:
    """A unit of work that took its process down `TRIES` times."""

    line: str


@dataclass(frozen=True)
class SamePlace:
    """What a worker must find as the driver does: a marker in the output folder, files, versions."""

    marker: str
    token: str
    files: tuple[str, ...]
    versions: dict[str, str]

    def why_not(self) -> str | None:
        """One line where this process is no place to work; None where all is as it is for the driver."""
        here = platform.node()
        try:
            found = Path(self.marker).read_text(encoding="utf-8")
        except OSError:
            found = ""
        if found != self.token:
            folder = Path(self.marker).parent
            return f"the machine {here} does not see {folder} of the driver; all machines need it at the same path"
        for file in self.files:
            if not Path(file).exists():
                return f"the machine {here} does not see {file}; all machines need it at the same path"
        for name, version in versions().items():
            if name not in _MAY_DIFFER and version != (wanted := self.versions.get(name)):
                return f"the machine {here} has {name} {version}, the driver {wanted}; install the same everywhere"
        return None


@contextmanager
def same_place(folder: PathLike, files: Iterable[PathLike] = ()) -> Iterator[SamePlace]:
    """Leaves a marker in `folder` while the block runs. files: local paths that workers need too, those that exist."""
    marker = Path(folder).resolve() / f".fleet-{secrets.token_hex(8)}"
    token = secrets.token_hex(16)
    write_text(marker, token)
    seen = tuple(str(Path(file).absolute()) for file in files if os.path.exists(file))
    try:
        yield SamePlace(str(marker), token, seen, versions())
    finally:
        marker.unlink(missing_ok=True)


class _Worker:
    """Runs in a Ray process. make: gives what does a unit of work; called once a process."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], place: SamePlace) -> None:
        self._make, self._place = make, place
        self._work: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Prove the place and load; also what a process that Ray started anew does first."""
        if self._work is None:
            if line := self._place.why_not():
                raise FleetError(line)
            self._work = self._make()

    def do(self, job: Any) -> Any:
        self.ready()
        assert self._work is not None
        return self._work(job)


class Fleet:
    """A cluster that this process is connected to."""

    def __init__(self, ray: Any, address: str) -> None:
        self._ray, self.address = ray, address
        self._said = False

    @property
    def gpus(self) -> int:
        """GPUs that the cluster has now."""
        return sum(gpus for _, gpus in self._machines())

    def cores_a_gpu(self) -> int:
        """Cores for each GPU on the machine where that is least; there must be a GPU."""
        return min(cpus // gpus for cpus, gpus in self._machines() if gpus)

    def room(self, cpus: int = 1, gpus: int = 0) -> int:
        """Processes with `cpus` cores and `gpus` GPUs that the cluster has room for; FleetError where that is none."""
        room = sum(
            min(own_cpus // cpus, own_gpus // gpus if gpus else own_cpus) for own_cpus, own_gpus in self._machines()
        )
        if not room:
            raise FleetError(f"{self.address}: no machine of the cluster has {cpus} cores and {gpus} GPUs")
        return room

    def _machines(self) -> list[tuple[int, int]]:
        """(cores, GPUs) of each."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive]

    def each(
        self,
        jobs: Iterable[Job],
        make: Callable[[], Callable[[Job], Result]],
        place: SamePlace,
        count: int,
        cpus: int = 1,
        gpus: int = 0,
    ) -> Generator[tuple[Job, Result | Lost], None, None]:
        """Results as they come, in any order; `count` processes with `cpus` cores and `gpus` GPUs each.

        jobs: taken one by one as processes become free. Raises FleetError where a process cannot work, and the
        EosinError of a unit that raises one; anything else that a unit raises comes as Ray wraps it. The processes end
        with the iteration.
        """
        words = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": TRIES - 1}
        kind = self._ray.remote(**words)(_Worker)
        waiting = iter(jobs)
        workers: list[Any] = []
        try:
            workers.extend(kind.remote(make, place) for _ in range(count))
            starting = {worker.ready.remote(): worker for worker in workers}
            running: dict[Any, tuple[Any, Job]] = {}
            more = True
            while running or more:
                for reference in self._finished([*running, *starting], bool(running)):
                    done: list[tuple[Job, Any]] = []
                    if reference in running:
                        worker, job = running.pop(reference)
                        done = [(job, self._result(reference, starting=False))]
                    else:
                        worker = starting.pop(reference)
                        self._result(reference, starting=True)
                    more = False
                    for job in waiting:
                        running[worker.do.remote(job)] = worker, job
                        more = True
                        break
                    yield from done
        finally:
            for worker in workers:
                with suppress(Exception):  # the cluster may be gone already
                    self._ray.kill(worker, no_restart=True)

    def _finished(self, references: list[Any], working: bool) -> list[Any]:
        """Those that are done, at least one; `working`: whether any process has work."""
        while True:
            done, _ = self._ray.wait(references, num_returns=1, timeout=_LOOK_S)
            if done:
                return list(done)
            if not self._machines():
                raise FleetError(f"{self.address}: no machine of the cluster is left; the same command goes on later")
            if not working and not self._said:
                self._said = True
                say(f"{self.address}: waiting for processes to start; the cluster may be in use")

    def _result(self, reference: Any, starting: bool) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, EosinError):
                raise error.cause from None
            raise
        except errors.RayActorError as error:
            if starting:
                raise FleetError(_why_no_worker(str(error))) from error
            return Lost(f"the process that worked on it died {TRIES} times")


def _why_no_worker(text: str) -> str:
    if "No module named 'eosin'" in text:
        return "the workers of the Ray cluster have no eosin; install the same version there"
    last = [line.strip() for line in text.splitlines() if line.strip()][-1]
    return f"no worker could be started: {last}"


@contextmanager
def fleet(address: str, cpus: int | None = None, verbose: bool = False) -> Iterator[Fleet]:
    """Connect to Ray, and leave it as it was.

    address: `local` starts a Ray on this machine (`cpus` cores, None for all) that ends with the block; `auto` the
    cluster that this machine belongs to; HOST:PORT or ray://HOST:PORT another one. A Ray that this process is
    connected to already is used as it is. verbose: let Ray's own log through. Raises FleetError: Ray is not installed,
    does not answer, or has another version.
    """
    ray = _import(verbose)
    if ray.is_initialized():
        yield Fleet(ray, address)
        return
    try:
        _start(ray, cpus, verbose) if address == "local" else _connect(ray, address, verbose)
        yield Fleet(ray, address)
    finally:
        ray.shutdown()


def _import(verbose: bool) -> Any:
    """Ray, told to keep its log to itself unless `verbose`; it reads these words when it is imported."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will be the default
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what it prints of workers that died
    try:
        import ray
    except ImportError as error:
        raise FleetError(f'--ray needs Ray: pip install "eosin[ray]" ({error})') from error
    logging.getLogger("ray").setLevel(logging.INFO if verbose else logging.CRITICAL)
    return ray


def _start(ray: Any, cpus: int | None, verbose: bool) -> None:
    for number in range(_LOCAL_STARTS):
        try:
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.CRITICAL,
                _system_config={"worker_register_timeout_seconds": 600},
            )
            return
        except Exception as error:  # Ray raises plain exceptions
            ray.shutdown()
            if number + 1 == _LOCAL_STARTS:
                raise FleetError(f"Ray does not start on this machine: {error}") from error


def _connect(ray: Any, address: str, verbose: bool) -> None:
    known = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
    if known != "auto":
        _knock(known)
    try:
        ray.init(
            address,
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.CRITICAL,
        )
    except Exception as error:  # ConnectionError, RuntimeError for versions, grpc's own
        raise FleetError(f"--ray {address}: {error}") from error


def _knock(address: str) -> None:
    """Ray itself tries for minutes, so first see whether anything listens."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
    except ValueError:
        host = None
    if not host or (parts.port is None and "://" not in address):
        raise FleetError(f"--ray {address}: it is local, auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, port), timeout=_ANSWER_S).close()
    except OSError as error:
        raise FleetError(
            f"--ray {address}: nothing answers there ({error.strerror or error}); a cluster's own port is 6379, "
            "that of ray:// 10001"
        ) from error


def part_of(text: str) -> tuple[int, int]:
    """`3/16` as (3, 16): the third of sixteen parts. FleetError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise FleetError(f"--part {text}: it is I/N with I from 1 to N, e.g. 3/16")
    return int(number), int(count)


def exclude_each_other(word: str, **others: Any) -> None:
    """FleetError where one of the options `others` is given beside `word`."""
    for name, value in others.items():
        if value:
            raise FleetError(f"{word} and --{name.replace('_', '-')} exclude each other")
