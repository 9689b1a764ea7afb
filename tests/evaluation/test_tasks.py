"""Task layouts: what is read, and what each wrong layout says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.errors import DataError
from eosin.evaluation.folds import assign_folds, folds_of
from eosin.evaluation.protocols import PROTOCOLS, Protocol, find_protocols
from eosin.evaluation.tasks import open_task


def picture(path: Path, value: int = 0, size: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/{A,B} and test/{A,B}, three images each."""
    for split in ("train", "test"):
        for label in "AB":
            for number in range(3):
                picture(tmp_path / "tiles" / split / label / f"{number}.png", 40 * number)
    return tmp_path / "tiles"


@pytest.fixture
def table(folder: Path) -> Path:
    lines = ["file,label,split,patient"]
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        split, label = path.relative_to(folder).parts[:2]
        lines.append(f"{path.relative_to(folder)},{label},{split},p{number % 4}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def refused(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_task(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_and_table_hold_the_same_task(folder: Path, table: Path) -> None:
    by_folder, by_table = open_task(f"a={folder}"), open_task(f"a={table}")
    order = np.argsort(by_folder.ids)
    np.testing.assert_array_equal(by_folder.ids[order], by_table.ids)
    np.testing.assert_array_equal(by_folder.labels[order], by_table.labels)
    assert by_folder.split is not None
    assert by_table.split is not None
    np.testing.assert_array_equal(by_folder.split[order], by_table.split)
    assert by_folder.classes == by_table.classes == ("A", "B")
    assert (by_folder.group_name, by_table.group_name) == ("sample", "patient")
    assert by_table.shared_groups() == 4
    assert by_folder.images is not None
    assert by_folder.images[0].shape == (6, 6, 3)


def test_real_layouts(shared_data: Path) -> None:
    tiles = open_task(f"colon5={shared_data / 'colon5_tiles'}")
    assert (len(tiles), tiles.reported_split) == (2100, "val")
    assert tiles.classes == ("AC", "H", "S", "T", "V")
    listed = open_task(f"colon5={shared_data / 'colon5_tiles' / 'labels.csv'}")
    assert sorted(zip(tiles.ids, tiles.labels, strict=True)) == sorted(zip(listed.ids, listed.labels, strict=True))
    features = open_task(f"kather={shared_data / 'kather2016_texture_features' / 'features.npz'}")
    assert features.features is not None
    assert features.features.shape == (5000, 49)
    assert features.classes[0] == "01_TUMOR"


def test_hashes_follow_content_not_place(folder: Path, tmp_path: Path) -> None:
    task = open_task(f"a={folder}")
    before = task.content_hash(), task.label_hash()
    folder.rename(tmp_path / "moved")
    moved = open_task(f"a={tmp_path / 'moved'}")
    assert (moved.content_hash(), moved.label_hash()) == before
    picture(tmp_path / "moved" / "train" / "A" / "0.png", 9)
    assert open_task(f"a={tmp_path / 'moved'}").content_hash() != before[0]


def test_relative_paths_are_found_below_data(folder: Path, table: Path) -> None:
    assert len(open_task("a=tiles/labels.csv", data=folder.parent)) == 12


def test_arrays_with_images_or_features(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=["x", "y", "x", "y"], patient=[1, 1, 2, 3])
    task = open_task(f"a={tmp_path / 'a.npz'}")
    assert task.images is not None
    np.testing.assert_array_equal(task.images[2], images[2])
    assert task.groups is not None
    assert task.groups.tolist() == [0, 0, 1, 2]
    np.savez(tmp_path / "b.npz", features=np.eye(4), labels=[10, 2, 10, 2])
    assert open_task(f"b={tmp_path / 'b.npz'}").classes == ("2", "10")


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    assert "NAME=PATH" in refused("tiles")
    assert "found nothing there" in refused(f"a={tmp_path / 'none'}")
    assert "neither a folder" in refused(f"a={folder / 'train' / 'A' / '0.png'}")
    assert "looked for class folders" in refused(f"a={folder / 'train' / 'A'}")
    assert "one class only" in refused(f"a={picture(tmp_path / 'one' / 'A' / '0.png').parents[1]}")
    (folder / "extra").mkdir()
    assert "mixes split folders (test) with others (extra)" in refused(f"a={folder}")
    (folder / "extra").rmdir()
    picture(folder / "test" / "C" / "0.png")
    assert "class 'C'" in refused(f"a={folder}")
    (folder / "test" / "C" / "0.png").unlink()
    assert "holds no images, found an empty folder" in refused(f"a={folder}")
    for path in sorted(folder.rglob("test/*/*.png")):
        path.unlink()
    assert "test/A holds no images" in refused(f"a={folder}")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("file,label", "image,label", "looked for a column `file`"),
        ("file,label", "file,klass", "looked for a column `label`, `mask`"),
        ("file,label", "file,value", "line 2: value .A. is no number"),
        ("file,label", "slide,label", "lists slides"),
        ("patient\n", "pateint\n", "is 'patient' meant"),
        ("patient\n", "Patient\n", "is 'patient' meant"),
        ("test/A/1.png,A", "test/A/7.png,A", r"1 of 12 files .* line 3: looked for .*7\.png"),
        ("test/A/1.png,A", "test/A/0.png,A", "line 3 lists test/A/0.png a second time"),
        ("test/A/1.png,A", "test/A/1.png,", "line 3 has no label"),
        ("A,test,p1", "A,test,", r"1 samples .* no patient, first test/A/1\.png"),
        ("A,train", "A,rest", "split 'rest'"),
        (",train,", ",test,", "train and one of val, test are needed"),
        ("p3\n", "p3,more\n", "cannot read table"),
    ],
)
def test_wrong_tables(table: Path, old: str, new: str, said: str) -> None:
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    assert re.search(said, refused(f"a={table}"))


