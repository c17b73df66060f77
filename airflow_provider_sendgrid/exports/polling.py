"""When to poll next, and what the result of a poll means.

Knows how long to wait between polls and which status ends the wait. Knows no client and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from airflow_provider_sendgrid.exceptions import (
    RETRYABLE_ERRORS,
    ExportExpiredError,
    ExportFailedError,
    ExportWithoutFilesError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
)
from airflow_provider_sendgrid.exports.export import FAILURE, PENDING, READY, ContactExport
from airflow_provider_sendgrid.exports.protocol import CONFIRMATION_SECONDS, RetryPolicy, is_empty

# Few tries and short waits, because another poll follows.
POLL_RETRY_POLICY = RetryPolicy(tries=3, longest_wait_seconds=5.0)
# A ready export without files for this long, in SendGrid's time, will not get any.
WITHOUT_FILES_SECONDS = 300.0
# This many refusals in a row end a wait; fewer are taken as stray.
FINAL_REFUSALS = 4
# SendGrid sometimes refuses a single request with a valid key.
STRAY_REFUSALS = (SendGridPermissionError, SendGridNotFoundError)
# The longest pause between polls, whatever ``Retry-After`` says: a maintenance page may name a day.
LONGEST_PAUSE_SECONDS = 600.0
# Timers fire a little early.
_TIMER_SECONDS = 0.5


class Outcome(str, Enum):
    """What the result of a poll means for a wait."""

    WAITING = "waiting"
    READY = "ready"
    FAILURE = "failure"
    EXPIRED = "expired"
    WITHOUT_FILES = "without_files"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class PollResult:
    """The result of a poll, and what it means for the wait.

    Attributes:
        export: SendGrid's description of the export; without a status if no poll has succeeded yet.
        outcome: whether to continue the wait, and if not, why.
        polls: how many polls have succeeded, this one included.
        waited_seconds: since the wait began.
        last_error: why the newest poll failed; None if it succeeded.
    """

    export: ContactExport
    outcome: Outcome
    polls: int = 1
    waited_seconds: float = 0.0
    last_error: SendGridError | None = field(default=None, compare=False)

    def summary(self) -> dict[str, Any]:
        """The export's summary with `polls` and `waited_seconds`, for an XCom."""
        return self.export.summary() | {"polls": self.polls, "waited_seconds": round(self.waited_seconds, 3)}

    def describe(self) -> str:
        """The export, its status, the time waited, and why the newest poll failed, as text."""
        waited = f"after {self.waited_seconds:.0f} s"
        reason = f" The last poll failed: {self.last_error}" if self.last_error else ""
        if not self.polls:
            return f"SendGrid export {self.export.id} could not be polled {waited}.{reason}"
        return f"SendGrid export {self.export.id} is {describe_status(self.export)} {waited}.{reason}"

    def error(self) -> SendGridError | None:
        """Why this export will never be ready; None if it is or may become ready."""
        make_error = _ERRORS.get(self.outcome)
        return make_error(self.export) if make_error else None


def describe_status(export: ContactExport) -> str:
    """The status of an export, and what is missing if it is ready without files."""
    status = f"{export.status!r}" if export.status else "without a status"
    if export.status not in (PENDING, READY, FAILURE):
        return f"{status} (a status that this provider does not know)"
    return f"{status}, but {_describe_missing(export)}" if export.status == READY and not has_files(export) else status


def has_files(export: ContactExport) -> bool:
    """Whether SendGrid names files, each with a URL."""
    return bool(export.urls) and all(export.urls)


def lacks_files(export: ContactExport) -> bool:
    """Whether SendGrid calls it ready without naming all its files, although it may have contacts."""
    return export.status == READY and not has_files(export) and not is_empty(export)


def needs_confirmation(export: ContactExport, now: datetime) -> bool:
    """Whether a second response must confirm this one before the wait ends.

    Count and URLs may be set shortly after the status. One response's ``Date`` may be wrong, so an expiry that this
    machine's clock does not confirm needs a second response, too.
    """
    if is_empty(export):
        return True
    return outcome_of(export, now) is Outcome.EXPIRED and not export.is_expired_at(now)


def seconds_without_files(export: ContactExport, *, seen_seconds: float) -> float:
    """How long an export has been ready without files; 0 if it is not.

    Args:
        export: as SendGrid described it last.
        seen_seconds: how long the polls have shown that; used if SendGrid's own times are missing or invalid.
    """
    if not lacks_files(export):
        return 0.0
    since = export.completed_at or export.updated_at
    if since is None or export.as_of is None or since > export.as_of:
        return seen_seconds
    return (export.as_of - since).total_seconds()


