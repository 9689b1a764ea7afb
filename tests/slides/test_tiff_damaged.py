"""Damaged slides, opened, read and indexed: one-line errors or pixels; no crash, no hang, no flood of memory."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile

from eosin.errors import SlideError
from eosin.slides import open_slide, tiff_cache
from eosin.slides.index import Job, read_slide
from eosin.slides.tiff_codecs import Coding, DecodeError, Decoder
from eosin.slides.tiff_index import read_index
from eosin.slides.tiff_source import FileBytes
from eosin.slides.tiff_tags import IMAGE_LENGTH, NotThisReader

from .mutated import MUTATIONS, circle, entries
from .written_tiffs import write_pyramid

SOURCES = (
    ("ycc-420", "aperio"),
    ("rgb-jpeg", "generic"),
    ("j2k", "aperio"),
    ("lzw", "generic"),
    ("deflate", "philips"),
)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    rough = np.random.default_rng(3).integers(0, 256, (413, 530, 3), dtype=np.uint8)
    full = cv2.GaussianBlur(rough, (0, 0), 2.5)
    levels = [full, *(cv2.resize(full, (530 // f, 413 // f), interpolation=cv2.INTER_AREA) for f in (2, 4))]
    folder = tmp_path_factory.mktemp("whole")
    return [
        write_pyramid(folder / f"{kind}-{vendor}.tif", levels, kind, tile=64, vendor=vendor).read_bytes()
        for kind, vendor in SOURCES
    ]


def mutants(whole_files: list[bytes], count: int, seed: int) -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        data = bytearray(whole_files[number % len(whole_files)])
        mutation = MUTATIONS[number % len(MUTATIONS)]
        mutation(data, rng)
        made.append((f"{number}-{mutation.__name__}", bytes(data)))
    return made


def examine(path: Path) -> str:
    """What becomes of a file: "read" or the class of its error. Anything but a SlideError of one line is raised."""
    row = read_slide(Job("x", str(path), 0.5, "key"))
    assert row["status"] == "ok" or (str(path) in row["error"] and "\n" not in row["error"])
    if row["status"] == "error":
        # an error that is no SlideError shows its class there: a defect of ours, kept out of the way of other slides
        assert not row["error"].split(": ")[1].endswith(("Error", "Exception", "error")), row["error"]
    try:
        with open_slide(path, 0.5) as slide:
            for mpp in (0.5, 0.77, 1.0, 2.0):
                slide.region(3, 5, 90, mpp)
            slide.read_window(100, 100, 128, 0.5)
    except SlideError as error:
        return type(error).__name__ if "\n" not in str(error) else "error of several lines"
    return "read"


def test_damaged_slides_are_told_of_or_read(tmp_path, whole_files) -> None:
    fates = []
    for name, data in mutants(whole_files, 45, seed=1):
        path = tmp_path / f"{name}.tif"
        path.write_bytes(data)
        fates.append(examine(path))
    assert set(fates) <= {"read", "SlideError", "RegionError"}
    assert 15 < fates.count("SlideError") <= 45


RUN = """
import sys, faulthandler, resource, signal
from pathlib import Path
faulthandler.enable()
faulthandler.register(signal.SIGPROF, chain=True)
sys.path.insert(0, sys.argv[1])
from slides.test_tiff_damaged import examine
for name in sys.stdin:
    signal.setitimer(signal.ITIMER_PROF, 60)  # processor time: a busy machine is no hang
    print(name.strip(), examine(Path(name.strip())), flush=True)
