"""Everything that can be made to go wrong, as frozen values in one list.

Knows which requests a fault strikes. Must not know sockets (an answer says how it is to be sent), nor what
SendGrid or S3 would have said.

The kinds stand in `spoiling.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from .checked import replace_checked
from .messages import Answer, Request
from .spoiling import KINDS, Moment, answer_instead, spoil, treatment_of
from .storage import Treatment


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to go wrong, for the requests it fits: every one, the `nth`, or the `first` few.

    Raises:
        ValueError: for a kind that does not exist.
    """

    kind: str
    path: str = "*"
    """Shell pattern for the path, or for its last part (a file's name, an export's id)."""
    method: str = ""
    listener: str = ""
    """`api`, `files`, or both when empty."""
    nth: int = 0
    first: int = 0
    seconds: float = 0.0
    status: int = 0
    message: str = "the emulator was told to fail"
    location: str = ""
    at: int | None = None
    with_reset: bool = False
    bytes_per_second: int = 1_000
    retry_after: float | None = None
    rate_limit_reset: str = ""
    """`epoch` or `seconds`: a `status` fault has X-RateLimit-Reset, `seconds` from now, in that meaning."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are {', '.join(KINDS)}")

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Fault:
        """Read a fault from JSON of the same fields.

        Raises:
            ValueError: for an unknown kind or field, or a value of the wrong type.
        """
        return replace_checked(cls(kind=payload.get("kind", "")), payload)

    def as_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)

    def fits(self, listener: str, request: Request) -> bool:
        """Tell whether it is about this request, whichever in number."""
        names = (request.path, request.path.rpartition("/")[2])
        return (
            self.listener in ("", listener)
            and self.method in ("", request.method)
            and any(fnmatchcase(name, self.path) for name in names)
        )

    def is_due(self, number: int) -> bool:
        """Tell whether it strikes the request of this number (from 1) among those it fits."""
        always = self.nth == 0 and self.first == 0
        return always or number == self.nth or number <= self.first


class FaultList:
    """The faults that are installed, and how often each has been asked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._asked: list[tuple[Fault, list[int]]] = []
        self._released = threading.Event()
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Install faults; their requests are counted from now."""
        with self._lock:
            self._asked += [(fault, [0]) for fault in faults]

    def clear(self) -> None:
        """Remove all, and let go of every answer that hangs."""
        with self._lock:
            self._asked.clear()
            self._released.set()
            self._released = threading.Event()

    def all(self) -> list[Fault]:
        """Return those installed."""
        with self._lock:
            return [fault for fault, _ in self._asked]

    def spoiled(self, listener: str, request: Request, respond: Callable[[Treatment], Answer]) -> Answer:
        """Answer a request with everything that is due to go wrong with it."""
        due, released = self._due(listener, request)
        instead = answer_instead(due, Moment(listener, self._clock(), released))
        return spoil(instead or respond(treatment_of(due)), due)

    def _due(self, listener: str, request: Request) -> tuple[list[Fault], threading.Event]:
        """Return what is due, and what whoever hangs is to wait for: both of before or both of after `clear`."""
        with self._lock:
            due = []
            for fault, asked in self._asked:
                if fault.fits(listener, request):
                    asked[0] += 1
                    due += [fault] if fault.is_due(asked[0]) else []
            return due, self._released
