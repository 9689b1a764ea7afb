"""How a run is asked to stop from outside, and hears of it in time to save."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from eosin.errors import Interrupted

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TWICE = 0.5  # seconds: launchers hand on what the terminal has sent already


class StoppedWhenComplete(Interrupted):
    """A signal came when the run was complete already: nothing is left to do, but whoever called must not go on."""


class StopSignals:
    """Notes SIGTERM, SIGUSR1 (what schedulers send before they kill) and Ctrl-C, so that the run can save first.

    Ctrl-C again, or before the run has taken `saves`, stops at once (KeyboardInterrupt).
    """

    def __init__(self) -> None:
        self.received = 0
        """The signal that came first, 0 while none has."""
        self.saves = False
        """Whether there is something to save."""
        self._at = 0.0
        self._waiting = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._ended: BaseException | None = None

    def __enter__(self) -> StopSignals:
        try:
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and a shell's `&` want it
                    self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not in the main thread: whoever called is in charge of signals
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = None
        if error is not None and "LOCAL_RANK" in os.environ:
            # torchrun ends the others when one has died: what they have to say of it comes first.
            self._before.pop(signal.SIGTERM, None)
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def next_of(self, batches: Iterator[T]) -> T | None:
        """The next of `batches`, or None where a signal came before it did."""
        try:
            self._waiting = True
            return None if self.received else next(batches)
        except KeyboardInterrupt as error:
            if not self.received:
                raise
            self._ended = error  # holds the reading processes: to end them takes seconds that the save may need
            return None
        finally:
            self._waiting = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # reading processes get the terminal's and the launcher's signals too: their run tells them
        now = time.monotonic()
        if number == signal.SIGINT:
            if not self.saves or (self.received and now - self._at > TWICE):
                raise KeyboardInterrupt
            if not self.received and os.environ.get("RANK", "0") == "0":
                os.write(2, b"\nstopping: the run is saved first; Ctrl-C again stops it at once\n")
        if not self.received:
            self.received, self._at = number, now
            # Reading processes that the same signal has ended are no loss, but torch would raise in whatever is done.
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)
        if self._waiting:
            raise KeyboardInterrupt


def _nothing(number: int, frame: FrameType | None) -> None:
    return None
