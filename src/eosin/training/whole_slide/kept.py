"""Tile vectors of slides that were seen while stage 1 stands still: they do not change then, so none is made twice."""

from __future__ import annotations

from torch import Tensor


class KeptVectors:
    """Slide -> vectors of all its tiles, in host memory; what does not fit into `limit_mb` is not kept."""

    def __init__(self, limit_mb: float) -> None:
        self.left = limit_mb * 1e6
        self._limit = self.left
        self._vectors: dict[str, Tensor] = {}

    def get(self, slide: str) -> Tensor | None:
        """Vectors [N, d1] of a slide, in its region grid's order; none where they are not kept."""
        return self._vectors.get(slide)

    def put(self, slide: str, vectors: Tensor) -> None:
        """Keep a copy, if there is room."""
        size = vectors.numel() * vectors.element_size()
        if slide not in self._vectors and size <= self.left:
            self._vectors[slide] = vectors.detach().to("cpu", copy=True)
            self.left -= size

    def forget(self) -> None:
        """Drop all: stage 1 is about to change."""
        self._vectors.clear()
        self.left = self._limit
