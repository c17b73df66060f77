"""A proxy in front of an S3 server that injects faults.

It recognises S3's operations by method and query, responds with S3's errors, damages bytes in transit, and refuses a
body with a wrong CRC32, as S3 does (the server behind it does not).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

_RESET: Final = struct.pack("ii", 1, 0)

# S3's errors: status, code, message.
ERRORS: Final[Mapping[str, tuple[int, str, str]]] = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired_token": (400, "ExpiredToken", "The provided token has expired."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
    "no_such_bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
    "unknown_key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "error_in_200": (200, "InternalError", "We encountered an internal error. Please try again."),
}
# Faults of the connection or of bytes.
TRANSPORT_FAULTS: Final = ("reset", "lost", "delay", "corrupt", "wrong_crc32")


@dataclass(frozen=True, slots=True)
class StorageFault:
    """A fault of S3, for operations with a name (a shell pattern): each, the `nth`, or the `first` few.

    `reset` forwards nothing; `lost` forwards the request without returning the response; `delay` responds after
    `seconds`; `corrupt` inverts one byte of the body, `wrong_crc32` replaces its checksum.
    """

    kind: str
    operation: str = "*"
    nth: int = 0
    first: int = 0
    seconds: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in (*ERRORS, *TRANSPORT_FAULTS):
            raise ValueError(f"there is no fault {self.kind!r}; there are {', '.join((*ERRORS, *TRANSPORT_FAULTS))}")

    def is_due(self, number: int) -> bool:
        return (self.nth == 0 and self.first == 0) or number == self.nth or number <= self.first


@dataclass
class StorageProxy:
    """Listens on localhost between `__enter__` and `__exit__`; `operations` counts the requests."""

    upstream: str
    ignores_checksums: bool = False
    """Accept bytes with a wrong checksum, and return no checksum."""
    before: Callable[[str, str], None] | None = None
    """Called with operation and path before each request."""
    operations: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)
    _faults: list[tuple[StorageFault, list[int]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> StorageProxy:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # connections break here on purpose
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def inject(self, *faults: StorageFault) -> None:
        with self._lock:
            self._faults += [(fault, [0]) for fault in faults]

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()
            self.ignores_checksums, self.before = False, None
            self.operations.clear()
            self.applied.clear()

    def due(self, operation: str) -> list[StorageFault]:
        with self._lock:
            self.operations[operation] += 1
            due = []
            for fault, matched in self._faults:
                if fnmatchcase(operation, fault.operation):
                    matched[0] += 1
                    due += [fault] if fault.is_due(matched[0]) else []
            self.applied.update(fault.kind for fault in due)
            return due


def operation_of(method: str, target: str) -> str:
    """S3's name for a request in path style."""
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    is_object = parts.path.strip("/").count("/") > 0
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return names.get(method, "ListParts")
    return (
        {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}.get(method, method)
        if is_object
        else f"{method} bucket"
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: StorageProxy

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        operation = operation_of(self.command, self.path)
        if self.proxy.before is not None:
            self.proxy.before(operation, urlsplit(self.path).path)
        due = self.proxy.due(operation)
        headers = dict(self.headers.items())
        for fault in due:
            if fault.kind in ERRORS:
                return self._refuse(*ERRORS[fault.kind])
            step = _ALTERATIONS[fault.kind]
            body = step(self, headers, body, fault)
        if not self.proxy.ignores_checksums and _is_damaged(headers, body):
            return self._refuse(400, "BadDigest", "The CRC32 you specified did not match the calculated checksum.")
        response, content = self._forward(headers, body)
        if any(fault.kind == "lost" for fault in due):
            return self._drop()
        return self._respond(response.status, dict(response.getheaders()), content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - the standard library's names

    def _forward(self, headers: Mapping[str, str], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=120)
        sent = {name: value for name, value in headers.items() if name.lower() not in ("expect", "connection")}
        connection.request(self.command, self.path, body, sent)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def _respond(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            is_hidden = self.proxy.ignores_checksums and name.lower().startswith("x-amz-checksum-")
            if not is_hidden and name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        details = f"<Code>{code}</Code><Message>{message}</Message><RequestId>PROXY</RequestId>"
        xml = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{details}</Error>'.encode()
        self._respond(status, {"Content-Type": "application/xml"}, xml)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            # The socket is only reset when its last file object is closed.
            self.rfile.close()
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

    def _reset(self, _headers: dict[str, str], _body: bytes, _fault: StorageFault) -> bytes:
        self._drop()
        raise ConnectionResetError

    def _delay(self, _headers: dict[str, str], body: bytes, fault: StorageFault) -> bytes:
        time.sleep(fault.seconds)
        return body

    def _corrupt(self, _headers: dict[str, str], body: bytes, _fault: StorageFault) -> bytes:
        middle = len(body) // 2
        return body[:middle] + bytes(byte ^ 0xFF for byte in body[middle : middle + 1]) + body[middle + 1 :]

    def _change_crc32(self, headers: dict[str, str], body: bytes, _fault: StorageFault) -> bytes:
        for name in headers:
            if name.lower() == "x-amz-checksum-crc32":
                headers[name] = "AAAAAA=="
        return body

    def _leave_unchanged(self, _headers: dict[str, str], body: bytes, _fault: StorageFault) -> bytes:
        return body


_ALTERATIONS: Final[Mapping[str, Callable[[_Handler, dict[str, str], bytes, StorageFault], bytes]]] = {
    "reset": _Handler._reset,
    "lost": _Handler._leave_unchanged,
    "delay": _Handler._delay,
    "corrupt": _Handler._corrupt,
    "wrong_crc32": _Handler._change_crc32,
}


def _is_damaged(headers: Mapping[str, str], body: bytes) -> bool:
    announced = next((value for name, value in headers.items() if name.lower() == "x-amz-checksum-crc32"), None)
    return announced is not None and base64.b64decode(announced) != zlib.crc32(body).to_bytes(4, "big")
