"""The foreground rule on real slides and under the disturbances that break simple thresholds."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from eosin.errors import SlideError
from eosin.slides import find_foreground, open_slide
from eosin.slides.foreground import RULES, tissue_of

GLASS = np.array([243.0, 242.0, 245.0])


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Round pieces of tissue, 600 x 600 px at 8 µm/px."""
    mask = np.zeros((600, 600), np.uint8)
    for centre, radius in (((150, 160), 90), ((420, 400), 120), ((470, 120), 30)):
        cv2.circle(mask, centre, radius, 1, -1)
    return mask > 0


@pytest.fixture(scope="module")
def density(truth: np.ndarray) -> np.ndarray:
    """Optical density of H&E-like texture inside the truth, 0 outside: [600, 600, 3]."""
    rng = np.random.default_rng(0)
    haematoxylin = np.clip(cv2.GaussianBlur(rng.normal(0, 1, truth.shape), (0, 0), 2) * 3 + 0.35, 0.02, 2)
    eosin = np.clip(cv2.GaussianBlur(rng.normal(0, 1, truth.shape), (0, 0), 4) * 3 + 0.3, 0.02, 2)
    stained = haematoxylin[..., None] * [0.65, 0.70, 0.29] + eosin[..., None] * [0.07, 0.99, 0.11]
    return stained * truth[..., None]


def scene(density: np.ndarray, glass: np.ndarray = GLASS, noise: float = 1.5) -> np.ndarray:
    shot = np.random.default_rng(1).normal(0, noise, density.shape)
    return (glass * np.exp(-density) + shot).clip(0, 255).astype(np.uint8)


def test_clean(density, truth) -> None:
    assert iou(tissue_of(scene(density), 8.0), truth) > 0.95


@pytest.mark.parametrize("glass", [[236, 231, 220], [236, 219, 234], [200, 200, 204]], ids=["warm", "lilac", "dim"])
def test_colour_of_the_glass_does_not_matter(density, truth, glass) -> None:
    assert iou(tissue_of(scene(density, np.array(glass)), 8.0), truth) > 0.94


@pytest.mark.parametrize("strength", [0.5, 0.25, 0.12])
def test_pale_tissue_is_kept(density, truth, strength) -> None:
    assert iou(tissue_of(scene(density * strength), 8.0), truth) > 0.9


