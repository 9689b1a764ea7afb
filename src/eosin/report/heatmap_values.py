"""Which numbers a heatmap shows: a value a tile from trained heads, and how it becomes a shade from 0 to 1.

Attention is one share of 1 over all tiles of the slide, so its size depends on how many there are; the shade is
therefore its rank among them unless the raw value is asked for. Draws nothing and reads no pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError

Floats = npt.NDArray[np.float32]
What = Literal["attention", "score"]
Scale = Literal["percentile", "raw"]

RAW_TOP_PERCENTILE = 99.5  # one tile with all the attention would leave the others without contrast


class Heads(Protocol):
    """What a heatmap asks of trained heads (`eosin.evaluation.mil.saved.TrainedHeads` has it)."""

    info: dict[str, Any]

    def attention(self, features: Any) -> dict[str, Floats]:
        """Features [N, D] -> for each branch one share a tile [N], of sum 1."""

    def scores(self, features: Any) -> dict[str, dict[str, float]]:
        """Features [N, D] -> for each task the probability of each class for the slide."""

    def tile_scores(self, features: Any) -> dict[str, Floats]:
        """Features [N, D] -> for each "task: class" the score of each tile as a bag of one [N]."""


@dataclass(frozen=True)
class Values:
    """One number a tile.

    what: "attention" or "score"; name: the branch or "task: class"; raw [N]: attention times the number of tiles
    (1 = an even share), or a class score; shade [N], 0 to 1: what is coloured; scale: how raw became shade; low,
    high: the raw values of shade 0 and 1 (of scale "raw"). others: further numbers of the same tiles, for the files.
    """

    what: What
    name: str
    raw: Floats
    shade: Floats
    scale: Scale
    low: float
    high: float
    others: dict[str, Floats]

    @property
    def title(self) -> str:
        """Short name, for legends and columns."""
        return self.what if self.name == "all" else f"{self.what}, {self.name}"

    @property
    def key(self) -> str:
        """Its name among `others`."""
        return self.what if self.name == "all" else f"{self.what} {self.name}"

    @property
    def meaning(self) -> str:
        """What the ends of the legend stand for, in one sentence."""
        if self.scale == "percentile":
            return f"percentile of the {self.what} among the tiles of this slide: 0 lowest, 100 highest"
        if self.what == "attention":
            return f"attention × number of tiles: 1 is an even share; colours end at {self.high:.3g}"
        return "score of the tile as a bag of one, as the head gives it"

    def tick(self, shade: float) -> str:
        """The number to write at a place of the legend."""
        if self.scale == "percentile":
            return f"{100 * shade:.0f}"
        return f"{self.low + shade * (self.high - self.low):.2g}"


def values_of(
    heads: Heads,
    features: npt.NDArray[Any],
    what: str = "attention",
    task: str | None = None,
    branch: str | None = None,
    scale: str | None = None,
) -> Values:
    """The values to show.

    Args:
        features: [N, D], one row a tile.
        what: "attention" (of a branch) or "score" (of a class).
        task, branch: which of several; `branch` is a whole name ("task: class") or its class alone. Without them
            the class that the heads predict for the slide is taken.
        scale: "percentile" or "raw"; without it percentile for attention and raw for scores.

    Raises:
        DataError: a word that is none of these, no such branch (the line lists them), heads without attention,
            values that are not finite.
    """
    if what not in get_args(What):
        raise DataError(f"--what {what} is not known; give {' or '.join(get_args(What))}")
    if scale is not None and scale not in get_args(Scale):
        raise DataError(f"--scale {scale} is not known; give {' or '.join(get_args(Scale))}")
    if len(features) == 0:
        raise DataError("the slide has no tiles to show")
    attention = {name: np.asarray(of, np.float32) for name, of in heads.attention(features).items()}
    scores = {name: np.asarray(of, np.float32) for name, of in heads.tile_scores(features).items()}
    found = attention if what == "attention" else scores
    if not found:
        other = "score" if what == "attention" else "attention"
        raise DataError(f"{_kind(heads)} give no {what} of tiles; use --what {other}")
    name = choose_branch(list(found), heads.scores(features), task, branch)
    others = {_column("attention", key): shares * len(shares) for key, shares in attention.items()}
    others |= {_column("score", key): of for key, of in scores.items()}
    raw = found[name] * (len(features) if what == "attention" else 1)
    if not np.isfinite(raw).all():
        raise DataError(f"{what} {name} is not finite for {int((~np.isfinite(raw)).sum())} of {len(raw)} tiles")
    kind: What = "attention" if what == "attention" else "score"
    used: Scale = "percentile" if scale == "percentile" or (scale is None and kind == "attention") else "raw"
    low, high = _ends(raw, kind, used)
    shade = percentiles(raw) if used == "percentile" else np.clip((raw - low) / (high - low), 0, 1)
    return Values(kind, name, raw.astype(np.float32), shade.astype(np.float32), used, low, high, others)


def choose_branch(names: list[str], scores: dict[str, dict[str, float]], task: str | None, branch: str | None) -> str:
    """The branch that is meant; of those that are left over, the class with the highest slide score.

    Raises DataError, one line that lists what there is.
    """
    listed = ", ".join(repr(name) for name in names)
    left = [name for name in names if task is None or name == "all" or name.rpartition(": ")[0] == task or name == task]
    if not left:
        tasks = ", ".join(dict.fromkeys(name.rpartition(": ")[0] or name for name in names))
        raise DataError(f"the heads have no task {task!r}; they have {tasks}")
    if task is not None and scores and task not in scores and left == ["all"]:
        raise DataError(f"the heads have no task {task!r}; they have {', '.join(scores)}")
    if branch is not None:
        exact = [name for name in left if name == branch] or [n for n in left if n.rpartition(": ")[2] == branch]
        if not exact:
            raise DataError(f"the heads have no branch {branch!r}; give one of {listed}")
        if len(exact) > 1:
            raise DataError(f"branch {branch!r} is in {len(exact)} tasks; give --task, or one of {listed}")
        return exact[0]
    first = left[0].rpartition(": ")[0]
    left = [name for name in left if name.rpartition(": ")[0] == first]
    return max(left, key=lambda name: _slide_score(scores, *name.rpartition(": ")[::2]))


def _slide_score(scores: dict[str, dict[str, float]], task: str, name: str) -> float:
    """Probability of a class of a task for the slide; 0 for a branch that is no class."""
    return float(scores.get(task, {}).get(name, 0.0))


def _column(what: str, name: str) -> str:
    return what if name == "all" else f"{what} {name}"


def _kind(heads: Heads) -> str:
    kind = heads.info.get("head")
    return f"{kind} heads" if kind else "these heads"


def _ends(raw: Floats, what: What, scale: Scale) -> tuple[float, float]:
    if scale == "percentile":
        return 0.0, 100.0
    if what == "score" and raw.min() >= 0 and raw.max() <= 1:
        return 0.0, 1.0
    low = 0.0 if what == "attention" else float(raw.min())
    high = float(np.percentile(raw, RAW_TOP_PERCENTILE))
    return low, high if high > low else low + 1.0


def percentiles(raw: Floats) -> Floats:
    """Rank of each value [N] from 0 (lowest) to 1 (highest); equal values share the mean of their ranks.

    A single value, or values that are all equal, are at 0.5.
    """
    from scipy.stats import rankdata

    if len(raw) < 2:
        return np.full(len(raw), 0.5, np.float32)
    return ((rankdata(raw) - 1) / (len(raw) - 1)).astype(np.float32)


def concentration(attention: Floats) -> dict[str, float]:
    """How unevenly attention [N] (any positive scale) lies on tiles.

    top_share: share held by the most attended 1 % of tiles (at least one); effective: the number of tiles that an
    even attention of the same entropy would have; largest: the largest share times N.
    """
    shares = np.sort(np.asarray(attention, np.float64))[::-1] / max(float(np.sum(attention, dtype=np.float64)), 1e-300)
    top = max(1, len(shares) // 100)
    positive = shares[shares > 0]
    entropy = float(-(positive * np.log(positive)).sum())
    return {
        "top_share": float(shares[:top].sum()),
        "top_tiles": float(top),
        "effective": math.exp(entropy),
        "largest": float(shares[0] * len(shares)),
    }
