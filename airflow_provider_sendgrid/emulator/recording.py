"""The requests that were received.

Knows what is recorded of a request; its key and its query are not. Must not know endpoints.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from .messages import Request

_KEPT_HEADERS: Final = (
    "on-behalf-of", "range", "if-range", "if-match", "accept-encoding", "user-agent", "content-type",
)  # fmt: skip
_MAX_ENTRIES: Final = 20_000


@dataclass(slots=True)
class RecordedRequest:
    """One request; `bytes_sent` grows while its response is sent."""

    time: float
    listener: str
    """`api` or `files`."""
    method: str
    path: str
    status: int
    """0 if there was no response."""
    key_id: str
    headers: dict[str, str]
    """Some of the headers, names in lower case: `range`, `on-behalf-of`, ..."""
    leaked: bool
    """Whether an Authorization header was sent to the file storage."""
    bytes_sent: int = 0


class RequestLog:
    """The latest requests, in order; safe to use from many threads."""

    def __init__(self) -> None:
        self._entries: deque[RecordedRequest] = deque(maxlen=_MAX_ENTRIES)
        self._changed = threading.Condition()

    def record(self, time: float, listener: str, request: Request, status: int, key_id: str) -> RecordedRequest:
        """Keep a request, before its response is sent."""
        kept = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
        leaked = listener == "files" and "authorization" in request.headers
        entry = RecordedRequest(time, listener, request.method, request.path, status, key_id, kept, leaked)
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()
        return entry

    def matching(self, method: str = "", path_prefix: str = "", listener: str = "") -> list[RecordedRequest]:
        """Return the requests with this method, path prefix and listener; empty means any."""
        with self._changed:
            return [
                each
                for each in self._entries
                if method in ("", each.method) and each.path.startswith(path_prefix) and listener in ("", each.listener)
            ]

    def wait_for(self, count: int, method: str, path_prefix: str, listener: str, timeout: float) -> bool:
        """Wait for so many matching requests; return whether they came."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.matching(method, path_prefix, listener)) >= count, timeout)

    def clear(self) -> None:
        """Remove every request."""
        with self._changed:
            self._entries.clear()
