"""The faults that are installed: which of them are due for a request.

Must not know sockets (an answer says how it is to be sent), nor what SendGrid or S3 would have answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .faults import Fault
from .messages import Answer, Request
from .spoiling import Occasion, answer_instead, spoil, treatment_of
from .storage import Treatment


class FaultList:
    """The installed faults, each with the number of requests that it has matched."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counters: list[_Counter] = []
        self._released = threading.Event()
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Install faults; their requests are counted from now on."""
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

    def spoiled(self, listener: str, request: Request, respond: Callable[[Treatment], Answer]) -> Answer:
        """Answer a request, with all faults applied that are due."""
        due, released = self._due(listener, request)
        instead = answer_instead(due, Occasion(listener, self._clock(), released))
        return spoil(instead or respond(treatment_of(due)), due)

    def _due(self, listener: str, request: Request) -> tuple[list[Fault], threading.Event]:
        """Return the faults that are due, and the event that ends a `hang`; `clear` changes both together."""
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
