"""The feature store: filled block by block, killed, torn, shared, and always what one uninterrupted call gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from eosin.errors import DataError, OutputError
from eosin.features import FeatureStore, embed_images, kept_embeddings, load_model
from eosin.features.encoder import Encoder
from eosin.features.store import Growing


def images(count: int = 23) -> list[npt.NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8))


def encoder() -> Encoder:
    return load_model("vit_tiny_patch16_224", random_init=True, input_size=32)


def counted(inner: Encoder, stop_after: int | None = None) -> tuple[Encoder, list[int]]:
    """The encoder with a list of the batches it is asked for; it raises at the batch after `stop_after`."""
    seen: list[int] = []
    embed = inner.embed

    def watched(pixels: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return embed(pixels)

    inner.embed = watched  # type: ignore[method-assign]
    return inner, seen


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_goes_on_behind_the_last_finished_batch_and_gives_the_same(tmp_path: Path) -> None:
    expected = embed_images(encoder(), images(), batch=4)
    store = FeatureStore(tmp_path / "store")
    broken, first = counted(encoder(), stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        kept_embeddings(store, "data", broken, images(), batch=4)
    assert first == [4, 4, 4]
    assert not list((tmp_path / "store").glob("*.npy"))
    whole, second = counted(encoder())
    found = kept_embeddings(store, "data", whole, images(), batch=4)
    assert second == [4, 4, 3]
    np.testing.assert_array_equal(found, expected)
    assert isinstance(found, np.memmap)
    assert [name for name in left(tmp_path / "store") if not name.endswith(".npy")] == []
    again, third = counted(encoder())
    np.testing.assert_array_equal(kept_embeddings(store, "data", again, images(), batch=4), expected)
    assert third == []


def test_a_process_killed_by_the_system_loses_one_batch(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from tests.features.test_store import *\n"
        "inner, seen = counted(encoder())\n"
        "embed = inner.embed\n"
        "inner.embed = lambda pixels: os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 3 else embed(pixels)\n"
        "kept_embeddings(FeatureStore(sys.argv[1]), 'data', inner, images(), batch=4)\n"
    )
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    whole, seen = counted(encoder())
    found = kept_embeddings(FeatureStore(tmp_path), "data", whole, images(), batch=4)
    assert seen == [4, 4, 3]
    np.testing.assert_array_equal(found, embed_images(encoder(), images(), batch=4))


def grown(store: FeatureStore, values: npt.NDArray[np.float32], stop: int, starts: list[int]) -> None:
    """Append `values` in blocks of 5 rows; KeyboardInterrupt at row `stop`."""

    def fill(growing: Growing) -> None:
        starts.append(growing.done)
        while growing.done < len(values):
            if growing.done >= stop:
                raise KeyboardInterrupt
            growing.append(values[growing.done : growing.done + 5])

    store.grow("key", values.shape, fill)


@pytest.mark.parametrize(
    ("damage", "goes_on_at"),
    [("none", 15), ("torn line", 15), ("torn block", 5), ("other shape", 0), ("no journal", 0), ("no part", 0)],
)
def test_only_what_is_proved_is_kept(tmp_path: Path, damage: str, goes_on_at: int) -> None:
    values = np.random.default_rng(1).normal(size=(22, 3, 2)).astype(np.float32)
    store, starts = FeatureStore(tmp_path), []  # type: tuple[FeatureStore, list[int]]
    with pytest.raises(KeyboardInterrupt):
        grown(store, values, 15, starts)
    part, journal = tmp_path / ".key.part", tmp_path / ".key.journal"
    if damage == "torn line":
        with open(journal, "a") as file:
            file.write("[20, 12")
    elif damage == "torn block":
        raw = bytearray(part.read_bytes())
        raw[len(raw) - (22 - 7) * 24] ^= 1
        part.write_bytes(raw)
    elif damage == "other shape":
        lines = journal.read_text().splitlines()
        journal.write_text("\n".join([json.dumps([22, 6]), *lines[1:]]) + "\n")
    elif damage == "no journal":
        journal.unlink()
    elif damage == "no part":
        part.unlink()
    with pytest.raises(KeyboardInterrupt):
        grown(store, values, 20, starts)
    grown(store, values, 99, starts)
    assert starts == [0, goes_on_at, 20]
    kept = store.get("key")
    assert kept is not None
    np.testing.assert_array_equal(kept, values)
    assert left(tmp_path) == ["key.npy"]


def test_two_at_once_work_once(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    made: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def fill(growing: Growing) -> None:
        made.append(threading.current_thread().name)
        inside.set()
        go_on.wait(60)
        growing.append(values)

    found: list[npt.NDArray[np.float32]] = []
    threads = [
        threading.Thread(target=lambda: found.append(FeatureStore(tmp_path).grow("key", values.shape, fill)), name=name)
        for name in ("a", "b")
    ]
    threads[0].start()
    inside.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert made == ["a"]
    for one in found:
        np.testing.assert_array_equal(one, values)
    assert len(found) == 2
    assert left(tmp_path) == ["key.npy"]


def test_what_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        kept_embeddings(FeatureStore(tmp_path), "data", encoder(), [])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of that name"):
        kept_embeddings(FeatureStore(tmp_path / "file"), "data", load_model("colour"), images())
    bad = load_model("colour")
    bad.embed = lambda pixels: torch.full((len(pixels), bad.dim), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="first for image 0"):
        kept_embeddings(FeatureStore(tmp_path), "data", bad, images())
