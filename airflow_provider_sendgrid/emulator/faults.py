"""A fault: its kind, its options and the requests that it applies to.

Must not know what a kind does (that is `fault_effects.py`), nor sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from .messages import Request
from .validation import replace_checked

# `fault_effects.py` has an entry for each.
KINDS: Final = (
    "refuse",
    "reset",
    "hang",
    "status",
    "html",
    "body",
    "redirect",
    "endless",
    "endless_header",
    "bomb",
    "truncate",
    "changed",
    "expire",
    "no_ranges",
    "delay",
    "lost",
    "other_host",
    "null_listing",
    "unfilled",
    "reorder",
    "empty",
    "broken_json",
    "cut",
    "trickle",
    "wrong_length",
    "wrong_range",
    "corrupt",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, for the requests that it matches: all of them, the `nth`, or the `first` few.

    Raises:
        ValueError: there is no such kind.
    """

    kind: str
    path: str = "*"
    """Shell pattern for the path or its last segment (a file's name, an export's id)."""
    method: str = ""
    listener: str = ""
    """`api`, `files`, or both when empty."""
    nth: int = 0
    first: int = 0
    seconds: float = 0.0
    status: int = 0
    message: str = "injected fault"
    location: str = ""
    at: int | None = None
    with_reset: bool = False
    bytes_per_second: int = 1_000
    retry_after: float | None = None
    rate_limit_reset: str = ""
    """A `status` fault sends X-RateLimit-Reset, `seconds` from now: as an `epoch` or as `seconds`."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are {', '.join(KINDS)}")

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Fault:
        """Read a fault from a JSON object with the same fields.

        Raises:
            ValueError: a kind or field is unknown, or a value has the wrong type.
        """
        return replace_checked(cls(kind=payload.get("kind", "")), payload)

    def as_json(self) -> dict[str, Any]:
        """Return every field."""
        return asdict(self)

    def matches(self, listener: str, request: Request) -> bool:
        """Return whether the listener, method and path match."""
        names = (request.path, request.path.rpartition("/")[2])
        return (
            self.listener in ("", listener)
            and self.method in ("", request.method)
            and any(fnmatchcase(name, self.path) for name in names)
        )

    def is_due(self, number: int) -> bool:
        """Return whether it applies to matching request `number`, from 1."""
        always = self.nth == 0 and self.first == 0
        return always or number == self.nth or number <= self.first
