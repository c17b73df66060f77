"""What can be turned on the emulator: one frozen value, replaced as a whole.

Knows names, defaults and what is allowed. Must not know who reads which setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .checked import replace_checked

_CHOICES: Final = {
    "product": ("both", "marketing", "legacy"),
    "spelling": ("snake_case", "camelCase"),
    "optional_fields": ("omit", "null"),
    "rate_limit_reset": ("epoch", "seconds"),
    "encoding": ("x-gzip", "gzip", "bare", "plain"),
    "empty_encoding": ("x-gzip", "gzip", "bare", "plain"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the emulator behaves; every default is what SendGrid does as far as anybody knows."""

    ready_after: float = 0.0
    """Seconds from the start of an export to `ready` or `failure`, unless its list says otherwise."""
    url_lifetime: int = 300
    """Seconds that a signed file URL is good for."""
    page_size: int = 100
    """Items on a page of the export listing when the request does not say."""
    product: str = "both"
    """The family that this account has: `both`, `marketing` or `legacy`; the other one answers 403."""
    subusers: tuple[str, ...] = ()
    """Names that `on-behalf-of` may carry; any other is 403."""
    rate_limit: int = 0
    """Requests allowed in a window, for the whole account; 0 = no limit and no X-RateLimit headers."""
    rate_limit_window: float = 60.0
    """Seconds in a window of the rate limit."""
    rate_limit_reset: str = "epoch"
    """What X-RateLimit-Reset holds: `epoch` or `seconds` to go. Both were seen."""
    retry_after: bool = False
    """Whether a 429 carries Retry-After (seconds)."""
    spelling: str = "snake_case"
    """`camelCase` makes the legacy status spell its fields as one of Twilio's pages shows them."""
    optional_fields: str = "omit"
    """Fields without a value: `omit` leaves them out, `null` sends them as null."""
    encoding: str = "x-gzip"
    """How files are kept: gzipped, announced as `x-gzip` or `gzip` or not at all (`bare`), or `plain`."""
    empty_encoding: str = "x-gzip"
    """The same for a file that holds no contact."""
    repeat_header: bool = True
    """Whether each further CSV file of an export repeats the header row."""
    contacts_per_file: int = 0
    """At most so many contacts in a file, so that a small export has several; 0 = only by max_file_size."""
    ranges: bool = True
    """Whether the file storage honours `Range`; without, it always answers 200 with everything."""
    bytes_per_second: int = 0
    """Speed limit of each connection to the file storage; 0 = none."""
    bytes_per_connection: int = 0
    """The file storage closes each connection after so many bytes of content; 0 = never."""

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """Return these settings with some replaced.

        Raises:
            ValueError: for a name that does not exist, or a value of the wrong type or outside its choices.
        """
        return replace_checked(self, changes)

    def as_json(self) -> dict[str, Any]:
        """Return name and value of every setting."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key and what it may do."""

    secret: str
    scopes: frozenset[str] = field(
        default=frozenset({"marketing.read", "marketing_campaigns.read", "user.scopes.read"})
    )

    @property
    def id(self) -> str:
        """The part of the key that may be shown."""
        return self.secret.split(".")[1] if self.secret.count(".") == 2 else self.secret[:4]
