"""When to ask again, and what to make of the answer.

Knows how long to wait between polls and which status ends the wait. Knows no client: how to ask is given.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from airflow_provider_sendgrid.exceptions import ExportExpiredError, ExportFailedError, SendGridError
from airflow_provider_sendgrid.exports.export import FAILURE, PENDING, READY, ContactExport


class Outcome(str, Enum):
    """What a look at an export means for those who wait for it."""

    WAITING = "waiting"
    READY = "ready"
    FAILURE = "failure"
    EXPIRED = "expired"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at an export, and what it means.

    Attributes:
        export: what SendGrid said.
        outcome: whether to go on waiting, and if not, why.
        polls: how often SendGrid was asked, this time included.
        waited_seconds: since the wait began.
    """

    export: ContactExport
    outcome: Outcome
    polls: int = 1
    waited_seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The export's summary, and what the wait for it took; what may go into an XCom."""
        return self.export.summary() | {"polls": self.polls, "waited_seconds": round(self.waited_seconds, 3)}

    def describe(self) -> str:
        """One sentence for a person: which export, its status, how long it was waited for."""
        export = self.export
        status = f"{export.status!r}" if export.status else "without a status"
        known = "" if export.status in (PENDING, READY, FAILURE) else " (a status that this provider does not know)"
        files = ", but without files" if export.status == READY and self.outcome is Outcome.WAITING else ""
        return f"SendGrid export {export.id} is {status}{known}{files} after {self.waited_seconds:.0f} s."

    def error(self) -> SendGridError | None:
        """Why this export will never be ready, None where it is or may become so."""
        export = self.export
        if self.outcome is Outcome.FAILURE:
            said = export.message or "SendGrid gave no message"
            return ExportFailedError(
                f"SendGrid export {export.id} ended with status 'failure': {said}. Start another export."
            )
        if self.outcome is Outcome.EXPIRED:
            when = export.expires_at.isoformat() if export.expires_at else "earlier"
            return ExportExpiredError(
                f"SendGrid export {export.id} expired at {when}: its files are deleted. Start another export."
            )
        return None


def judge(export: ContactExport, now: datetime) -> Outcome:
    """What `export` means at `now`: only ``ready`` with files is ready; an unknown status is waited on."""
    if export.status == FAILURE:
        return Outcome.FAILURE
    if export.is_expired_at(now):
        return Outcome.EXPIRED
    has_files = bool(export.urls) or export.contact_count == 0
    return Outcome.READY if export.status == READY and has_files else Outcome.WAITING


@dataclass(frozen=True, slots=True)
class PollSchedule:
    """How long to wait until the next poll: short at first, then longer, never in step with others.

    Most exports take seconds or tens of seconds, so the first polls come quickly. Each wait is half of the
    time waited so far, which needs no memory of earlier polls: a sensor that is rescheduled keeps the pace.

    Attributes:
        interval_seconds: the longest wait.
        first_seconds: the shortest wait.
        jitter: answers numbers from 0 to 1; shortens each wait by up to a fifth.
    """

    interval_seconds: float
    first_seconds: float = 2.0
    jitter: Callable[[], float] = random.random

    def wait_seconds(self, waited_seconds: float) -> float:
        """Seconds until the next poll, `waited_seconds` after the wait began."""
        wait = min(max(self.first_seconds, waited_seconds / 2), self.interval_seconds)
        return wait * (1 - self.jitter() / 5)


def look_at(export: ContactExport, *, now: float, started_at: float, polls: int) -> Sighting:
    """A sighting of `export` at `now`; times are seconds since the epoch."""
    outcome = judge(export, datetime.fromtimestamp(now, tz=timezone.utc))
    return Sighting(export, outcome, polls, max(0.0, now - started_at))
