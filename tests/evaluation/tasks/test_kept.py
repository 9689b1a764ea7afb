"""Features of others as tasks: files that eva 0.4.5 wrote, folders of slides; ours read by eva's own classes."""

from __future__ import annotations

import csv
import pickle
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from eosin.errors import DataError, OutputError
from eosin.evaluation import evaluate
from eosin.evaluation.tasks import PUBLIC, open_task
from eosin.evaluation.tasks.bags import BagFiles
from eosin.evaluation.tasks.manifest import read_kept
from eosin.features.h5 import feature_writer
from eosin.features.manifest import file_names, read_embeddings, read_manifest, write_manifest

SPLITS = ("train", "val", "test")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """What eva 0.4.5's writer made of known vectors (eva_embeddings.py)."""
    with zipfile.ZipFile(Path(__file__).with_name("eva-0.4.5.zip")) as archive:
        archive.extractall(tmp_path)
    return tmp_path


def vectors(folder: Path, kind: str) -> npt.NDArray[np.float32]:
    return np.concatenate([np.load(folder / f"{kind}-{split}.npy") for split in SPLITS])


def row_set(matrix: npt.NDArray[np.float32]) -> list[list[float]]:
    return sorted(matrix.tolist())


def refused(name: str, path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_task(f"{name}={path}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tiles_written_by_eva_are_read_as_they_went_in(written: Path) -> None:
    task = open_task(f"mine={written / 'tiles'}")
    assert (task.kind, task.classes, task.name) == ("classification", ("0", "1"), "mine")
    assert task.features is not None
    np.testing.assert_array_equal(task.features, vectors(written, "tiles"))
    np.testing.assert_array_equal(task.labels, [0, 1] * 6)
    assert task.split is not None
    assert task.split.tolist() == [split for split in SPLITS for _ in range(4)]
    assert task.ids[0] == "a/train_0.png"
    again = open_task(f"mine={written / 'tiles' / 'manifest.csv'}")
    assert again.content_hash() == task.content_hash()
    assert open_task(f"manifest={written / 'tiles' / 'manifest.csv'}").name == "tiles"


def test_slides_written_by_eva_are_bags(written: Path) -> None:
    task = open_task(f"mine={written / 'bags'}")
    assert (task.kind, len(task)) == ("slide", 12)
    assert isinstance(task.samples, BagFiles)
    assert task.samples.width == 5
    whole = vectors(written, "bags").reshape(12, 3, 5)
    for number in range(12):  # eva appends later pieces of a slide in front
        assert row_set(task.samples[number]) == row_set(whole[number])
    assert task.ids.tolist() == [f"{split}-{number}" for split in SPLITS for number in range(4)]
    np.testing.assert_array_equal(task.labels, [0, 1] * 6)
    before = task.samples.content_hash()
    file = written / "bags" / "test" / "slide_3.pt"
    torch.save(torch.zeros(2, 5), file)
    assert task.samples.content_hash() != before


def test_names_of_eva_stand_for_public_tasks(written: Path) -> None:
    rows = list(csv.reader(open(written / "tiles" / "manifest.csv")))  # noqa: SIM115
    (written / "tiles").rename(written / "patch_camelyon")
    task = open_task(f"patch_camelyon={written / 'patch_camelyon'}")
    assert (task.name, task.classes) == ("pcam", PUBLIC["pcam"].classes)
    (written / "patch_camelyon").rename(written / "mhist")
    with open(written / "mhist" / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[3] != "test")
    mhist = open_task(f"mhist-like={written / 'mhist'}")
    assert set(mhist.split.tolist()) == {"train", "val"}  # type: ignore[union-attr]
    named = read_kept("mhist", written / "mhist")
    assert (named.classes, named.reported_split) == (("SSA", "HP"), "test")


@pytest.mark.parametrize(
    ("held", "rows"),
    [
        (torch.ones(4), 1),
        (torch.ones(1, 4), 1),
        ([torch.ones(4)], 1),
        ([torch.ones(1, 4), torch.ones(2, 4)], 3),
        ({"embeddings": torch.ones(3, 4)}, 3),
        ({"embeddings": [torch.ones(4, dtype=torch.float16)]}, 1),
    ],
)
def test_every_form_of_a_file(tmp_path: Path, held: object, rows: int) -> None:
    torch.save(held, tmp_path / "a.pt")
    found = read_embeddings(tmp_path / "a.pt")
    assert (found.shape, found.dtype) == ((rows, 4), np.float32)
    np.testing.assert_array_equal(found, 1)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.ones(2, 2, 2), r"\(2, 2, 2\)"),
        (torch.arange(3), "no float tensor"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, "one entry"),
        ([torch.ones(2), torch.ones(3)], "Sizes of tensors"),
        ("words", "no float tensor"),
        ([], "no float tensor"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, held: object, words: str) -> None:
    torch.save(held, tmp_path / "a.pt")
    with pytest.raises(DataError, match=words) as caught:
        read_embeddings(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)
    assert "a.pt" in str(caught.value)


def test_damaged_and_pickled_files_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "torn.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.pt").write_bytes(b"no tensor")
    (tmp_path / "empty.pt").write_bytes(b"")
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump([np.ones(3), print], file, protocol=2)
    for name in ("torn", "words", "empty", "evil", "missing"):
        with pytest.raises(DataError, match=f"{name}.pt") as caught:
            read_embeddings(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
    (tmp_path / "junk.pt").write_bytes(b"junk\n")
    with pytest.raises(DataError, match=r"junk\.pt as tensors: it is damaged, or was not written by torch\.save"):
        read_embeddings(tmp_path / "junk.pt")


def test_wrong_manifests_are_one_line(written: Path) -> None:
    tiles, file = written / "tiles", written / "tiles" / "manifest.csv"
    text = file.read_text()
    for wrong, words in (
        (text.replace("embeddings", "embedding", 1), "embeddings"),
        (text.splitlines()[0] + "\n", "lists no embeddings"),
        (text.replace(",0,train", ",,train", 1), "line 2 has no target"),
        (text.replace(",0,train", ",x,train", 1), "'x' is no class number"),
        (text.replace(",0,train", ",a-mask.pt,train", 1), "of masks"),
        (text.replace("a/train_0.pt", "a/none.pt"), "1 of 12 files"),
        (text.replace(",train\n", ",\n", 1), "no split"),
        (text.replace("a/train_0.png,", "a,a,", 1), "5 cells"),
    ):
        file.write_text(wrong)
        assert words in refused("mine", tiles), words
    file.write_text(text)
    torch.save(torch.ones(9), tiles / "b" / "test_1.pt")
    assert "test_1.pt" in refused("mine", tiles)
    bags = written / "bags" / "manifest.csv"
    bags.write_text(bags.read_text().replace("test-1", "test-0"))
    assert "has the target 0 and 1" in refused("mine", bags)


def test_one_folder_of_slides_with_labels(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    bags = {f"s{n}": random.normal(size=(n + 1, 4)).astype(np.float32) for n in range(6)}
    for slide, values in bags.items():
        coords = np.zeros((len(values), 2), dtype=np.int64)
        with feature_writer(tmp_path / f"{slide}.h5", coords, {}) as writer:
            writer.write("features", np.arange(len(values)), values)
    lines = [f"s{n}.svs,p{n},{'ab'[n % 2]},{'train' if n < 4 else 'test'}" for n in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide,patient,label,split", *lines, "gone,p9,a,train"]))
    task = open_task(f"mine={tmp_path}")
    assert (task.kind, task.ids.tolist(), task.classes) == ("slide", list(bags), ("a", "b"))
    assert isinstance(task.samples, BagFiles)
    for number, values in enumerate(bags.values()):
        np.testing.assert_array_equal(task.samples[number], values)
    assert task.patient is not None
    assert task.reported_split == "test"
    (tmp_path / "labels.csv").write_text("slide,patient,group\ns1,p,a\n")
    assert "a column `label`" in refused("mine", tmp_path)
    (tmp_path / "labels.csv").write_text("slide,patient,label\nother,p,a\n")
    assert "none of the slides" in refused("mine", tmp_path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    x = random.normal(size=(9, 3)).astype(np.float32)
    origin = ["a/x.png", "a/x.tif", "../up.png", "/root.png", "b@1,2", *(f"c{n}" for n in range(4))]
    split = ["train"] * 5 + ["test"] * 4
    target = [0, 1, 2] * 3
    write_manifest(tmp_path / "out", x, target, split, origin=origin, more={"patient": list("uvwuvwxyz")})
    task = open_task(f"mine={tmp_path / 'out'}")
    assert task.features is not None
    np.testing.assert_array_equal(task.features, x)
    assert task.ids.tolist() == origin
    assert task.patient is not None
    assert task.patient.tolist() == list("uvwuvwxyz")
    assert all((tmp_path / "out") in file.resolve().parents for file in read_manifest(tmp_path / "out").files)
    with pytest.raises(OutputError, match="is there already"):
        write_manifest(tmp_path / "out", x, target)
    # A vector takes what it holds, not what its table does.
    assert (tmp_path / "out" / "c0.pt").stat().st_size < 4000
    write_manifest(tmp_path / "alone", x, target)
    assert open_task(f"mine={tmp_path / 'alone'}").split is None


def test_file_names_are_distinct() -> None:
    names = ["a.png", "a.tif", "a.png", "b", "b.png", "..", ""]
    found = file_names(names)
    assert len(set(found)) == len(names)
    assert all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in found)


def test_features_of_eva_are_judged(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    labels = np.arange(120) % 3
    x = (np.eye(3, 6)[labels] * 2 + random.normal(size=(120, 6))).astype(np.float32)
    split = np.array(["train"] * 60 + ["test"] * 60)
    write_manifest(tmp_path / "mine", x, labels.tolist(), split.tolist())
    np.savez(tmp_path / "mine.npz", features=x, labels=labels, split=split)
    (ours,) = evaluate(None, [], "knn", tmp_path / "a", features=tmp_path / "mine.npz")
    (theirs,) = evaluate(None, [], "knn", tmp_path / "b", features=tmp_path / "mine")
    assert theirs["task"] == ours["task"] == "mine"
    assert theirs["mean"] == ours["mean"]
    assert theirs["confusion"] == ours["confusion"]


def test_eva_reads_what_is_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("eva.core.data.datasets", reason="kaiko-eva is not installed")
    random = np.random.default_rng(6)
    x = random.normal(size=(6, 3)).astype(np.float32)
    split = ["train", "val"] * 3
    write_manifest(tmp_path / "tiles", x, [0, 1, 2, 2, 1, 0], split, origin=[f"d/{n}.png" for n in range(6)])
    for word, rows in (("train", [0, 2, 4]), ("val", [1, 3, 5])):
        found = datasets.EmbeddingsClassificationDataset(str(tmp_path / "tiles"), "manifest.csv", word)
        found.setup()
        assert len(found) == 3
        for place, row in enumerate(rows):
            vector, target = found[place]
            np.testing.assert_array_equal(vector.numpy(), x[row])
            assert int(target) == [0, 1, 2, 2, 1, 0][row]
    bags = [random.normal(size=(n + 1, 3)).astype(np.float32) for n in range(4)]
    more = {"wsi_id": ["s", "t", "u", "v"]}
    write_manifest(tmp_path / "bags", bags, [0, 1, 1, 0], ["train"] * 4, more=more)
    slides = datasets.MultiEmbeddingsClassificationDataset(str(tmp_path / "bags"), "manifest.csv", "train")
    slides.setup()
    for place, bag in enumerate(bags):
        matrix, target = slides[place]
        np.testing.assert_array_equal(matrix.numpy(), bag)
        assert int(target) == [0, 1, 1, 0][place]