def test_noise_and_compression(density, truth) -> None:
    assert iou(tissue_of(scene(density, noise=4.0), 8.0), truth) > 0.93
    coded = cv2.imencode(".jpg", scene(density), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    assert iou(tissue_of(cv2.imdecode(coded, cv2.IMREAD_COLOR), 8.0), truth) > 0.93


def test_uneven_light(density, truth) -> None:
    y, x = np.mgrid[-0.5:0.5:600j, -0.5:0.5:600j]
    shaded = scene(density) * (1 - 0.3 * (x**2 + y**2))[..., None]
    assert iou(tissue_of(shaded.astype(np.uint8), 8.0), truth) > 0.93


def test_pen_dust_and_cover_slip_are_not_tissue(density, truth) -> None:
    picture = scene(density)
    cv2.line(picture, (330, 60), (560, 90), (40, 60, 150), 12)
    cv2.line(picture, (40, 330), (200, 560), (30, 110, 60), 12)
    cv2.line(picture, (300, 20), (300, 200), (25, 25, 30), 12)
    cv2.line(picture, (20, 0), (30, 599), (205, 206, 205), 3)
    for x, y in np.random.default_rng(2).integers(0, 600, (60, 2)):
        cv2.circle(picture, (int(x), int(y)), 2, (90, 90, 90), -1)
    assert iou(tissue_of(picture, 8.0), truth) > 0.93


@pytest.mark.parametrize(
    "ink",
    [(40, 60, 150), (15, 40, 190), (30, 110, 60), (20, 160, 120), (25, 25, 30), (60, 60, 62)],
    ids=["blue", "bright blue", "green", "turquoise", "black", "grey"],
)
def test_pen_of_any_colour_is_dropped(density, truth, ink) -> None:
    """A wide stroke on glass and across the tissue: next to nothing of it is kept; under it is no tissue."""
    picture, stroke = scene(density), np.zeros(truth.shape, np.uint8)
    cv2.polylines(stroke, [np.array([[20, 300], [300, 280], [420, 400], [590, 590]])], False, 1, 14)
    picture[stroke > 0] = ink
    mask = tissue_of(picture, 8.0)
    assert mask[stroke > 0].mean() < 0.02
    assert iou(mask, truth & (stroke == 0)) > 0.9


def test_bubbles_are_not_tissue(density, truth) -> None:
    picture = scene(density).astype(np.float32)
    for x, y in np.random.default_rng(3).integers(50, 550, (8, 2)).tolist():
        disc = cv2.circle(np.zeros(truth.shape, np.float32), (x, y), 30, 0.06, -1, cv2.LINE_AA)
        picture *= 1 - cv2.circle(disc, (x, y), 30, 0.5, 3, cv2.LINE_AA)[..., None]
    assert iou(tissue_of(picture.astype(np.uint8), 8.0), truth) > 0.94


def test_mucin_inside_tissue_is_kept(density, truth) -> None:
    """A smooth pale lake, 0.7 mm wide, of the colour that a haze on the glass has too."""
    y, x = np.mgrid[:600, :600]
    lake = np.hypot(x - 420, y - 400) < 45
    mucin = np.where(lake[..., None], [0.05, 0.1, 0.03], density)
    assert tissue_of(scene(mucin), 8.0)[lake].mean() > 0.95


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.25])
def test_a_picture_full_of_tissue_is_all_tissue(density, truth, strength) -> None:
    """No glass to compare with: pale tissue is not taken for it."""
    inside = density[340:460, 340:460] * strength
    assert truth[340:460, 340:460].all()
    assert tissue_of(scene(inside), 8.0).mean() > 0.97


def test_pieces_of_real_slides_without_glass(shared_data: Path) -> None:
    """2,000 px of a slide that are all tissue."""
    with open_slide(shared_data / "slides/TCGA-CR-7395-01A-01-TS1.svs", 0.5) as slide:
        crop = slide.region(500, 900, 125, 8.0)
    assert tissue_of(crop, 8.0).mean() > 0.97


@pytest.mark.parametrize("strength", [3.0, 1.0, 0.4])
def test_brown_stain_is_tissue(density, truth, strength) -> None:
    """Diaminobenzidine, from black-brown to pale, on blue counterstain: not taken for ink."""
    amount = density.mean(axis=2, keepdims=True)
    brown = np.arange(600)[:, None, None] % 120 < 60
    dyed = amount * np.where(brown, np.array([0.6, 1.3, 1.8]) * strength, np.array([0.65, 0.70, 0.29]))
    assert iou(tissue_of(scene(dyed), 8.0), truth) > 0.93


