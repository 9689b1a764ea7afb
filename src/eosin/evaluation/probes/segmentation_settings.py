"""How segmentation decoders are trained by each protocol. Data only.

Sources: eva's configuration files at 0.4.5, online ones (those of its public board); the evaluation notes of the
Midnight paper (arXiv 2504.05186). µm/px of files and of what encoders are to see: of the public tasks.
"""

from __future__ import annotations

from eosin.evaluation.switches import Settings, Switch

SWITCHES: dict[str, Switch] = {
    "eva.before_norm": Switch(
        "decoders read the last block's tokens before the final norm", {"norm": False}, {"norm": True}
    ),
    "eva.ignored_pixels": Switch(
        "pixels of no class have equal logits and are true background in the loss; what is predicted there is wrong",
        {"ignored": "eva"},
        {"ignored": "out"},
    ),
    "eva.bcss_classes": Switch(
        "BCSS: tumour is mapped to other, and what lies outside of the regions is a class that is learned",
        {"bcss_classes": "eva"},
        {"bcss_classes": "true"},
    ),
    "eva.score_windows": Switch(
        "Dice is that of windows of the encoder's input size, averaged; off: label maps of whole images at full size",
        {"score": "window"},
        {"score": "image"},
    ),
}

# From the gentlest up: of equally good settings the first is taken. Cross-entropy beside Dice, which alone stays for
# long at classes of few pixels; at every fourth px of a row and column, since tokens are 14 or 16 px apart.
STRICT: Settings = {
    "decoder": ["1x1", "ms"],
    "lr": [1e-3, 3e-3, 1e-2],
    "steps": [300, 1000],
    "weight_decay": [0.01],
    "batch": 16,
    "runs": 5,
    "schedule": "cosine",
    "per": "step",
    "loss": "dice+ce",
    "every": 4,
    "standardise": True,
    "layout": "cover",
    "score": "image",
    "inner_parts": 1,
}
STRICT_TASKS: dict[str, Settings] = {
    "consep": {"native_mpp": 0.25, "mpp": 0.25},
    "monusac": {"native_mpp": 0.25, "mpp": 0.25},
    "bcss": {"native_mpp": 0.25, "mpp": 0.5, "steps": [1000, 3000]},
}

EVA_V2: Settings = {
    "decoder": ["image"],
    "lr": [2e-3],
    "steps": [2000],
    "batch": 64,
    "runs": 5,
    "loss": "dice",
    "checkpoint": "best",
    "layout": "crop",
}
_EVA_SHARED = (
    "eva.weight_decay",
    "eva.schedule_per_epoch",
    "eva.choose_on_reported",
    "eva.shared_start",
    "eva.before_norm",
    "eva.ignored_pixels",
    "eva.bcss_classes",
    "eva.score_windows",
)
EVA_V2_SWITCHES: tuple[str, ...] = ("eva.third_first", *_EVA_SHARED)
# eva draws new crops of MoNuSAC's training images in every epoch; here each has 40, embedded once and used in turn.
_CONSEP: Settings = {"layout": "grid", "side_px": 250, "patience": 200}
_MONUSAC: Settings = {"fit_layout": "views", "views": 40, "patience": 100}
_BCSS: Settings = {"layout": "grid", "side_px": 448, "decoder": ["ms"], "steps": [513], "patience": 200}
EVA_V2_TASKS: dict[str, Settings] = {
    "consep": _CONSEP,
    "monusac": _MONUSAC,
    "bcss": {**_BCSS, "schedule": "polynomial"},
}

MIDNIGHT: Settings = {**EVA_V2, "schedule": "polynomial"}
MIDNIGHT_SWITCHES: tuple[str, ...] = _EVA_SHARED
MIDNIGHT_TASKS: dict[str, Settings] = {"consep": _CONSEP, "monusac": {**_MONUSAC, "runs": 20}, "bcss": _BCSS}
