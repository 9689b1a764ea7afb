"""Public tasks in their official layouts: a small tree is read as it should, each fault is one clear line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from eosin.errors import DataError
from eosin.evaluation.tasks import PUBLIC, find_public, open_task, open_tasks
from eosin.evaluation.tasks.check import check_public, counts_of

from . import trees


def plant(root: Path, name: str) -> Path:
    """The small tree of a task, in its official folder below `root`."""
    folder, write, _ = trees.TREES[name]
    write(root / folder)
    return root / folder


def refused(name: str, root: Path, any_count: bool = True) -> str:
    with pytest.raises(DataError) as caught:
        open_task(name, root, any_count)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLIC)
def test_small_trees_in_the_official_layout(name: str, tmp_path: Path) -> None:
    folder = plant(tmp_path, name)
    task = open_task(name, tmp_path, any_count=True)
    public = PUBLIC[name]
    assert counts_of(task) == trees.TREES[name][2]
    assert task.classes == (public.classes or ("G0", "G1"))
    assert task.complete == (public.counts is None)
    assert task.kind == public.kind
    assert len(open_task(f"{name}={folder}", any_count=True)) == len(task)
    assert check_public(PUBLIC[name], tmp_path, full=False, any_count=True).ok
    if public.counts is not None:
        assert "expected" in refused(name, tmp_path, any_count=False)
    assert f"eosin tasks show {name}" in refused(name, tmp_path / "nothing")


def test_expected_counts_are_those_of_the_literature() -> None:
    counts = {name: tuple((task.counts or {}).values()) for name, task in PUBLIC.items()}
    assert counts["bach"] == (268, 132)
    assert counts["bracs"] == (3657, 312, 570)
    assert counts["breakhis"] == (1132, 339)
    assert counts["crc"] == (100_000, 7_180)
    assert counts["gleason"] == (15_303, 2_482, 4_967)
    assert counts["mhist"] == (2175, 977)
    assert counts["pcam"] == counts["pcam-10shot"] == (262_144, 32_768, 32_768)
    assert counts["unitopatho"] == (6270, 2399)


def test_bach_is_split_by_place_among_the_400(tmp_path: Path) -> None:
    """All 400 names (empty files): as many as eva has in each part, at the ends of its ranges."""
    for folder, stem in (("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv"), ("Normal", "n")):
        (tmp_path / "Photos" / folder).mkdir(parents=True)
        for number in range(1, 101):
            (tmp_path / "Photos" / folder / f"{stem}{number:03}.tif").touch()
    task = open_task(f"bach={tmp_path}")
    assert task.complete
    assert task.split is not None
    assert [task.split[row] for row in (0, 40, 41, 59, 60, 138, 139, 169, 258, 345, 368, 399)] == [
        *("train", "train", "val", "train", "val", "train"),
        *("val", "train", "train", "val", "train", "train"),
    ]
    assert [Path(name).stem for name in task.ids[[0, 100, 200, 399]]] == ["b001", "is001", "iv001", "n100"]


def test_groups_come_from_file_names(tmp_path: Path) -> None:
    for name, group, first in (
        ("bracs", "slide", "BRACS_280"),
        ("breakhis", "patient", "9133"),
        ("gleason", "slide", "ZT80_0_A_1_1"),
        ("unitopatho", "slide", "train0-B3-HP"),
    ):
        plant(tmp_path, name)
        task = open_task(name, tmp_path, any_count=True)
        assert task.group_name == group
        assert first in getattr(task, group)
        assert task.shared_groups() == 0


def test_gleason_reads_the_first_pathologist_only(tmp_path: Path) -> None:
    plant(tmp_path, "gleason")
    task = open_task("gleason", tmp_path, any_count=True)
    assert not [name for name in task.ids if "patho_2" in name]
    assert "eva.report_val" in task.switches


def test_pcam_reads_images_one_by_one(tmp_path: Path) -> None:
    folder = plant(tmp_path, "pcam")
    task = open_task("pcam", tmp_path, any_count=True)
    with h5py.File(folder / "camelyonpatch_level_2_split_valid_x.h5") as file:
        expected = file["x"][4]
    assert task.images is not None
    np.testing.assert_array_equal(task.images[10], expected)
    assert task.ids[10] == "val/4"
    with pytest.raises(IndexError):
        task.images[15]
    (folder / "camelyonpatch_level_2_split_train_meta.csv").write_text("wsi\n" + "camelyon16_train_tumor_1\n" * 6)
    assert "no slide" in refused("pcam", tmp_path)
    for word, count in (("valid", 5), ("test", 4)):
        (folder / f"camelyonpatch_level_2_split_{word}_meta.csv").write_text("wsi\n" + f"{word}\n" * count)
    assert open_task("pcam", tmp_path, any_count=True).group_name == "slide"
    assert open_task(f"pcam-10shot={folder}", any_count=True).shots == 10


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap(first: Path, second: Path) -> None:
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def link(path: Path, other: Path) -> None:
    other.write_bytes(path.read_bytes())
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink(other.name, "x")


PCAM = "camelyonpatch_level_2_split"
FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "file of another name": ("bach", lambda r: trees.picture(r / "Photos/Normal/copy.tif"), r"copy\.tif is none of"),
    "folder of another name": ("bach", lambda r: (r / "Photos/Benign").rename(r / "Photos/B"), r"B/b001\.tif is none"),
    "no such folder": ("bracs", lambda r: (r / "val").rename(r / "valid"), "latest_version lacks val"),
    "class folder": ("crc", lambda r: (r / "NCT-CRC-HE-100K/ADI").rename(r / "NCT-CRC-HE-100K/FAT"), "label 'FAT'"),
    "class missing": ("breakhis", lambda r: [p.unlink() for p in r.rglob("*MC*40-*.png")], "class 'MC' .* no samples"),
    "unknown array": (
        "gleason",
        lambda r: trees.picture(r / "train_validation_patches_750/ZT9/ZT9_1_patch_0_class_0.jpg"),
        "of a known array",
    ),
    "image missing": ("mhist", lambda r: (r / "images/MHIST_3.png").unlink(), r"1 of 8 files .* first .*MHIST_3\.png"),
    "column missing": ("mhist", lambda r: edit(r / "annotations.csv", "Partition", "Part"), "column `Partition`"),
    "unknown label": ("mhist", lambda r: edit(r / "annotations.csv", ",SSA", ",SSL"), "label 'SSL'"),
    "swapped labels": (
        "unitopatho",
        lambda r: edit(r / "800/test.csv", ",0,HP", ",3,HP"),
        r"label '3', but it lies in HP",
    ),
    "tile missing": ("unitopatho", lambda r: next(r.rglob("test2*.png")).unlink(), r"1 of 6 files .* first test2"),
    "labels of others": (
        "pcam",
        lambda r: swap(r / f"{PCAM}_train_y.h5", r / f"{PCAM}_test_y.h5"),
        "must hold 6 labels 0 or 1, one an image; found 4",
    ),
    "images for labels": ("pcam", lambda r: swap(r / f"{PCAM}_train_x.h5", r / f"{PCAM}_train_y.h5"), "looked for 'x'"),
    "cut short": (
        "pcam",
        lambda r: (r / f"{PCAM}_test_x.h5").write_bytes((r / f"{PCAM}_test_x.h5").read_bytes()[:900]),
        "cannot read .* as HDF5",
    ),
    "link out": ("pcam", lambda r: link(r / f"{PCAM}_test_x.h5", r / "other.h5"), "is a link"),
    "still packed": (
        "pcam",
        lambda r: (r / f"{PCAM}_test_x.h5").rename(r / f"{PCAM}_test_x.h5.gz"),
        "lacks .*test_x.h5",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    name, spoil, said = FAULTS[fault]
    spoil(plant(tmp_path, name))
    line = refused(name, tmp_path)
    assert re.search(said, line), line
    report = check_public(PUBLIC[name], tmp_path, any_count=True)
    assert report.broken == (line,)


def test_wrong_counts_say_both_numbers(tmp_path: Path) -> None:
    plant(tmp_path, "mhist")
    line = refused("mhist", tmp_path, any_count=False)
    assert "5 train samples, expected 2175; 3 test samples, expected 977" in line
    assert "--any-count" in line


def test_folders_without_images_are_no_task(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "bracs" / split).mkdir(parents=True)
    assert "found no samples" in refused("bracs", tmp_path)


def test_checks_of_images(tmp_path: Path) -> None:
    root = plant(tmp_path, "bracs")
    broken = root / "val/0_N/BRACS_281_N_1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (line,) = check_public(PUBLIC["bracs"], tmp_path, full=True, any_count=True).broken
    assert str(broken) in line
    broken.write_bytes((root / "train/0_N/BRACS_280_N_1.png").read_bytes())
    (line,) = check_public(PUBLIC["bracs"], tmp_path, full=True, any_count=True).broken
    assert "1 images lie in two splits" in line
    assert "BRACS_280_N_1.png (train)" in line
    assert check_public(PUBLIC["bracs"], tmp_path, any_count=True).ok
    plant(tmp_path, "pcam")
    report = check_public(PUBLIC["pcam"], tmp_path, full=True, any_count=True)
    assert all("md5" in line for line in report.broken)
    assert len(report.broken) == 6


def test_leaks_are_remarked(tmp_path: Path) -> None:
    root = plant(tmp_path, "bracs")
    (root / "test/0_N/BRACS_282_N_0.png").rename(root / "test/0_N/BRACS_280_N_7.png")
    report = check_public(PUBLIC["bracs"], tmp_path, any_count=True)
    assert "1 slides are in train and in test: a leak" in report.remarks


def test_all_are_those_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mhist", "bach"):
        plant(tmp_path, name)
    assert [task.name for task in open_tasks(["all"], tmp_path, any_count=True)] == ["bach", "mhist"]
    assert "bracs" in capsys.readouterr().err
    with pytest.raises(DataError, match="found none of the public tasks"):
        open_tasks(["all"], tmp_path / "images")
    with pytest.raises(DataError, match="needs --data"):
        open_tasks(["all"])


def test_families_and_pages(tmp_path: Path) -> None:
    plant(tmp_path, "hest-idc")
    with pytest.raises(DataError, match="task hest-prad"):
        open_tasks(["hest"], tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()
    for name in PUBLIC:
        assert f"`{name}`" in page


def test_names() -> None:
    with pytest.raises(DataError, match="is mhist meant"):
        find_public("mhits")
    with pytest.raises(DataError, match="is bach meant"):
        open_task("Bach", "/")
    with pytest.raises(DataError, match="give --data ROOT"):
        open_task("bach")
