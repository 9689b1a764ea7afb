"""Synthetic slides: the truth beside them is the truth, µm are µm, and colour alone does not solve them."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eosin.errors import OutputError
from eosin.randomness import Words
from eosin.slides.synthetic import LABEL_DOWNSAMPLE, TISSUES, paint_slide, write_probe, write_slides
from eosin.slides.synthetic_field import Field
from eosin.slides.synthetic_tissue import PAINTERS, paint_tissue

SIZE_PX, MPP, SEED = 1024, 1.0, 3


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_slides(tmp_path_factory.mktemp("slides"), 2, SIZE_PX, MPP, SEED, workers=1)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe(tmp_path_factory.mktemp("probe"), per_class=15, seed=1)


def read_pixels(path: Path, level: int = 0) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.array(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))


def read_labels(path: Path) -> np.ndarray:
    """The truth at the slide's own size."""
    labels = cv2.imread(str(path.with_suffix(".labels.png")), cv2.IMREAD_UNCHANGED)
    return np.kron(labels, np.ones((LABEL_DOWNSAMPLE, LABEL_DOWNSAMPLE), np.uint8))


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def test_openslide_sees_scale_and_levels_and_no_other_images(slides: list[Path]) -> None:
    assert [path.name for path in slides] == ["synthetic-01.svs", "synthetic-02.svs"]
    for path in slides:
        with openslide.OpenSlide(path) as slide:
            assert float(slide.properties["openslide.mpp-x"]) == MPP
            assert float(slide.properties["openslide.mpp-y"]) == MPP
            assert slide.level_dimensions == ((1024, 1024), (256, 256))
            assert not slide.associated_images


def test_a_level_is_the_mean_of_the_level_below(slides: list[Path]) -> None:
    fine, coarse = read_pixels(slides[0], 0), read_pixels(slides[0], 1)
    mean = fine.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
    assert abs((mean - coarse).mean()) < 1
    assert np.corrcoef(mean.ravel(), coarse.ravel())[0, 1] > 0.97


