"""What went wrong between us and an object store, in one line each, and what to do about it.

The client's own messages run over many lines and hold the whole request, signed queries with it; none of them is
shown. Status and code of the answer decide (Amazon's "Error Responses", which other stores follow), else the kind of
failure on the way.
"""

from __future__ import annotations

import re

from eosin.errors import EosinError, SlideError, SlideGone, StoreDown

EXTRA = "eosin[s3]"


class StoreError(SlideError):
    """A file in an object store that cannot be read."""


class NoSuchObject(StoreError):
    """No such bucket, or nothing of that name in it."""


class AccessDenied(StoreDown):
    """The store does not let us read it: no, wrong or expired credentials, or no right to."""


class NoRanges(StoreError):
    """A server that gives whole files only."""


class StoreUnreachable(StoreDown):
    """The store did not answer, not even when asked again: address, network, TLS, or the store itself."""


class ObjectChanged(SlideGone):
    """The object is another one than was opened."""


_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
_WRONG_KEY = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken")
_ANOTHER_REGION = ("PermanentRedirect", "IllegalLocationConstraintException", "AuthorizationHeaderMalformed")
# the address of a cloud's own machines, the client's word for it, boto3's
_ASKING_FOR_CREDENTIALS = ("169.254.169.254", "metadata.google", "token request", "get_credentials")
_TLS = ("certificate", "unknownissuer", "invalidmessage", "handshake", "notvalidforname", "rustls")
_WHERE_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}


def told(name: str, scheme: str, error: BaseException) -> EosinError:
    """The error to raise for one of the client's. name: of the file, as users may see it."""
    text = str(error)
    if any(words in text for words in _ASKING_FOR_CREDENTIALS):
        return AccessDenied(f"{name}: no credentials found{_credentials(scheme)}")
    text = re.sub(r"https?://\S+", "", text)
    status = re.search(r"status code: (\d{3})", text)
    number = int(status[1]) if status else 0
    code = found[1] if (found := re.search(r"<Code>(\w{1,64})</Code>", text)) else ""
    kind = type(error).__name__
    if kind == "PreconditionError" or number == 412:
        return changed(name)
    if kind == "NotSupportedError" or "RangeNotSupported" in text:
        return NoRanges(f"{name}: the server ignores Range and gives whole files only; download it")
    if code in _EXPIRED:
        return AccessDenied(f"{name}: the credentials have expired; renew them and start again")
    if code in _ANOTHER_REGION or (scheme == "s3" and (number in (301, 307) or "BareRedirect" in text)):
        return StoreError(f"{name}: the bucket lies in another region; set AWS_REGION")
    if code in _WRONG_KEY or number == 401:
        return AccessDenied(f"{name}: the store does not accept the credentials ({code or number})")
    if number == 403 or kind == "PermissionDeniedError":
        return AccessDenied(f"{name}: access denied ({code or number}){_credentials(scheme)}")
    if kind in ("FileNotFoundError", "NotFoundError") or number in (404, 410):
        return NoSuchObject(f"{name}: no such {'bucket' if code == 'NoSuchBucket' else 'object'}")
    if number == 416:
        return StoreError(f"{name}: empty, or shorter than it was (status 416)")
    if 300 <= number < 400 or "BareRedirect" in text:
        return StoreError(f"{name}: the server leads elsewhere, which is not followed")
    if kind == "InvalidPathError":
        return StoreError(f"{name}: not the name of an object")
    if number:
        return StoreUnreachable(f"{name}: the store answers with status {number}{f' ({code})' if code else ''}")
    return _on_the_way(name, scheme, text)


def changed(name: str) -> ObjectChanged:
    """The error for an object that was replaced while it was in use."""
    return ObjectChanged(f"{name}: changed since it was opened; run `eosin index` again")


def _on_the_way(name: str, scheme: str, text: str) -> EosinError:
    """A failure without an answer."""
    lower = text.lower().replace("retry_timeout", "")
    if "badscheme" in lower and scheme in _WHERE_CREDENTIALS:
        return StoreUnreachable(
            f"{name}: the endpoint is http://, which anybody on the way can read and change; use https, or set "
            f"{'AWS_ALLOW_HTTP=true' if scheme == 's3' else 'EOSIN_ALLOW_HTTP=1'}"
        )
    if "badscheme" in lower:
        return StoreError(f"{name}: the server leads elsewhere, which is not followed")
    if any(word in lower for word in _TLS):
        return StoreUnreachable(
            f"{name}: no trusted connection (TLS); for a private authority set AWS_CA_BUNDLE to its certificates"
        )
    if "credential" in lower or "readpem" in lower:
        return AccessDenied(f"{name}: no usable credentials{_credentials(scheme)}")
    if "dns error" in lower or "failed to lookup" in lower:
        return StoreUnreachable(f"{name}: the host is not known")
    if "connectionrefused" in lower:
        return StoreUnreachable(f"{name}: connection refused")
    if "timedout" in lower or "timeout" in lower:
        return StoreUnreachable(f"{name}: no answer in time, asked several times")
    return StoreUnreachable(f"{name}: the connection broke, asked several times")


def _credentials(scheme: str) -> str:
    return f"; set {_WHERE_CREDENTIALS[scheme]}" if scheme in _WHERE_CREDENTIALS else ""
