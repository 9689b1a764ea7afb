"""Decoded tiles kept for a while: one store for all slides of a process, bounded in bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from eosin.slides.resample import Pixels

CACHE_BYTES = 64 * 2**20

Key = tuple[int, int, int]  # slide, level, tile


class TileCache:
    """The tiles used last, up to `limit` bytes. Threads may share it; the tiles are not to be written to."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget all tiles, with a lock of its own: a forked process must not wait for its parent's threads."""
        self._lock = threading.Lock()
        self._tiles: OrderedDict[Key, Pixels] = OrderedDict()
        self.held = 0

    def get(self, keys: Sequence[Key]) -> list[Pixels | None]:
        """The tile of each key, None where it is not kept."""
        with self._lock:
            found = [self._tiles.get(key) for key in keys]
            for key, tile in zip(keys, found, strict=True):
                if tile is not None:
                    self._tiles.move_to_end(key)
        return found

    def put(self, key: Key, tile: Pixels) -> None:
        """Keep a tile, in the place of those not used for longest."""
        with self._lock:
            if key in self._tiles or tile.nbytes > self.limit:
                return
            self._tiles[key] = tile
            self.held += tile.nbytes
            while self.held > self.limit:
                self.held -= self._tiles.popitem(last=False)[1].nbytes

    def drop(self, slide: int) -> None:
        """Forget the tiles of one slide."""
        with self._lock:
            for key in [key for key in self._tiles if key[0] == slide]:
                self.held -= self._tiles.pop(key).nbytes


shared = TileCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.clear)
