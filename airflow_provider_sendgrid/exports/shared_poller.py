"""One poller for all waits on an account: hundreds of exports of one account cost a few requests a minute.

All waits on the same event loop for exports of the same account and family share one client and one poller. It asks
for the status by id while that is cheaper, else for the listing, which serves all waits at once, and by id only for
what the listing lacks. Requests run side by side, so a slow one delays no other wait.
The poller ends with the last wait.

An error that may pass never ends a wait before its deadline: the timeout then gives it as the reason.

Knows when to poll and which waits a response serves. What it means is known in `watch`, how to ask in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from weakref import WeakKeyDictionary, WeakSet

from airflow_provider_sendgrid.exceptions import (
    SendGridError,
    SendGridRateLimitError,
    SendGridUnavailableError,
    redact,
)
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.export import FAILURE, READY, ContactExport, ExportFamily
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
from airflow_provider_sendgrid.exports.protocol import Flow, RateLimit

log = logging.getLogger(__name__)

# Waits that are due within this time are served together.
_TOGETHER_SECONDS = 1.0
# How late the last poll, which comes at the deadline, may be answered: requests may have to wait for the rate limit.
_LAST_LOOK_SECONDS = 30.0
# Polls in flight at once, on one account; more if some of them are slow; and with the slow ones.
_POLLS_AT_ONCE = 8
_MOST_POLLS_AT_ONCE = 64
_MOST_POLLS_IN_FLIGHT = 400
# A poll that takes longer no longer counts as one of these, nor do others wait for it.
_SLOW_SECONDS = 5.0
# A listing whose pages take longer in all is given up.
_LISTING_SECONDS = 30.0
# Ready exports in one listing that are polled by id for their count.
_COUNTS_AT_ONCE = 10
# The event loop serves others after so many waits.
_WAITS_IN_A_ROW = 500

_NEVER = float("inf")


@dataclass(slots=True, eq=False)
class _Waiter:
    """The wait for one export.

    Attributes:
        state: what the wait has seen.
        schedule: how long to wait between two polls.
        end_time: in seconds since the epoch.
        due_at: of the next poll, by the event loop's clock, which cannot be set; infinite while a poll for this wait is
            in flight, and once the wait has ended.
        ignores_refusals: whether a refusal does not end it.
        listed: what the listing said of the export since it was last polled by id.
        asked_at: when the request in flight for it was begun, by the event loop's clock.
        was_slow: whether the poll before was not answered in time.
        news: results of polls.
    """

    state: WaitState
    schedule: PollSchedule
    end_time: float
    due_at: float
    ignores_refusals: bool = False
    has_ended: bool = False
    listed: ContactExport | None = None
    asked_at: float | None = None
    was_slow: bool = False
    news: asyncio.Queue[PollResult | SendGridError] = field(default_factory=asyncio.Queue)

    @property
    def export_id(self) -> str:
        return self.state.export_id

    def note(self, export: ContactExport, now: float) -> None:
        """Pass on a description of the export, and schedule the next poll."""
        self.listed = None
        self._pass_on(self.state.note(export, now), now)

    def record_failure(self, error: SendGridError, now: float) -> None:
        """Go on waiting if the error may pass, else end the wait with it."""
        if self.listed is not None and self.listed.status == FAILURE:  # only its message is missing
            self.note(self.listed, now)
            return
        try:
            result = self.state.record_failure(error, now, ignores_refusals=self.ignores_refusals)
        except SendGridError as final:
            self.fail(final)
        else:
            self._pass_on(result, now)

    def fail(self, error: SendGridError) -> None:
        """End the wait with a copy of the error: one exception in several tasks would collect all their tracebacks."""
        self._end(SendGridError.from_event(error.to_event()))

    def give_up(self, reason: SendGridError | None) -> None:
        """End the wait with what is known of the export; `reason`: why its last poll has no result."""
        if self.has_ended:
            return
        waited_seconds = max(0.0, self.end_time + _LAST_LOOK_SECONDS - self.state.started_at)
        seen = self._with_listed(self.state.last_result)
        outcome = Outcome.FAILURE if seen.export.status == FAILURE else Outcome.TIMEOUT
        error = reason or seen.last_error
        if reason and seen.last_error:
            error = type(reason)(f"{reason} The poll before it: {seen.last_error}")
        self._end(replace(seen, outcome=outcome, waited_seconds=waited_seconds, last_error=error))

    def _with_listed(self, seen: PollResult) -> PollResult:
        return seen if self.listed is None else replace(seen, export=self.listed, polls=seen.polls + 1)

    def _pass_on(self, result: PollResult, now: float) -> None:
        result = self._with_listed(result)
        seconds_left = self.end_time - now
        if result.outcome is not Outcome.WAITING:
            self._end(result)
        # A second look may come a little late.
        elif seconds_left <= 0 and (result.last_error or not self.state.needs_second_look):
            self._end(replace(result, outcome=Outcome.TIMEOUT))
        else:
            left = seconds_left if seconds_left > 0 else _LAST_LOOK_SECONDS
            self.due_at = _loop_time() + self.state.pause_seconds(self.schedule, result.waited_seconds, left)
            self.news.put_nowait(result)

    def _end(self, news: PollResult | SendGridError) -> None:
        self.has_ended = True
        self.due_at = _NEVER
        self.news.put_nowait(news)


class _Slots:
    """How many requests may be in flight on one account, so that they exceed neither its rate limit nor a bound."""

    def __init__(self, rate_limit: RateLimit) -> None:
        self.rate_limit = rate_limit
        self.wakeups: WeakSet[asyncio.Event] = WeakSet()
        self._polls = 0
        self._slow = 0
        self._requests = 0
        self._has_answered = False
        self._is_limited = False

    def free(self, now: float) -> int:
        """Polls that may be begun now."""
        spare = self.rate_limit.spare(now)
        self._is_limited = self._is_limited or spare != _NEVER
        if spare == _NEVER and (self._is_limited or not self._has_answered):
            spare = 1  # the limit of a new window is known after its first response
        # Polls that hang must not hold up the others: the more of them there are, the more are begun at once.
        at_once = min(_POLLS_AT_ONCE + self._slow, _MOST_POLLS_AT_ONCE)
        most = min(at_once - self._polls, _MOST_POLLS_IN_FLIGHT - self._polls - self._slow)
        return int(min(spare - self._requests, most))

    def acquire(self, requests: int) -> None:
        """Begin a poll that takes so many requests."""
        self._polls += 1
        self._requests += requests

    def release(self, requests: int, *, has_answered: bool) -> None:
        """End it, and let all watches of the account look for free slots."""
        self._polls -= 1
        self._requests -= requests
        self._has_answered = self._has_answered or has_answered
        for wakeup in self.wakeups:
            wakeup.set()

    def note_slow(self, task: asyncio.Task[None]) -> None:
        """A poll whose slot was released is still in flight."""
        self._slow += 1

        def note_end(_task: asyncio.Task[None]) -> None:
            self._slow -= 1

        task.add_done_callback(note_end)


class SharedPoller:
    """Polls for all waits on exports of one account and family.

    Args:
        client: sends the requests; its owner closes it, after this watch.
        family: of the exports.
        clock: seconds since the epoch.
        slots: of the account; several watches may share them.
    """

    def __init__(
        self,
        client: AsyncSendGridClient,
        family: ExportFamily,
        *,
        clock: Callable[[], float] = time.time,
        slots: _Slots | None = None,
    ) -> None:
        self._client = client
        self._family = family
        self._clock = clock
        self._slots = slots or _Slots(client.rate_limit)
        self._waiters: dict[_Waiter, None] = {}
        self._schedule: list[tuple[float, int, _Waiter]] = []
        self._numbers = count()
        self._due: list[_Waiter] = []
        self._asked_of_listing: list[_Waiter] = []
        self._by_id: deque[_Waiter] = deque()
        self._wakeup = asyncio.Event()
        self._slots.wakeups.add(self._wakeup)
        self._releases: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._unended: set[asyncio.Task[None]] = set()
        self._cancelled: WeakSet[asyncio.Task[None]] = WeakSet()
        self._listing: asyncio.Task[None] | None = None
        self._listing_began_at = 0.0
        self._listing_cost = 1

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

        Errors that may pass (`RETRYABLE_ERRORS`, and a few refusals in a row) are logged, and the wait goes on; without
        a deadline, for as long as they last.

        Args:
            export_id: of the export.
            schedule: how long to wait between two polls, at most.
            started_at: when the wait began, in seconds since the epoch; a time in the future is taken for now.
            end_time: when to stop waiting, likewise; SendGrid is asked at least once. If it cannot be asked then,
                because of its rate limit or an outage, the wait ends half a minute later with the last result. So may
                a second look at an export without contacts.
            ignores_refusals: go on waiting whatever SendGrid's refusals are.
            not_before: of the first poll, in seconds since the epoch: SendGrid has asked to wait.
            has_polled: whether the export was polled before, so that a first 403 or 404 may be a stray one.

        Raises:
            SendGridError: SendGrid refused, and will again.
        """
        now = self._clock()
        seconds_left = max(0.0, end_time - now)
        pause = max(0.0, min((not_before or now) - now, LONGEST_PAUSE_SECONDS, seconds_left))
        state = WaitState(export_id, min(started_at, now), has_polled)
        waiter = _Waiter(state, schedule, end_time, _loop_time() + pause, ignores_refusals)
        deadline = asyncio.get_running_loop().call_later(
            seconds_left + _LAST_LOOK_SECONDS, lambda: waiter.give_up(self._why_not_polled(waiter))
        )
        self._join(waiter)
        try:
            while True:
                news = await waiter.news.get()
                if isinstance(news, SendGridError):
                    raise news
                if news.outcome is not Outcome.WAITING:
                    return news
                level = logging.WARNING if news.last_error else logging.INFO
                log.log(level, "%s Next poll in %.1f s at the latest.", news.describe(), waiter.due_at - _loop_time())
        finally:
            deadline.cancel()
            self._leave(waiter)

    def _why_not_polled(self, waiter: _Waiter) -> SendGridError | None:
        """Why the last poll of a wait has no result at its deadline; None if it is not known better than before."""
        if waiter.asked_at is not None:
            seconds = _loop_time() - waiter.asked_at
            return SendGridUnavailableError(
                f"its request has not been answered for {seconds:.0f} s. Check that the host answers from here."
            )
        if waiter.due_at != _NEVER:
            return None
        if self._slots.rate_limit.spare(self._clock()) < 1:
            why = "SendGrid's rate limit left no request for it"
        else:
            why = "requests for other exports were in front of it"
        return SendGridRateLimitError(f"{why}. Poll less often, or run fewer tasks on this account at once.")

    async def aclose(self) -> None:
        """Wait until no request is in flight: the client may be closed then."""
        self._stop_poller()
        while self._unended:
            await asyncio.wait(self._unended)

    def _join(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        self._put_on_schedule(waiter)
        self._wakeup.set()
        if self._poller is None:
            self._poller = self._begin(self._poll())
            self._poller.add_done_callback(self._note_end)

    def _leave(self, waiter: _Waiter) -> None:
        del self._waiters[waiter]
        waiter.has_ended = True
        if not self._waiters:
            self._stop_poller()

    def _begin(self, coroutine: Awaitable[None]) -> asyncio.Task[None]:
        task = _detached_task(coroutine)
        self._unended.add(task)
        task.add_done_callback(self._unended.discard)
        return task

    def _stop_poller(self) -> None:
        """Cancel the poller and every poll; the next wait starts a new poller."""
        for task in self._unended - set(
            self._cancelled
        ):  # a second cancellation would interrupt the closing of a request
            self._cancelled.add(task)
            task.cancel()
        for release in list(self._releases.values()):
            release()
        self._poller = self._listing = None
        for queue in (self._schedule, self._due, self._asked_of_listing, self._by_id):
            queue.clear()

    def _note_end(self, poller: asyncio.Task[None]) -> None:
        """Report to all waits that the poller ended, unless it was stopped because no wait is left."""
        error = None if poller.cancelled() else poller.exception()
        if poller is self._poller:
            waiters = list(self._waiters)
            self._stop_poller()
            for waiter in waiters:
                waiter.fail(_unforeseen(error))

    def _put_on_schedule(self, waiter: _Waiter) -> None:
        if waiter.due_at != _NEVER:
            heapq.heappush(self._schedule, (waiter.due_at, next(self._numbers), waiter))

    async def _poll(self) -> None:
        while asyncio.current_task() is self._poller:
            self._wakeup.clear()
            self._begin_polls()
            await self._pause()

    def _begin_polls(self) -> None:
        """Begin as many polls as there are free slots; the listing goes first, then the longest overdue wait."""
        if self._listing is None or self._is_listing_slow():  # else the listing in flight may serve them
            self._due += [*self._asked_of_listing, *self._take_due()]
            self._asked_of_listing.clear()
        self._by_id.extend(waiter for waiter in self._due if waiter.state.needs_second_look)
        self._due = [waiter for waiter in self._due if not waiter.state.needs_second_look]
        if len(self._due) <= max(2, self._listing_cost) or self._listing is not None:
            self._by_id.extend(self._due)
            self._due.clear()
        elif self._slots.free(self._clock()) > 0:
            self._asked_of_listing, self._due = self._due, []
            for waiter in self._asked_of_listing:
                waiter.asked_at = _loop_time()
            self._listing_began_at = _loop_time()
            self._listing = self._begin_poll(self._serve_from_listing(self._asked_of_listing), self._listing_cost)
        if any(waiter.was_slow for waiter in self._by_id):  # they go last
            self._by_id = deque(sorted(self._by_id, key=lambda waiter: waiter.was_slow))
        while self._by_id and self._slots.free(self._clock()) > 0:
            waiter = self._by_id.popleft()
            if not waiter.has_ended:
                self._begin_poll(self._serve_by_id(waiter), 1)

    def _begin_poll(self, coroutine: Awaitable[None], requests: int) -> asyncio.Task[None]:
        """Begin a poll in a slot, which is free again when the poll ends or proves slow."""
        task = self._begin(coroutine)

        def release() -> None:
            if self._releases.pop(task, None):
                slow.cancel()
                if not task.done():
                    self._slots.note_slow(task)
                self._slots.release(requests, has_answered=task.done() and not task.cancelled())

        self._slots.acquire(requests)
        self._releases[task] = release
        slow = asyncio.get_running_loop().call_later(_SLOW_SECONDS, release)
        task.add_done_callback(lambda _: release())
        task.add_done_callback(lambda _: self._wakeup.set())
        return task

    def _is_listing_slow(self) -> bool:
        return _loop_time() >= self._listing_began_at + _SLOW_SECONDS

    def _take_due(self) -> list[_Waiter]:
        """The waits that are due, the longest overdue first; none while none is overdue."""
        now, due = _loop_time(), list[_Waiter]()
        limit = now
        while self._schedule:
            due_at, _, waiter = self._schedule[0]
            is_current = not waiter.has_ended and waiter.due_at == due_at
            if is_current and due_at > limit:
                break
            heapq.heappop(self._schedule)
            if is_current:
                waiter.due_at = _NEVER
                due.append(waiter)
                limit = now + _TOGETHER_SECONDS
        return due

    async def _pause(self) -> None:
        """Wait until a wait is due, one begins, a poll ends or proves slow, or the rate limit's window ends."""
        moments = []
        if self._schedule:
            due_at = self._schedule[0][0]
            moments.append(due_at if self._listing is None else max(due_at, self._listing_began_at + _SLOW_SECONDS))
        if self._asked_of_listing:
            moments.append(max(_loop_time() + 0.1, self._listing_began_at + _SLOW_SECONDS))
        if self._due or self._by_id:
            now = self._clock()
            moments.append(_loop_time() + (self._slots.rate_limit.wait_seconds(now) or _SLOW_SECONDS))
        # Not in a busy loop: a clock may not be able to show what is left.
        seconds = max(0.001, min(moments) - _loop_time()) if moments else None
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wakeup.wait(), seconds)

    async def _serve_from_listing(self, due: list[_Waiter]) -> None:
        """Serve `due`, which is empty by then if the listing proved slow, and all other waits."""
        try:
            await self._serve_all(due)
        except (SendGridRateLimitError, SendGridUnavailableError) as error:
            await self._note_failures(due, error)
        except SendGridError as error:
            if (error.status_code or 0) >= 500:
                await self._note_failures(due, error)
            else:
                log.warning("Polling by id, because the listing cannot be used: %s", error)
                for waiter in due:
                    waiter.asked_at = None
                self._by_id.extend(due)
        except Exception as error:  # noqa: BLE001 - these waits must learn of it
            for waiter in due:
                waiter.fail(_unforeseen(error))
        finally:
            if self._listing is asyncio.current_task():
                self._listing = None
                self._asked_of_listing = []

    async def _serve_all(self, due: Sequence[_Waiter]) -> None:
        """Serve all waits from the listing, and queue those that need the status by id.

        These are due and not in the listing; or their export failed or has no URLs yet, because listings have no
        messages and may have no URLs; or, if requests are to spare, it is ready, because listings have no counts.
        An export without files never counts as ready by the listing alone.
        """
        pages = set[str]()
        flow = protocol.list_exports(self._family, POLL_RETRY_POLICY)
        listed = {export.id: export for export in await self._client.run_flow(self._noting_pages(flow, pages))}
        self._listing_cost = len(pages)
        now = self._clock()
        spare = min(self._client.rate_limit.spare(now) - 2 * self._listing_cost, _COUNTS_AT_ONCE)
        queued = {*due, *self._due, *self._by_id}
        self._due.clear()
        self._by_id.clear()
        async for waiter in _without_blocking(self._waiters):
            if waiter.has_ended or (waiter.due_at == _NEVER and waiter not in queued):
                continue  # a poll by id is in flight
            if waiter not in queued and waiter.state.needs_second_look:
                continue  # its second look comes in a few seconds
            export = listed.get(waiter.export_id)
            outcome = evaluate_poll(export, now=now, started_at=now, polls=1).outcome if export else None
            is_counted = outcome is Outcome.READY and spare > 0
            if export is not None and not is_counted and not _needs_status(export, outcome):
                self._note(waiter, export)
            elif export is not None or waiter in queued:
                spare -= is_counted
                waiter.listed = export
                waiter.due_at, waiter.asked_at = _NEVER, None
                self._by_id.append(waiter)

    def _noting_pages(self, flow: Flow[list[ContactExport]], pages: set[str]) -> Flow[list[ContactExport]]:
        """`flow`, and which pages it requested: each once, however often it was tried. A new page shows progress.

        Raises:
            SendGridError: there were pages for too long.
        """
        began_at = _loop_time()
        try:
            request = next(flow)
            while True:
                if request.target not in pages:
                    if (seconds := _loop_time() - began_at) > _LISTING_SECONDS:
                        self._listing_cost = len(pages)
                        raise SendGridError(f"its first {len(pages)} pages took {seconds:.0f} s")
                    pages.add(request.target)
                    self._listing_began_at = _loop_time()
                try:
                    response = yield request
                except SendGridError as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(response)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _serve_by_id(self, waiter: _Waiter) -> None:
        retry_policy = replace(POLL_RETRY_POLICY, seconds_left=lambda: waiter.end_time - self._clock())
        flow = protocol.get_export(self._family, waiter.export_id, retry_policy, needs_confirmation=lambda _: False)
        waiter.asked_at = _loop_time()
        try:
            self._note(waiter, await self._client.run_flow(flow))
        except SendGridError as error:
            listed = waiter.listed
            if listed is not None and listed.status == READY and has_files(listed):  # only its count is missing
                self._note(waiter, listed)
            else:
                self._note_failure(waiter, error)
        except Exception as error:  # noqa: BLE001 - this wait must learn of it, and no other
            waiter.fail(_unforeseen(error))

    def _note(self, waiter: _Waiter, export: ContactExport) -> None:
        self._note_answer(waiter)
        if not waiter.has_ended:
            waiter.note(export, self._clock())
            self._put_on_schedule(waiter)

    def _note_failure(self, waiter: _Waiter, error: SendGridError) -> None:
        self._note_answer(waiter)
        if not waiter.has_ended:
            waiter.record_failure(error, self._clock())
            self._put_on_schedule(waiter)

    def _note_answer(self, waiter: _Waiter) -> None:
        if waiter.asked_at is not None:
            waiter.was_slow = _loop_time() - waiter.asked_at >= _SLOW_SECONDS
            waiter.asked_at = None

    async def _note_failures(self, due: Sequence[_Waiter], error: SendGridError) -> None:
        async for waiter in _without_blocking(due):
            self._note_failure(waiter, error)


