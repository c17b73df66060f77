"""The emulator's settings: one frozen value, replaced as a whole.

Knows names, defaults and allowed values. Must not know what uses a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .validation import replace_checked

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
    """How the emulator behaves; every default is what SendGrid does, as far as is known."""

    ready_after: float = 0.0
    """Seconds from the start of an export to `ready` or `failure`; a list may override it."""
    url_lifetime: int = 300
    """Seconds until a signed file URL expires."""
    page_size: int = 100
    """Items on a page of the export listing, unless the request says otherwise."""
    product: str = "both"
    """The families of this account: `both`, `marketing` or `legacy`; the other one responds 403."""
    subusers: tuple[str, ...] = ()
    """Values allowed in `on-behalf-of`; any other responds 403."""
    rate_limit: int = 0
    """Requests allowed in a window, for the whole account; 0 = no limit and no X-RateLimit headers."""
    rate_limit_window: float = 60.0
    """Seconds in a window of the rate limit."""
    rate_limit_reset: str = "epoch"
    """The value of X-RateLimit-Reset: an `epoch`, or the `seconds` left. Both were observed."""
    retry_after: bool = False
    """Whether a 429 carries Retry-After (seconds)."""
    spelling: str = "snake_case"
    """With `camelCase`, the legacy status has the field names that one of Twilio's pages shows."""
    optional_fields: str = "omit"
    """Fields without a value: `omit` leaves them out, `null` sends them as null."""
    encoding: str = "x-gzip"
    """How files are stored: `plain`, or gzipped with the Content-Encoding `x-gzip`, `gzip` or none (`bare`)."""
    empty_encoding: str = "x-gzip"
    """The same for a file without contacts."""
    repeat_header: bool = True
    """Whether every CSV file of an export has a header row, or only the first."""
    contacts_per_file: int = 0
    """The maximum number of contacts in a file; 0 = limited by max_file_size only."""
    ranges: bool = True
    """Whether the file storage supports `Range`; without it, every response is the whole file with 200."""
    bytes_per_second: int = 0
    """Speed limit of each connection to the file storage; 0 = none."""
    bytes_per_connection: int = 0
    """The file storage closes a connection after so many bytes of content; 0 = never."""

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
    """An API key and its scopes."""

    secret: str
    scopes: frozenset[str] = field(
        default=frozenset({"marketing.read", "marketing_campaigns.read", "user.scopes.read"})
    )

    @property
    def id(self) -> str:
        """The part of the key that is not secret."""
        return self.secret.split(".")[1] if self.secret.count(".") == 2 else self.secret[:4]