def _describe_missing(export: ContactExport) -> str:
    named = f"with {sum(map(bool, export.urls))} of {len(export.urls)} files" if any(export.urls) else "without files"
    return f"{named} ({_describe_count(export)})"


def _describe_count(export: ContactExport) -> str:
    return "no count" if export.contact_count is None else f"count {export.contact_count}"


def _failed_error(export: ContactExport) -> SendGridError:
    message = export.message or "SendGrid gave no message"
    return ExportFailedError(
        f"SendGrid export {export.id} ended with status 'failure': {message}. Start another export."
    )


def _expired_error(export: ContactExport) -> SendGridError:
    when = export.expires_at.isoformat() if export.expires_at else "earlier"
    if export.status == READY and not lacks_files(export):
        return ExportExpiredError(
            f"SendGrid export {export.id} expired at {when}: its files are deleted. Start another export."
        )
    return ExportExpiredError(
        f"SendGrid export {export.id} expired at {when}: SendGrid never finished it, its status is "
        f"{describe_status(export)}. Start another export."
    )


def _without_files_error(export: ContactExport) -> SendGridError:
    since = export.completed_at or export.updated_at
    when = f" since {since.isoformat()}" if since else ""
    is_probably_empty = export.contact_count is None and not export.urls
    cause = "Its lists or segments are probably empty." if is_probably_empty else "Its files are missing."
    named = f"only {sum(map(bool, export.urls))} of its {len(export.urls)}" if any(export.urls) else "no"
    return ExportWithoutFilesError(
        f"SendGrid export {export.id} has been ready{when}, but names {named} files ({_describe_count(export)}). "
        f"{cause} Start another export, or set soft_fail=True on the sensor to skip exports without files."
    )


_ERRORS: dict[Outcome, Callable[[ContactExport], SendGridError]] = {
    Outcome.FAILURE: _failed_error,
    Outcome.EXPIRED: _expired_error,
    Outcome.WITHOUT_FILES: _without_files_error,
}


def outcome_of(export: ContactExport, now: datetime) -> Outcome:
    """What `export` means: only ``ready`` with files is ready; on an unknown status, the wait continues.

    Args:
        export: as SendGrid describes it.
        now: used if the export has no `as_of`.
    """
    if export.status == FAILURE:
        return Outcome.FAILURE
    if export.is_expired_at(export.as_of or now):
        return Outcome.EXPIRED
    return Outcome.READY if export.status == READY and not lacks_files(export) else Outcome.WAITING


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """How long to wait until the next poll: short at first, then longer, with jitter.

    Most exports take seconds or tens of seconds, so the first polls come quickly. Each wait is a fraction of the time
    waited so far and depends on nothing else, so a rescheduled sensor needs no state.

    Attributes:
        interval_seconds: the longest wait.
        first_seconds: the shortest wait.
        growth: each wait is this fraction of the time waited so far; 1.0 doubles the waits.
        jitter: returns numbers from 0 to 1; shortens each wait by up to a fifth.
        floor_seconds: no wait is shorter, even with a shorter interval.
    """

    interval_seconds: float
    first_seconds: float = 2.0
    growth: float = 0.5
    jitter: Callable[[], float] = random.random
    floor_seconds: float = field(default=1.0, kw_only=True)

    @classmethod
    def for_sensor(
        cls, poke_interval: float, *, exponential_backoff: bool = False, max_wait: float | None = None
    ) -> PollSchedule:
        """The schedule for the arguments of an Airflow sensor, in seconds.

        With `exponential_backoff` the waits begin at `poke_interval` and double, up to `max_wait`. Without it,
        `poke_interval` is the longest wait and `max_wait` has no effect, as in Airflow.
        """
        require_seconds("poll_interval", poke_interval)
        if not exponential_backoff:
            return cls(poke_interval)
        if max_wait is not None:
            require_seconds("max_wait", max_wait)
        return cls(float("inf") if max_wait is None else max_wait, first_seconds=poke_interval, growth=1.0)

    def wait_seconds(self, waited_seconds: float) -> float:
        """Seconds until the next poll, `waited_seconds` after the wait began."""
        wait = min(max(self.first_seconds, waited_seconds * self.growth), self.interval_seconds)
        return max(self.floor_seconds, wait * (1 - self.jitter() / 5))