async def _without_blocking(waiters: Iterable[_Waiter]) -> AsyncIterator[_Waiter]:
    """Each of them; now and then the event loop serves others."""
    for number, waiter in enumerate(list(waiters)):
        if number % _WAITS_IN_A_ROW == _WAITS_IN_A_ROW - 1:
            await asyncio.sleep(0)
        yield waiter


def _needs_status(export: ContactExport, outcome: Outcome | None) -> bool:
    """Whether only the status by id has the rest: why it failed, or where its files are."""
    return outcome is Outcome.FAILURE or (
        export.status == READY and outcome is not Outcome.EXPIRED and not has_files(export)
    )


def _unforeseen(error: BaseException | None) -> SendGridError:
    what = f"an unforeseen {type(error).__name__}: {error}" if error else "a cancellation from outside"
    return SendGridError(redact(f"Polling SendGrid was ended by {what}"))


@dataclass(slots=True)
class _Shared:
    watch: SharedPoller
    client: AsyncSendGridClient
    users: int = 0

    async def aclose(self) -> None:
        await self.watch.aclose()
        await self.client.aclose()


@dataclass(slots=True)
class _Loop:
    """What is shared on one event loop; of an account without waits only its slots and its rate limit."""

    shared: dict[Hashable, _Shared] = field(default_factory=dict)
    slots: dict[Hashable, _Slots] = field(default_factory=dict)


