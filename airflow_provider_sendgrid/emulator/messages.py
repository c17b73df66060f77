"""Requests and responses, and the faults with which a response is sent.

Knows HTTP's shapes. Must not know sockets or SendGrid.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

_ORIGIN: Final = re.compile(r"https?://[^/]*")


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path without query and origin; clients send an origin to a proxy."""
        return _ORIGIN.sub("", self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The query parameters; the last one, if repeated."""
        parsed = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: values[-1] for name, values in parsed.items()}


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes of a file, sent from disk."""

    path: Path
    first: int
    length: int

    def __len__(self) -> int:
        return self.length


Part = bytes | FileSlice


@dataclass(frozen=True, slots=True)
class SendOptions:
    """Faults while a response is sent; the defaults send it without faults."""

    delay_seconds: float = 0.0
    hang_until: threading.Event | None = None
    """Wait for this event, then close the connection without a response."""
    drop: str = ""
    """`close` or `reset` the connection without a response."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    cut_with_reset: bool = False
    bytes_per_second: int = 0
    connection_bytes: int = 0
    """Close the connection after so many bytes of content, over all requests; 0 = never."""
    endless: bytes = b""
    """Sent after the body, repeated until the client closes the connection."""
    endless_header: bytes = b""
    """Sent instead of the response, repeated until the client closes the connection."""


@dataclass(frozen=True, slots=True)
class Response:
    """One response; `Content-Length` is that of the body unless the headers have one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: tuple[Part, ...] = ()
    send_options: SendOptions = SendOptions()

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.body)

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        """Return this response with headers added or replaced."""
        return replace(self, headers={**self.headers, **headers})


_JSON: Final = {"Content-Type": "application/json"}


def json_response(status: int, payload: Any) -> Response:
    """Return a JSON response."""
    return Response(status, _JSON, (json.dumps(payload, ensure_ascii=False).encode(errors="replace"),))


def json_error_response(status: int, message: str, field_name: str | None = None) -> Response:
    """Return SendGrid's error body; in a 400 `field` is a name or absent, elsewhere it may be null."""
    error: dict[str, Any] = {"message": message}
    if field_name is not None or status != 400:
        error["field"] = field_name
    return json_response(status, {"errors": [error]})


def first_bytes(parts: tuple[Part, ...], limit: int) -> Iterator[Part]:
    """Yield the first `limit` bytes of a body."""
    for part in parts:
        if limit <= 0:
            return
        yield part if len(part) <= limit else _sliced(part, 0, limit)
        limit -= len(part)


def split(part: Part, size: int) -> Iterator[Part]:
    """Yield a part in pieces of `size` bytes."""
    for first in range(0, len(part), max(1, size)):
        yield _sliced(part, first, min(size, len(part) - first))


def _sliced(part: Part, first: int, length: int) -> Part:
    if isinstance(part, bytes):
        return part[first : first + length]
    return FileSlice(part.path, part.first + first, length)
