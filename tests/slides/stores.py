"""Stores on loopback: an S3-compatible server in a process of its own, and a web server that fails as it is told."""

from __future__ import annotations

import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

S3_SERVER = """
import logging, os, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # ends with the process that started this one
os._exit(0)
"""


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of an S3-compatible server (moto), until the block ends."""
    words = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", S3_SERVER], **words) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


class Asked(NamedTuple):
    """One request as the server saw it: bytes [start, stop), what it answered with, and the raw target."""

    target: str
    start: int
    stop: int
    status: int


class RangeServer:
    """Serves `files` (path to bytes) with ranges and ETags; `faults` are used up one a request, the last for ever.

    Faults: "" none; a number answers with that status (and `code` as S3 would say it); "drop" closes the connection
    without an answer; "short" sends half of the body and closes; "whole" ignores Range; "more" sends another body after
    the one asked for; "lie" gives other bytes than it says; "to:URL" redirects; "stall" waits until the server stops.
    """

    def __init__(self, files: dict[str, bytes], certificate: Path | None = None) -> None:
        """certificate: PEM of a certificate and its key, for https."""
        self.files, self.faults, self.code = files, [""], ""
        self.etags = {path: f'"{number}"' for number, path in enumerate(files)}
        self.asked: list[Asked] = []
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.place = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> RangeServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def bytes(self) -> int:
        """Bytes of bodies that were asked for."""
        return sum(asked.stop - asked.start for asked in self.asked)

    def next_fault(self) -> str:
        with self.lock:
            return self.faults.pop(0) if len(self.faults) > 1 else self.faults[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *words: object) -> None:
                pass

            def do_GET(self) -> None:
                fault, path = server.next_fault(), unquote(self.path.partition("?")[0])
                data = server.files.get(path)
                wanted = self.headers.get("Range")
                start, stop = 0, len(data or b"")
                if wanted and fault != "whole":
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    start, stop = int(first), min(int(last) + 1, stop)
                if fault == "drop":
                    self.close_connection = True
                    return self._note(start, stop, 0)
                if fault == "stall":
                    self._note(start, stop, 0)
                    server.stopping.wait()
                    self.close_connection = True
                    return None
                if fault.startswith("to:"):
                    return self._plain(302, start, Location=fault[3:])
                if fault.isdigit():
                    return self._plain(int(fault), start)
                if data is None:
                    return self._plain(404, start)
                if self.headers.get("If-Match") not in (None, server.etags[path]):
                    return self._plain(412, start)
                if start >= len(data):
                    return self._plain(416, start)
                return self._give(data[start:stop], start, stop, len(data), server.etags[path], fault)

            def _give(self, body: bytes, start: int, stop: int, size: int, etag: str, fault: str) -> None:
                ranged = self.headers.get("Range") and fault != "whole"
                self._note(start, stop, 206 if ranged else 200)
                self.send_response(206 if ranged else 200)
                if ranged:
                    self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
                if etag:
                    self.send_header("ETag", etag)
                self.send_header("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")
                if fault == "more":
                    body = body * 3
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "short":
                    body = body[: len(body) // 2]
                    self.close_connection = True
                self.wfile.write(body)

            def _plain(self, status: int, start: int, **headers: str) -> None:
                body = f"<Error><Code>{server.code}</Code></Error>".encode() if server.code else b""
                self._note(start, start, status)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _note(self, start: int, stop: int, status: int) -> None:
                with server.lock:
                    server.asked.append(Asked(self.path, start, stop, status))

        return Handler
