"""SendGrid's rate limit: a number of requests per time window, for the whole account.

Knows windows and the X-RateLimit headers. Must not know endpoints.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from .messages import Response, json_error_response
from .settings import Settings


class RateLimit:
    """Counts requests. A window begins with the first request after the last window ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends = -math.inf
        self._used = 0
        self._lock = threading.Lock()

    def apply(self, settings: Settings, respond: Callable[[], Response]) -> Response:
        """Return the response, or a 429 beyond the limit, with the X-RateLimit headers."""
        if not settings.rate_limit:
            return respond()
        now = self._clock()
        used, ends = self._take(now, settings.rate_limit_window)
        seconds = max(0, math.ceil(ends - now))
        resets = {"epoch": math.ceil(ends), "seconds": seconds}
        headers = {
            "X-RateLimit-Limit": str(settings.rate_limit),
            "X-RateLimit-Remaining": str(max(0, settings.rate_limit - used)),
            "X-RateLimit-Reset": str(resets[settings.rate_limit_reset]),
        }
        if used <= settings.rate_limit:
            return respond().with_headers(headers)
        retry_after = {"Retry-After": str(seconds)} if settings.retry_after else {}
        return json_error_response(429, "too many requests").with_headers({**headers, **retry_after})

    def _take(self, now: float, window: float) -> tuple[int, float]:
        """Count one request; return the requests in this window and its end."""
        with self._lock:
            if now >= self._ends:
                self._used, self._ends = 0, now + window
            self._used += 1
            return self._used, self._ends
