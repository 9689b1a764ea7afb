"""Names of slides in object stores: what is taken, what is refused, and that nothing secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.errors import SlideError
from eosin.slides import open_slide
from eosin.slides.uri import Uri, is_uri


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://name:S3CRET@host/a.tif", "a name or password in a URI is refused"),
        ("s3://key:S3CRET@bucket/a.tif", "a name or password in a URI is refused"),
        ("s3://bucket/a.tif?X-Amz-Signature=S3CRET", "a query is no part of an object's name"),
        ("file:///etc/passwd", "slides are read from s3://, gs://, https://"),
        ("ftp://host/a.tif", "slides are read from s3://"),
        ("s3://bucket/../other/a.tif", "not resolved"),
        ("https://host/x/%2e%2e/a.tif", "not resolved"),
        ("s3://b/a.tif", "not the name of a bucket"),
        ("https://ho st/a.tif", "no host"),
        ("https://[host/a.tif?X-Amz-Signature=S3CRET", "no host"),
        ("https://[::1/?name@S3CRET", "no host"),
        ("s3://bucket/a\n.tif", "control characters"),
        ("s3://bucket/" + "a" * 5000, "too long"),
    ],
)
def test_names_that_are_refused(text, words) -> None:
    with pytest.raises(SlideError) as refused:
        open_slide(text)
    assert words in str(refused.value)
    assert "S3CRET" not in str(refused.value)


def test_names() -> None:
    for text in ("s3://bucket/a b/c#1.svs", "gs://a-bucket/x.tif", "https://host:8443/a%20b/c.svs"):
        uri = Uri.parse(text)
        assert str(uri) == str(uri.path) == text
        assert Uri.parse(uri.path) == Uri.parse(Path(text)) == uri  # a command line may make a path of it
        assert not uri.path.exists()
        assert is_uri(text)
        assert is_uri(Path(text))
    for text in ("a.svs", "/data/a.svs", r"C:\data\a.svs", "C:/data", "folder/s3:/a", "a:b.svs"):
        assert not is_uri(text)
