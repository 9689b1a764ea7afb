"""predict_mil: trained heads on other slides."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eosin.errors import DataError, EosinError
from eosin.evaluation.mil.bags import FeatureSource, open_features
from eosin.evaluation.mil.label_file import read_patients
from eosin.evaluation.mil.saved import load_heads
from eosin.features.extract import find_device
from eosin.files import PathLike, check_writable, write_text
from eosin.progress import progress_bar, say


def predict_mil(
    heads: PathLike,
    features: PathLike,
    out: PathLike,
    *,
    labels: PathLike | None = None,
    device: str | None = None,
) -> Path:
    """Score every slide in `features` with trained heads; returns OUT/predictions.csv, written beside failures.csv.

    features: as `train_mil` takes them, or a cohort file, which is embedded into OUT/features first, as the heads'
    features were.

    Columns: task, slide, patient (with `labels`, a table `slide, patient`), predicted, p_<class>, value, risk, and sd,
    the spread over runs of the last class's probability, the value or the risk. Where the heads were trained on
    patients' bags, or judged on the mean of a patient's slides, and `labels` says who is whose, rows are patients.
    Raises DataError for another model's features.
    """
    trained = load_heads(heads, find_device(device))
    folder = check_writable(out)
    source = open_features(_embedded(trained.info, Path(features), folder, device) if is_cohort(features) else features)
    group = trained.info.get("group", "slide")
    members, patients = _whom(source, labels, group)
    classes = list(dict.fromkeys(name for task in trained.tasks for name in task.classes))
    columns = ["task", "slide", "patient", "predicted", *(f"p_{name}" for name in classes), "value", "risk", "sd"]
    rows, failures = [], []
    with progress_bar("predict", len(members), "bag") as bar:
        for name, slides in members.items():
            try:
                bags = [source.read(slide) for slide in slides]
                _refuse_other_model(source, trained.info)
                each = [trained.run_scores(bag) for bag in (bags if group == "average" else [np.concatenate(bags)])]
            except _OtherModel:
                raise
            except EosinError as error:
                failures.append((name, str(error)))
                bar.advance()
                continue
            for task in trained.tasks:
                said = np.mean([bag[task.name] for bag in each], axis=0)  # [runs, C]
                mean, last = said.mean(axis=0), said[:, -1]
                row = {"task": task.name, "slide": name, "patient": patients.get(name, "")}
                row["sd"] = f"{last.std(ddof=1):.6g}" if len(last) > 1 else ""
                if task.has_classes:
                    row["predicted"] = task.classes[int(mean.argmax())]
                    row |= {f"p_{own}": f"{p:.9g}" for own, p in zip(task.classes, mean, strict=True)}
                else:
                    row["value" if task.kind == "regression" else "risk"] = f"{mean[0]:.9g}"
                rows.append(row)
            bar.advance()
    if not rows:
        raise DataError(f"no slide of {features} could be scored; the first: {failures[0][1]}")
    _write_table(folder / "failures.csv", ["slide", "error"], [{"slide": a, "error": b} for a, b in failures])
    if failures:
        say(f"{len(failures)} of {len(members)} could not be scored, see {folder / 'failures.csv'}")
    return _write_table(folder / "predictions.csv", columns, rows)


def is_cohort(path: PathLike) -> bool:
    """Whether a file is a cohort (`eosin index`) and not a table of slide vectors."""
    from pyarrow import parquet

    try:
        return Path(path).is_file() and {"slide_id", "path"} <= set(parquet.read_schema(path).names)
    except (OSError, ValueError):  # pyarrow's errors of damaged files are ValueErrors
        return False


def _embedded(info: dict[str, Any], cohort: Path, folder: Path, device: str | None) -> Path:
    """Features of the slides of a cohort, made by the model and on the grid that the heads were trained on."""
    from eosin.features.embed import embed_slides

    missing = [key for key in ("model", "model_hash", "mpp", "size_px", "stride_px") if not info.get(key)]
    if missing:
        raise DataError(
            f"the heads do not say with which {missing[0]} their features were made (not by `eosin embed`);"
            f" embed {cohort} the same way and give that folder"
        )
    transform = info.get("transform") or {}
    embed_slides(
        info["model"],
        cohort,
        folder / "features",
        mpp=info["mpp"],
        size=info["size_px"],
        stride=info["stride_px"],
        min_foreground=info.get("min_foreground", 0.4),
        pooling=transform.get("pooling"),
        device=device,
    )
    return folder / "features"


class _OtherModel(DataError):
    """Features that another encoder made: nothing of the folder can be scored."""


def _refuse_other_model(source: FeatureSource, info: dict[str, Any]) -> None:
    """Raise _OtherModel where a file read so far states another model than the heads'; silent where none is stated."""
    known = {str(info[key]) for key in ("model_hash", "model", "model_name") if info.get(key)}
    if others := sorted(source.models - known if known else set()):
        raise _OtherModel(
            f"{source.root} holds features of model {others[0]}, the heads were trained on those of"
            f" {info.get('model') or 'another'} ({info.get('model_hash') or 'no hash'}); embed the slides with that one"
        )


def _whom(source: FeatureSource, labels: PathLike | None, group: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The slides of each row, and the patient of each, where a table says so."""
    if labels is None:
        if group != "slide":
            say("these heads were judged by patient; give --labels with slide and patient to score patients")
        return {slide: [slide] for slide in source.slides}, {}
    known = read_patients(labels)
    slides = [slide for slide in source.slides if slide in known]
    if not slides:
        raise DataError(f"no slide of {source.root} is listed in {labels}")
    if group == "slide":
        return {slide: [slide] for slide in slides}, {slide: known[slide] for slide in slides}
    members: dict[str, list[str]] = {}
    for slide in slides:
        members.setdefault(known[slide], []).append(slide)
    return members, {patient: patient for patient in members}


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Path:
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
    return path
