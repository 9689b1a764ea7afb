"""The model card of an exported encoder: what it is, what it learnt from, what it may be used for.

Says only what was handed to the export; what is not known is named as not stated.
"""

from __future__ import annotations

from typing import Any

_TEMPLATE = """---
library_name: {library}
tags: [pathology, histology, feature-extraction, eosin]
---

# {name}

A {kind} for H&E tiles, {parameters:.1f} M parameters, trained without labels by eosin {version}.

| | |
|---|---|
| input | {input_size} x {input_size} px RGB, short side resized (bilinear, antialiased) and centre cropped |
| µm/px | {mpp} |
| normalisation | mean {mean}, std {std} |
| embedding | {pooling}, {dim} numbers |
| trained on | {data} |
| recipe | {recipe} (hash {recipe_hash}) |
| cohort hash | {cohort_hash} |
| length | {steps} steps, {tiles} tiles |
| started from | {start} |
| licence of the start weights | {start_licence} |
| model hash | {model_hash} |

## Use

```python
import eosin
encoder = eosin.load_model("FOLDER")
features = encoder.embed(tiles)  # uint8 [B, H, W, 3] -> float32 [B, {dim}]
{timm}

## Scores

{scores}

## Intended use

Research only. Not a medical device; not for diagnosis or any decision about a patient. Scores hold for the
data they were measured on: other scanners, stains, organs and µm/px must be tested first. Slides in the
training cohort must not serve as test data{training}.
"""

_WITH_TIMM = """
import timm
encoder = timm.create_model("local-dir:FOLDER", pretrained=True)
```"""
_WITHOUT_TIMM = """```

timm cannot open this folder: {reason}."""


def model_card(folder: str, block: dict[str, Any], parameters: int, scores: list[dict[str, Any]] | None) -> str:
    """README.md of an export: `block` is the eosin block of its config.json, `scores` rows as in
    results.json.
    """
    encoder = block["encoder"]
    registers = f", {encoder['registers']} registers" if encoder["registers"] else ""
    optional = (
        "mpp",
        "data",
        "recipe",
        "recipe_hash",
        "cohort_hash",
        "steps",
        "tiles",
        "start",
        "start_licence",
    )
    values = {key: _said(block.get(key)) for key in optional}
    known = block.get("training") or {}
    tasks = ", ".join(known.get("tasks") or [])
    reason = block.get("timm")
    return _TEMPLATE.format(
        library="eosin" if reason else "timm",
        timm=_WITHOUT_TIMM.format(reason=reason) if reason else _WITH_TIMM,
        name=block.get("name") or folder,
        kind=f"ViT-{encoder['width']}/{encoder['patch']}, {encoder['depth']} layers{registers}",
        parameters=parameters / 1e6,
        version=block["code_version"],
        input_size=block["input_size"],
        mean=block["mean"],
        std=block["std"],
        pooling=block["pooling"],
        dim=encoder["width"] * (2 if block["pooling"] == "cls+mean" else 1),
        model_hash=block["model_hash"],
        scores=_score_table(scores or []),
        training=f"; it has seen images of: {tasks}" if tasks else "",
        **values,
    )


def _said(value: Any) -> str:
    if value is None or value == "":
        return "not stated"
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _score_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "None were recorded at export."
    lines = ["| task | split | protocol | metric | score | 95 % interval |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['task']} | {row['split']} | {row['protocol']} | {row['metric']} | {_number(row['mean'])} |"
        f" {_number(row['ci_low'])} to {_number(row['ci_high'])} |"
        for row in rows
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not known" if value is None or value != value else f"{value:.3f}"