def test_wrong_archives(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 5, 5, 3), dtype=np.uint8), [0, 1, 0, 1]
    cases = [
        ({"labels": labels}, "looked for `labels` and one of"),
        ({"images": images, "features": np.eye(4), "labels": labels}, "looked for"),
        ({"images": images}, "looked for"),
        ({"images": images.astype(float), "labels": labels}, "uint8"),
        ({"features": np.eye(4), "labels": labels[:3]}, "has shape"),
        ({"features": np.full((4, 2), np.nan), "labels": labels}, "NaN"),
        ({"features": np.eye(4), "labels": labels, "class_names": ["a"]}, "class_names"),
        (
            {"features": np.eye(4), "labels": labels, "class_names": ["a", "b", "c"]},
            "class 'c' .* no samples",
        ),
        ({"features": np.eye(4), "labels": labels, "patients": labels}, "is 'patient' meant"),
        ({"features": np.eye(4), "labels": np.array([{}] * 4)}, "without pickles"),
    ]
    for arrays, said in cases:
        np.savez(tmp_path / "a.npz", **arrays)
        assert re.search(said, refused(f"a={tmp_path / 'a.npz'}"))
    (tmp_path / "a.npz").write_text("file,label")
    assert "is no .npz archive" in refused(f"a={tmp_path / 'a.npz'}")


def test_truncated_images_are_refused_by_name(shared_data: Path, tmp_path: Path) -> None:
    source = next((shared_data / "colon5_tiles" / "val" / "H").glob("*.jpg"))
    for label in "AB":
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.jpg").write_bytes(source.read_bytes())
    (tmp_path / "B" / "0.jpg").write_bytes(source.read_bytes()[:3000])
    task = open_task(f"a={tmp_path}")
    assert task.images is not None
    assert task.images[0].shape == (224, 224, 3)
    with pytest.raises(DataError, match=r"B/0\.jpg"):
        task.images[1]


def test_folds_keep_patients_whole_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, 400)
    labels = (rng.random(400) < 0.3).astype(np.int64)
    number = assign_folds(labels, groups, 5, seed=0)
    assert set(number.tolist()) == set(range(5))
    assert all(len(np.unique(number[groups == group])) == 1 for group in range(25))
    for fold in range(5):
        assert abs(labels[number == fold].mean() - labels.mean()) < 0.1
    np.testing.assert_array_equal(number, assign_folds(labels, groups, 5, seed=0))
    alone = assign_folds(labels, None, 5, seed=0)
    assert (alone != assign_folds(labels, None, 5, seed=1)).any()
    assert np.ptp([labels[alone == fold].sum() for fold in range(5)]) <= 1
    assert assign_folds(np.array([0, 0, 0, 1, 1]), None, 5, seed=0).max() == 1
    with pytest.raises(DataError, match="at least two"):
        assign_folds(np.array([0, 0, 1]), None, 5, seed=0)


def test_given_splits_are_used_as_they_are(folder: Path) -> None:
    task = open_task(f"a={folder}")
    (fold,) = folds_of(task, PROTOCOLS["knn"])
    assert set(task.split[fold.train]) == {"train"}  # type: ignore[index]
    assert set(task.split[fold.test]) == {"test"}  # type: ignore[index]
    assert len(fold.inner) == 3
    assert sorted(np.concatenate([judged for _, judged in fold.inner])) == fold.train.tolist()
    for fitted, judged in fold.inner:
        assert sorted([*fitted, *judged]) == fold.train.tolist()
    with pytest.raises(DataError, match="simpleshot-4 needs 4 training samples a class, 'A' has 3"):
        folds_of(task, PROTOCOLS["simpleshot-4"])
    for label in "AB":
        picture(folder / "val" / label / "0.png")
    task = open_task(f"a={folder}")
    (fold,) = folds_of(task, PROTOCOLS["logreg"])
    ((fitted, judged),) = fold.inner
    assert set(task.split[judged]) == {"val"}  # type: ignore[index]
    assert fitted.tolist() == fold.train.tolist()
    assert set(task.split[fold.test]) == {"test"}  # type: ignore[index]


def test_protocols_by_name() -> None:
    names = [protocol.id for protocol in find_protocols(["knn,simpleshot", "logreg", "knn"])]
    assert names == ["knn", "simpleshot-1", "simpleshot-4", "simpleshot-16", "logreg"]
    assert len({protocol.hash for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    assert Protocol("knn", "knn", {"k": 5}).hash != PROTOCOLS["knn"].hash
    for words in ("k-nn", "", []):
        with pytest.raises(DataError, match="simpleshot"):
            find_protocols(words)
