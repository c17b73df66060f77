"""A server that gives every request the same answer, as a wrong endpoint or a gateway's error page does."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS: Mapping[str, tuple[int, str, bytes]] = {
    "404 page": (404, "text/html", b"<html>404 page not found</html>"),
    "404 empty": (404, "text/plain", b""),
    "200 page": (200, "text/html", b"<html>Welcome</html>"),
    "200 empty": (200, "text/plain", b""),
    "200 JSON": (200, "application/json", b"{}"),
    "200 list": (200, "application/json", b"[]"),
    "201 empty": (201, "text/plain", b""),
    "204": (204, "text/plain", b""),
    "302 page": (302, "text/html", b"<html>Sign in</html>"),
    "400 page": (400, "text/html", b"<html>Bad request</html>"),
    "403 page": (403, "text/html", b"<html>Forbidden</html>"),
    "429 empty": (429, "text/plain", b""),
    "503 page": (503, "text/html", b"<html>Service unavailable</html>"),
    "503 text in JSON": (503, "application/json", b'{"error": "Service unavailable"}'),
    "404 text in JSON": (404, "application/json", b'{"error": "Not found"}'),
}


@contextmanager
def alike_server(name: str) -> Iterator[str]:
    """The URL of a server that gives the answer `name` to everything."""
    status, content_type, body = ANSWERS[name]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self._read_body()
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            # An upload that is begun goes on here, too.
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_address[1]}/session?upload_id=secret")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_PATCH = answer  # noqa: N815  the standard library's names

        def _read_body(self) -> None:
            if self.headers.get("Transfer-Encoding"):
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            else:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
