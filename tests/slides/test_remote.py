"""Slides behind a server: the same pixels in few requests, every fault mended or told in one line, nothing leaked."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from eosin.errors import CohortError, EosinError, SlideError, SlideGone, StoreDown
from eosin.slides import open_slide, remote, remote_source, tiff_cache
from eosin.slides.remote_errors import told
from eosin.slides.remote_listing import find_remote
from eosin.slides.remote_source import RemoteBytes, merged
from eosin.slides.uri import Uri

from .stores import RangeServer
from .written_tiffs import write_pyramid

pytest.importorskip("obstore", reason="pip install 'eosin[s3]'")

SLIDE = "/study/a.tif"
QUICK = {
    "max_retries": 3,
    "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}


@pytest.fixture(scope="module")
def levels() -> list[np.ndarray]:
    """Smooth colours, 826 x 1060 px, and their means over 4 x 4 px."""
    rough = np.random.default_rng(3).integers(0, 256, (826, 1060, 3), dtype=np.uint8)
    full = np.clip((cv2.GaussianBlur(rough, (0, 0), 2.5).astype(int) - 128) * 3 + 150, 0, 255).astype(np.uint8)
    return [full, cv2.resize(full, (265, 206), interpolation=cv2.INTER_AREA)]


@pytest.fixture(scope="module")
def local(levels, tmp_path_factory) -> Path:
    return write_pyramid(tmp_path_factory.mktemp("local") / "a.tif", levels, tile=64, vendor="aperio")


@pytest.fixture
def server(local: Path):
    with RangeServer({SLIDE: local.read_bytes()}) as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A store that asks again at once; an index cache of the test's own; no credentials of whoever runs it."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EOSIN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("EOSIN_ALLOW_HTTP", "1")
    monkeypatch.setattr(remote, "RETRIES", QUICK)
    remote._store.cache_clear()
    tiff_cache.shared.clear()
    yield
    remote._store.cache_clear()
    remote._process = None  # later tests of this process fork: their children read files


def uri_of(server: RangeServer, path: str = SLIDE) -> str:
    return f"http://{server.place}{path}"


def through_s3(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same file asked for as an S3 client does."""
    told = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "S3CRET", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    for name, value in (told | {"ENDPOINT_URL": f"http://{server.place}"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    return f"s3:/{SLIDE}"


def test_pixels_are_those_of_the_local_file_and_requests_are_few(server, local) -> None:
    with open_slide(uri_of(server)) as far, open_slide(local, reader="tiff") as near:
        assert (far.reader, far.vendor, far.mpp, far.levels) == ("tiff", near.vendor, near.mpp, near.levels)
        assert (str(far.path), far.path.name, far.path.stem) == (uri_of(server), "a.tif", "a")
        # the head, 2 directories of a few hundred bytes, their values, the first tile of each level
        assert len(server.asked) <= 1 + 2 * 2 + 2 * 2 + 2
        assert server.bytes < 16_000
        for x, y, size, mpp in ((0, 0, 64, 0.25), (100, 71, 256, 0.25), (900.5, 700, 200, 0.37), (-30, -30, 99, 1.0)):
            server.asked.clear()
            assert np.array_equal(far.region(x, y, size, mpp), near.region(x, y, size, mpp))
            tiles = (size * mpp / 0.25 / 64 + 2) if mpp < 1 else 4
            assert len(server.asked) <= tiles  # one for each row of tiles
        server.asked.clear()
        assert np.array_equal(far.whole(1.0), near.whole(1.0))
        assert len(server.asked) <= 2  # the coarse level lies in one piece; some of it is kept


def test_a_window_costs_one_request_a_row_of_tiles_and_little_more_bytes_than_its_tiles(server, local) -> None:
    with open_slide(uri_of(server)) as far, open_slide(local, reader="tiff") as near:
        server.asked.clear()
        window, wanted = far.read_window(400, 300, 192, 0.25), near.read_window(400, 300, 192, 0.25)
        assert np.array_equal(window.pixels, wanted.pixels)
        rows, columns = (side // 64 for side in window.pixels.shape[:2])
        counts = far._index.levels[0].counts
        assert len(server.asked) == rows
        assert server.bytes <= rows * columns * counts.max() + rows * remote_source.GAP
        far.region(410, 310, 100, 0.25)
        assert len(server.asked) == rows  # its tiles are kept


def test_what_is_expected_is_fetched_at_once(server, local, monkeypatch) -> None:
    rounds = []
    real = remote.read_ranges
    monkeypatch.setattr(remote, "read_ranges", lambda *words: rounds.append(len(words[1])) or real(*words))
    corners = [(x, y) for y in (0, 128, 256, 384) for x in (0, 128, 256, 384)]
    with open_slide(uri_of(server)) as far, open_slide(local, reader="tiff") as near:
        rounds.clear()
        server.asked.clear()
        far.expect(corners, 128, 0.25)
        found = [far.region(x, y, 128, 0.25) for x, y in corners]
        assert len(rounds) == 1
        assert len(server.asked) == 8  # rows of tiles
        assert all(np.array_equal(a, near.region(*at, 128, 0.25)) for a, at in zip(found, corners, strict=True))
        assert far._source._held < 2000  # nothing but the head waits any more


def test_label_and_macro_are_never_fetched(tmp_path, levels) -> None:
    """As Aperio writes them: behind the pyramid, each before its own directory."""
    path = tmp_path / "a.svs"
    label = np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    words = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], tile=(64, 64), description="Aperio Image\n|MPP = 0.25", **words)
        file.write(levels[1], rowsperstrip=16, description="Aperio thumbnail", **words)
        file.write(levels[1], tile=(64, 64), subfiletype=0, description="Aperio 1", **words)
        file.write(label, rowsperstrip=16, subfiletype=1, description="Aperio\nlabel 280x300", **words)
        file.write(label, rowsperstrip=300, subfiletype=9, description="Aperio\nmacro 280x300", **words)
    _nothing_but_the_pyramid_is_fetched(path)


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_label_and_macro_of_real_slides_are_never_fetched(shared_data: Path, name: str) -> None:
    _nothing_but_the_pyramid_is_fetched(shared_data / "slides" / name)


def _nothing_but_the_pyramid_is_fetched(path: Path) -> None:
    with RangeServer({"/a.svs": path.read_bytes()}) as server, open_slide(uri_of(server, "/a.svs"), 0.5) as far:
        with open_slide(path, 0.5, reader="tiff") as near:
            assert np.array_equal(far.whole(4.0), near.whole(4.0))
            far.overview(512)
        with tifffile.TiffFile(path) as file:
            others = [page for page in file.pages if not page.is_tiled]
        assert others
        for page in others:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                assert not [a for a in server.asked if a.start < offset + count and a.stop > offset]


def test_merged_ranges_hold_all_and_nothing_beside(levels) -> None:
    random = np.random.default_rng(1)
    for gap in (0, 7, 50):
        spans = [(int(a), int(n)) for a, n in random.integers((0, 1), (3000, 40), (60, 2))]
        wanted = np.zeros(4000, bool)
        for start, length in spans:
            wanted[start : start + length] = True
        covered = np.zeros(4000, bool)
        for start, length in merged(spans, gap):
            assert not covered[start : start + length].any()
            covered[start : start + length] = True
        holes = np.flatnonzero(covered & ~wanted)
        assert (wanted <= covered).all()
        runs = np.split(holes, np.flatnonzero(np.diff(holes) > 1) + 1)
        assert max(map(len, runs)) <= gap


def test_any_spans_in_any_order_are_the_file_s_bytes(server, local, monkeypatch) -> None:
    monkeypatch.setattr(remote_source, "MOST_AT_ONCE", 1000)  # so that runs are fetched in parts
    data, source, random = local.read_bytes(), RemoteBytes(Uri.parse(uri_of(server))), np.random.default_rng(2)
    for _ in range(8):
        spans = [(int(a), int(n)) for a, n in random.integers(0, (len(data) - 5000, 5000), (9, 2))]
        if random.integers(2):
            source.prefetch(spans[::2])
        assert source.read(spans) == [data[a : a + n] for a, n in spans]
    assert max(asked.stop - asked.start for asked in server.asked) <= 1000
    assert source.read([]) == []


def test_what_waits_in_memory_is_bounded(server, local, monkeypatch) -> None:
    monkeypatch.setattr(remote_source, "MOST_KEPT", 5000)
    source = RemoteBytes(Uri.parse(uri_of(server)))
    for start in range(0, 20_000, 900):
        source.prefetch([(start + part * 300, 300) for part in range(3)])
        assert source._held == sum(map(len, source._kept.values())) <= 5000
    source.prefetch([(0, 4000), (4000, 4000), (8000, 4000)])
    assert source._held <= 5000
    source.close()
    assert source._held == 0
    with pytest.raises(SlideError, match="closed"):
        source.read([(0, 10)])


def test_a_second_opening_costs_one_request(server, local, tmp_path) -> None:
    def opened() -> int:
        server.asked.clear()
        with open_slide(uri_of(server)) as slide:
            count = len(server.asked)
            assert slide.region(10, 10, 64, 0.25).any()
        return count

    first = opened()
    [kept] = (tmp_path / "cache" / "tile-indexes").rglob("*.index")
    assert opened() == 1 < first
    kept.write_bytes(kept.read_bytes()[:-20])
    assert opened() == first  # damaged: made again
    assert opened() == 1
    server.etags[SLIDE] = '"another"'
    assert opened() == first
    kept.unlink()
    assert opened() == 1  # of the other ETag


def test_reading_goes_on_where_the_index_cannot_be_kept(server, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EOSIN_CACHE_DIR", str(tmp_path / "file"))
    with open_slide(uri_of(server)) as slide:
        assert slide.width == 1060
    monkeypatch.setenv("EOSIN_CACHE_DIR", "")
    with open_slide(uri_of(server)) as slide:
        assert slide.width == 1060
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "faults",
    [
        ["503", "503"],
        ["500", "", "502"],
        ["429"],
        ["drop", "drop"],
        ["short", "short", "", "short"],
        ["more"],
        ["", "", "short", "503", "drop"],
    ],
    ids=str,
)
def test_passing_faults_are_mended(server, local, faults) -> None:
    with open_slide(local, reader="tiff") as near:
        wanted = near.region(37, 59, 300, 0.25)
    server.faults = [*faults, ""]
    with open_slide(uri_of(server)) as far:
        server.faults = [*faults, ""]
        assert np.array_equal(far.region(37, 59, 300, 0.25), wanted)
    assert server.faults == [""]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("503", StoreDown, "the store answers with status 503"),
        ("drop", StoreDown, "the connection broke"),
        ("short", StoreDown, ""),
        ("more", StoreDown, "bytes where"),
        ("whole", SlideError, "ignores Range and gives whole files only; download it"),
        ("404", SlideError, "no such object"),
        ("403", StoreDown, "access denied"),
        ("401", StoreDown, "does not accept the credentials"),
        ("416", SlideError, "empty, or shorter"),
        ("to:file:///etc/passwd", SlideError, "leads elsewhere"),
        ("to:ftp://127.0.0.1/x", SlideError, "leads elsewhere"),
    ],
)
def test_lasting_faults_are_one_line(server, fault, kind, words) -> None:
    server.faults = [fault]
    _refused(uri_of(server), kind, words)
    server.faults = [""]
    with open_slide(uri_of(server)) as far:
        server.faults = [fault]
        with pytest.raises(kind) as refused:
            far.region(0, 0, 300, 0.25)
    _is_one_line(refused.value, words)
    assert len(server.asked) < 400


