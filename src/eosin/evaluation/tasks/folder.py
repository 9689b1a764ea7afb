"""Task from class folders: DIR/CLASS/image, or DIR/{train,val,test}/CLASS/image."""

from __future__ import annotations

from pathlib import Path

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles, find_images
from eosin.evaluation.tasks.task import SPLITS, Task, make_task

_SPLIT_FOLDERS = {*SPLITS, "valid", "validation"}


def read_folder(name: str, root: Path) -> Task:
    """The task whose classes are the folders below `root`. Raises DataError for any other layout."""
    tops = _subfolders(root)
    if not tops:
        raise DataError(f"task {name}: looked for class folders in {root}, found {_contents(root)}")
    split_tops = [top for top in tops if top.name.lower() in _SPLIT_FOLDERS]
    if split_tops and len(split_tops) < len(tops):
        other = next(top.name for top in tops if top not in split_tops)
        raise DataError(f"task {name}: {root} mixes split folders ({split_tops[0].name}) with others ({other})")
    paths: list[Path] = []
    labels: list[str] = []
    split: list[str] = []
    for part in split_tops or [root]:
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


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _contents(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not names:
        return "an empty folder"
    return f"{len(names)} entries ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
