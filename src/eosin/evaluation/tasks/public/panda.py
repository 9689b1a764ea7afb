"""PANDA: ISUP grade of prostate biopsies (Bulten et al., Nature Medicine 2022), noisy labels left out.

The split is eva's: NumPy's generator with seed 42 shuffles the slides of each grade in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from eosin.evaluation.tasks.layout import PublicTask, Row, files_in, read_csv, slides_of

LABELS = "train_with_noisy_labels.csv"
CLASSES = ("0", "1", "2", "3", "4", "5")


def read(root: Path, shares: tuple[float, float, float] = (0.7, 0.15, 0.15)) -> Iterator[Row]:
    """train_images/ID.tiff; LABELS has image_id, isup_grade and noise_ratio_10, which is 0 for a noisy label."""
    table = read_csv(root / LABELS, "image_id", "isup_grade", "noise_ratio_10")
    clean = table[table["noise_ratio_10"] != "0"]
    grade_of = dict(zip(clean["image_id"], clean["isup_grade"], strict=True))
    files = [file for file in files_in(root, "train_images/*.tiff") if file.stem in grade_of]
    grades = [grade_of[file.stem] for file in files]
    for file, grade, split in zip(files, grades, split_of(grades, shares), strict=True):
        if split:
            yield Row(file, grade, split, slide=file.stem)


def split_of(grades: list[str], shares: tuple[float, float, float]) -> list[str]:
    """train, val, test or "" (left out) of each slide: shares of each grade, rounded down; where the shares make
    up the whole, test takes what is left.
    """
    rng = np.random.default_rng(42)
    split = np.full(len(grades), "", dtype="<U5")
    for grade in sorted(set(grades)):
        rows = np.flatnonzero(np.array(grades) == grade)
        rng.shuffle(rows)
        train, val, test = (int(share * len(rows)) or 1 for share in shares)
        ends = (0, train, train + val, len(rows) if sum(shares) == 1 else train + val + test)
        for name, first, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
            split[rows[first:end]] = name
    return [str(word) for word in split]


TASK = PublicTask(
    name="panda",
    about="prostate biopsies: ISUP grade 0 to 5; up to 1,000 tiles a slide",
    kind="slide",
    classes=CLASSES,
    counts={"train": 6_686, "val": 1_430, "test": 1_439},
    folders=("prostate-cancer-grade-assessment", "panda", "panda/prostate-cancer-grade-assessment"),
    marks=("train_images", LABELS),
    read=read,
    samples=partial(slides_of, mpp=0.5, tiles=1_000),
    layout=("train_images/0005f7aaab2800f6170c399693a96917.tiff", f"{LABELS} (image_id, isup_grade, noise_ratio_10)"),
    source="https://www.kaggle.com/c/prostate-cancer-grade-assessment",
    licence="CC BY-SA-NC 4.0",
    scale="tiles of 224 px at 0.5 µm/px",
    get=(
        "kaggle competitions download -c prostate-cancer-grade-assessment (412 GB)",
        f"and train.csv of https://github.com/analokmaus/kaggle-panda-challenge-public as {LABELS}",
    ),
    md5={LABELS: "5e4bfc78bda9603d2e2faf3ed4b21dfa"},
    notes=("one biopsy a patient is not guaranteed: patients are not named",),
)
SMALL = replace(
    TASK,
    name="panda-small",
    about="prostate biopsies: ISUP grade 0 to 5; a fifth of the slides, up to 200 tiles each",
    counts={"train": 952, "val": 475, "test": 475},
    read=partial(read, shares=(0.1, 0.05, 0.05)),
    samples=partial(slides_of, mpp=0.5, tiles=200),
    notes=(*TASK.notes, "eva's pages say 955, 477, 477; its code, which rounds down in each grade, gives these counts"),
)
