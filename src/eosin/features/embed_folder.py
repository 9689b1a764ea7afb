"""The folder that `eosin embed` fills: one h5 a slide, embedding.json, failures.csv; and what may be gone on with.

A slide is finished where its h5 was made with the same settings from the same slide. Everything else about the folder
is written again by each run.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from eosin.errors import DataError, OutputError, ResumeError
from eosin.features.encoder import Encoder
from eosin.features.h5 import read_attributes
from eosin.files import write_json, write_text
from eosin.provenance import hash_of, versions

EMBEDDING_FILE = "embedding.json"
FAILURES_FILE = "failures.csv"
COHORT_FILE = "cohort.parquet"
MOST_SIZE_PX = 8192
"""A tile of this side holds 201 MB."""


class EmbeddingSettings(BaseModel):
    """What the features of a folder depend on beside the slides. Scales in µm/px, sizes in px of that scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_hash: str
    transform: dict[str, Any]
    mpp: float
    size_px: int
    stride_px: int
    min_foreground: float
    precision: str
    tokens: bool

    @property
    def hash(self) -> str:
        """16 hex digits; equal for equal features."""
        return hash_of(self.model_dump())


class EmbeddingFolder:
    """Paths of an embedding folder, and what it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def features(self, slide_id: str) -> Path:
        """Where the features of a slide lie or would lie."""
        return self.folder / f"{slide_id}.h5"

    def refuse_other(self, settings: EmbeddingSettings) -> None:
        """ResumeError where features were made with other settings; OutputError where embedding.json is damaged."""
        path = self.folder / EMBEDDING_FILE
        if not path.is_file():
            return
        try:
            known = json.loads(path.read_text())
            other = EmbeddingSettings.model_validate({name: known[name] for name in EmbeddingSettings.model_fields})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is not a description that eosin wrote; give another -o, or --fresh") from error
        if other.hash != settings.hash and any(self.folder.glob("*.h5")):
            old, new = other.model_dump(), settings.model_dump()
            name = next(name for name in new if old[name] != new[name])
            told = (
                f"of another encoder ({known.get('model_name')}, model_hash {old[name]}, not {new[name]})"
                if name == "model_hash"
                else f"with {name} {old[name]}, not {new[name]}"
            )
            raise ResumeError(f"{self.folder} holds features {told}; give another -o, or --fresh")

    def is_finished(self, slide_id: str, settings_hash: str, slide_hash: str) -> bool:
        """Whether the slide's features are there, made from this slide with these settings."""
        path = self.features(slide_id)
        try:
            known = read_attributes(path) if path.is_file() else {}
        except DataError:
            return False
        return (known.get("settings_hash"), known.get("slide_hash")) == (settings_hash, slide_hash)

    def prepare(self, settings: EmbeddingSettings, fresh: bool, alone: bool = True) -> None:
        """Make the folder ready for a run: refuse what does not belong to it, or (`fresh`) drop its features.

        alone: no other run fills the folder at the same time. Files that eosin did not write stay where they are.
        """
        for left in self.folder.glob(".ranks-*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)
        if fresh:
            for path in self.folder.glob("*.h5"):
                if self._is_ours(path):
                    path.unlink()
                    (self.folder / "clam" / "h5_files" / path.name).unlink(missing_ok=True)
                    (self.folder / "clam" / "pt_files" / f"{path.stem}.pt").unlink(missing_ok=True)
            (self.folder / EMBEDDING_FILE).unlink(missing_ok=True)
        if (self.folder / EMBEDDING_FILE).is_file():
            self.refuse_other(settings)
        elif foreign := next(self.folder.glob("*.h5"), None):
            raise OutputError(f"{self.folder} holds {foreign.name}, which is not of an eosin run; give another -o")

    @staticmethod
    def _is_ours(path: Path) -> bool:
        try:
            return "settings_hash" in read_attributes(path)
        except DataError:
            return True  # damaged: eosin's own, or nobody's any more

    def describe(self, settings: EmbeddingSettings, encoder: Encoder, word: str, cohort: Mapping[str, Any]) -> None:
        """Write embedding.json; `word`: the model as the user named it; `cohort`: its path and hash."""
        training = encoder.info.get("training") or {}
        told = {
            "model": word,
            "model_name": encoder.name,
            **settings.model_dump(),
            "settings_hash": settings.hash,
            "dim": encoder.dim,
            **cohort,
            "training_tasks": training.get("tasks", []),
            "training_patients": training.get("patients", []),
            "info": encoder.info,
            "versions": versions(),
        }
        write_json(self.folder / EMBEDDING_FILE, told)

    def write_failures(self, failures: Mapping[str, str], part: tuple[int, int] = (1, 1)) -> Path:
        """Write failures.csv: slide and error, one line each; only the header where nothing failed.

        A part (number from 1, of how many) has a file of its own, failures-3-of-16.csv, and a whole run replaces them.
        """
        path = self.folder / (FAILURES_FILE if part[1] == 1 else f"failures-{part[0]}-of-{part[1]}.csv")
        for left in self.folder.glob("failures-*-of-*.csv") if part[1] == 1 else ():
            left.unlink(missing_ok=True)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["slide", "error"])
        table.writerows((slide, " ".join(error.split())) for slide, error in sorted(failures.items()))
        write_text(path, text.getvalue())
        return path


def wanted_scale(encoder: Encoder, mpp: float | None, size_px: int | None) -> tuple[float, int]:
    """µm/px and tile side: as given, else what the encoder was trained for. DataError where neither says it,
    or it is no scale or side.
    """
    if mpp is None:
        known: Sequence[float] = (
            encoder.mpp if isinstance(encoder.mpp, Sequence) else [encoder.mpp] if encoder.mpp else []
        )
        if not known:
            raise DataError(f"{encoder.name} does not say for which µm/px it was trained; give --mpp, e.g. --mpp 0.5")
        if len(known) > 1 and 0.5 not in known:
            told = ", ".join(f"{value:g}" for value in known)
            raise DataError(f"{encoder.name} was trained at {told} µm/px; choose one with --mpp")
        mpp = known[0] if len(known) == 1 else 0.5
    if not (math.isfinite(mpp) and 0.05 <= mpp <= 20):
        raise DataError(f"{mpp} µm/px is no scale for tiles (0.05 to 20)")
    size = size_px if size_px is not None else encoder.input_size or 256
    if not 1 <= size <= MOST_SIZE_PX:
        raise DataError(f"{size} px is no side for tiles (1 to {MOST_SIZE_PX:,})")
    return float(mpp), size
