"""The clock that tests move."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any


class FakeClock:
    """Seconds since the epoch, which pass only as a test says; no test sleeps.

    Args:
        now: what time it is at first; the real time if it is not given, for exports expire by the calendar.
        is_running: whether real time passes, too, for programs that compare with their own clocks.

    Attributes:
        ahead_seconds: by how much it was moved.
        slept: the waits so far, in order, see `sleep`.
    """

    def __init__(self, now: float | None = None, *, is_running: bool = False) -> None:
        start = time.time() if now is None else now
        self._base: Callable[[], float] = time.time if is_running else lambda: start
        self.ahead_seconds = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self._base() + self.ahead_seconds

    def advance(self, seconds: float) -> None:
        self.ahead_seconds += seconds

    def sleep(self, seconds: float) -> None:
        """Let the time of a wait pass."""
        self.slept.append(seconds)
        self.advance(seconds)


def advance_at_status_requests(clock: FakeClock, seconds: float = 10.0) -> Callable[[Any], None]:
    """An emulator's `observe`: the clock moves with each request for an export's status."""

    def observe(request: Any) -> None:
        if request.method == "GET" and re.search(r"/exports/[^/]+$", request.path):
            clock.advance(seconds)

    return observe