def _refused(uri: str, kind: type[EosinError], words: str) -> None:
    with pytest.raises(kind) as refused:
        open_slide(uri)
    _is_one_line(refused.value, words)


def _is_one_line(error: EosinError, words: str) -> None:
    line = str(error)
    assert words in line
    assert "a.tif" in line or "…" in line
    assert len(line) < 300
    for hidden in ("\n", "Debug", "S3CRET", "RetryError", "reqwest"):
        assert hidden not in line


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "NoSuchBucket", SlideError, "no such bucket"),
        (404, "NoSuchKey", SlideError, "no such object"),
        (403, "AccessDenied", StoreDown, "access denied (AccessDenied); set AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", StoreDown, "does not accept the credentials (SignatureDoesNotMatch)"),
        (403, "InvalidAccessKeyId", StoreDown, "does not accept the credentials"),
        (400, "ExpiredToken", StoreDown, "the credentials have expired; renew them"),
        (301, "PermanentRedirect", SlideError, "another region; set AWS_REGION"),
        (503, "SlowDown", StoreDown, "status 503 (SlowDown)"),
    ],
)
def test_what_a_bucket_says_is_one_line(server, monkeypatch, status, code, kind, words) -> None:
    uri = through_s3(server, monkeypatch)
    server.faults, server.code = [str(status)], code
    _refused(uri, kind, words)


