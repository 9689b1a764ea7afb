"""Plain TIFF, PNG and JPEG as slides: pixels, in-memory levels, refusals."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from eosin.errors import SlideError
from eosin.slides import open_slide


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (1101, 703, 3), dtype=np.uint8)
    return cv2.GaussianBlur(rough, (0, 0), 3)


def test_lossless_files_give_their_pixels(tmp_path, pixels) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "strips.tif", pixels, photometric="rgb", rowsperstrip=64, compression="deflate")
    tifffile.imwrite(tmp_path / "planar.tif", pixels.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("a.png", "strips.tif", "planar.tif"):
        with open_slide(tmp_path / name, mpp=0.5) as slide:
            assert (slide.reader, slide.width, slide.height, slide.mpp) == ("image", 703, 1101, 0.5)
            assert np.array_equal(slide.region(0, 0, (703, 1101), 0.5), pixels), name


def test_jpeg_is_decoded_as_pillow_does(tmp_path, pixels) -> None:
    for mode in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(pixels).convert(mode).save(path, quality=90)
        with open_slide(path, mpp=0.5) as slide:
            assert np.array_equal(slide.region(0, 0, (703, 1101), 0.5), np.asarray(Image.open(path).convert("RGB")))


def test_coarse_levels_are_means(tmp_path, pixels) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert [(level.width, level.height) for level in slide.levels] == [
            (703, 1101),
            (352, 551),
        ]
        found = slide.region(40, 80, 100, 2.0)
        exact = pixels[80:480, 40:440].reshape(100, 4, 100, 4, 3).mean(axis=(1, 3))
        assert np.abs(found - exact).max() <= 1.01  # rounded twice
        last = slide.region(700, 1096, 2, 1.0)  # the odd last column is repeated, not mixed with white
        assert np.abs(last[0, 1] - pixels[1096:1098, 702].mean(axis=0)).max() <= 1


def test_transparency_is_white(tmp_path) -> None:
    layer = np.zeros((300, 300, 4), np.uint8)
    layer[:150] = (10, 20, 30, 255)
    Image.fromarray(layer).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", layer, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        with open_slide(tmp_path / name, mpp=1.0) as slide:
            found = slide.region(0, 0, 300, 1.0)
            assert np.all(found[:150] == (10, 20, 30))
            assert np.all(found[150:] == 255)


def test_decoding_waits_for_the_first_read(tmp_path, pixels) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(pixels).save(path, quality=90)
    path.write_bytes(path.read_bytes()[:-20_000])
    with open_slide(path, mpp=0.5) as slide, pytest.raises(SlideError, match=r"cut\.jpg: cannot be decoded"):
        slide.region(0, 0, 10, 0.5)


def test_scale_of_a_plain_tiff_comes_from_a_scanner_s_tag_only(tmp_path, pixels) -> None:
    small = pixels[:200, :200]
    for name, resolution, unit, mpp in (
        ("cm.tif", 20000, 3, 0.5),
        ("inch.tif", 25400 / 0.25, 2, 0.25),
        ("print.tif", 300, 2, None),
        ("film.tif", 4800, 2, None),
        ("unitless.tif", 20000, 1, None),
    ):
        path = tmp_path / name
        words = {"resolution": (resolution, resolution), "resolutionunit": unit}
        tifffile.imwrite(path, small, photometric="rgb", metadata=None, **words)
        if mpp is None:
            with pytest.raises(SlideError, match="does not say its µm/px; state it with --mpp-csv"):
                open_slide(path)
        else:
            with open_slide(path) as slide:
                assert slide.mpp == pytest.approx(mpp, rel=1e-5)
    Image.fromarray(small).save(tmp_path / "dense.png", dpi=(50800, 50800))
    with pytest.raises(SlideError, match="does not say"):
        open_slide(tmp_path / "dense.png")


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    (tmp_path / "bomb.png").write_bytes(start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    with pytest.raises(SlideError, match=r"bomb\.png.*too large.*pyramidal TIFF"):
        open_slide(tmp_path / "bomb.png", mpp=0.5)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_other_depths_are_refused(tmp_path, dtype) -> None:
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), dtype), photometric="rgb")
    with pytest.raises(SlideError, match="8-bit"):
        open_slide(path, mpp=0.5)
    Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SlideError, match="8 bits"):
        open_slide(tmp_path / "deep.png", mpp=0.5)


def test_real_jpeg_region(shared_data: Path) -> None:
    with open_slide(shared_data / "her2st_patientC" / "C2.jpg", mpp=0.687) as slide:
        assert (slide.width, slide.height) == (9274, 9911)
        tile = slide.region(5000.4, 5200.7, 224, 1.0)
        coarse = slide.region(5000.4, 5200.7, 28, 8.0)
    assert tile.std() > 20
    means = tile.reshape(28, 8, 28, 8, 3).mean(axis=(1, 3))
    shift, peak = cv2.phaseCorrelate(means.mean(axis=2), coarse.mean(axis=2))
    assert peak > 0.9
    assert np.hypot(*shift) < 0.2
    assert np.abs((means - coarse).mean(axis=(0, 1))).max() < 1  # no level is brighter than another
