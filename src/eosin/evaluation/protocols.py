"""Protocols: how a frozen encoder is judged, as data. Every result carries a protocol's id and hash.

| id | probe | what is chosen where |
|---|---|---|
| strict | linear, 2,500 steps, 5 seeds | learning rate and weight decay on val or inside train; test is read once |
| eva-v2 | linear as eva 0.4.5 does it, 5 runs | best checkpoint on val, else on the reported split itself |
| eva-v1 | linear as eva 0.0.1 did it (arXiv 2404.15217) | the same |
| midnight | linear as Midnight's paper did it (arXiv 2504.05186), CLS with mean patch token | the same |
| knn | 20 nearest neighbours by cosine, votes weighted by exp(similarity / .07) | nothing |
| simpleshot-1, -4, -16 | nearest centroid of 1, 4, 16 samples a class, centred, L2, 1,000 draws | nothing |
| logreg | multinomial logistic regression (L-BFGS) on standardised features | C, on val or inside train |

Knows no arithmetic: probes/ has it. Data without a split is judged by cross-validation, predictions pooled. What eva
does and does not say are named switches; `eva-v2~eva.weight_decay` is eva-v2 without one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from eosin.errors import DataError
from eosin.evaluation import protocol_settings as known
from eosin.evaluation.protocol_settings import Watch
from eosin.provenance import hash_of


@dataclass(frozen=True)
class Protocol:
    """One way of judging. `settings` are the arguments of the probe; `folds` is for data without a split.

    `inner_folds`: of train, on which the probe chooses its settings where there is no validation split of its
    own. `draws`: bootstrap resamples behind each interval. `seed`: of folds, draws and resamples. `tasks`: what
    differs from `settings` in tasks of these names. `watch`: probes that keep a best checkpoint choose it on val; where
    there is none, on the "reported" split or on an "inner" part of train (None: nothing is watched). `switches`: names
    in protocol_settings.SWITCHES that are on. `pooling`: of the encoder's tokens, None: as the encoder has it.
    """

    id: str
    probe: str
    settings: dict[str, Any] = field(default_factory=dict)
    metric: str = "balanced_accuracy"
    folds: int = 5
    inner_folds: int = 3
    draws: int = 2000
    seed: int = 0
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    watch: Watch | None = None
    switches: tuple[str, ...] = ()
    pooling: str | None = None

    @property
    def hash(self) -> str:
        """Hash of every setting; a field that says nothing does not count."""
        said = {name: value for name, value in asdict(self).items() if name not in _MORE or value}
        return hash_of(said)

    def settings_for(self, task: str) -> dict[str, Any]:
        """Arguments of the probe for the task of this name."""
        return {**self.settings, **self.tasks.get(task, {})}

    def without(self, switch: str) -> Protocol:
        """This protocol with one of its switches off, under a name that says so. Raises DataError for others."""
        if switch not in self.switches:
            listed = ", ".join(self.switches) or "none"
            raise DataError(f"protocol {self.id} has no switch {switch!r}; it has {listed}")
        off = known.SWITCHES[switch]
        return replace(
            self,
            id=f"{self.id}~{switch}",
            settings={**self.settings, **off.off},
            watch=self.watch if off.watch is None else off.watch,
            switches=tuple(name for name in self.switches if name != switch),
        )


_MORE = ("tasks", "watch", "switches", "pooling")


def _with_switches(id: str, settings: dict[str, Any], switches: tuple[str, ...], **more: Any) -> Protocol:
    """A linear protocol with these switches on."""
    on: dict[str, Any] = {}
    for name in switches:
        on.update(known.SWITCHES[name].on)
    return Protocol(id, "linear", {**settings, **on}, watch="reported", switches=switches, **more)


PROTOCOLS: dict[str, Protocol] = {
    protocol.id: protocol
    for protocol in (
        Protocol("strict", "linear", known.STRICT),
        _with_switches("eva-v2", known.EVA_V2, known.EVA_V2_SWITCHES, tasks=known.EVA_V2_TASKS, pooling="cls"),
        _with_switches("eva-v1", known.EVA_V1, known.EVA_V1_SWITCHES, tasks=known.EVA_V1_TASKS, pooling="cls"),
        _with_switches(
            "midnight", known.MIDNIGHT, known.MIDNIGHT_SWITCHES, tasks=known.MIDNIGHT_TASKS, pooling="cls+mean"
        ),
        Protocol("knn", "knn", known.KNN),
        *(Protocol(f"simpleshot-{n}", "simpleshot", {"shots": n, "runs": 1000}) for n in (1, 4, 16)),
        Protocol("logreg", "logreg", known.LOGREG),
    )
}

# A word that stands for several protocols.
FAMILIES: dict[str, tuple[str, ...]] = {"simpleshot": ("simpleshot-1", "simpleshot-4", "simpleshot-16")}


def find_protocols(words: str | Sequence[str]) -> list[Protocol]:
    """Protocols named by `words` (a comma list or several of them), in order, each once; NAME~SWITCH: one without
    that switch. DataError for an unknown one.
    """
    names = [words] if isinstance(words, str) else words
    asked = [word.strip() for name in names for word in name.split(",") if word.strip()]
    found: dict[str, Protocol] = {}
    for word in asked:
        base, *switches = word.split("~")
        for name in FAMILIES.get(base, (base,)):
            if name not in PROTOCOLS:
                listed = ", ".join([*PROTOCOLS, *FAMILIES])
                raise DataError(f"unknown protocol {word!r}: {listed}")
            protocol = PROTOCOLS[name]
            for switch in switches:
                protocol = protocol.without(switch)
            found[protocol.id] = protocol
    if not found:
        raise DataError(f"no protocol given: {', '.join([*PROTOCOLS, *FAMILIES])}")
    return list(found.values())