def test_pixels_are_a_function_of_the_seed(slides: list[Path], tmp_path: Path) -> None:
    again = write_slides(tmp_path, 2, SIZE_PX, MPP, SEED, workers=2)
    for first, second in zip(slides, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    pixels, _, _ = paint_slide(SIZE_PX, MPP, SEED, 1)
    assert np.abs(pixels.astype(int) - read_pixels(slides[0])).mean() < 8  # what JPEG takes
    assert (paint_slide(512, MPP, SEED, 1)[0] != paint_slide(512, MPP, SEED + 1, 1)[0]).any()


def test_complete_slides_are_kept_and_others_replaced(tmp_path: Path) -> None:
    (path,) = write_slides(tmp_path, 1, 512, MPP, 5)
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    write_slides(tmp_path, 1, 512, MPP, 5)
    assert path.stat().st_mtime_ns == written
    write_slides(tmp_path, 1, 512, MPP, 6)
    assert path.read_bytes() != before
    path.with_suffix(".labels.png").unlink()
    write_slides(tmp_path, 1, 512, MPP, 6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["synthetic-01.labels.png", "synthetic-01.svs"]


def test_the_labels_are_what_is_there(slides: list[Path]) -> None:
    for number, path in enumerate(slides, start=1):
        pixels, labels = read_pixels(path).astype(float), read_labels(path)
        glass = paint_slide(512, MPP, SEED, number)[2].glass
        of = {name: pixels[labels == index] for index, name in enumerate(TISSUES)}
        assert all(len(part) > 1000 for part in of.values()), "every class lies on every slide"

        near_glass = np.abs(of["background"] - glass).max(axis=1) < 20
        assert near_glass.mean() > 0.95
        assert (np.abs(of["pen"] - glass).max(axis=1) > 60).mean() > 0.95
        dark = np.quantile(of["lymphocytes"][:, 0], 0.2)  # red light is what haematoxylin takes
        assert (of["stroma"][:, 0] < dark).mean() < 0.08
        grey = {name: part.mean() for name, part in of.items()}
        assert grey["fat"] > grey["mucus"] - 15 > grey["stroma"] - 15
        assert grey["lymphocytes"] < grey["mucus"]


def test_a_seed_is_the_same_tissue_at_any_mpp() -> None:
    coarse, coarse_labels, _ = paint_slide(640, 1.0, SEED, 1)
    fine, fine_labels, _ = paint_slide(1280, 0.5, SEED, 1)
    reduced = cv2.resize(fine, (640, 640), interpolation=cv2.INTER_AREA)
    assert np.corrcoef(coarse[..., 1].ravel(), reduced[..., 1].ravel())[0, 1] > 0.93
    assert (coarse_labels == fine_labels[1::2, 1::2]).mean() > 0.9


@pytest.mark.parametrize("mpp", [0.25, 0.5])
def test_sizes_are_micrometres(mpp: float) -> None:
    """Diameters from the area of separate blobs: lymphocytes about 6 µm, fat cells 50-100 µm."""
    nuclei, vacuoles = [], []
    for key in range(2):
        side = round(200 / mpp)
        field = Field(side, side, mpp, Words(7, "lymphocytes", key))
        paint_tissue("lymphocytes", field)
        dark = (field.haematoxylin > 0.55 * np.quantile(field.haematoxylin, 0.95)).astype(np.uint8)
        nuclei += blob_diameters_um(dark, mpp)
        side = round(400 / mpp)
        field = Field(side, side, mpp, Words(7, "fat", key))
        paint_tissue("fat", field)
        empty = (field.eosin < np.quantile(field.eosin, 0.3) + 0.1).astype(np.uint8)
        vacuoles += [d for d in blob_diameters_um(empty, mpp) if d > 20]
    assert 5.0 < np.median([d for d in nuclei if d > 2]) < 7.5
    assert 45 < np.median(vacuoles) < 95


def blob_diameters_um(mask: np.ndarray, mpp: float) -> list[float]:
    """Diameters of the discs that have the areas of the blobs which do not touch the border."""
    height, width = mask.shape
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return [
        float(2 * np.sqrt(area / np.pi) * mpp)
        for x, y, w, h, area in boxes[1:]
        if x > 0 and y > 0 and x + w < width and y + h < height
    ]


def test_the_probe_has_disjoint_slides_and_equal_classes(probe: Path) -> None:
    rows = table(probe)
    assert list(rows[0]) == ["file", "label", "split", "slide"]
    assert {row["label"] for row in rows} == set(PAINTERS) == set(TISSUES) - {"background", "pen"}
    found = {str(path.relative_to(probe)) for path in probe.rglob("*.png")}
    assert found == {row["file"] for row in rows}
    of = {split: {row["slide"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert len(of["train"]) >= 3
    assert len(of["test"]) >= 3
    assert not of["train"] & of["test"]
    for split in ("train", "test"):
        for tissue in PAINTERS:
            tiles = sorted((probe / split / tissue).iterdir())
            assert len(tiles) == 15
    assert cv2.imread(str(tiles[0]), cv2.IMREAD_UNCHANGED).shape == (128, 128, 3)
    assert len({path.read_bytes() for path in probe.rglob("*.png")}) == len(rows), "no tile twice"


def test_a_probe_is_kept_replaced_or_refused(tmp_path: Path) -> None:
    folder = write_probe(tmp_path / "probe", per_class=5, size_px=32)
    written = (folder / "labels.csv").stat().st_mtime_ns
    write_probe(folder, per_class=5, size_px=32)
    assert (folder / "labels.csv").stat().st_mtime_ns == written
    write_probe(folder, per_class=6, size_px=32)
    assert len(table(folder)) == 6 * 6 * 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds other files"):
        write_probe(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_there_is_more_to_learn_than_colour(probe: Path) -> None:
    """On slides not seen before, six colour numbers stay behind a few numbers of texture."""
    rows = table(probe)
    tiles = [cv2.imread(str(probe / row["file"]), cv2.IMREAD_COLOR_RGB) for row in rows]
    label = np.array([row["label"] for row in rows])
    train = np.array([row["split"] == "train" for row in rows])

    def accuracy(features: np.ndarray) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000))
        model.fit(features[train], label[train])
        return float(balanced_accuracy_score(label[~train], model.predict(features[~train])))

    colour = accuracy(np.array([np.r_[tile.mean((0, 1)), tile.std((0, 1))] for tile in tiles]))
    texture = accuracy(np.array([texture_of(tile) for tile in tiles]))
    assert 0.3 < colour < 0.85
    assert texture > 0.85
    assert texture > colour + 0.1


def texture_of(tile: np.ndarray) -> np.ndarray:
    """Histograms of grey and of gradient, each in units of its own spread, over four octaves."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY).astype(np.float32)
    numbers: list[np.ndarray] = []
    for _ in range(4):
        right, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        slope = np.hypot(right, down)
        level = (grey - grey.mean()) / (grey.std() + 1e-3)
        axes = np.linalg.eigvalsh(np.cov(np.stack([right.ravel(), down.ravel()])))
        numbers.append(np.histogram(slope / (slope.mean() + 1e-3), [0, 0.25, 0.5, 1, 1.5, 2, 3, 99])[0] / slope.size)
        numbers.append(np.histogram(level, [-99, -2, -1, -0.5, 0, 0.5, 1, 2, 99])[0] / level.size)
        numbers.append(np.array([axes[0] / (axes[1] + 1e-3), np.log(grey.std() + 1)]))
        grey = cv2.pyrDown(grey)
    return np.concatenate(numbers)


def test_refusals_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    for bad in ({"count": 0}, {"size_px": 100}, {"mpp": 0.0}):
        with pytest.raises(OutputError, match="synthetic slides"):
            write_slides(tmp_path / "x", **bad)
    with pytest.raises(OutputError) as refused:
        write_slides(file / "below", 1, 512)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x").exists()