print("done", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True)
"""


@pytest.mark.slow
def test_five_hundred_damaged_slides(tmp_path, whole_files) -> None:
    """In a process of their own, so that a crash would be seen; its memory stays under 2 GB."""
    paths = []
    for name, data in mutants(whole_files, 500, seed=2):
        paths.append(tmp_path / f"{name}.tif")
        paths[-1].write_bytes(data)
    told = subprocess.run(
        [sys.executable, "-c", RUN, str(Path(__file__).parents[1])],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
    )
    lines = told.stdout.splitlines()
    assert told.returncode == 0, told.stderr[-2000:]
    assert len(lines) == 501
    assert int(lines[-1].split()[1]) < 2000
    assert sum("SlideError" in line for line in lines) > 150


def test_directories_in_a_circle_end(tmp_path, whole_files) -> None:
    data = bytearray(whole_files[0])
    circle(data, np.random.default_rng(0))
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(NotThisReader, match="circle"):
        read_index(FileBytes(tmp_path / "a.tif"))


def test_a_file_that_was_cut_is_told_of_before_it_is_read(tmp_path, whole_files) -> None:
    path = tmp_path / "a.svs"
    first = tifffile.TiffFile(write_head_first(tmp_path / "b.svs"))
    end = max(np.add(first.pages[0].dataoffsets, first.pages[0].databytecounts))
    path.write_bytes((tmp_path / "b.svs").read_bytes()[: end - 10])
    with open_slide(path, reader="tiff") as slide:
        assert slide.damage == "truncated: 1 of its tiles lie past the end of the file"
        with pytest.raises(SlideError, match="truncated"):
            slide.region(slide.width - 8, slide.height - 8, 8, 0.25)
    assert read_slide(Job("x", str(path), None, "key"))["error"].endswith("copy it again")


def test_a_file_that_lost_its_directories_is_told_of(tmp_path) -> None:
    """Scanners write the directories last: of a copy that broke off only tiles are there."""
    path = tmp_path / "a.svs"
    path.write_bytes(b"II*\0" + struct.pack("<I", 200_000) + bytes(50_000))
    for reader in (None, "tiff"):
        with pytest.raises(SlideError, match=r"a\.svs: truncated: .* copy it again"):
            open_slide(path, reader=reader)
    assert "a.svs: truncated" in read_slide(Job("x", str(path), 0.5, "key"))["error"]


def write_head_first(path: Path) -> Path:
    """One level whose tiles come behind its directory."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return write_pyramid(path, [pixels], "ycc-420", tile=64, vendor="aperio")


def coding(compression: int, tile: int = 64, photometric: int = 2) -> Coding:
    return Coding(tile, tile, compression, photometric, 3, False, b"")


def test_bombs_are_refused_by_their_headers() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zeros = zlib.compress(bytes(200_000_000), 9)
    for compression in (8, 32946):
        with pytest.raises(DecodeError):
            Decoder(coding(compression)).decode(zeros)
    with pytest.raises(DecodeError):
        Decoder(coding(8)).decode(zlib.compress(bytes(100)))
    with pytest.raises(DecodeError):
        Decoder(coding(50000)).decode(imagecodecs.zstd_encode(bytes(40_000_000)))
    long = imagecodecs.lzw_encode(bytes(40_000_000))  # cut where the tile is full, as every reader does
    assert Decoder(coding(5)).decode(long).shape == (64, 64, 3)
    large = np.zeros((128, 128, 3), np.uint8)
    for compression, data in (
        (7, imagecodecs.jpeg8_encode(large)),
        (33005, imagecodecs.jpeg2k_encode(large, codecformat="j2k")),
    ):
        with pytest.raises(DecodeError, match="128"):
            Decoder(coding(compression)).decode(data)
        with pytest.raises(DecodeError):
            Decoder(coding(compression)).decode(data[:30])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB; the zeros alone take 200,000


def test_a_damaged_tile_is_told_of_and_the_others_are_read(tmp_path) -> None:
    path = write_head_first(tmp_path / "a.svs")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[3], file.pages.first.databytecounts[3]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    with open_slide(path, reader="tiff") as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match=r"a\.svs: damaged: tile 1, 1 of 128x128 px cannot be decoded"):
                slide.region(0, 0, 128, 0.25)
        assert slide.region(0, 0, (128, 64), 0.25).std() > 10
    tiff_cache.shared.clear()


def test_a_level_of_another_shape_is_not_read(tmp_path, whole_files) -> None:
    """OpenSlide takes a coarse level of 132 x 1,048,576 px; reading it would take gigabytes."""
    data = bytearray(whole_files[0])
    heights = [place for place, tag, *_ in entries(data) if tag == IMAGE_LENGTH]
    struct.pack_into("<HII", data, heights[2] + 2, 4, 1, 1 << 20)
    (tmp_path / "a.svs").write_bytes(data)
    with open_slide(tmp_path / "a.svs") as slide:
        assert (slide.reader, slide.levels[2].height) == ("openslide", 1 << 20)
        assert slide.whole(8.0).shape == (13, 17, 3)
