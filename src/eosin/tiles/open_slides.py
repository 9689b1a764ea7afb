"""The slides that a process keeps open: those used last. Its threads may share them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from eosin.slides import Slide

OPEN_SLIDES = 32
OPEN_IMAGES = 8  # of them plain images, which hold all their pixels in memory


@dataclass
class _Entry:
    """A slide, None until it is open, and how many read it now. `opening` is held while it is opened."""

    slide: Slide | None = None
    users: int = 0
    opening: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_image(self) -> bool:
        return self.slide is not None and self.slide.reader == "image"


class OpenSlides:
    """Slides by number; beyond `OPEN_SLIDES` the one not used for longest is closed, never one that is being read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    @contextmanager
    def use(self, number: int, opened: Callable[[], Slide]) -> Iterator[Slide]:
        """The slide, for as long as the block lasts. opened: opens it where it is not; raises as that does."""
        with self._lock:
            entry = self._entries.setdefault(number, _Entry())
            self._entries.move_to_end(number)
            entry.users += 1
        try:
            with entry.opening:
                if entry.slide is None:
                    entry.slide = opened()
            yield entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                self._close_surplus()

    def _close_surplus(self) -> None:
        images = sum(entry.is_image for entry in self._entries.values())
        for number in [number for number, entry in self._entries.items() if entry.users == 0]:
            entry = self._entries[number]
            if entry.slide is None:  # it could not be opened
                del self._entries[number]
            elif len(self._entries) > OPEN_SLIDES or (entry.is_image and images > OPEN_IMAGES):
                images -= entry.is_image
                self._entries.pop(number)
                entry.slide.close()
