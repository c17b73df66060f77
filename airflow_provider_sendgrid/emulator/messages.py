"""What passes between the sockets and the endpoints: a request, an answer, and how it is to be sent.

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
    """One request as read; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path without the query; and without an origin, which a client sends to a proxy."""
        return _ORIGIN.sub("", self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters; of a repeated one, the last."""
        parsed = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: values[-1] for name, values in parsed.items()}


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes that are sent straight from disk."""

    path: Path
    first: int
    length: int

    def __len__(self) -> int:
        return self.length


Part = bytes | FileSlice


@dataclass(frozen=True, slots=True)
class Sending:
    """How an answer goes out when something is meant to go wrong; the default is: as it should."""

    delay_seconds: float = 0.0
    hang_until: threading.Event | None = None
    """Wait for this, then close the connection instead of answering."""
    drop: str = ""
    """`close` or `reset` the connection instead of answering."""
    cut_after: int | None = None
    """Bytes of the body after which the connection ends."""
    cut_with_reset: bool = False
    bytes_per_second: int = 0
    connection_bytes: int = 0
    """Bytes of content that a connection may carry before it is closed; 0 = any."""
    endless: bytes = b""
    """What is sent over and over after the body, until the client goes away."""
    endless_header: bytes = b""
    """What is sent over and over after the status line, instead of all else."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: `Content-Length` is added from the body unless the headers have one."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: tuple[Part, ...] = ()
    sending: Sending = Sending()

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return sum(len(part) for part in self.body)

    def with_headers(self, headers: Mapping[str, str]) -> Answer:
        """Return this answer with headers added or replaced."""
        return replace(self, headers={**self.headers, **headers})


_JSON: Final = {"Content-Type": "application/json"}


def json_answer(status: int, payload: Any) -> Answer:
    """Return a JSON answer."""
    return Answer(status, _JSON, (json.dumps(payload, ensure_ascii=False).encode(errors="replace"),))


def errors_answer(status: int, message: str, field_name: str | None = None) -> Answer:
    """Return SendGrid's error body; in a 400 `field` is a name or absent, elsewhere it may be null."""
    error: dict[str, Any] = {"message": message}
    if field_name is not None or status != 400:
        error["field"] = field_name
    return json_answer(status, {"errors": [error]})


def first_bytes(parts: tuple[Part, ...], limit: int) -> Iterator[Part]:
    """Give the first `limit` bytes of a body."""
    for part in parts:
        if limit <= 0:
            return
        yield part if len(part) <= limit else _sliced(part, 0, limit)
        limit -= len(part)


def steps(part: Part, step: int) -> Iterator[Part]:
    """Give a part in pieces of `step` bytes."""
    for first in range(0, len(part), max(1, step)):
        yield _sliced(part, first, min(step, len(part) - first))


def _sliced(part: Part, first: int, length: int) -> Part:
    if isinstance(part, bytes):
        return part[first : first + length]
    return FileSlice(part.path, part.first + first, length)
