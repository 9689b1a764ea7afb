"""TCGA, TP53: is the gene mutated in the patient whose slide a tile is from? A table of your own tiles.

There is no official set of tiles: cut them from the slides of the GDC portal, label them by its open mutation
calls. Slides of a patient never lie on both sides of the split.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, read_csv, refuse_missing
from eosin.provenance import hash_of

CLASSES = ("wild_type", "mutated")


def read(root: Path) -> Iterator[Row]:
    """tiles.csv: file, label and, where given, split; the file's path names the slide (TCGA-XX-XXXX-…)."""
    table = read_csv(root / "tiles.csv", "file", "slide", "label")
    files = [root / file for file in table["file"]]
    refuse_missing(root / "tiles.csv", files)
    given = table["split"].tolist() if "split" in table.columns else None
    label_of: dict[str, str] = {}
    for row, (file, slide, label) in enumerate(zip(files, table["slide"], table["label"], strict=True)):
        patient = slide[:12]
        if not slide.startswith("TCGA-") or patient.count("-") != 2:
            raise DataError(f"task tcga-tp53: tiles.csv line {row + 2}: slide {slide!r} is no TCGA barcode")
        if label_of.setdefault(patient, label) != label:
            raise DataError(f"task tcga-tp53: tiles.csv line {row + 2}: patient {patient} has two labels")
        yield Row(file, label, given[row] if given else split_of(patient), patient, slide, site=patient[5:7])


def split_of(patient: str) -> str:
    """70 % of patients train, 15 % val, 15 % test, by a hash of the barcode: the same for everybody."""
    place = int(hash_of(["tcga-tp53", patient]), 16) % 100
    return "train" if place < 70 else "val" if place < 85 else "test"


TASK = PublicTask(
    name="tcga-tp53",
    about="tiles of TCGA slides: TP53 mutated in this patient, or not",
    classes=CLASSES,
    counts=None,
    folders=("tcga_tp53",),
    marks=("tiles.csv",),
    read=read,
    layout=("tiles.csv (file, slide, label = wild_type | mutated, optionally split)", "the files it lists"),
    source="https://portal.gdc.cancer.gov",
    licence="TCGA open access",
    scale="as you cut them; state the µm/px",
    get=("download diagnostic slides and the open MAF files of the projects you want", "cut tiles, write tiles.csv"),
    notes=(
        "without a column split: 70, 15, 15 % of patients by a hash of their barcode",
        "sites are TCGA's tissue source sites",
    ),
)
