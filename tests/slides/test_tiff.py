"""The direct TIFF reader: the same pixels as OpenSlide and tifffile, in every layout; windows, halves, threads."""

from __future__ import annotations

import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from eosin.errors import RegionError, SlideError, SlideGone
from eosin.slides import open_slide, tiff, tiff_cache, tiff_index, tiff_source
from eosin.slides.tiff import TiffSlide
from eosin.slides.tiff_codecs import DecodeError
from eosin.slides.tiff_index import TiffIndex, read_index
from eosin.slides.tiff_source import FileBytes, Span
from eosin.slides.tiff_tags import NotThisReader, read_directories, read_sub_directories

from .written_tiffs import KINDS, write_pyramid


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """Smooth colours, 413 x 530 px, and their means over 2 x 2 and 4 x 4 px."""
    rough = np.random.default_rng(3).integers(0, 256, (413, 530, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(rough, (0, 0), 2.5).astype(int)
    full = np.clip((smooth - 128) * 3 + 150, 0, 255).astype(np.uint8)
    return [full, *(cv2.resize(full, (530 // f, 413 // f), interpolation=cv2.INTER_AREA) for f in (2, 4))]


def level_pixels(slide: tiff.Slide, number: int) -> np.ndarray:
    return slide._read(number, 0, 0, slide.levels[number].width, slide.levels[number].height)


# OpenSlide reads JPEG 2000 in Aperio's files only
LAYOUTS = [(k, v) for k in KINDS for v in ("generic", "aperio", "ome", "philips") if k != "j2k" or v == "aperio"]


@pytest.mark.parametrize(("kind", "vendor"), LAYOUTS)
def test_pixels_are_openslide_s(tmp_path, levels, kind, vendor) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels, kind, tile=64, vendor=vendor)
    with open_slide(path, reader="tiff") as ours, open_slide(path, reader="openslide") as theirs:
        assert (ours.reader, ours.mpp_x, ours.mpp_y) == ("tiff", theirs.mpp_x, theirs.mpp_y)
        assert len(ours.levels) == 3
        for number, level in enumerate(theirs.levels):  # of OME-TIFF OpenSlide sees the first only
            assert ours.levels[number] == level
            assert np.array_equal(level_pixels(ours, number), level_pixels(theirs, number))


@pytest.mark.parametrize("kind", ["ycc-420", "j2k", "lzw"])
@pytest.mark.parametrize("words", [{"bigtiff": True}, {"byteorder": ">"}, {"byteorder": ">", "bigtiff": True}], ids=str)
def test_pixels_are_tifffile_s(tmp_path, levels, kind, words) -> None:
    """Both byte orders, both pointer sizes, sub-directories."""
    path = write_pyramid(tmp_path / "a.ome.tif", levels, kind, tile=64, vendor="ome", **words)
    with open_slide(path) as slide, tifffile.TiffFile(path) as file:
        for number, level in enumerate([file.pages.first, *file.pages.first.pages]):
            assert np.array_equal(level_pixels(slide, number), level.asarray())


def test_directories_are_tifffile_s(tmp_path, levels, shared_data: Path) -> None:
    files = [*(shared_data / "slides").glob("*.svs")]
    files += [write_pyramid(tmp_path / f"{vendor}.tif", levels, vendor=vendor) for vendor in ("philips", "ome")]
    for path in files:
        source = FileBytes(path)
        with tifffile.TiffFile(path) as file:
            found = read_directories(source)
            assert len(found) == len(file.pages)
            found += read_sub_directories(source, found[0])
            pages = [*file.pages, *(file.pages.first.pages or ())]
            for ours, page in zip(found, pages, strict=True):
                assert (ours.number(256, 0), ours.number(257, 0)) == (page.imagewidth, page.imagelength)
                assert ours.text(270) == page.description
                assert ours.data(347) == (page.jpegtables or b"")
                if page.is_tiled:
                    assert tuple(ours.numbers(324)) == page.dataoffsets
                    assert tuple(ours.numbers(325)) == page.databytecounts


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("CMU-1-Small-Region.svs", "tiff"),
        ("TCGA-CR-7395-01A-01-TS1.svs", "tiff"),
        ("1065626.svs", "openslide"),  # JPEG 2000 of subsampled YCbCr
    ],
)
def test_real_slides_at_their_own_scale(shared_data: Path, name, reader) -> None:
    path = shared_data / "slides" / name
    direct = openslide.OpenSlide(path)
    with open_slide(path, 0.5) as slide:
        assert slide.reader == reader
        for x, y in ((0, 0), (613, 871), (slide.width - 300, slide.height - 200), (1200, 1531)):
            theirs = np.asarray(direct.read_region((x, y), 0, (300, 200)))[..., :3]
            assert np.array_equal(slide.region(x, y, (300, 200), 0.5), theirs)


def test_coarse_levels_are_stored_pixels_and_sharper_than_openslide_s(shared_data: Path) -> None:
    """OpenSlide interpolates where x / 2.0005 is not whole; Laplacian variance tells."""
    path = shared_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    direct = openslide.OpenSlide(path)
    with tifffile.TiffFile(path) as file:
        stored = file.pages[2].asarray()
    sharp = []
    with open_slide(path, 0.5) as slide:
        for x, y in ((1601, 1203), (2205, 807), (1001, 2101)):
            ours = slide.region(x, y, 256, 1.0)
            column, row = (int(np.floor(at / 2 + 0.5)) for at in (x, y))
            assert np.array_equal(ours, stored[row : row + 256, column : column + 256])
            theirs = np.asarray(direct.read_region((x, y), 1, (256, 256)))[..., :3]
            sharp.append([cv2.Laplacian(np.ascontiguousarray(a[..., 1]), cv2.CV_64F).var() for a in (ours, theirs)])
    ours, theirs = np.mean(sharp, axis=0)
    assert ours > 1.3 * theirs


@pytest.mark.parametrize("mpp", [0.25, 0.29, 0.5, 0.77, 1.0, 1.9])
def test_any_scale_is_the_area_average_of_a_stored_level(tmp_path, levels, mpp) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels, "deflate", tile=64)
    factor = max(factor for factor in (1, 2, 4) if factor * 0.25 <= mpp)
    level, scale = levels[(1, 2, 4).index(factor)].astype(np.float64), mpp / 0.25 / factor
    with open_slide(path, reader="tiff") as slide:
        for x, y in ((60, 40), (101.3, 73.9)):
            found = slide.region(x, y, 40, mpp)
            if scale == 1.0:
                left, top = (int(np.floor(at / factor + 0.5)) for at in (x, y))
                assert np.array_equal(found, level[top : top + 40, left : left + 40])
                continue
            down, across = (
                _shares(at / factor, scale, 40, size) for at, size in zip((y, x), level.shape, strict=False)
            )
            wanted = np.tensordot(np.tensordot(down, level, 1), across, ([1], [1])).transpose(0, 2, 1) / scale**2
            assert np.abs(found - wanted).max() <= 0.51


def _shares(start: float, scale: float, size: int, length: int) -> np.ndarray:
    """How much of each source pixel each output pixel covers: float64 [size, length]."""
    edges, source = start + scale * np.arange(size + 1), np.arange(length)
    return np.clip(np.minimum(source + 1, edges[1:, None]) - np.maximum(source, edges[:-1, None]), 0, None)


def test_a_missing_level_comes_from_half_decoded_tiles(tmp_path, shared_data: Path) -> None:
    """On real tissue within 1.5 grey levels in the mean of the area average of full decodes; 2.6 between the scales."""
    image = cv2.imread(str(next((shared_data / "monuseg_train" / "images").glob("*.png"))))[..., ::-1]
    quarter = cv2.resize(image, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    for kind in ("ycc-420", "ycc-422", "rgb-jpeg"):
        path = write_pyramid(tmp_path / f"{kind}.svs", [image, quarter], kind, tile=240, vendor="aperio")
        with open_slide(path, reader="tiff") as halved, TiffSlide(path, halve=False) as full:
            assert [level.downsample_x for level in halved.halved_levels] == [2, 8]
            assert full.halved_levels == ()
            for x, y, mpp, most in ((0, 0, 0.5, 1.5), (130, 76, 0.5, 1.5), (40.5, 90.25, 0.6, 2.6)):
                a, b = (slide.region(x, y, 380, mpp).astype(float) for slide in (halved, full))
                assert np.abs(a - b).mean() < most
                assert 10 * np.log10(255**2 / ((a - b) ** 2).mean()) > 43 - 2.5 * most
            assert np.array_equal(halved.region(96, 48, 90, 1.0), full.region(96, 48, 90, 1.0))  # stored: as it is


def test_an_odd_last_pixel_stays_out_of_a_halved_level(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.tif", [levels[0][:401, :501] // 2], "rgb-jpeg", tile=64, quality=95)
    with open_slide(path, reader="tiff") as slide:
        half = slide.halved_levels[0]
        assert (half.width, half.height) == (250, 200)
        assert slide.region(480, 0, 20, 0.5)[:, :10].max() < 140
        assert np.all(slide.region(480, 0, 20, 0.5)[:, 10:] == 255)


def test_tiles_without_bytes_are_white(tmp_path, levels) -> None:
    for vendor in ("generic", "philips"):
        images = [levels[0][:384, :512], levels[1][:192, :256]]
        path = write_pyramid(tmp_path / "a.tif", images, tile=64, vendor=vendor, missing=[(0, 2), (1, 1)])
        with open_slide(path, reader="tiff") as slide:
            assert np.all(slide.region(128, 0, 64, 0.25) == 255)
            assert np.all(slide.region(128, 0, 64, 0.5) == 255)
            assert slide.region(64, 0, 64, 0.25).std() > 5


def test_openslide_fills_the_tiles_that_aperio_left_out(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.svs", levels, vendor="aperio", tile=64, missing=[(1, 1)])
    with open_slide(path) as slide:
        assert slide.reader == "openslide"
        assert slide.region(128, 0, 64, 0.5).std() > 5


def test_other_pixels_are_left_to_other_readers(tmp_path, levels) -> None:
    deep = tmp_path / "deep.tif"
    tifffile.imwrite(deep, levels[0].astype(np.uint16), tile=(64, 64), photometric="rgb", metadata=None)
    strips = tmp_path / "strips.tif"
    tifffile.imwrite(strips, levels[0], photometric="rgb", rowsperstrip=32, metadata=None)
    planes = tmp_path / "planes.tif"
    tifffile.imwrite(
        planes, levels[0].transpose(2, 0, 1), tile=(64, 64), photometric="rgb", planarconfig=2, metadata=None
    )
    for path in (deep, strips, planes):
        with pytest.raises(NotThisReader):
            read_index(FileBytes(path))
        with pytest.raises(SlideError, match="not a tiled TIFF that is read directly"):
            open_slide(path, 0.5, reader="tiff")
    with open_slide(strips, 0.5) as slide:
        assert slide.reader == "image"


def test_rgb_jpeg_with_a_header_that_says_otherwise(tmp_path, levels) -> None:
    """JFIF means YCbCr to a decoder; the directory says RGB and is right."""
    plain = write_pyramid(tmp_path / "a.svs", levels[:1], "rgb-jpeg", tile=64, vendor="aperio")
    with TiffSlide(plain) as slide:
        plan, wanted = slide._plans[0], slide.region(0, 0, 64, 0.25)
        data = slide._source.read([(int(plan.stored.offsets[0]), int(plan.stored.counts[0]))])[0]
    header = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
    assert np.array_equal(plan.decoder.decode(data[:2] + header + data[2:]), wanted)
    assert np.array_equal(plan.decoder.decode(data[:-2]), wanted)  # the end marker may be missing


def test_an_index_is_kept_as_bytes(tmp_path, levels, monkeypatch) -> None:
    for vendor in ("aperio", "ome"):
        path = write_pyramid(tmp_path / "a.tif", levels, tile=64, vendor=vendor, missing=[(0, 5)])
        with TiffSlide(path) as slide:
            packed, wanted = slide.packed_index(), slide.region(31, 17, 200, 0.4)
        assert len(packed) < 4 * 90 + 1000
        with monkeypatch.context() as patch:
            patch.setattr(tiff, "read_index", lambda _: pytest.fail("the directories were read again"))
            with open_slide(path, reader="tiff", index=packed) as slide:
                assert np.array_equal(slide.region(31, 17, 200, 0.4), wanted)
        unpacked, read = TiffIndex.unpack(packed), read_index(FileBytes(path))
        assert unpacked.pack() == read.pack() == packed
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(SlideGone):
        open_slide(path, reader="tiff", index=packed)
    none = packed[:14] + zlib.compress(zlib.decompress(packed[14:]).replace(b'"tile_width": 64', b'"tile_width": 0 '))
    for damaged in (b"", packed[:40], packed[:-9], b"eosin tiles 0\n" + packed[14:], none):
        with pytest.raises(SlideError, match="index again"):
            TiffIndex.unpack(damaged)
    monkeypatch.setattr(tiff_index, "_MOST_UNPACKED", 100)
    with pytest.raises(SlideError, match="too large"):
        TiffIndex.unpack(packed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "jpeg" in kind or "ycc" in kind or "grey" in kind])
def test_upper_rows_are_those_of_the_whole_tile(tmp_path, levels, kind) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels[:1], kind, tile=64)
    with open_slide(path, reader="tiff") as slide:
        plan = slide._plans[0]
        data = slide._bytes(plan, [10])[0]
        for half in (False, True):
            whole = plan.decoder.decode(data, half)
            for rows in range(1, len(whole) + 1):
                upper = plan.decoder.decode(data, half, rows)
                assert np.array_equal(upper[:rows], whole[:rows])
                assert (len(upper) < len(whole)) == ((rows << half) + 4 <= 64 - 16)
        for mpp in (0.25, 0.41, 0.5, 0.6):
            alone = slide.region(37, 41, 90, mpp)
            assert np.array_equal(alone, slide.region(37, 41, 90, mpp, whole_tiles=True))


def test_upper_rows_of_a_damaged_tile(tmp_path, levels) -> None:
    """Cut off below what shows: read. Cut off within: told of. Asked for whole tiles, all of it has to be there."""
    path = write_pyramid(tmp_path / "a.tif", levels[:1], "ycc-420", tile=64)
    with TiffSlide(path) as slide:
        plan = slide._plans[0]
        data = slide._bytes(plan, [0])[0]
        whole = plan.decoder.decode(data)
        header = data.find(b"\xff\xda")
        kept = header + (len(data) - header) * 9 // 10
        late, early = data[:kept], data[: header + 60]
        assert np.array_equal(plan.decoder.decode(late, rows=20)[:20], whole[:20])
        for damaged, rows in ((late, None), (late, 60), (early, 20), (data[:header], 20), (data[: header // 2], 20)):
            with pytest.raises(DecodeError):
                plan.decoder.decode(damaged, rows=rows)


def test_without_pread_threads_read_the_same(tmp_path, levels, monkeypatch) -> None:
    """Windows has no pread."""
    path = write_pyramid(tmp_path / "a.tif", levels, tile=64)
    corners = [(x, y) for x in range(0, 400, 37) for y in range(0, 300, 41)]
    with open_slide(path, reader="tiff") as slide, ThreadPoolExecutor(4) as pool:
        wanted = [slide.region(*corner, 64, 0.25) for corner in corners]
        tiff_cache.shared.clear()
        monkeypatch.setattr(tiff_source, "_pread", tiff_source._seek_and_read)
        found = list(pool.map(lambda corner: slide.region(*corner, 64, 0.25), corners))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ["ycc-420", "deflate"])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.7, 1.0])
def test_a_window_holds_the_regions_cut_from_it(tmp_path, levels, kind, mpp, monkeypatch) -> None:
    path = write_pyramid(tmp_path / "a.tif", [levels[0], levels[2]], kind, tile=64)
    decoded = []
    decode = TiffSlide._decoded
    monkeypatch.setattr(TiffSlide, "_decoded", lambda self, *words: decoded.append(words[1]) or decode(self, *words))
    with open_slide(path, reader="tiff") as slide:
        number = slide.level_for(mpp, 1.0)
        for x, y in ((0, 0), (211, 158), (529, 412)):
            tiff_cache.shared.clear()
            decoded.clear()
            window = slide.read_window(x, y, 50, mpp)
            assert len(decoded) == len(set(decoded))  # each stored tile once, and no tile for a part only
            tile, level = slide.tile_size(number), slide._readable[number]
            assert (window.x / level.downsample_x) % tile[0] == (window.y / level.downsample_y) % tile[1] == 0
            rows, columns = window.pixels.shape[:2]
            assert min(rows, columns) >= 50
            assert len(decoded) <= (columns * mpp / 0.25 / level.downsample_x / tile[0] + 1.1) * (
                rows * mpp / 0.25 / level.downsample_y / tile[1] + 1.1
            )
            for left, top in ((0, 0), (columns - 40, rows - 40), (3, 7)):
                alone = slide.region(window.x + left * mpp / 0.25, window.y + top * mpp / 0.25, 40, mpp)
                cut = window.pixels[top : top + 40, left : left + 40]
                assert np.abs(alone.astype(int) - cut).max() <= (0 if mpp in (0.25, 0.5, 1.0) else 1)
        with pytest.raises(RegionError):
            slide.read_window(0, 0, 0, mpp)


def test_a_window_of_a_small_slide_is_the_slide(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels[:1], "raw", tile=64)
    for reader in ("tiff", "openslide"):
        with open_slide(path, reader=reader) as slide:
            window = slide.read_window(300, 300, 4000, 0.25)
            assert (window.x, window.y, window.pixels.shape) == (0, 0, (413, 530, 3))
            assert slide.tile_size(0) == (64, 64)


def test_threads_share_a_slide(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels, tile=64)
    boxes = [(x, y, mpp) for x in range(0, 400, 37) for y in range(0, 300, 41) for mpp in (0.25, 0.37, 0.5)]
    with open_slide(path, reader="tiff") as slide:
        alone = [slide.region(x, y, 48, mpp) for x, y, mpp in boxes]
        tiff_cache.shared.clear()
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda box: slide.region(box[0], box[1], 48, box[2]), boxes))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_kept_tiles_are_bounded_in_bytes_and_shared(tmp_path, levels) -> None:
    cache = tiff_cache.TileCache(limit=10 * 64 * 64 * 3)
    tile = np.zeros((64, 64, 3), np.uint8)
    for number in range(30):
        cache.put((0, 0, number), tile)
        cache.put((0, 0, number), tile)
        assert cache.held <= cache.limit
    assert [found is not None for found in cache.get([(0, 0, 19), (0, 0, 20), (0, 0, 29)])] == [False, True, True]
    cache.put((1, 0, 0), tile)  # in the place of 21: 20 was asked for
    assert [found is not None for found in cache.get([(0, 0, 20), (0, 0, 21)])] == [True, False]
    cache.drop(0)
    assert cache.held == tile.nbytes
    cache.put((2, 0, 0), np.zeros(11 * tile.nbytes, np.uint8))
    assert cache.held == tile.nbytes

    path = write_pyramid(tmp_path / "a.tif", levels, tile=64)
    tiff_cache.shared.clear()
    with open_slide(path, reader="tiff") as slide:
        first = slide.region(10, 10, 20, 0.25)
        assert tiff_cache.shared.held == 0  # decoded in part
        first = slide.region(10, 10, 20, 0.25, whole_tiles=True)
        first[:] = 0  # what is handed out is a copy
        assert slide.region(10, 10, 20, 0.25).any()
        assert tiff_cache.shared.held == 64 * 64 * 3
    assert tiff_cache.shared.held == 0


def test_a_closed_slide_is_not_read(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.tif", levels, tile=64)
    slide = open_slide(path, reader="tiff")
    slide.close()
    with open(path, "rb"), pytest.raises(SlideError, match="cannot be read"):
        slide.region(0, 0, 10, 0.25)


def test_only_tiles_of_the_pyramid_are_read(shared_data: Path, monkeypatch) -> None:
    """Label and macro may show a patient's name: their bytes are never asked for."""
    path = shared_data / "slides" / "CMU-1-Small-Region.svs"
    spans: list[Span] = []
    read = FileBytes.read
    monkeypatch.setattr(FileBytes, "read", lambda self, wanted: spans.extend(wanted) or read(self, wanted))
    with open_slide(path) as slide:
        assert slide.reader == "tiff"
        slide.whole(slide.mpp)
    with tifffile.TiffFile(path) as file:
        others = [page for page in file.pages if not page.is_tiled]
        assert len(others) == 3
        for page in others:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                assert all(end <= offset or start >= offset + count for start, end in ((s, s + n) for s, n in spans))


@pytest.mark.parametrize(
    ("edit", "mpp"),
    [
        ((b'PhysicalSizeX="0.25"', b'PhysicalSizeX="0.50"'), (0.5, 0.25)),
        ((b'PhysicalSizeX="0.25"', b'PhysicalSizeX="2,50"'), (2.5, 0.25)),
        ((b'SizeX="530"', b'SizeX="531"'), (0.25, 0.25)),  # not this image: the resolution tag counts
    ],
)
def test_scale_of_ome_tiff(tmp_path, levels, edit, mpp) -> None:
    path = write_pyramid(tmp_path / "a.ome.tif", levels, "raw", vendor="ome", tile=64)
    path.write_bytes(path.read_bytes().replace(*edit))
    with open_slide(path, reader="tiff") as slide:
        assert (slide.mpp_x, slide.mpp_y) == mpp


def test_philips_levels_lose_their_padding(tmp_path) -> None:
    sizes = [(768, 1024), (384, 512), (256, 256), (128, 128)]  # whole tiles of 128; true sizes halve
    images = [np.full((*size, 3), 30 * number, np.uint8) for number, size in enumerate(sizes)]
    path = write_pyramid(tmp_path / "a.tiff", images, "ycc-420", vendor="philips", mpp=0.5)
    theirs = openslide.OpenSlide(path)
    with open_slide(path, reader="tiff") as slide:
        assert [(level.width, level.height) for level in slide.levels] == list(theirs.level_dimensions)
        assert [level.downsample_x for level in slide.levels] == [1, 2, 4, 8]
        assert (slide.vendor, slide.mpp) == ("philips", 0.5)


def test_an_unbelievable_scale_is_refused(tmp_path, levels) -> None:
    for vendor, stated in (("aperio", None), ("aperio", 0.0), ("generic", None), ("ome", None)):
        path = write_pyramid(tmp_path / "scale.tif", levels, vendor=vendor, mpp=stated, tile=64)
        with pytest.raises(SlideError, match=r"scale\.tif.*µm/px.*--mpp-csv"):
            open_slide(path, reader="tiff")
        with open_slide(path, 0.5, reader="tiff") as slide:
            assert slide.mpp == 0.5


def test_readers_by_name(tmp_path, levels) -> None:
    path = write_pyramid(tmp_path / "a.svs", levels, vendor="aperio", tile=64)
    for reader in ("tiff", "openslide"):
        with open_slide(path, reader=reader) as slide:
            assert slide.reader == reader
    with pytest.raises(SlideError, match="no reader is called bioformats"):
        open_slide(path, reader="bioformats")
    shutil.copy(path, tmp_path / "b.txt")
    with open_slide(tmp_path / "b.txt") as slide:
        assert slide.reader == "tiff"
