"""When to poll next, and what the result of a poll means.

Knows how long to wait between polls and which status ends the wait. Knows no client and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from airflow_provider_sendgrid.exceptions import (
    ExportExpiredError,
    ExportFailedError,
    ExportWithoutFilesError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
)
from airflow_provider_sendgrid.exports.export import FAILURE, PENDING, READY, ContactExport
from airflow_provider_sendgrid.exports.protocol import Patience

# One poll of a wait: few tries and short waits, because another poll follows.
POLL_PATIENCE = Patience(tries=3, longest_wait_seconds=5.0)
# A ready export that names no files for so long, in SendGrid's time, will not name any.
WITHOUT_FILES_SECONDS = 300.0
# Refusals in a row that end a wait; fewer are taken for stray ones.
REFUSALS_IN_A_ROW = 4
# SendGrid has been seen to refuse single requests of a key that it serves otherwise.
STRAY_REFUSALS = (SendGridPermissionError, SendGridNotFoundError)


class Outcome(str, Enum):
    """What the result of a poll means for a wait."""

    WAITING = "waiting"
    READY = "ready"
    FAILURE = "failure"
    EXPIRED = "expired"
    WITHOUT_FILES = "without_files"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Sighting:
    """The result of a poll, and what it means.

    Attributes:
        export: SendGrid's description of the export; without a status if no poll has succeeded yet.
        outcome: whether to go on waiting, and if not, why.
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
        """The export's summary, and what the wait for it took; what may go into an XCom."""
        return self.export.summary() | {"polls": self.polls, "waited_seconds": round(self.waited_seconds, 3)}

    def describe(self) -> str:
        """One sentence for a person: the export, its status, the time waited, and why the newest poll failed."""
        waited = f"after {self.waited_seconds:.0f} s"
        reason = f" The last poll failed: {self.last_error}" if self.last_error else ""
        if not self.polls:
            return f"SendGrid export {self.export.id} could not be polled {waited}.{reason}"
        return f"SendGrid export {self.export.id} is {describe_status(self.export)} {waited}.{reason}"

    def error(self) -> SendGridError | None:
        """Why this export will never be ready, None if it is or may become so."""
        describe = _ERRORS.get(self.outcome)
        return describe(self.export) if describe else None


def describe_status(export: ContactExport) -> str:
    """The status of an export, and why that is not enough where it is ready without files."""
    status = f"{export.status!r}" if export.status else "without a status"
    if export.status not in (PENDING, READY, FAILURE):
        return f"{status} (a status that this provider does not know)"
    return f"{status}, but without files ({_count(export)})" if lacks_files(export) else status


def lacks_files(export: ContactExport) -> bool:
    """Whether SendGrid calls it ready and names no files, although it may have contacts."""
    return export.status == READY and not export.urls and export.contact_count != 0


def seconds_without_files(export: ContactExport, *, seen_seconds: float) -> float:
    """How long an export has been ready without files, 0 if it is not.

    Args:
        export: as SendGrid described it last.
        seen_seconds: how long the wait has seen it so, which counts where SendGrid's own times are missing or
            cannot be right.
    """
    if not lacks_files(export):
        return 0.0
    since = export.completed_at or export.updated_at
    if since is None or export.as_of is None or since > export.as_of:
        return seen_seconds
    return (export.as_of - since).total_seconds()


def _count(export: ContactExport) -> str:
    return "no count" if export.contact_count is None else f"count {export.contact_count}"


def _failure(export: ContactExport) -> SendGridError:
    message = export.message or "SendGrid gave no message"
    return ExportFailedError(
        f"SendGrid export {export.id} ended with status 'failure': {message}. Start another export."
    )


def _expiry(export: ContactExport) -> SendGridError:
    when = export.expires_at.isoformat() if export.expires_at else "earlier"
    if export.status == READY and not lacks_files(export):
        return ExportExpiredError(
            f"SendGrid export {export.id} expired at {when}: its files are deleted. Start another export."
        )
    return ExportExpiredError(
        f"SendGrid export {export.id} expired at {when}: SendGrid never finished it, its status is "
        f"{describe_status(export)}. Start another export."
    )


def _without_files(export: ContactExport) -> SendGridError:
    since = export.completed_at or export.updated_at
    when = f" since {since.isoformat()}" if since else ""
    cause = "Its lists or segments are probably empty." if export.contact_count is None else "Its files are missing."
    return ExportWithoutFilesError(
        f"SendGrid export {export.id} has been ready{when}, but names no files ({_count(export)}). {cause} "
        "Start another export, or set soft_fail=True on the sensor to skip exports without files."
    )


_ERRORS: dict[Outcome, Callable[[ContactExport], SendGridError]] = {
    Outcome.FAILURE: _failure,
    Outcome.EXPIRED: _expiry,
    Outcome.WITHOUT_FILES: _without_files,
}


def judge(export: ContactExport, now: datetime) -> Outcome:
    """What `export` means: only ``ready`` with files is ready; an unknown status is waited on.

    Args:
        export: as SendGrid describes it.
        now: counts where the export does not hold SendGrid's own time.
    """
    if export.status == FAILURE:
        return Outcome.FAILURE
    if export.is_expired_at(export.as_of or now):
        return Outcome.EXPIRED
    return Outcome.READY if export.status == READY and not lacks_files(export) else Outcome.WAITING


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """How long to wait until the next poll: short at first, then longer, never in step with others.

    Most exports take seconds or tens of seconds, so the first polls come quickly. Each wait is a share of the
    time waited so far, which needs no memory of earlier polls: a sensor that is rescheduled keeps the pace.

    Attributes:
        interval_seconds: the longest wait.
        first_seconds: the shortest wait.
        growth: each wait is this times the time waited so far: 0.5 for half of it, 1.0 doubles the waits.
        jitter: returns numbers from 0 to 1; shortens each wait by up to a fifth.
        floor_seconds: no wait is shorter, whatever the interval.
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
        """What Airflow's arguments of a sensor mean, in seconds.

        With `exponential_backoff` the waits begin at `poke_interval` and double, up to `max_wait`. Without it
        `poke_interval` is the longest wait, and `max_wait` means nothing, as in Airflow.
        """
        if not exponential_backoff:
            return cls(poke_interval)
        return cls(float("inf") if max_wait is None else max_wait, first_seconds=poke_interval, growth=1.0)

    def wait_seconds(self, waited_seconds: float) -> float:
        """Seconds until the next poll, `waited_seconds` after the wait began."""
        wait = min(max(self.first_seconds, waited_seconds * self.growth), self.interval_seconds)
        return max(self.floor_seconds, wait * (1 - self.jitter() / 5))


def look_at(export: ContactExport, *, now: float, started_at: float, polls: int) -> Sighting:
    """The result of a poll at `now`; times are seconds since the epoch."""
    outcome = judge(export, datetime.fromtimestamp(now, tz=timezone.utc))
    return Sighting(export, outcome, polls, max(0.0, now - started_at))
