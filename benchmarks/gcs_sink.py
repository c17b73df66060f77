"""A fake Google Cloud Storage for uploads, resumable and simple; discards the bodies and keeps their sizes."""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

_PIECE_BYTES = 1024 * 1024


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    uploads: ClassVar[dict[str, dict]] = {}
    objects: ClassVar[dict[str, dict]] = {}

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if "upload_id" in query:  # as gcsfs sends parts
            self.do_PUT()
            return
        body = self._body(keep=True)
        if query.get("uploadType") == "resumable":
            payload = json.loads(body or b"{}")
            number = str(len(self.uploads))
            self.uploads[number] = {"name": query.get("name") or payload["name"], "size": 0, **payload}
            self._respond(200, {}, {"Location": f"http://{self.headers['Host']}/upload/{number}?upload_id={number}"})
            return
        name = query.get("name") or json.loads(re.search(rb"\{.*?\}\r\n", body, re.DOTALL)[0])["name"]
        self.objects[name] = {"name": name, "size": str(len(body)), "bucket": "lake"}
        self._respond(200, self.objects[name])

    def do_PUT(self) -> None:
        upload = self.uploads[parse_qs(urlsplit(self.path).query)["upload_id"][0]]
        upload["size"] += len(self._body(keep=False))
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or int(total) != upload["size"]:
            self._respond(308, None, {"Range": f"bytes=0-{upload['size'] - 1}"} if upload["size"] else {})
            return
        self.objects[upload["name"]] = {**upload, "size": str(upload["size"]), "bucket": "lake"}
        self._respond(200, self.objects[upload["name"]])

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path.rpartition("/o/")[2])
        if urlsplit(self.path).path.endswith("/b/lake"):
            self._respond(200, {"name": "lake"})
        elif urlsplit(self.path).path.endswith("/o"):
            self._respond(200, {"kind": "storage#objects", "items": list(self.objects.values())})
        elif name in self.objects:
            self._respond(200, self.objects[name])
        else:
            self._respond(404, {"error": {"code": 404, "message": "Not Found"}})

    def do_DELETE(self) -> None:
        self.objects.pop(unquote(urlsplit(self.path).path.rpartition("/o/")[2]), None)
        self._respond(204, None)

    def _body(self, *, keep: bool) -> bytes | range:
        """The body, or an object of its length."""
        left = size = int(self.headers.get("Content-Length") or 0)
        if keep:
            return self.rfile.read(size)
        piece = memoryview(bytearray(_PIECE_BYTES))
        while left:
            left -= self.rfile.readinto(piece[: min(left, _PIECE_BYTES)])
        return range(size)

    def _respond(self, status: int, payload: dict | None, headers: dict[str, str] | None = None) -> None:
        content = b"" if payload is None else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
