"""Tiles per second from a store that takes its time: one after the other, and side by side.

A web server on loopback waits before each answer (--latency-ms), so that what is measured is how waits are hidden, not
a network. One slide is written (procedural tissue, JPEG tiles of 256 px, or --slide FILE), opened through
`eosin.open_slide` and read in the ways of training and embedding; every pixel is held against the local file.

    python benchmarks/object_store.py [--latency-ms 20] [--side 6144] [--slide FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np

from eosin.slides import Slide, open_slide, remote, tiff_cache
from eosin.slides.synthetic import write_slides
from eosin.tiles.grid_stream import read_tiles

TILE_PX = 256
Corners = list[tuple[int, int]]
T = TypeVar("T")


def serve(file: Path, latency_s: float, told: Connection) -> None:
    """Serve ranges of a file, each after a wait, until the process is ended. Sends its port."""
    data = file.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            time.sleep(latency_s)
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            body = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.send(server.server_port)
        server.serve_forever()


class Counted:
    """Counts what is asked of the store while it is in use."""

    def __init__(self) -> None:
        self.requests, self.bytes, self._real = 0, 0, remote.read_range

    def __call__(self, uri: remote.Uri, start: int, length: int, known: remote.Known | None) -> object:
        self.requests += 1
        self.bytes += length
        return self._real(uri, start, length, known)


def measure(name: str, counted: Counted, tiles: int, work: Callable[[], T]) -> T:
    """Run once with nothing kept, and print what it took."""
    tiff_cache.shared.clear()
    before, started = (counted.requests, counted.bytes), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    requests, sent = counted.requests - before[0], counted.bytes - before[1]
    each = f"{tiles / seconds:10,.0f} tiles/s {requests / tiles:8.2f}" if tiles else " " * 26
    print(f"{name:<58}{each}{requests:9}{sent / 1e6:9.2f}{seconds:9.2f}", flush=True)
    return result


def one_by_one(slide: Slide, corners: Corners, mpp: float) -> np.ndarray:
    """Each tile by itself, as a random crop of training."""
    found = []
    for x, y in corners:
        tiff_cache.shared.clear()  # other slides come in between
        found.append(slide.region(x, y, TILE_PX, mpp))
    return np.stack(found)


def by_threads(slide: Slide, corners: Corners, mpp: float, threads: int) -> np.ndarray:
    """Tiles by several threads."""
    with ThreadPoolExecutor(threads) as pool:
        return np.stack(list(pool.map(lambda at: slide.region(*at, TILE_PX, mpp), corners)))


def by_windows(slide: Slide, corners: Corners, mpp: float) -> np.ndarray:
    """Four neighbours from one read, as training with `tiles_per_visit: 4`."""
    found = []
    for start in range(0, len(corners), 4):
        tiff_cache.shared.clear()
        found += slide.regions(corners[start : start + 4], TILE_PX, mpp)
    return np.stack(found)


def by_blocks(slide: Slide, corners: Corners, mpp: float) -> np.ndarray:
    """Blocks of 64 announced tiles, as embedding reads them."""
    out = np.empty((len(corners), TILE_PX, TILE_PX, 3), np.uint8)
    for start in range(0, len(corners), 64):
        read_tiles(slide, np.array(corners[start : start + 64]), TILE_PX, mpp, out[start : start + 64])
    return out


def fours(side: int, count: int, seed: int = 0) -> Corners:
    """Places at random, four overlapping tiles at each."""
    places = np.random.default_rng(seed).integers(0, side - 2 * TILE_PX, (count // 4, 2)).tolist()
    return [(x + dx, y + dy) for x, y in places for dx in (0, 160) for dy in (0, 160)]


def grid(side: int) -> Corners:
    """Tiles side by side, off the stored grid, in blocks of 8 x 8."""
    steps = range(100, side - TILE_PX, TILE_PX)
    blocks = [(left, top) for top in steps[::8] for left in steps[::8]]
    return [(x, y) for left, top in blocks for y in steps if 0 <= y - top < 2048 for x in steps if 0 <= x - left < 2048]


def run(uri: str, file: Path, counted: Counted) -> None:
    """All measurements of one slide."""
    print(f"{'':<58}{'':>18} {'req./tile':>8}{'requests':>9}{'MB':>9}{'s':>9}")
    measure("open, nothing known of it", counted, 0, lambda: open_slide(uri).close())
    far = measure("open, index kept from before", counted, 0, lambda: open_slide(uri))
    with closing(far), open_slide(file) as near:
        mpp, side = far.mpp, min(far.width, far.height)
        random, squares = fours(side, 128), grid(side)
        ways: list[tuple[str, Corners, Callable[[Slide, Corners], np.ndarray]]] = [
            ("random tiles, one after the other", random, lambda s, c: one_by_one(s, c, mpp)),
            ("random tiles, 4 threads", random, lambda s, c: by_threads(s, c, mpp, 4)),
            ("random tiles, 16 threads", random, lambda s, c: by_threads(s, c, mpp, 16)),
            ("four tiles from each window", random, lambda s, c: by_windows(s, c, mpp)),
            ("grid, one after the other", squares, lambda s, c: np.stack([s.region(*at, TILE_PX, mpp) for at in c])),
            ("grid, blocks of 64 announced", squares, lambda s, c: by_blocks(s, c, mpp)),
        ]
        for name, corners, read in ways:
            found = measure(name, counted, len(corners), partial(read, far, corners))
            wanted = measure(f"  {name}, local file", counted, len(corners), partial(read, near, corners))
            if not np.array_equal(found, wanted):
                raise SystemExit(f"{name}: other pixels than the local file's")
    print("pixels: 0 difference from the local file in all of them")


def main() -> None:
    """Parse, write the slide, start the server, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--side", type=int, default=6144, help="of the slide that is written, px")
    parser.add_argument("--slide", type=Path, help="a tiled TIFF instead")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"EOSIN_ALLOW_HTTP": "1", "EOSIN_CACHE_DIR": folder}
        file = options.slide or write_slides(folder, count=1, size_px=options.side, workers=1)[0]
        spawn = multiprocessing.get_context("spawn")
        here, there = spawn.Pipe()
        server = spawn.Process(target=serve, args=(file, options.latency_ms / 1000, there), daemon=True)
        server.start()
        counted = Counted()
        remote.read_range = counted  # type: ignore[assignment]
        versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("obstore", "simplejpeg", "numpy"))
        print(f"{options.latency_ms:g} ms before each answer; {os.cpu_count()} cores, {platform.machine()}; {versions}")
        run(f"http://127.0.0.1:{here.recv()}/{file.name}", file, counted)
        server.kill()


if __name__ == "__main__":
    main()