def require_seconds(name: str, value: Any) -> None:
    """Check a number of seconds.

    Raises:
        TypeError: it is not a number.
        ValueError: it is negative or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}.")
    if not value >= 0:
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}.")


def evaluate_poll(export: ContactExport, *, now: float, started_at: float, polls: int) -> PollResult:
    """The result of a poll at `now`; times are seconds since the epoch."""
    outcome = outcome_of(export, datetime.fromtimestamp(now, tz=timezone.utc))
    return PollResult(export, outcome, polls, max(0.0, now - started_at))


@dataclass(slots=True)
class WaitState:
    """The polls of one wait, and what the newest one means; the same in every mode of the sensor.

    Attributes:
        export_id: of the export.
        started_at: when the wait began, in seconds since the epoch, like every `now` below.
        has_polled: whether there was a poll before; a refusal of the first one is never taken as stray.
        last_result: of the newest poll; if that failed, of the previous one, with the error.
    """

    export_id: str
    started_at: float
    has_polled: bool = False
    last_result: PollResult = field(init=False)
    _refusals: int = 0
    _unconfirmed: Outcome | None = None
    _unconfirmed_since: float = 0.0
    _without_files_since: float | None = None
    _other_status_at: float | None = None

    def __post_init__(self) -> None:
        self.last_result = PollResult(ContactExport(self.export_id, ""), Outcome.WAITING, polls=0)

    @property
    def awaits_confirmation(self) -> bool:
        """Whether the next poll must confirm the end of the wait."""
        return self._unconfirmed is not None

    def record(self, export: ContactExport, now: float, *, is_checked: bool = False) -> PollResult:
        """The result of a poll that succeeded; `is_checked`: a second response has confirmed it."""
        self.has_polled, self._refusals = True, 0
        result = evaluate_poll(export, now=now, started_at=self.started_at, polls=self.last_result.polls + 1)
        outcome = result.outcome if is_checked else self._confirm(result, now)
        if self._is_final_without_files(result, now):
            outcome = Outcome.WITHOUT_FILES
        self.last_result = replace(result, outcome=outcome)
        return self.last_result

    def record_failure(self, error: SendGridError, now: float, *, ignores_refusals: bool = False) -> PollResult:
        """The result of a poll that failed with a retryable error.

        Raises:
            SendGridError: `error` ends the wait.
        """
        waited_seconds = max(0.0, now - self.started_at)
        self.last_result = replace(self.last_result, last_error=error, waited_seconds=waited_seconds)
        is_stray = (isinstance(error, STRAY_REFUSALS) or error.is_of_proxy) and self.has_polled
        self.has_polled = True
        self._refusals = 0 if isinstance(error, RETRYABLE_ERRORS) else self._refusals + 1
        if self._refusals and not ignores_refusals and not (is_stray and self._refusals < FINAL_REFUSALS):
            raise error
        return self.last_result

    def pause_seconds(self, schedule: PollSchedule, waited_seconds: float, seconds_left: float) -> float:
        """How long to wait until the next poll; the last poll is at the deadline, whatever SendGrid asks for."""
        error = self.last_result.last_error
        requested = min((error.retry_after_seconds if error else None) or 0.0, LONGEST_PAUSE_SECONDS)
        usual = CONFIRMATION_SECONDS if self.awaits_confirmation else schedule.wait_seconds(waited_seconds)
        return max(0.0, min(max(usual, requested), seconds_left))

    def _confirm(self, result: PollResult, now: float) -> Outcome:
        if not needs_confirmation(result.export, datetime.fromtimestamp(now, tz=timezone.utc)):
            self._unconfirmed = None
            return result.outcome
        if self._unconfirmed is not result.outcome or now < self._unconfirmed_since:
            self._unconfirmed, self._unconfirmed_since = result.outcome, now
        is_confirmed = now - self._unconfirmed_since >= CONFIRMATION_SECONDS - _TIMER_SECONDS
        return result.outcome if is_confirmed else Outcome.WAITING

    def _is_final_without_files(self, result: PollResult, now: float) -> bool:
        """Whether it has been ready without files for minutes, in more than one response."""
        if not lacks_files(result.export):
            self._without_files_since, self._other_status_at = None, now
            return False
        was_seen_before = self._without_files_since is not None
        since = self._without_files_since = self._without_files_since or now
        seconds = seconds_without_files(result.export, seen_seconds=now - since)
        if self._other_status_at is not None:  # SendGrid's times may be of something else
            seconds = min(seconds, now - self._other_status_at)
        return result.outcome is Outcome.WAITING and was_seen_before and seconds >= WITHOUT_FILES_SECONDS
