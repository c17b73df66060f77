"""The requests and responses that flows exchange with the drivers in `client`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the API host, without secrets.

    Attributes:
        method: ``GET`` or ``POST``.
        target: path and query, beginning with ``/v3/``.
        body: sent as JSON, if there is one.
        delay_seconds: how long to wait before sending it.
        reason: the reason for the wait, for the log.
    """

    method: str
    target: str
    body: Mapping[str, Any] | None = None
    delay_seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """One response of the API, or of a proxy.

    Attributes:
        status_code: HTTP status.
        headers: with names in lower case.
        body: decoded from its Content-Encoding; the driver limits its size.
        received_at: by this machine's clock, in seconds since the epoch.
        on_behalf_of: the subuser of the request, for messages.
    """

    status_code: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    received_at: float
    on_behalf_of: str | None = None


Flow: TypeAlias = Generator[Request, Response, T]
