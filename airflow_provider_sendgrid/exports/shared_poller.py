"""One poller for all waits on an account: hundreds of exports cost a few requests a minute.

All waits on the same event loop for exports of the same account and family share one client and one poller. It requests
each status by id while that needs fewer requests. Otherwise it requests the listing, which serves all waits at once,
and by id only the exports that the listing lacks. Requests run concurrently, so a slow one delays no other wait. The
poller ends with the last wait.

A retryable error never ends a wait before its deadline; the timeout then names it as the reason.

Knows when to poll and which waits a response serves. `polling` knows what a response means, `protocol` how to request
it.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from weakref import WeakSet

from airflow_provider_sendgrid.exceptions import (
    SendGridError,
    SendGridRateLimitError,
    SendGridUnavailableError,
    redact,
)
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.export import READY, ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.polling import (
    LONGEST_PAUSE_SECONDS,
    POLL_RETRY_POLICY,
    Outcome,
    PollResult,
    PollSchedule,
    WaitState,
    evaluate_poll,
    has_files,
)
from airflow_provider_sendgrid.exports.request_slots import SLOW_SECONDS, ListingProgress, RequestSlots
from airflow_provider_sendgrid.exports.waiter import LAST_POLL_GRACE_SECONDS, NEVER, Waiter, loop_time

log = logging.getLogger(__name__)

# Waits that are due within this time are served together.
_TOGETHER_SECONDS = 1.0
# Ready exports in one listing that are polled by id for their count.
_MAX_COUNTS_PER_LISTING = 10
# The event loop runs other tasks after this many waits.
_WAITS_PER_STEP = 500


class SharedPoller:
    """Polls for all waits on exports of one account and family.

    Args:
        client: sends the requests; its owner closes it, after this poller.
        family: of the exports.
        clock: seconds since the epoch.
        slots: of the account; several pollers may share them.
    """

    def __init__(
        self,
        client: AsyncSendGridClient,
        family: ExportFamily,
        *,
        clock: Callable[[], float] = time.time,
        slots: RequestSlots | None = None,
    ) -> None:
        self._client = client
        self._family = family
        self._clock = clock
        self._slots = slots or RequestSlots(client.rate_limit)
        self._waiters: dict[Waiter, None] = {}
        # A heap of when each wait is due.
        self._scheduled: list[tuple[float, int, Waiter]] = []
        self._numbers = count()
        # Waits to serve: by either, by the listing in flight, and by id.
        self._due: list[Waiter] = []
        self._due_from_listing: list[Waiter] = []
        self._due_by_id: deque[Waiter] = deque()
        self._wakeup = asyncio.Event()
        self._slots.wakeups.add(self._wakeup)
        self._releases: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._polling: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._cancelled: WeakSet[asyncio.Task[None]] = WeakSet()
        self._listing: asyncio.Task[None] | None = None
        self._listing_progress = ListingProgress()

    async def wait(
        self,
        export_id: str,
        schedule: PollSchedule,
        *,
        started_at: float,
        end_time: float,
        ignores_refusals: bool = False,
        not_before: float | None = None,
        has_polled: bool = False,
    ) -> PollResult:
        """Wait until the export is ready, has failed, has expired, or `end_time` has passed.

        Retryable errors (`RETRYABLE_ERRORS`, and a few refusals in a row) are logged, and the wait continues; without a
        deadline, for as long as they last.

        Args:
            export_id: of the export.
            schedule: how long to wait between two polls, at most.
            started_at: when the wait began, in seconds since the epoch; a time in the future means now.
            end_time: the deadline, in seconds since the epoch. There is at least one poll. If the rate limit or an
                outage prevents it, the wait ends half a minute later with the last result. A poll that confirms an
                export without contacts may take that long, too.
            ignores_refusals: continue after any refusal by SendGrid.
            not_before: of the first poll, in seconds since the epoch, if SendGrid asked to wait.
            has_polled: whether the export was polled before, so that a first 403 or 404 may be a stray one.

        Raises:
            SendGridError: SendGrid refused, and will again.
        """
        now = self._clock()
        seconds_left = max(0.0, end_time - now)
        pause = max(0.0, min((not_before or now) - now, LONGEST_PAUSE_SECONDS, seconds_left))
        state = WaitState(export_id, min(started_at, now), has_polled)
        waiter = Waiter(state, schedule, end_time, loop_time() + pause, ignores_refusals)
        deadline = asyncio.get_running_loop().call_later(
            seconds_left + LAST_POLL_GRACE_SECONDS, lambda: waiter.time_out(self._why_not_polled(waiter))
        )
        self._add(waiter)
        try:
            while True:
                result = await waiter.results.get()
                if isinstance(result, SendGridError):
                    raise result
                if result.outcome is not Outcome.WAITING:
                    return result
                level = logging.WARNING if result.last_error else logging.INFO
                log.log(level, "%s Next poll in %.1f s at the latest.", result.describe(), waiter.due_at - loop_time())
        finally:
            deadline.cancel()
            self._remove(waiter)

    async def aclose(self) -> None:
        """Stop polling, and wait until no request is in flight: the client may be closed then."""
        self._stop_polling()
        while self._running:
            await asyncio.wait(self._running)

    def _why_not_polled(self, waiter: Waiter) -> SendGridError | None:
        """Why the last poll of a wait has no result at its deadline; None if the last result already shows it."""
        if waiter.requested_at is not None:
            seconds = loop_time() - waiter.requested_at
            return SendGridUnavailableError(
                f"its request has not been answered for {seconds:.0f} s. Check that the host answers from here."
            )
        if waiter.due_at != NEVER:
            return None
        if self._slots.rate_limit.spare(self._clock()) < 1:
            why = "SendGrid's rate limit left no request for it"
        else:
            why = "requests for other exports were ahead of it"
        return SendGridRateLimitError(f"{why}. Poll less often, or run fewer tasks on this account at once.")

    # Waits and tasks

    def _add(self, waiter: Waiter) -> None:
        self._waiters[waiter] = None
        self._schedule(waiter)
        self._wakeup.set()
        if self._polling is None:
            self._polling = self._run(self._poll())
            self._polling.add_done_callback(self._on_polling_end)

    def _remove(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        waiter.has_ended = True
        if not self._waiters:
            self._stop_polling()

    def _run(self, coroutine: Awaitable[None]) -> asyncio.Task[None]:
        task = _detached_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _stop_polling(self) -> None:
        """Cancel all polls; the next wait starts polling again."""
        # A second cancellation would interrupt the closing of a request.
        for task in self._running - set(self._cancelled):
            self._cancelled.add(task)
            task.cancel()
        for release in list(self._releases.values()):
            release()
        self._polling = self._listing = None
        for queue in (self._scheduled, self._due, self._due_from_listing, self._due_by_id):
            queue.clear()

    def _on_polling_end(self, polling: asyncio.Task[None]) -> None:
        """End all waits with an error, unless polling was stopped because no wait is left."""
        error = None if polling.cancelled() else polling.exception()
        if polling is self._polling:
            waiters = list(self._waiters)
            self._stop_polling()
            for waiter in waiters:
                waiter.fail(_unexpected(error))

    # When to poll

    async def _poll(self) -> None:
        while asyncio.current_task() is self._polling:
            self._wakeup.clear()
            self._start_polls()
            await self._pause()

    def _schedule(self, waiter: Waiter) -> None:
        if waiter.due_at != NEVER:
            heapq.heappush(self._scheduled, (waiter.due_at, next(self._numbers), waiter))

    def _take_due(self) -> list[Waiter]:
        """The waits that are due, the longest overdue first; empty unless one is overdue."""
        now, due = loop_time(), list[Waiter]()
        limit = now
        while self._scheduled:
            due_at, _, waiter = self._scheduled[0]
            is_current = not waiter.has_ended and waiter.due_at == due_at
            if is_current and due_at > limit:
                break
            heapq.heappop(self._scheduled)
            if is_current:
                waiter.due_at = NEVER
                due.append(waiter)
                limit = now + _TOGETHER_SECONDS
        return due

    def _start_polls(self) -> None:
        """Start as many polls as there are free slots; the listing first, then the longest overdue wait."""
        if self._listing is None or self._listing_progress.is_slow:  # otherwise the listing in flight may serve them
            self._due += [*self._due_from_listing, *self._take_due()]
            self._due_from_listing.clear()
        self._due_by_id.extend(waiter for waiter in self._due if waiter.state.awaits_confirmation)
        self._due = [waiter for waiter in self._due if not waiter.state.awaits_confirmation]
        if len(self._due) <= max(2, self._listing_progress.request_count) or self._listing is not None:
            self._due_by_id.extend(self._due)
            self._due.clear()
        elif self._slots.free(self._clock()) > 0:
            self._due_from_listing, self._due = self._due, []
            for waiter in self._due_from_listing:
                waiter.requested_at = loop_time()
            self._listing_progress.note_progress()
            poll = self._serve_from_listing(self._due_from_listing)
            self._listing = self._start_poll(poll, self._listing_progress.request_count)
        if any(waiter.was_slow for waiter in self._due_by_id):  # these last
            self._due_by_id = deque(sorted(self._due_by_id, key=lambda waiter: waiter.was_slow))
        while self._due_by_id and self._slots.free(self._clock()) > 0:
            waiter = self._due_by_id.popleft()
            if not waiter.has_ended:
                self._start_poll(self._serve_by_id(waiter), 1)

    def _start_poll(self, coroutine: Awaitable[None], requests: int) -> asyncio.Task[None]:
        """Start a poll in a slot, which is released when the poll ends or is slow."""
        task = self._run(coroutine)

        def release() -> None:
            if self._releases.pop(task, None):
                slow.cancel()
                if not task.done():
                    self._slots.count_slow(task)
                self._slots.release(requests, has_answered=task.done() and not task.cancelled())

        self._slots.acquire(requests)
        self._releases[task] = release
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, release)
        task.add_done_callback(lambda _: release())
        task.add_done_callback(lambda _: self._wakeup.set())
        return task

    async def _pause(self) -> None:
        """Pause until a wait begins or is due, a poll ends or is slow, or the rate limit's window ends."""
        moments = []
        if self._scheduled:
            due_at = self._scheduled[0][0]
            moments.append(due_at if self._listing is None else max(due_at, self._listing_progress.slow_at))
        if self._due_from_listing:
            moments.append(max(loop_time() + 0.1, self._listing_progress.slow_at))
        if self._due or self._due_by_id:
            now = self._clock()
            moments.append(loop_time() + (self._slots.rate_limit.wait_seconds(now) or SLOW_SECONDS))
        # Never zero: a clock may be too coarse to show what is left, and this would be a busy loop.
        seconds = max(0.001, min(moments) - loop_time()) if moments else None
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wakeup.wait(), seconds)

    # Polls

    async def _serve_from_listing(self, due: list[Waiter]) -> None:
        """Serve all waits; `due` is empty by then if the listing was slow."""
        try:
            await self._serve_all(due)
        except (SendGridRateLimitError, SendGridUnavailableError) as error:
            await self._record_failures(due, error)
        except SendGridError as error:
            if (error.status_code or 0) >= 500:
                await self._record_failures(due, error)
            else:
                log.warning("Polling by id, because the listing cannot be used: %s", error)
                for waiter in due:
                    waiter.requested_at = None
                self._due_by_id.extend(due)
        except Exception as error:  # noqa: BLE001 - these waits end with it
            for waiter in due:
                waiter.fail(_unexpected(error))
        finally:
            if self._listing is asyncio.current_task():
                self._listing = None
                self._due_from_listing = []

    async def _serve_all(self, due: Sequence[Waiter]) -> None:
        """Serve all waits from the listing, and queue those that need the status by id.

        The status by id is needed if a wait is due and its export is not in the listing; if the export failed or has no
        URLs yet, because listings have no messages and may have no URLs; and, while requests are left, if the export is
        ready, because listings have no counts. The listing alone never shows that an export without files is ready.
        """
        flow = self._listing_progress.track(protocol.list_exports(self._family, POLL_RETRY_POLICY))
        listed = {export.id: export for export in await self._client.run_flow(flow)}
        now = self._clock()
        spare = self._client.rate_limit.spare(now) - 2 * self._listing_progress.request_count
        spare = min(spare, _MAX_COUNTS_PER_LISTING)
        queued = {*due, *self._due, *self._due_by_id}
        self._due.clear()
        self._due_by_id.clear()
        async for waiter in _without_blocking(self._waiters):
            if waiter.has_ended or (waiter.due_at == NEVER and waiter not in queued):
                continue  # a poll by id is in flight
            if waiter not in queued and waiter.state.awaits_confirmation:
                continue  # its second poll is due in a few seconds
            export = listed.get(waiter.export_id)
            outcome = evaluate_poll(export, now=now, started_at=now, polls=1).outcome if export else None
            needs_count = outcome is Outcome.READY and spare > 0
            if export is not None and not needs_count and not _needs_status(export, outcome):
                self._record(waiter, export)
            elif export is not None or waiter in queued:
                spare -= needs_count
                waiter.listed = export
                waiter.due_at, waiter.requested_at = NEVER, None
                self._due_by_id.append(waiter)

    async def _serve_by_id(self, waiter: Waiter) -> None:
        retry_policy = replace(POLL_RETRY_POLICY, seconds_left=lambda: waiter.end_time - self._clock())
        flow = protocol.get_export(self._family, waiter.export_id, retry_policy, needs_confirmation=lambda _: False)
        waiter.requested_at = loop_time()
        try:
            self._record(waiter, await self._client.run_flow(flow))
        except SendGridError as error:
            if waiter.listed is not None and waiter.lacks_only_count:
                self._record(waiter, waiter.listed)
            else:
                self._record_failure(waiter, error)
        except Exception as error:  # noqa: BLE001 - this wait ends with it, and no other
            waiter.fail(_unexpected(error))

    # Results

    def _record(self, waiter: Waiter, export: ContactExport) -> None:
        self._record_speed(waiter)
        if not waiter.has_ended:
            waiter.record(export, self._clock())
            self._schedule(waiter)

    def _record_failure(self, waiter: Waiter, error: SendGridError) -> None:
        self._record_speed(waiter)
        if not waiter.has_ended:
            waiter.record_failure(error, self._clock())
            self._schedule(waiter)

    def _record_speed(self, waiter: Waiter) -> None:
        if waiter.requested_at is not None:
            waiter.was_slow = loop_time() - waiter.requested_at >= SLOW_SECONDS
            waiter.requested_at = None

    async def _record_failures(self, due: Sequence[Waiter], error: SendGridError) -> None:
        async for waiter in _without_blocking(due):
            self._record_failure(waiter, error)


async def _without_blocking(waiters: Iterable[Waiter]) -> AsyncIterator[Waiter]:
    """Each of `waiters`; other tasks of the event loop run in between."""
    for number, waiter in enumerate(list(waiters)):
        if number % _WAITS_PER_STEP == _WAITS_PER_STEP - 1:
            await asyncio.sleep(0)
        yield waiter


def _needs_status(export: ContactExport, outcome: Outcome | None) -> bool:
    """Whether only the status by id shows the rest: why the export failed, or where its files are."""
    return outcome is Outcome.FAILURE or (
        export.status == READY and outcome is not Outcome.EXPIRED and not has_files(export)
    )


def _unexpected(error: BaseException | None) -> SendGridError:
    cause = f"failed with an unexpected {type(error).__name__}: {error}" if error else "was cancelled from outside"
    return SendGridError(redact(f"Polling SendGrid {cause}"))


def _detached_task(coroutine: Awaitable[None]) -> asyncio.Task[None]:
    """A task in an empty context, so that it does not write into the log of the trigger that started it."""
    return contextvars.Context().run(asyncio.ensure_future, coroutine)
