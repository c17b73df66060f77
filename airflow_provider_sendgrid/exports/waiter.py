"""The wait for one export: its schedule, and the poll results it passes on.

Knows what ends a wait. Knows no requests.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports.export import FAILURE, READY, ContactExport
from airflow_provider_sendgrid.exports.polling import Outcome, PollResult, PollSchedule, WaitState, has_files

# How late the last poll, which is due at the deadline, may be answered: it may have to wait for the rate limit.
LAST_POLL_GRACE_SECONDS = 30.0
NEVER = float("inf")


def loop_time() -> float:
    """The event loop's clock, which cannot be set back."""
    return asyncio.get_running_loop().time()


@dataclass(slots=True, eq=False)
class Waiter:
    """The wait for one export.

    Attributes:
        state: the results of its polls so far.
        schedule: how long to wait between two polls.
        end_time: the deadline, in seconds since the epoch.
        due_at: when the next poll is due, in `loop_time`; `NEVER` while a poll is in flight or the wait has ended.
        ignores_refusals: whether the wait continues after a refusal.
        has_ended: whether its last result was passed on.
        listed: the export in the listing, if it was read after the last poll by id.
        requested_at: when the request in flight was sent, in `loop_time`.
        was_slow: whether the previous poll was slow.
        results: of its polls.
    """

    state: WaitState
    schedule: PollSchedule
    end_time: float
    due_at: float
    ignores_refusals: bool = False
    has_ended: bool = False
    listed: ContactExport | None = None
    requested_at: float | None = None
    was_slow: bool = False
    results: asyncio.Queue[PollResult | SendGridError] = field(default_factory=asyncio.Queue)

    @property
    def export_id(self) -> str:
        """The id of the export."""
        return self.state.export_id

    @property
    def lacks_only_count(self) -> bool:
        """Whether the listing shows that the export is ready, with its files."""
        return self.listed is not None and self.listed.status == READY and has_files(self.listed)

    def record(self, export: ContactExport, now: float) -> None:
        """Pass on a poll that succeeded, and schedule the next one."""
        self.listed = None
        self._pass_on(self.state.record(export, now), now)

    def record_failure(self, error: SendGridError, now: float) -> None:
        """Continue if the error is retryable; otherwise end the wait with it."""
        if self.listed is not None and self.listed.status == FAILURE:  # only its message is missing
            self.record(self.listed, now)
            return
        try:
            result = self.state.record_failure(error, now, ignores_refusals=self.ignores_refusals)
        except SendGridError as final:
            self.fail(final)
        else:
            self._pass_on(result, now)

    def fail(self, error: SendGridError) -> None:
        """End the wait with a copy of the error: an exception shared by tasks would collect all their tracebacks."""
        self._end(SendGridError.from_event(error.to_event()))

    def time_out(self, reason: SendGridError | None) -> None:
        """End the wait with the last result; `reason`: why its last poll has none."""
        if self.has_ended:
            return
        waited_seconds = max(0.0, self.end_time + LAST_POLL_GRACE_SECONDS - self.state.started_at)
        last = self._with_listed(self.state.last_result)
        if self.lacks_only_count:
            self._end(replace(last, outcome=Outcome.READY, waited_seconds=waited_seconds, last_error=None))
            return
        outcome = Outcome.FAILURE if last.export.status == FAILURE else Outcome.TIMEOUT
        error = reason or last.last_error
        if reason and last.last_error:
            error = type(reason)(f"{reason} The previous poll: {last.last_error}")
        self._end(replace(last, outcome=outcome, waited_seconds=waited_seconds, last_error=error))

    def _with_listed(self, result: PollResult) -> PollResult:
        return result if self.listed is None else replace(result, export=self.listed, polls=result.polls + 1)

    def _pass_on(self, result: PollResult, now: float) -> None:
        result = self._with_listed(result)
        seconds_left = self.end_time - now
        if result.outcome is not Outcome.WAITING:
            self._end(result)
        # A confirming poll may be a little late.
        elif seconds_left <= 0 and (result.last_error or not self.state.awaits_confirmation):
            self._end(replace(result, outcome=Outcome.TIMEOUT))
        else:
            left = seconds_left if seconds_left > 0 else LAST_POLL_GRACE_SECONDS
            self.due_at = loop_time() + self.state.pause_seconds(self.schedule, result.waited_seconds, left)
            self.results.put_nowait(result)

    def _end(self, result: PollResult | SendGridError) -> None:
        self.has_ended = True
        self.due_at = NEVER
        self.results.put_nowait(result)
