"""Lists and segments, and the outcome of their exports.

| outcome | status of its exports |
|---|---|
| `ready` | pending for `ready_after` seconds, then ready |
| `failure` | pending, then failure with `message` |
| `stuck` | always pending |
| `expired` | ready, with files that are already deleted |
| `unknown:<status>` | pending, then this status |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Family = Literal["marketing", "legacy"]
Kind = Literal["list", "segment"]

FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
DEFAULT_MESSAGE: Final = "the export failed; please try again"
_OUTCOMES: Final = ("ready", "failure", "stuck", "expired")


@dataclass(frozen=True, slots=True)
class NewAudience:
    """A list or a segment to be added; `outcome` is that of its exports.

    Raises:
        ValueError: for a family or an outcome that does not exist, or a negative number of contacts.
    """

    name: str
    contacts: int = 10
    family: Family = "marketing"
    outcome: str = "ready"
    message: str = DEFAULT_MESSAGE
    ready_after: float | None = None
    """Seconds; None takes the setting."""
    first_api: bool = False
    """A marketing segment that was made with the first segments API, which the 2.0 API does not list."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, not {self.family!r}")
        if self.outcome not in _OUTCOMES and not self.outcome.startswith("unknown:"):
            known = ", ".join(_OUTCOMES)
            raise ValueError(f"outcome must be one of {known} or unknown:<status>, not {self.outcome!r}")
        if self.contacts < 0:
            raise ValueError(f"contacts must be 0 or more, not {self.contacts}")


@dataclass(frozen=True, slots=True)
class Audience:
    """A list or a segment: contacts `first` to `first + contacts` are in it."""

    kind: Kind
    family: Family
    id: str | int
    name: str
    first: int
    contacts: int
    outcome: str
    message: str
    ready_after: float | None
    first_api: bool = False
