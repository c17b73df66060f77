"""A proxy before a plain HTTP server that loses answers: the request is carried out, the client hears nothing."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class LosingProxy:
    """Passes requests on, and loses the answers of the first `times` for which `is_lost` says so.

    Attributes:
        url: where it listens.
        lost: how many answers it has lost.
        requests: method and target of each, as they came.
    """

    server_port: int
    is_lost: Callable[[str, str], bool]
    times: int = 1
    lost: int = 0
    url: str = field(default="", init=False)
    requests: list[tuple[str, str]] = field(default_factory=list, init=False)

    @contextmanager
    def running(self) -> Iterator[LosingProxy]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                status, headers, content = proxy.passed_on(self.command, self.path, dict(self.headers), self.body())
                if proxy.lost < proxy.times and proxy.is_lost(self.command, self.path):
                    proxy.lost += 1
                    self.close_connection = True
                    return
                self.send_response(status)
                answered = {name.lower(): value for name, value in headers}
                length = answered.get("content-length", "0") if self.command == "HEAD" else str(len(content))
                for name, value in {**answered, "content-length": length}.items():
                    if name not in {"transfer-encoding", "connection"}:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815  the standard library's names

            def body(self) -> bytes:
                if not self.headers.get("Transfer-Encoding"):
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                content = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    content += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return content

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes):
        """Status, headers and content of the server's answer."""
        self.requests.append((method, target))
        headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
        connection = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=30)
        try:
            connection.request(method, target, body, {**headers, "Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()