def test_no_credentials_anywhere(server, monkeypatch) -> None:
    through_s3(server, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    _refused(f"s3:/{SLIDE}", StoreDown, "no credentials found; set AWS_ACCESS_KEY_ID")
    assert not server.asked


def test_credentials_of_a_profile(server, local, monkeypatch, tmp_path) -> None:
    through_s3(server, monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[study]\naws_access_key_id = key\naws_secret_access_key = S3CRET\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "study")
    with open_slide(f"s3:/{SLIDE}") as slide:
        assert slide.width == 1060


def test_plain_http_has_to_be_allowed(server, monkeypatch) -> None:
    monkeypatch.setenv("EOSIN_ALLOW_HTTP", "0")
    _refused(uri_of(server), SlideError, "set EOSIN_ALLOW_HTTP=1")
    uri = through_s3(server, monkeypatch)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    _refused(uri, StoreDown, "set AWS_ALLOW_HTTP=true")
    assert not server.asked


def test_servers_that_are_not_there(server, monkeypatch) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        _refused(f"http://127.0.0.1:{taken.getsockname()[1]}{SLIDE}", StoreDown, "connection refused")
    _refused(f"https://{server.place}{SLIDE}", StoreDown, "no trusted connection (TLS)")
    monkeypatch.setattr(remote, "CLIENT", {"timeout": "200ms"})
    remote._store.cache_clear()
    server.faults = ["stall"]
    _refused(uri_of(server), StoreDown, "no answer in time")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/none/a.pem")
    remote._store.cache_clear()
    with pytest.raises(EosinError, match=r"AWS_CA_BUNDLE: /none/a\.pem cannot be read"):
        open_slide(uri_of(server))


def test_https_with_an_authority_of_one_s_own(server, local, tmp_path, monkeypatch) -> None:
    x509 = pytest.importorskip("cryptography.x509", reason="pip install 'eosin[test]'")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begin, end = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, begin, end).add_extension(names, False)
    public = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    coding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "both.pem").write_bytes(public + key.private_bytes(*coding))
    (tmp_path / "authority.pem").write_bytes(public)
    with RangeServer({SLIDE: local.read_bytes()}, tmp_path / "both.pem") as safe:
        uri = f"https://{safe.place}{SLIDE}"
        _refused(uri, StoreDown, "no trusted connection (TLS); for a private authority set AWS_CA_BUNDLE")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "authority.pem"))
        remote._store.cache_clear()
        with open_slide(uri) as slide:
            assert slide.width == 1060
        safe.faults = [f"to:{uri_of(server)}"]
        _refused(uri, SlideError, "leads elsewhere")
        assert not server.asked


