"""A proxy before a plain HTTP server that holds answers back, or requests, until a test lets them go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.losing_proxy import LosingProxy

_LONGEST_SECONDS = 60.0


@dataclass
class HoldingProxy(LosingProxy):
    """Holds what `is_held` says: the answer, or with `holds_requests` the request.

    Attributes:
        held: set when the first is held.
        release: a test sets it to let all go.
    """

    is_lost: Callable[[str, str], bool] = lambda *_: False
    is_held: Callable[[str, str], bool] = lambda *_: False
    holds_requests: bool = False
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def passed_on(self, method: str, target: str, headers: dict[str, str], body: bytes):
        """Status, headers and content of the server's answer."""
        is_held = self.is_held(method, target)
        if is_held and self.holds_requests:
            self._hold()
        answer = super().passed_on(method, target, headers, body)
        if is_held and not self.holds_requests:
            self._hold()
        return answer

    def _hold(self) -> None:
        self.held.set()
        self.release.wait(_LONGEST_SECONDS)
