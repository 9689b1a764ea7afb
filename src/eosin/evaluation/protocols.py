"""Protocols: how a frozen encoder is judged, as data. Every result carries a protocol's id and hash.

| id | probe | what is chosen where |
|---|---|---|
| knn | 20 nearest neighbours by cosine, votes weighted by exp(similarity / .07) | nothing |
| simpleshot-1, -4, -16 | nearest centroid of 1, 4, 16 samples a class, centred, L2, 1,000 draws | nothing |
| logreg | multinomial logistic regression (L-BFGS) on standardised features | C, on val or inside train |

Knows no arithmetic: probes/ has it. Data without a split is judged by cross-validation, predictions pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eosin.errors import DataError
from eosin.provenance import hash_of


@dataclass(frozen=True)
class Protocol:
    """One way of judging. `settings` are the arguments of the probe; `folds` is for data without a split.

    `inner_folds`: of train, on which the probe chooses its settings where there is no validation split of its
    own. `draws`: bootstrap resamples behind each interval. `seed`: of folds, draws and resamples.
    """

    id: str
    probe: str
    settings: dict[str, Any] = field(default_factory=dict)
    metric: str = "balanced_accuracy"
    folds: int = 5
    inner_folds: int = 3
    draws: int = 2000
    seed: int = 0

    @property
    def hash(self) -> str:
        """Hash of every setting."""
        return hash_of(asdict(self))


_KNN = {"k": 20, "vote": "softmax", "temperature": 0.07}
_LOGREG = {
    "grid": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
    "max_iter": 1000,
    "tol": 1e-5,
}

PROTOCOLS: dict[str, Protocol] = {
    protocol.id: protocol
    for protocol in (
        Protocol("knn", "knn", _KNN),
        *(Protocol(f"simpleshot-{n}", "simpleshot", {"shots": n, "runs": 1000}) for n in (1, 4, 16)),
        Protocol("logreg", "logreg", _LOGREG),
    )
}

# A word that stands for several protocols.
FAMILIES: dict[str, tuple[str, ...]] = {"simpleshot": ("simpleshot-1", "simpleshot-4", "simpleshot-16")}


def find_protocols(words: str | Sequence[str]) -> list[Protocol]:
    """Protocols named by `words` (a comma list or several of them), in order, each once. DataError for an
    unknown one.
    """
    names = [words] if isinstance(words, str) else words
    asked = [word.strip() for name in names for word in name.split(",") if word.strip()]
    found: dict[str, Protocol] = {}
    for word in asked:
        for name in FAMILIES.get(word, (word,)):
            if name not in PROTOCOLS:
                known = ", ".join([*PROTOCOLS, *FAMILIES])
                raise DataError(f"unknown protocol {word!r}: {known}")
            found[name] = PROTOCOLS[name]
    if not found:
        raise DataError(f"no protocol given: {', '.join([*PROTOCOLS, *FAMILIES])}")
    return list(found.values())
