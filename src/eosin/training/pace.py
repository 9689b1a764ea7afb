"""How fast a run is and how long it stands still for want of tiles, between two readings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from eosin.distributed import World
from eosin.errors import TrainingStopped
from eosin.training.alarms import Alarms, Woken, main_thread, wakeable

T = TypeVar("T")


class Speed:
    """Tiles a second and the share of the time spent waiting for tiles, without the time spent on monitoring.

    A process waits while its device has nothing to do and the next batch is not there. A GPU works behind its host, so
    what counts is the time on the GPU from the end of a step to the arrival of the next tiles, not the host's.
    """

    def __init__(self, device: torch.device) -> None:
        self.tiles = 0
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._device, self._waited, self._started = device, 0.0, time.perf_counter()

    def restart(self) -> None:
        """Forget everything up to now."""
        self.tiles, self._waited, self._started = 0, 0.0, time.perf_counter()
        self._marks.clear()

    def read(self) -> dict[str, float]:
        """img_s of all processes, and data_wait, the largest share of any process, 0 to 1; then restarts.

        Every process calls this alike.
        """
        if self._marks:
            self._marks[-1][1].synchronize()
            self._waited = sum(begin.elapsed_time(end) for begin, end in self._marks) / 1000
        seconds = max(time.perf_counter() - self._started, 1e-9)
        waited = max(World.here().gather_objects(min(self._waited / seconds, 1.0)))
        rate = self.tiles / seconds
        self.restart()
        return {"img_s": rate, "data_wait": waited}

    def waiting(self, batches: Iterator[T], alarms: Alarms, patience: float) -> Iterator[T]:
        """The same batches, while the time that each one takes to come is counted.

        alarms are told where one takes more than `patience` seconds, and may interrupt the wait: TrainingStopped.
        """
        thread = main_thread()
        while True:
            watchdog = threading.Timer(patience, lambda: alarms.tiles_are_late(patience, thread))
            watchdog.daemon = True
            stop = self._clock()
            watchdog.start()
            try:
                with wakeable():
                    batch = next(batches)
            except StopIteration:
                return
            except Woken:
                raise TrainingStopped(alarms.stopping) from None
            finally:
                watchdog.cancel()
            stop()
            yield batch

    def _clock(self) -> Callable[[], None]:
        """Starts to count; call the result when the wait is over."""
        if self._device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()

            def mark() -> None:
                end.record()
                self._marks.append((begin, end))

            return mark
        began = time.perf_counter()

        def count() -> None:
            self._waited += time.perf_counter() - began

        return count
