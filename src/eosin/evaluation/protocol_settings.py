"""What the protocols are made of: settings of probes, per-task overrides, named hidden behaviours. Data only.

Sources: eva's public configuration files at 0.4.5 (eva-v2) and 0.0.1 to 0.1.0 (eva-v1), the evaluation notes of the
Midnight paper (arXiv 2504.05186). Overrides are keyed by the name of the task; a task that is not named follows the
rule beside them.
"""

from __future__ import annotations

from eosin.evaluation.switches import Settings, Switch

KNN: Settings = {"k": 20, "vote": "softmax", "temperature": 0.07}
LOGREG: Settings = {
    "grid": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0],
    "max_iter": 1000,
    "tol": 1e-5,
}


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
    "eva.shared_start": Switch(
        "all runs have the same first weights, as each is a copy of one model: their spread is that of the order of"
        " samples alone",
        {"shared_start": True},
        {"shared_start": False},
    ),
    "eva.bag_weight_decay": Switch(
        "weight decay .01 for heads on bags, the optimiser's default; eva's documents say 0",
        {"weight_decay": 0.01},
        {"weight_decay": 0.0},
    ),
    "hest.random_pca": Switch(
        "principal components by scikit-learn's choice, a randomised method for wide features; off: exact",
        {"pca": "hest"},
        {"pca": "exact"},
    ),
    "hest.lsqr": Switch(
        "the ridge is solved by LSQR in float32 to a tolerance of 1e-4; off: exact",
        {"solver": "hest"},
        {"solver": "exact"},
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
    "eva.shared_start",
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
    "eva.shared_start",
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

# HEST-bench: 256 components, penalty 100 / (components x genes), no choice to make.
RIDGE: Settings = {"components": 256, "alpha": None, "pca": "exact", "solver": "exact"}
HEST_SWITCHES = ("hest.random_pca", "hest.lsqr")

# PathoROB: neighbours that its paper gives for each set, and how slides are drawn to train.
ROBUSTNESS: Settings = {"k": 11, "repeats": 20, "design": None}
ROBUSTNESS_TASKS: dict[str, Settings] = {
    "pathorob-camelyon": {"k": 11, "design": ["two sites", 7]},
    "pathorob-tcga": {"k": 61, "design": ["four sites"]},
    "pathorob-tolkach": {"k": 46, "design": ["two sites", 3]},
}

# ABMIL on bags as eva 0.4.5 trains it; patience is a number of epochs.
BAGS_EVA_V2: Settings = {"lr": 1e-3, "batch": 32, "epochs": 100, "steps": 12_500, "runs": 20, "patience": 20}
BAGS_EVA_V2_SWITCHES = (
    "eva.bag_weight_decay",
    "eva.third_first",
    "eva.schedule_per_epoch",
    "eva.logits_to_metric",
    "eva.macro_accuracy",
    "eva.choose_on_reported",
    "eva.shared_start",
)
# Sources differ on Midnight's runs of Camelyon16; these are its authors' own files.
BAGS_MIDNIGHT: Settings = {**BAGS_EVA_V2, "schedule": "cosine"}
BAGS_MIDNIGHT_SWITCHES = tuple(name for name in BAGS_EVA_V2_SWITCHES if name != "eva.third_first")
BAGS_MIDNIGHT_TASKS: dict[str, Settings] = {
    "camelyon16-small": {"runs": 5, "patience": 10},
    # 448 px that are 112 µm wide, brought to the encoder's size.
    "panda-small": {"runs": 20, "patience": 8, "mpp": 0.25, "size_px": 448},
}
BAGS_STRICT: Settings = {
    "lr": 1e-3,
    "weight_decay": 0.01,
    "batch": 32,
    "epochs": 50,
    "runs": 5,
    "schedule": "cosine",
    "per": "step",
}
