"""Task from folders: DIR/CLASS/image, or DIR/images/NAME with DIR/masks/NAME; either may lie in
DIR/{train,val,test}.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles, find_images
from eosin.evaluation.tasks.masks import masks_of
from eosin.evaluation.tasks.task import SPLITS, Task, checked_columns, make_task

_SPLIT_FOLDERS = {*SPLITS, "valid", "validation"}


def read_folder(name: str, root: Path) -> Task:
    """The task whose classes are the folders below `root`, or whose masks lie beside its images.

    Raises DataError for any other layout.
    """
    tops = _subfolders(root)
    if not tops:
        raise DataError(f"task {name}: looked for class folders in {root}, found {_contents(root)}")
    split_tops = [top for top in tops if top.name.lower() in _SPLIT_FOLDERS]
    if split_tops and len(split_tops) < len(tops):
        other = next(top.name for top in tops if top not in split_tops)
        raise DataError(f"task {name}: {root} mixes split folders ({split_tops[0].name}) with others ({other})")
    parts = split_tops or [root]
    if all({"images", "masks"} <= {top.name for top in _subfolders(part)} for part in parts):
        return _read_masks(name, root, parts, bool(split_tops))
    if any(top.name == "images" for part in parts for top in _subfolders(part)):
        wanted = "masks of the same names in a folder `masks`, or a table with `file` and `mask`"
        raise DataError(f"task {name}: {root} has a folder `images`, which is no class; segmentation needs {wanted}")
    paths: list[Path] = []
    labels: list[str] = []
    split: list[str] = []
    for part in parts:
        class_folders = _subfolders(part)
        if not class_folders:
            raise DataError(f"task {name}: looked for class folders in {part}, found {_contents(part)}")
        for folder in class_folders:
            found = find_images(folder)
            if not found:
                raise DataError(f"task {name}: class folder {folder} holds no images, found {_contents(folder)}")
            paths += found
            labels += [folder.name] * len(found)
            split += [part.name] * len(found)
    ids = [path.relative_to(root).as_posix() for path in paths]
    return make_task(name, root, ImageFiles(paths), labels, ids=ids, split=split if split_tops else None)


def _read_masks(name: str, root: Path, parts: list[Path], named: bool) -> Task:
    """Segmentation: each image of images/ has the mask of the same name, whatever its suffix, in masks/."""
    images: list[Path] = []
    masks: list[Path] = []
    split: list[str] = []
    for part in parts:
        found = find_images(part / "images")
        by_stem = {path.stem: path for path in find_images(part / "masks")}
        stems = {path.stem for path in found}
        if alone := sorted(stems ^ by_stem.keys()):
            what = "no mask" if alone[0] in stems else "no image"
            raise DataError(f"task {name}: {alone[0]} in {part} has {what} ({len(alone)} without a partner)")
        images += found
        masks += [by_stem[path.stem] for path in found]
        split += [part.name] * len(found)
    if not images:
        raise DataError(f"task {name}: {root} has folders images and masks, but no images in them")
    targets, classes = masks_of(name, masks, root)
    ids = [path.relative_to(root).as_posix() for path in images]
    columns = checked_columns(name, root, ids, split if named else None)
    return Task(name, root, ImageFiles(images), np.asarray(ids), targets, classes, kind="segmentation", **columns)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "an empty folder"
    return f"{len(names)} entries ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