def test_stains_that_absorb_red_most_have_a_rule(truth) -> None:
    """Dense aniline or Alcian blue has the hue of a blue pen: `density` drops it, `any-stain` keeps it."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, truth.shape), (0, 0), 3)[..., None]
    picture = scene(truth[..., None] * (1 + texture) * [1.9, 1.1, 0.25])
    assert iou(tissue_of(picture, 8.0), truth) < 0.5
    assert iou(tissue_of(picture, 8.0, "any-stain"), truth) > 0.93


def test_padding_is_not_tissue(density, truth) -> None:
    picture = scene(density)
    picture[:, :60], picture[540:, 60:] = 0, 255
    kept = truth.copy()
    kept[:, :60], kept[540:] = False, False
    assert iou(tissue_of(picture, 8.0), kept) > 0.94


def test_a_haze_of_stain_on_the_glass_is_not_tissue(density, truth) -> None:
    y, x = np.mgrid[-0.5:0.5:600j, -0.5:0.5:600j]
    haze = np.exp(-((x - 0.1) ** 2 + (y - 0.3) ** 2) / 0.03)[..., None] * [0.02, 0.1, 0.04]
    assert iou(tissue_of(scene(density + haze), 8.0), truth) > 0.92


@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 240), (236, 219, 234), (0, 0, 0)])
def test_nothing_on_the_slide_gives_an_empty_mask(colour) -> None:
    flat = np.full((300, 300, 3), colour, np.uint8)
    assert not tissue_of(flat, 8.0).any()
    noisy = flat + np.random.default_rng(0).normal(0, 3, flat.shape)
    if max(colour) not in (0, 255):
        assert not tissue_of(noisy.clip(0, 255).astype(np.uint8), 8.0).any()


@pytest.mark.parametrize("rule", ["density", "any-stain", "otsu"])
def test_bare_glass_under_uneven_light_and_compression(rule) -> None:
    x = np.linspace(0, 1, 300)[None, :, None]
    light = np.array([243, 242, 245]) * (1 - x) + np.array([236, 228, 232]) * x
    grain = np.random.default_rng(0).normal(0, 1.5, (300, 300, 3))
    picture = (light + grain).clip(0, 255).astype(np.uint8)
    for quality in (50, 80, 100):
        coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        assert not tissue_of(cv2.imdecode(coded, cv2.IMREAD_COLOR), 8.0, rule).any()


def test_rules_by_name(density, truth, pink_slide) -> None:
    """All find stained tissue on white glass; on warm glass CLAM's takes the glass, as it is known to."""
    for name in RULES:
        assert iou(tissue_of(scene(density), 8.0, name), truth) > 0.85, name
    assert tissue_of(scene(density, np.array([236, 231, 220])), 8.0, "clam").mean() > 0.9
    with open_slide(pink_slide) as slide:
        assert find_foreground(slide, rule="otsu").mm2 == pytest.approx(0.262, rel=0.1)
        with pytest.raises(SlideError, match="no foreground rule is called best; there are density"):
            find_foreground(slide, rule="best")


