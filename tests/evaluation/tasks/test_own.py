"""Your own masks and spots: read from real data as they are, each wrong layout refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image

from eosin.errors import DataError
from eosin.evaluation import evaluate
from eosin.evaluation.tasks import open_task
from eosin.evaluation.tasks.check import check_task
from eosin.evaluation.tasks.images import ImageRegions
from eosin.evaluation.tasks.masks import IGNORE, Masks

from .trees import picture


def mask(path: Path, values: object, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (size, size))).save(path)
    return path


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """images/ and masks/ of three images; values 0, 7 and 9."""
    for number in range(3):
        picture(tmp_path / "m" / "images" / f"{number}.jpg")
        mask(tmp_path / "m" / "masks" / f"{number}.png", [0, 7, 9])
    return tmp_path / "m"


def refused(spec: str) -> str:
    with pytest.raises(DataError) as caught:
        open_task(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_of_images_and_masks(masks: Path) -> None:
    task = open_task(f"m={masks}")
    assert (task.kind, task.classes, len(task)) == ("segmentation", ("0", "7", "9"), 3)
    assert isinstance(task.targets, Masks)
    np.testing.assert_array_equal(np.unique(task.targets[0]), [0, 1, 2])
    before = task.label_hash()
    mask(masks / "masks" / "1.png", [0, 7, 7])
    assert open_task(f"m={masks}").label_hash() != before
    with pytest.raises(DataError, match="no class for each sample"):
        task.labels  # noqa: B018
    (masks / "classes.txt").write_text("background\nnucleus\n")
    named = open_task(f"m={masks}")
    assert named.classes == ("background", "nucleus")
    with pytest.raises(DataError, match="holds the value 7, which is no class"):
        _ = named.targets[0]
    mask(masks / "masks" / "0.png", [0, 1, IGNORE])
    np.testing.assert_array_equal(np.unique(named.targets[0]), [0, 1, IGNORE])


def test_wrong_folders_of_masks(masks: Path) -> None:
    (masks / "masks").rename(masks / "instances")
    assert "has a folder `images`, which is no class" in refused(f"m={masks}")
    (masks / "instances").rename(masks / "masks")
    (masks / "masks" / "2.png").rename(masks / "masks" / "3.png")
    assert "2 in" in (said := refused(f"m={masks}"))
    assert "has no mask" in said
    (masks / "masks" / "3.png").rename(masks / "masks" / "2.png")
    mask(masks / "masks" / "2.png", [0, 7, 9], size=9)
    (line,) = check_task(open_task(f"m={masks}")).broken
    assert re.search(r"2\.jpg is 8x8 px, its mask 9x9", line)
    picture(masks / "masks" / "2.png")
    assert "one channel" in refused(f"m={masks}")
    mask(masks / "masks" / "2.png", range(64))
    mask(masks / "masks" / "1.png", range(64, 128))
    assert "are these instances" in refused(f"m={masks}")
    for number in range(3):
        mask(masks / "masks" / f"{number}.png", [0])
    assert "one value 0" in refused(f"m={masks}")


def test_wrong_tables_of_values(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for text, said in (
        ("file,label,mask\na.png,x,a.png", "both label and mask"),
        ("file,value_A\na.png,", "has no value_A"),
        ("file,value_A,value_B\na.png,1,nan", "line 2: value_B 'nan' is no number"),
        ("file,value,x\na.png,1,5", "column `x`, but no `y`"),
        ("file,value,x,y,size_px\na.png,1,5,5,0", "line 2 has a size_px below 1"),
        ("file,value,x,y,size_px\na.png,1,5,5,4\na.png,2,5,5,4", "line 3 lists a.png@5,5 a second time"),
        ("file,time,event\na.png,1,0", "survival is judged by `eosin mil`"),
        ("file,mask\na.png,b.png", "1 of 1 files"),
        ("slide,label\na.png,1", "lists slides"),
    ):
        (tmp_path / "t.csv").write_text(text + "\n")
        assert said in refused(f"t={tmp_path / 't.csv'}")


def test_squares_out_of_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    regions = ImageRegions([tmp_path / "a.png"] * 3, np.array([[30, 20], [2, 1], [99, 5]]), np.array([10, 8, 6]))
    np.testing.assert_array_equal(regions[0], pixels[15:25, 25:35])
    corner = np.full((8, 8, 3), 255, dtype=np.uint8)
    corner[3:, 2:] = pixels[:5, :6]
    np.testing.assert_array_equal(regions[1], corner)
    with pytest.raises(DataError, match=r"at \[99, 5\] lies outside"):
        regions[2]


def test_a_protocol_that_does_not_judge_masks_names_those_that_do(masks: Path, tmp_path: Path) -> None:
    said = "task m: protocol knn does not judge segmentation tasks; these do: strict, eva-v2, midnight"
    with pytest.raises(DataError, match=said):
        evaluate("colour", [f"m={masks}"], "strict,knn", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_glands_and_nuclei(shared_data: Path, tmp_path: Path) -> None:
    glands = open_task(f"glas={shared_data / 'glas_train'}")
    assert (len(glands), glands.classes, glands.kind) == (16, ("0", "255"), "segmentation")
    folder = shared_data / "consep_patches_train"
    listed = pandas.read_csv(folder / "labels.csv").head(12)
    table = pandas.DataFrame(
        {
            "file": [str(folder / "images" / f"{name}.jpg") for name in listed["patch"]],
            "mask": [str(folder / "types" / f"{name}.png") for name in listed["patch"]],
            "slide": listed["source_image"],
        }
    )
    (tmp_path / "classes.txt").write_text("background\nother\ninflammatory\nepithelial\nspindle\n")
    table.to_csv(tmp_path / "nuclei.csv", index=False)
    nuclei = open_task(f"nuclei={tmp_path / 'nuclei.csv'}")
    assert (nuclei.kind, len(nuclei.classes), nuclei.group_name) == ("segmentation", 5, "slide")
    assert check_task(nuclei).ok


def test_real_spots(shared_data: Path, tmp_path: Path) -> None:
    """Two genes of the first spots of a section; a tile around a spot holds tissue, one off the tissue does not."""
    folder = shared_data / "her2st_patientC"
    spots = pandas.read_csv(folder / "C2_spots.tsv", sep="\t").query("selected == 1").head(6)
    counts = pandas.read_csv(folder / "C2_counts.tsv.gz", sep="\t", index_col=0, usecols=[0, 1, 2])
    names = [f"{int(x)}x{int(y)}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    table = pandas.DataFrame(
        {"file": str(folder / "C2.jpg"), "x": spots["pixel_x"].values, "y": spots["pixel_y"].values}
    )
    table["size_px"] = 163
    for gene in counts.columns:
        table[f"value_{gene}"] = np.log1p(counts.loc[names, gene].values)
    table.to_csv(tmp_path / "spots.csv", index=False)
    task = open_task(f"spots={tmp_path / 'spots.csv'}")
    assert (task.kind, task.classes, task.targets.shape) == ("regression", tuple(counts.columns), (6, 2))
    assert task.images is not None
    tiles = np.stack([task.images[row] for row in range(6)])
    assert tiles.shape == (6, 163, 163, 3)
    assert tiles.std(axis=(1, 2, 3)).min() > 10