_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


@asynccontextmanager
async def acquire_poller(
    key: Hashable, family: ExportFamily, connect: Callable[[], AsyncSendGridClient]
) -> AsyncIterator[SharedPoller]:
    """The watch that everybody with the same `key` on this event loop shares; closed when the last one leaves.

    What was learnt of the account's rate limit outlives it, and holds for both families: after a restart of a triggerer
    most exports may be ready at the first look, so that one watch follows another.

    Args:
        key: who may share: the connection, by its name and all it holds.
        family: of the exports.
        connect: makes the client, where there is none yet.
    """
    here = _LOOPS.setdefault(asyncio.get_running_loop(), _Loop())
    shared = here.shared.get((key, family))
    if shared is None:
        client = connect()
        slots = here.slots.setdefault(key, _Slots(client.rate_limit))
        client.rate_limit = slots.rate_limit
        shared = here.shared[key, family] = _Shared(SharedPoller(client, family, slots=slots), client)
    shared.users += 1
    try:
        yield shared.watch
    finally:
        shared.users -= 1
        if not shared.users:
            del here.shared[key, family]
            await asyncio.shield(shared.aclose())


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _detached_task(coroutine: Awaitable[None]) -> asyncio.Task[None]:
    """A task that belongs to nobody: what it logs does not go into the log of whoever happened to start it."""
    return contextvars.Context().run(asyncio.ensure_future, coroutine)