@pytest.mark.parametrize("etag", ['"new"', 'W/"new"', ""])
def test_an_object_that_changes_under_us(server, local, etag) -> None:
    """With an ETag to bind requests to, a weak one, or none at all but another size."""
    server.etags[SLIDE] = etag.replace("new", "old")
    with open_slide(uri_of(server)) as far:
        far.region(0, 0, 64, 0.25)
        server.etags[SLIDE] = etag
        if not etag:
            server.files[SLIDE] = local.read_bytes() + b"more"
        with pytest.raises(SlideGone, match="changed since it was opened; run `eosin index` again"):
            far.region(500, 500, 64, 0.25)


def test_a_truncated_object_and_one_that_is_no_slide(server, local) -> None:
    data = local.read_bytes()
    with tifffile.TiffFile(local) as file:
        last = max(page.offset for page in file.pages)
    server.files[SLIDE] = data[: last + 30]
    _refused(uri_of(server), SlideError, "")
    server.files[SLIDE] = b"<html>not found</html>" * 900
    _refused(uri_of(server), SlideError, "only tiled TIFF is read")
    server.files[SLIDE] = b""
    _refused(uri_of(server), SlideError, "empty")
    with pytest.raises(SlideError, match="the reader openslide reads local files only; download it"):
        open_slide(uri_of(server), reader="openslide")


