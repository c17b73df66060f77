"""The installed faults, and which of them apply to a request.

Must not know sockets, nor what SendGrid or S3 would have responded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .fault_effects import FaultContext, modified_response, replacement_response, serving_options
from .faults import Fault
from .messages import Request, Response
from .storage import ServingOptions


class FaultList:
    """The installed faults, each with the number of requests that it has matched."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counters: list[_Counter] = []
        self._released = threading.Event()
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Install faults; matching requests are counted from now on."""
        with self._lock:
            self._counters += map(_Counter, faults)

    def clear(self) -> None:
        """Remove all faults and release the requests that hang."""
        with self._lock:
            self._counters.clear()
            self._released.set()
            self._released = threading.Event()

    def all(self) -> list[Fault]:
        """Return the installed faults."""
        with self._lock:
            return [counter.fault for counter in self._counters]

    def apply(self, listener: str, request: Request, respond: Callable[[ServingOptions], Response]) -> Response:
        """Return the response to a request, with all faults applied that are due."""
        due, released = self._due(listener, request)
        replacement = replacement_response(due, FaultContext(listener, self._clock(), released))
        return modified_response(replacement or respond(serving_options(due)), due)

    def _due(self, listener: str, request: Request) -> tuple[list[Fault], threading.Event]:
        """Return the faults that are due, and the event that ends a `hang`. `clear` replaces both at once."""
        with self._lock:
            matching = [counter for counter in self._counters if counter.fault.matches(listener, request)]
            return [counter.fault for counter in matching if counter.is_due_next()], self._released


@dataclass(slots=True)
class _Counter:
    fault: Fault
    matched: int = 0

    def is_due_next(self) -> bool:
        """Count one more matching request; return whether the fault applies to it."""
        self.matched += 1
        return self.fault.is_due(self.matched)
