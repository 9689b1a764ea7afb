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

What a protocol does with other kinds of tasks lies in its `kinds` (`Protocol.of`). Knows no arithmetic: probes/ has it.
Data without a split is judged by cross-validation, predictions pooled. What eva does and does not say are named
switches; `eva-v2~eva.weight_decay` is eva-v2 without one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from eosin.errors import DataError
from eosin.evaluation import protocol_settings as known
from eosin.evaluation.probes import segmentation_settings as dense
from eosin.evaluation.switches import Settings, Switch, Watch
from eosin.provenance import hash_of


@dataclass(frozen=True)
class Protocol:
    """One way of judging. `settings` are the arguments of the probe; `folds` is for data without a split.

    `inner_folds`: of train, on which the probe chooses its settings where there is no validation split of its
    own. `draws`: bootstrap resamples behind each interval. `seed`: of folds, draws and resamples. `tasks`: what
    differs from `settings` in tasks of these names. `watch`: probes that keep a best checkpoint choose it on val; where
    there is none, on the "reported" split or on an "inner" part of train (None: nothing is watched). `switches`: names
    in SWITCHES that are on. `pooling`: of the encoder's tokens, None: as the encoder has it. All that is about tasks of
    `kind`; `kinds`: the protocol of the same id for each further kind that it judges.
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
    kind: str = "classification"
    kinds: dict[str, Protocol] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of every setting for this kind of task; a field that says nothing does not count."""
        said = {name: value for name, value in asdict(replace(self, kinds={})).items() if name not in _MORE or value}
        if self.kind == "classification":
            del said["kind"]
        return hash_of(said)

    def judges(self, kind: str) -> bool:
        """Whether it says how tasks of `kind` are judged."""
        return kind == self.kind or kind in self.kinds

    def of(self, kind: str) -> Protocol:
        """This protocol for tasks of `kind`. Raises DataError where it says nothing of them."""
        if kind == self.kind:
            return self
        if kind not in self.kinds:
            able = [name for name, other in PROTOCOLS.items() if kind in other.kinds]
            said = f"these do: {', '.join(able)}" if able else "no protocol does"
            raise DataError(f"protocol {self.id} does not judge {kind} tasks; {said}")
        return self.kinds[kind]

    def settings_for(self, task: str) -> dict[str, Any]:
        """Arguments of the probe for the task of this name."""
        return {**self.settings, **self.tasks.get(task, {})}

    def without(self, switch: str) -> Protocol:
        """This protocol with one of its switches off, under a name that says so. Raises DataError for others."""
        listed = list(dict.fromkeys([*self.switches, *(name for one in self.kinds.values() for name in one.switches)]))
        if switch not in listed:
            raise DataError(f"protocol {self.id} has no switch {switch!r}; it has {', '.join(listed) or 'none'}")
        return replace(self._off(switch), kinds={kind: one._off(switch) for kind, one in self.kinds.items()})

    def _off(self, switch: str) -> Protocol:
        off = SWITCHES[switch]
        there = switch in self.switches
        return replace(
            self,
            id=f"{self.id}~{switch}",
            settings={**self.settings, **off.off} if there else self.settings,
            watch=off.watch if there and off.watch is not None else self.watch,
            switches=tuple(name for name in self.switches if name != switch),
        )


_MORE = ("tasks", "watch", "switches", "pooling", "kinds")

SWITCHES: dict[str, Switch] = {**known.SWITCHES, **dense.SWITCHES}
"""Every named hidden behaviour, by name."""


def _switched(id: str, probe: str, settings: Settings, switches: tuple[str, ...], **more: Any) -> Protocol:
    """A protocol with these switches on; it watches the reported split unless `more` says otherwise."""
    on: Settings = {}
    for name in switches:
        on.update(SWITCHES[name].on)
    return Protocol(id, probe, {**settings, **on}, switches=switches, **{"watch": "reported", **more})


def _hest(id: str, pooling: str) -> Protocol:
    """HEST-bench as its code has it."""
    more: dict[str, Any] = {"metric": "pearson", "inner_folds": 0, "watch": None, "pooling": pooling}
    return _switched(id, "ridge", known.RIDGE, known.HEST_SWITCHES, kind="regression", **more)


def _decoders(id: str, settings: Settings, switches: tuple[str, ...], tasks: dict[str, Settings]) -> Protocol:
    return _switched(id, "segmentation", settings, switches, tasks=tasks, metric="dice", kind="segmentation")


def _bags(id: str, settings: Settings, switches: tuple[str, ...], **more: Any) -> Protocol:
    return _switched(id, "abmil", settings, switches, kind="slide", **more)


def _by_kind(*protocols: Protocol) -> dict[str, Protocol]:
    return {protocol.kind: protocol for protocol in protocols}


_STRICT = _by_kind(
    Protocol("strict", "abmil", known.BAGS_STRICT, watch="inner", kind="slide"),
    Protocol(
        "strict", "segmentation", dense.STRICT, metric="dice", kind="segmentation", tasks=dense.STRICT_TASKS, folds=3
    ),
    Protocol("strict", "ridge", known.RIDGE, metric="pearson", inner_folds=0, kind="regression"),
    Protocol(
        "strict",
        "neighbours",
        known.ROBUSTNESS,
        metric="robustness_index",
        tasks=known.ROBUSTNESS_TASKS,
        kind="robustness",
    ),
)
_EVA_V2 = _by_kind(
    _bags("eva-v2", known.BAGS_EVA_V2, known.BAGS_EVA_V2_SWITCHES, pooling="cls"),
    _decoders("eva-v2", dense.EVA_V2, dense.EVA_V2_SWITCHES, dense.EVA_V2_TASKS),
    _hest("eva-v2", "cls"),
)
_MIDNIGHT = _by_kind(
    _bags(
        "midnight",
        known.BAGS_MIDNIGHT,
        known.BAGS_MIDNIGHT_SWITCHES,
        tasks=known.BAGS_MIDNIGHT_TASKS,
        pooling="cls+mean",
    ),
    _decoders("midnight", dense.MIDNIGHT, dense.MIDNIGHT_SWITCHES, dense.MIDNIGHT_TASKS),
    _hest("midnight", "cls+mean"),
)


def _linear(id: str, settings: Settings, switches: tuple[str, ...], **more: Any) -> Protocol:
    return _switched(id, "linear", settings, switches, **more)


PROTOCOLS: dict[str, Protocol] = {
    protocol.id: protocol
    for protocol in (
        Protocol("strict", "linear", known.STRICT, kinds=_STRICT),
        _linear("eva-v2", known.EVA_V2, known.EVA_V2_SWITCHES, tasks=known.EVA_V2_TASKS, pooling="cls", kinds=_EVA_V2),
        _linear("eva-v1", known.EVA_V1, known.EVA_V1_SWITCHES, tasks=known.EVA_V1_TASKS, pooling="cls"),
        _linear(
            "midnight",
            known.MIDNIGHT,
            known.MIDNIGHT_SWITCHES,
            tasks=known.MIDNIGHT_TASKS,
            pooling="cls+mean",
            kinds=_MIDNIGHT,
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
