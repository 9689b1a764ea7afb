"""What the protocols are made of: settings of probes, per-task overrides, named hidden behaviours. Data only.

Sources: eva's public configuration files at 0.4.5 (eva-v2) and 0.0.1 to 0.1.0 (eva-v1), the evaluation notes of the
Midnight paper (arXiv 2504.05186). Overrides are keyed by the name of the task; a task that is not named follows the
rule beside them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Settings = dict[str, Any]
Watch = Literal["reported", "inner"]

KNN: Settings = {"k": 20, "vote": "softmax", "temperature": 0.07}
LOGREG: Settings = {
    "grid": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
    "max_iter": 1000,
    "tol": 1e-5,
}


class Switch(NamedTuple):
    """A behaviour of eva that its documents omit or get wrong: what it is, and the settings with and without it.

    `watch`, where given: what best checkpoints are chosen on without it.
    """

    about: str
    on: Settings
    off: Settings
    watch: Watch | None = None


SWITCHES: dict[str, Switch] = {
    "eva.weight_decay": Switch(
        "weight decay .01, the optimiser's default; eva's documents say 0",
        {"weight_decay": [0.01]},
        {"weight_decay": [0.0]},
    ),
    "eva.third_first": Switch(
        "the learning rate is a third of its value in the first 5 epochs, the scheduler's default; off: constant",
        {"schedule": "third-first"},
        {"schedule": "constant"},
    ),
    "eva.schedule_per_epoch": Switch(
        "the scheduler steps once an epoch, so a cosine over 12,500 hardly moves; off: once a step",
        {"per": "epoch"},
        {"per": "step"},
    ),
    "eva.logits_to_metric": Switch(
        "with two classes, a batch whose logits all lie in [0, 1] is cut at .5, not at 0",
        {"cut": "eva-batches"},
        {"cut": "zero"},
    ),
    "eva.macro_accuracy": Switch(
        "a class without samples counts as wrong once something is predicted as it; off: it does not count",
        {"monitor": "eva_accuracy"},
        {"monitor": "balanced_accuracy"},
    ),
    "eva.plain_accuracy": Switch(
        "with two classes, checkpoints are chosen by plain accuracy, and balanced accuracy is reported",
        {"binary_monitor": "accuracy"},
        {"binary_monitor": None},
    ),
    "eva.choose_on_reported": Switch(
        "without a val split of its own, a task's best checkpoint is chosen on the split that is reported; off: on a"
        " part of train",
        {},
        {},
        "inner",
    ),
    "eva.report_val": Switch(
        "tasks that eva reports on val although they have a test split are reported on val; off: on test", {}, {}
    ),
    "eva.shots_of_runs": Switch(
        "few training samples are drawn by one NumPy generator, seed 42, run after run; off: by our own keyed streams",
        {"shots_of": "eva"},
        {"shots_of": "words"},
    ),
}

_EVA_COMMON: Settings = {
    "batch": 256,
    "steps": 12_500,
    "runs": 5,
    "loss": "auto",
    "checkpoint": "best",
    "min_delta": 0.0,
    "check_every": 1,
}

# Early stopping after a fifth of the epochs there can be, rounded up: eva's own patience follows it in every task.
EVA_V2: Settings = {**_EVA_COMMON, "lr": [3e-4], "optimizer": "adamw", "patience_share": 0.2}
EVA_V2_SWITCHES = (
    "eva.weight_decay",
    "eva.third_first",
    "eva.schedule_per_epoch",
    "eva.logits_to_metric",
    "eva.macro_accuracy",
    "eva.choose_on_reported",
    "eva.report_val",
    "eva.shots_of_runs",
)
EVA_V2_TASKS: dict[str, Settings] = {
    "bach": {"patience": 1250},
    "bracs": {"patience": 167},
    "breakhis": {"patience": 500},
    "crc": {"patience": 7},
    "gleason": {"patience": 42},
    "mhist": {"patience": 278},
    "pcam": {"patience": 3},
    "pcam-10shot": {"patience": 125, "check_every": 10, "min_delta": 1e-4, "runs": 50},
    "unitopatho": {"patience": 100},
}

# lr .01 at batch 4096, scaled by the batch; momentum without Nesterov.
EVA_V1: Settings = {
    **_EVA_COMMON,
    "lr": [0.01 * 256 / 4096],
    "weight_decay": [0.0],
    "optimizer": "sgd",
    "momentum": 0.9,
    "schedule": "cosine",
    "patience_share": 0.05,
}
EVA_V1_SWITCHES = (
    "eva.schedule_per_epoch",
    "eva.logits_to_metric",
    "eva.macro_accuracy",
    "eva.plain_accuracy",
    "eva.choose_on_reported",
    "eva.report_val",
)
_LARGE: Settings = {"batch": 4096, "lr": [0.01]}
EVA_V1_TASKS: dict[str, Settings] = {
    "bach": {"patience": 400},
    "crc": {**_LARGE, "patience": 24},
    "mhist": {"patience": 51},
    "pcam": {**_LARGE, "patience": 9},
}

# No early stopping but for the ten-shot task; the embedding is CLS with the mean patch token.
MIDNIGHT: Settings = {**_EVA_COMMON, "lr": [3e-4], "optimizer": "adamw", "schedule": "cosine"}
MIDNIGHT_SWITCHES = tuple(name for name in EVA_V2_SWITCHES if name != "eva.third_first")
MIDNIGHT_TASKS: dict[str, Settings] = {
    "pcam-10shot": {"patience": 9, "check_every": 10, "min_delta": 1e-4, "runs": 50},
}

# From the gentlest setting up: of equally good ones the first is taken. Heads start at zero: the problem is convex, and
# on few samples of wide features a random start is noise that training does not take away.
STRICT: Settings = {
    "lr": [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
    "weight_decay": [1.0, 0.01],
    "batch": 256,
    "steps": 2_500,
    "runs": 5,
    "optimizer": "adamw",
    "schedule": "cosine",
    "per": "step",
    "loss": "cross_entropy",
    "standardise": True,
    "init": "zero",
    "checkpoint": "last",
    "monitor": "balanced_accuracy",
}