def test_absurd_sizes_are_not_fetched(server, monkeypatch) -> None:
    monkeypatch.setattr(remote_source, "MOST_READ", 10_000)
    source = RemoteBytes(Uri.parse(uri_of(server)))
    server.asked.clear()
    with pytest.raises(SlideError, match="damaged: a read of more than"):
        source.read([(100, 10_001)])
    with pytest.raises(SlideError, match="truncated or damaged"):
        source.read([(source.size - 10, 20)])
    assert not server.asked


def test_a_signed_url_is_used_and_never_shown(server, local) -> None:
    uri = f"{uri_of(server)}?X-Signature=S3CRET"
    with open_slide(uri) as slide:
        assert "S3CRET" not in str(slide.path) + repr(slide.path) + repr(Uri.parse(uri))
        assert slide.region(0, 0, 64, 0.25).any()
        assert {asked.target for asked in server.asked} == {f"{SLIDE}?X-Signature=S3CRET"}
        server.etags[SLIDE] = '"new"'
        with pytest.raises(SlideGone) as refused:
            slide.region(500, 500, 64, 0.25)
    assert "S3CRET" not in str(refused.value)
    with pytest.raises(CohortError, match="may be a signature") as refused:
        find_remote(uri, frozenset([".tif"]))
    assert "S3CRET" not in str(refused.value)
    server.faults = ["503"]
    with pytest.raises(StoreDown) as refused:
        open_slide(uri)
    assert "S3CRET" not in str(refused.value)


def test_errors_of_the_client_are_never_shown() -> None:
    for text in ("Generic S3 error: https://h/k?X=S3CRET in 3s\n\nDebug source: {S3CRET}", "S3CRET", ""):
        assert "S3CRET" not in str(told("s3://bucket/a.tif", "s3", RuntimeError(text)))


def _read_in_a_fork(uri: str, answers: multiprocessing.SimpleQueue) -> None:
    try:
        with open_slide(uri) as slide:
            answers.put(slide.width)
    except EosinError as error:
        answers.put(str(error))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_of_a_reading_process_is_told_at_once(server) -> None:
    with open_slide(uri_of(server)):
        assert remote.worker_start() == "spawn"
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    process = fork.Process(target=_read_in_a_fork, args=(uri_of(server), answers))
    process.start()
    assert "start worker processes with 'spawn'" in answers.get()
    process.join()


def test_google_s_service_account_names_the_server(server, monkeypatch, tmp_path) -> None:
    account = {"gcs_base_url": f"http://{server.place}", "disable_oauth": True, "client_email": "", "private_key": ""}
    (tmp_path / "account.json").write_text(json.dumps(account | {"private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    with open_slide(f"gs:/{SLIDE}") as slide:
        assert slide.width == 1060