def test_areas_of_the_clam_rule() -> None:
    """Pieces over 0.26 mm² stay; of a piece's holes the 8 largest that are over 0.066 mm² stay open."""
    picture = np.full((600, 600, 3), 240, np.uint8)
    picture[20:580, 20:500] = (200, 120, 170)
    picture[20:70, 530:580] = (200, 120, 170)  # 0.16 mm²
    sides = [33 + number for number in range(10)] + [28]  # 0.07 to 0.11 mm², and 0.05 mm²
    corners = [(60 + 100 * (number // 4), 40 + 110 * (number % 4)) for number in range(11)]
    for (top, left), side in zip(corners, sides, strict=True):
        picture[top : top + side, left : left + side] = 240
    mask = tissue_of(picture, 8.0, "clam")
    assert not mask[40, 550]
    assert mask[30, 30]
    filled = [bool(mask[top + side // 2, left + side // 2]) for (top, left), side in zip(corners, sides, strict=True)]
    assert filled == [True, True, *[False] * 8, True]
    assert not tissue_of(np.full((50, 50, 3), 240, np.uint8), 8.0, "clam").any()


def test_label_and_macro_pictures_are_never_read(tmp_path, write_aperio, monkeypatch) -> None:
    """A slide whose label is all tissue and whose pixels are bare glass has no foreground."""
    levels = [np.full((512, 512, 3), 241, np.uint8), np.full((128, 128, 3), 241, np.uint8)]
    path = write_aperio(tmp_path / "a.svs", levels, mpp=1.0)
    pink = np.random.default_rng(0).integers(100, 200, (400, 400, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path, append=True) as file:
        for name, kind in (("label", 1), ("macro", 9)):
            text = f"Aperio Image Library v11.2.1 \r\n{name} 400x400"
            file.write(pink, photometric="rgb", description=text, metadata=None, rowsperstrip=16, subfiletype=kind)
    with openslide.OpenSlide(path) as known:
        assert set(known.associated_images) == {"label", "macro"}
    for reader in ("tiff", "openslide"):
        with open_slide(path, reader=reader) as slide:
            read, shapes = slide._read, []

            def noted(level: int, *box: int, read=read, shapes=shapes) -> np.ndarray:
                pixels = read(level, *box)
                shapes.append(np.unique(pixels))
                return pixels

            monkeypatch.setattr(slide, "_read", noted)
            assert not find_foreground(slide).mask.any()
            assert all((values == 241).all() for values in shapes)


def test_holes_and_specks_are_judged_in_mm2(density, truth) -> None:
    picture = scene(density)
    for x in (150, 420):
        cv2.circle(picture, (x, 160 if x == 150 else 400), 6 if x == 150 else 20, GLASS.tolist(), -1)
    cv2.circle(picture, (300, 300), 4, (190, 120, 170), -1)  # 0.003 mm²
    mask = tissue_of(picture, 8.0)
    assert mask[160, 150]  # a hole of 0.007 mm² is filled
    assert not mask[400, 420]  # one of 0.08 mm² stays
    assert not mask[300, 300]


def test_mask_lies_where_the_tissue_lies(pink_slide) -> None:
    with open_slide(pink_slide) as slide:
        for mpp in (4.0, 8.0, 11.3):
            found = find_foreground(slide, mpp)
            assert found.mask.shape == (int(np.ceil(1024 / mpp)),) * 2
            rows, columns = np.nonzero(found.mask)
            for index in (rows, columns):
                assert abs(index.min() * mpp - 256) < 24
                assert abs((index.max() + 1) * mpp - 768) < 24
            assert found.mm2 == pytest.approx(0.262, rel=0.1)


def test_only_a_coarse_level_is_read(pink_slide, monkeypatch) -> None:
    with open_slide(pink_slide) as slide:
        read, levels = slide._read, []
        monkeypatch.setattr(slide, "_read", lambda level, *box: levels.append(level) or read(level, *box))
        find_foreground(slide)
        assert set(levels) == {1}


# name, µm/px stated, least and most mm² by a look at the overlays
REAL = [
    ("slides/CMU-1-Small-Region.svs", None, 0.55, 0.75),
    ("slides/TCGA-CR-7395-01A-01-TS1.svs", 0.5, 2.3, 2.8),
    ("slides/1065626.svs", None, 0.15, 0.4),
    ("her2st_patientC/C2.jpg", 0.687, 6.9, 8.0),
]


@pytest.mark.parametrize(("name", "mpp", "least", "most"), REAL)
def test_real_slides(shared_data: Path, name, mpp, least, most) -> None:
    with open_slide(shared_data / name, mpp) as slide:
        assert least < find_foreground(slide).mm2 < most


def test_spots_under_tissue_are_found_and_printed_spots_are_not(shared_data: Path) -> None:
    """her2st lists the spots of its array that lie under tissue; the others shine through the bare glass."""
    folder = shared_data / "her2st_patientC"
    with open_slide(folder / "C3.jpg", mpp=0.687) as slide, open(folder / "C3_spots.tsv") as table:
        mask, mpp = find_foreground(slide)
        spots = [(float(row["pixel_x"]), float(row["pixel_y"])) for row in csv.DictReader(table, delimiter="\t")]
    columns, rows = (np.array(spots) * 0.687 / mpp).astype(int).T
    assert mask[rows, columns].mean() > 0.97
    beyond = (
        cv2.dilate(
            np.isin(np.arange(mask.size), rows * mask.shape[1] + columns).reshape(mask.shape) * np.uint8(1),
            np.ones((75, 75), np.uint8),
        )
        == 0
    )  # further than 300 µm from any such spot
    assert mask[beyond].mean() < 0.01
