"""A checkpoint's folder, and the proof that it is whole before anything is read from it.

    step_00001234/shard-….safetensors    what each process wrote (torch.distributed.checkpoint)
    step_00001234/state.json             step, identity, and every file with its size and checksum; written last

torch's reader takes the files that it finds: of a checkpoint that lacks one it would leave tensors as they were.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from eosin.distributed import World
from eosin.errors import EosinError, ResumeError
from eosin.runs import RunFolder

T = TypeVar("T")
Box = tuple[tuple[int, int], ...]
"""First and last + 1 in each dimension."""

READERS = 4  # threads that add up checksums of different files
BLOCK = 1 << 22


@dataclass(frozen=True)
class OpenCheckpoint:
    """A checkpoint whose files are all there, whole."""

    folder: Path
    state: dict[str, Any]  # of state.json
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]  # name -> whole shape, dtype


class _Damage(Exception):
    """What is wrong with a checkpoint, in a few words."""


class _Foreign(_Damage):
    """It is none of ours."""


def open_checkpoint(folder: Path, world: World | None = None) -> OpenCheckpoint:
    """Look at a checkpoint as all processes of `world` together (alone without): each adds up a share of its files.

    Raises ResumeError, the same on every process, that says what is wrong and what to do.
    """
    world = world or World()
    found = _agreed(folder, world, lambda: _look(folder))
    names = sorted(found.state["files"])[world.rank :: world.size]
    _agreed(folder, world, lambda: _add_up(found, names), by_turns=True)
    return found


def _agreed(folder: Path, world: World, look: Callable[[], T], by_turns: bool = False) -> T:
    """What `look` gives, where no process sees damage. by_turns: each process looks at something else."""
    found: list[T] = []
    damage: _Damage | None = None
    try:
        found.append(look())
    except _Damage as error:
        damage = error
    seen = world.gather_objects(damage)
    told = [(rank, damage) for rank, damage in enumerate(seen) if damage is not None]
    if not told:
        return found[0]
    rank, first = told[0]
    if len(told) < len(seen) and not by_turns:
        raise ResumeError(
            f"process {rank} does not see {folder} as others do: {first}; the run folder has to be shared by all "
            "machines"
        )
    if isinstance(first, _Foreign):
        raise ResumeError(f"{folder} {first}")
    raise ResumeError(f"{folder} is damaged: {first}; {_way_out(folder)}")


def _way_out(folder: Path) -> str:
    earlier = sorted(path.name for path in folder.parent.glob("step_*") if path.name < folder.name)
    if not earlier:
        return "there is no earlier checkpoint beside it"
    return f"move that folder away to go on from the one before, {earlier[-1]}"


def _look(folder: Path) -> OpenCheckpoint:
    """state.json, names and sizes of the files, what their headers say they hold. Raises _Damage."""
    state = _read_state(folder)
    for name, told in state["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise _Damage(f"{name} is missing" if isinstance(error, FileNotFoundError) else line_of(error)) from error
        if size != told["bytes"]:
            raise _Damage(f"{name} has {size} bytes of {told['bytes']}")
    if strange := sorted({path.name for path in folder.glob("*.safetensors")} - set(state["files"])):
        raise _Damage(f"{strange[0]} is no file of it")
    return OpenCheckpoint(folder, state, tensors_in(folder))


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if "files" not in state:
            raise _Foreign("does not list its files: another version of eosin wrote it, which alone can read it")
        if int(state["step"]) >= 0 and all(int(told["bytes"]) and told["crc32"] for told in state["files"].values()):
            return state
    except FileNotFoundError:
        raise _Damage("state.json is missing") from None
    except OSError as error:
        raise _Damage(line_of(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise _Damage("state.json is torn")


def _add_up(found: OpenCheckpoint, names: list[str]) -> None:
    """Raises _Damage where the content of a file is not what was written."""

    def crc32(name: str) -> str:
        total = 0
        with open(found.folder / name, "rb") as file:
            while block := file.read(BLOCK):
                total = zlib.crc32(block, total)
        return f"{total:08x}"

    try:
        with ThreadPoolExecutor(READERS) as readers:
            sums = list(readers.map(crc32, names))
    except OSError as error:
        raise _Damage(line_of(error)) from error
    for name, total in zip(names, sums, strict=True):
        if total != found.state["files"][name]["crc32"]:
            raise _Damage(f"the content of {name} is not what was written (checksum)")


def tensors_in(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name → (whole shape, dtype) of the tensors that a checkpoint holds every element of, once. Raises _Damage."""
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata()
    except Exception as error:  # torch and safetensors raise many kinds
        raise _Damage(line_of(error)) from error
    for name, told in metadata.state_dict_metadata.items():
        if not _is_covered(tuple(told.size), [_box(chunk) for chunk in told.chunks]):
            raise _Damage(f"parts of {name} are missing or there twice")
    return {name: (tuple(told.size), told.properties.dtype) for name, told in metadata.state_dict_metadata.items()}


def _box(chunk: ChunkStorageMetadata) -> Box:
    return tuple((first, first + length) for first, length in zip(chunk.offsets, chunk.sizes, strict=True))


def _is_covered(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """Whether `boxes`, all inside `shape`, hold each element once: volumes add up and no two overlap."""
    filled = sorted(box for box in boxes if all(last > first for first, last in box))
    if sum(math.prod(last - first for first, last in box) for box in filled) != math.prod(shape):
        return False
    open_boxes: list[Box] = []
    for box in filled:  # in the order of their first rows: only boxes that reach into this one's rows can overlap it
        open_boxes = [other for other in open_boxes if not box or other[0][1] > box[0][0]]
        if any(all(a[0] < b[1] and b[0] < a[1] for a, b in zip(box, other, strict=True)) for other in open_boxes):
            return False
        open_boxes.append(box)
    return True


@contextmanager
def one_line(kind: type[EosinError], doing: str) -> Iterator[None]:
    """Turn what torch and the disk raise into `kind`, one line that says the cause.

    torch wraps what any process met at its own work into CheckpointException, which is no Exception. Anything else
    passes: another process that is gone, a signal.
    """
    try:
        yield
    except (OSError, CheckpointException) as error:
        cause, who = _cause(error)
        if isinstance(cause, EosinError | KeyboardInterrupt | SystemExit):
            raise cause from error
        raise kind(f"{doing}: {line_of(cause)}{who}") from error


def _cause(error: BaseException) -> tuple[BaseException, str]:
    """What went wrong inside the pages that torch wraps around it, and in which process, where there are several."""
    if not isinstance(error, CheckpointException) or not error.failures:
        return error, ""
    rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
    return cause, f" (process {rank})" if World.here().size > 1 else ""


def line_of(error: BaseException) -> str:
    """What the disk said, or the last line of an error that says something."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def prune_checkpoints(run: RunFolder, keep_last: int, keep_every: int | None) -> None:
    """Remove all but the newest `keep_last` checkpoints and those at multiples of `keep_every`."""
    for step in run.steps()[:-keep_last]:
        if keep_every is None or step % keep_every:
            shutil.rmtree(run.checkpoint(step), ignore_errors=True)


def remove_torn_checkpoints(run: RunFolder) -> None:
    """Remove what a killed save left behind: it never became a checkpoint."""
    for pattern in (".step_*.tmp", ".step_*.old"):
        for folder in run.checkpoints.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
