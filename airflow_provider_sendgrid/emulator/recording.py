"""Every request that came in, for tests to ask about.

Knows what is kept of a request: never the key, never a query. Must not know endpoints.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from .messages import Request

_NOTED_HEADERS: Final = (
    "on-behalf-of", "range", "if-range", "if-match", "accept-encoding", "user-agent", "content-type",
)  # fmt: skip
_KEPT: Final = 20_000


@dataclass(slots=True)
class RecordedRequest:
    """One request; `bytes_sent` grows while its answer goes out."""

    time: float
    listener: str
    """`api` or `files`."""
    method: str
    path: str
    status: int
    """0 when there was no answer."""
    key_id: str
    headers: dict[str, str]
    """Those worth knowing, in lower case: `range`, `on-behalf-of`, ..."""
    leaked: bool
    """Whether the file storage was sent an Authorization header."""
    bytes_sent: int = 0
    """Of the body."""


class RequestLog:
    """The latest requests, in order; safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: deque[RecordedRequest] = deque(maxlen=_KEPT)
        self._changed = threading.Condition()

    def record(self, time: float, listener: str, request: Request, status: int, key_id: str) -> RecordedRequest:
        """Keep a request, before its answer goes out."""
        noted = {name: request.headers[name] for name in _NOTED_HEADERS if name in request.headers}
        leaked = listener == "files" and "authorization" in request.headers
        entry = RecordedRequest(time, listener, request.method, request.path, status, key_id, noted, leaked)
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()
        return entry

    def matching(self, method: str = "", path_prefix: str = "", listener: str = "") -> list[RecordedRequest]:
        """Return the requests of a method, below a path, at a listener; empty means any."""
        with self._changed:
            return [
                each
                for each in self._entries
                if method in ("", each.method) and each.path.startswith(path_prefix) and listener in ("", each.listener)
            ]

    def wait_for(self, count: int, method: str, path_prefix: str, listener: str, timeout: float) -> bool:
        """Wait until so many requests have come; return whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.matching(method, path_prefix, listener)) >= count, timeout)

    def clear(self) -> None:
        """Forget every request."""
        with self._changed:
            self._entries.clear()
