"""A file storage for what the emulator cannot play: any bytes, any headers, and every header that came kept.

Answers ranges, unless that is switched off. What an answer says can be bent by `bend`, given the range and the headers.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Bend = Callable[[int, dict[str, str]], tuple[int, dict[str, str]]]


class FileServer:
    """Serves `files` by their paths, between `__enter__` and `__exit__`."""

    def __init__(
        self,
        files: dict[str, bytes],
        bend: Bend = lambda status, headers: (status, headers),
        error_body: bytes = b"",
    ) -> None:
        self.files = files
        self.bend = bend
        self.error_body = error_body
        self.headers_seen: list[dict[str, str]] = []
        self.peers: set[object] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.peers.add(self.client_address)
                server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
                content = server.files[self.path.partition("?")[0]]
                straight_status, straight_headers, body = _answer(content, self.headers.get("Range"))
                status, headers = server.bend(straight_status, dict(straight_headers))
                self.send_response(status)
                # What lies about its length leaves bytes behind that the next answer must not begin with.
                if (status, headers) != (straight_status, straight_headers):
                    self.send_header("Connection", "close")
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(body if status < 300 else server.error_body)

            def log_message(self, *_: Any) -> None:
                return

        return Handler


def redirecting(*locations: str) -> Bend:
    """Respond with a redirect to each of `locations` in turn, then with the file."""
    left = list(locations)

    def bend(status: int, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
        return (302, {"Location": left.pop(0), "Content-Length": "0"}) if left else (status, headers)

    return bend


def _answer(content: bytes, asked: str | None) -> tuple[int, dict[str, str], bytes]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
    headers = {"ETag": '"one"', "Accept-Ranges": "bytes"}
    if match is None:
        return 200, headers | {"Content-Length": str(len(content))}, content
    first = int(match[1])
    end = min(int(match[2]) + 1, len(content)) if match[2] else len(content)
    ranged = {"Content-Length": str(end - first), "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
    return 206, headers | ranged, content[first:end]
