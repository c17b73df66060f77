"""Reads times and rate limits in the headers of responses."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from airflow_provider_sendgrid.exports.messages import Response

# The longest wait that a response may ask for; larger values are invalid.
_MAX_ASKED_SECONDS = 86_400.0
# No window of a rate limit is longer. Requests wait until the end of a window.
_MAX_WINDOW_SECONDS = 120.0


def time_at_sendgrid(response: Response) -> datetime:
    """When SendGrid sent the response: its ``Date`` header; without one, this machine's clock."""
    return parse_date(response) or datetime.fromtimestamp(response.received_at, tz=timezone.utc)


def parse_date(response: Response) -> datetime | None:
    """The response's ``Date`` header; None if it is missing, or from a clock that was never set (1970)."""
    date = _parse_http_date(response.headers.get("date", ""))
    return date if date and date.year > 1970 else None


def rate_limit_wait_seconds(response: Response) -> float | None:
    """How long SendGrid asks to wait: ``Retry-After``, else ``X-RateLimit-Reset``, else None.

    Times are compared with the response's own ``Date`` header, not with this machine's clock.
    """
    asked = _parse_retry_after(response)
    return _seconds_until(response.headers.get("x-ratelimit-reset", ""), response) if asked is None else asked


def retry_after_seconds(response: Response) -> float | None:
    """How long SendGrid asks to wait before a retry; the rate limit's reset counts only if the limit is used up."""
    remaining = _parse_number(response.headers.get("x-ratelimit-remaining", ""))
    is_used_up = response.status_code == 429 or (remaining is not None and remaining < 1)
    if (asked := _parse_retry_after(response)) is not None or not is_used_up:
        return asked
    until_reset = rate_limit_wait_seconds(response)
    return None if until_reset is None else min(until_reset, _MAX_WINDOW_SECONDS)


def _parse_retry_after(response: Response) -> float | None:
    return _seconds_until(response.headers.get("retry-after", ""), response)


def _seconds_until(text: str, response: Response) -> float | None:
    """Seconds from now, from a number of seconds, an epoch (in seconds or milliseconds) or an HTTP date.

    SendGrid has sent X-RateLimit-Reset in both forms: above 1e9 it is an epoch, below it is seconds from now.
    """
    if (seconds := _parse_number(text)) is None:
        until = _parse_http_date(text)
        if until is None:
            return None
        seconds = (until - time_at_sendgrid(response)).total_seconds()
    elif seconds > 1e9:
        epoch = seconds / 1000 if seconds > 1e11 else seconds
        seconds = epoch - time_at_sendgrid(response).timestamp()
    return min(max(0.0, seconds), _MAX_ASKED_SECONDS)


def _parse_http_date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
        # Dates without a zone are UTC.
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


class RateLimit:
    """The rate limit in SendGrid's latest response, so that requests are not sent only to be refused."""

    def __init__(self) -> None:
        self._remaining: float | None = None
        self._resets_at = 0.0

    def record(self, response: Response) -> None:
        """Read ``X-RateLimit-Remaining`` and ``X-RateLimit-Reset``, if the response has them."""
        self._remaining = _parse_number(response.headers.get("x-ratelimit-remaining", ""))
        window = min(rate_limit_wait_seconds(response) or 0.0, _MAX_WINDOW_SECONDS)
        self._resets_at = response.received_at + window

    def wait_seconds(self, now: float) -> float:
        """How long to wait before the next request; 0 if one is left or no limit is known."""
        return self._window_seconds(now) if self.spare(now) < 1 else 0.0

    def spare(self, now: float) -> float:
        """Requests left in this window; infinite if no limit is known."""
        return float("inf") if self._remaining is None or not self._window_seconds(now) else self._remaining

    def _window_seconds(self, now: float) -> float:
        """Seconds until the window ends; 0 if the clock was set back and the result is impossible."""
        left = self._resets_at - now
        return left if 0 < left <= _MAX_WINDOW_SECONDS else 0.0


def _parse_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None
