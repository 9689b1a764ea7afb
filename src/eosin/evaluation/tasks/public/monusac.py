"""MoNuSAC: nuclei of four organs in four types (Verma et al., IEEE TMI 2021).

Polygons are filled with their border; where two overlap, the later one counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import DataError
from eosin.evaluation.tasks.layout import PublicTask, Row, files_in
from eosin.evaluation.tasks.masks import IGNORE, Masks

CLASSES = ("background", "epithelial", "lymphocyte", "neutrophil", "macrophage")
FOLDERS = {"MoNuSAC_images_and_annotations": "train", "MoNuSAC Testing Data and Annotations": "test"}


def read(root: Path) -> Iterator[Row]:
    """FOLDER/TCGA-55-1594-01Z-00-DX1/TCGA-55-1594-01Z-00-DX1_003.tif with an .xml beside it."""
    for folder, split in FOLDERS.items():
        for file in files_in(root / folder, "*/*.tif"):
            mask = file.with_suffix(".xml")
            if not mask.is_file():
                raise DataError(f"task monusac: {file} has no annotations: looked for {mask}")
            yield Row(file, split=split, patient=file.parent.name[:12], slide=file.parent.name, mask=mask)


def read_polygons(path: Path) -> npt.NDArray[np.integer]:
    """Class of each pixel, int [H, W], of an ImageScope file; the image beside it gives the size."""
    try:
        with Image.open(path.with_suffix(".tif")) as image:
            mask = np.zeros((image.height, image.width), dtype=np.uint8)
        annotations = ElementTree.parse(path).getroot().findall("Annotation")
        for annotation in annotations:
            named = [item.get("Name", "").strip().lower() for item in annotation.iter("Attribute")]
            value = CLASSES.index(named[0]) if named and named[0] in CLASSES else IGNORE
            for region in annotation.iter("Region"):
                corners = [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]
                if corners:
                    cv2.fillPoly(mask, [np.round(np.array(corners)).astype(np.int32)], value)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise DataError(f"cannot read the annotations {path}: {error}") from error
    return mask


TASK = PublicTask(
    name="monusac",
    about="nuclei of lung, prostate, kidney, breast: epithelial, lymphocyte, neutrophil, macrophage",
    kind="segmentation",
    classes=CLASSES,
    counts={"train": 209, "test": 85},
    folders=("MoNuSAC",),
    marks=tuple(FOLDERS),
    read=read,
    masks=lambda paths: Masks(paths, len(CLASSES), read_polygons),
    layout=tuple(f"{folder}/TCGA-…-DX1/TCGA-…-DX1_1.tif and .xml" for folder in FOLDERS),
    source="https://monusac-2020.grand-challenge.org/Data/",
    licence="CC BY-NC-SA 4.0",
    scale="of many sizes (81 to 1956 px), 0.25 µm/px",
    get=("download and unpack both archives side by side",),
    switches={
        "eva.test_is_val": "the official test split is what eva calls val",
        "eva.choose_on_reported": "the best checkpoint is chosen on it as well",
    },
    notes=("regions marked Ambiguous (test only) and unnamed ones count neither in training nor in scores",),
)
