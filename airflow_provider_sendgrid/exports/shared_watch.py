"""One poll for all who wait: hundreds of exports of one account cost a few requests a minute.

Everyone who waits on the same event loop for exports of the same account and family shares one client and one poller.
It asks for the status by id while that is cheaper, else for the listing, which serves all at once, and by id only for
what the listing lacks. Whoever leaves disturbs nobody; with the last one the poller ends.

Knows when to ask and whom to tell. What an answer means is known in `watch`, how to ask in `protocol`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from airflow_provider_sendgrid.exceptions import SendGridError, redact
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.export import READY, ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.protocol import RateLimit
from airflow_provider_sendgrid.exports.watch import Outcome, PollSchedule, Sighting, look_at

log = logging.getLogger(__name__)

# Those who are due within this time are served together.
_TOGETHER_SECONDS = 1.0
# How late the last look, which comes at the deadline, may be answered: requests may have to wait for the rate limit.
_LAST_LOOK_SECONDS = 30.0
# So many are asked for by id between two listings, though others wait for the next listing.
_BY_ID_AT_ONCE = 10


@dataclass(slots=True, eq=False)
class _Waiter:
    """One who waits for one export.

    `started_at` and `end_time` are seconds since the epoch; `due_at` is by the event loop's clock, which nobody sets.
    """

    export_id: str
    schedule: PollSchedule
    started_at: float
    end_time: float
    due_at: float
    polls: int = 0
    is_listed: bool = False
    last_seen: Sighting | None = None
    news: asyncio.Queue[Sighting | SendGridError] = field(default_factory=asyncio.Queue)

    def tell(self, export: ContactExport, now: float) -> None:
        """Pass on what SendGrid says, and settle when to ask again."""
        self.polls += 1
        sighting = look_at(export, now=now, started_at=self.started_at, polls=self.polls)
        if sighting.outcome is Outcome.WAITING and now >= self.end_time:
            sighting = replace(sighting, outcome=Outcome.TIMEOUT)
        self.last_seen = sighting
        if sighting.outcome is Outcome.WAITING:
            wait = min(self.schedule.wait_seconds(sighting.waited_seconds), self.end_time - now)
            self.due_at = _loop_time() + wait
        else:
            self.due_at = float("inf")
        self.news.put_nowait(sighting)

    def fail(self, error: SendGridError) -> None:
        """Pass on a failure, as one of this waiter's own."""
        self.due_at = float("inf")
        self.news.put_nowait(SendGridError.from_event(error.to_event()))

    def give_up(self) -> None:
        """End the wait with what was seen last; where nothing was, the first answer or failure still ends it."""
        if self.last_seen is not None and self.last_seen.outcome is Outcome.WAITING:
            waited = self.end_time + _LAST_LOOK_SECONDS - self.started_at
            self.last_seen = replace(self.last_seen, outcome=Outcome.TIMEOUT, waited_seconds=waited)
            self.due_at = float("inf")
            self.news.put_nowait(self.last_seen)


class SharedWatch:
    """Polls for all who wait for exports of one account and family.

    Args:
        client: how to ask; its owner closes it, after this watch.
        family: of the exports.
        clock: seconds since the epoch.
    """

    def __init__(
        self, client: AsyncSendGridClient, family: ExportFamily, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._client = client
        self._family = family
        self._clock = clock
        self._waiters: dict[_Waiter, None] = {}
        self._joined = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._unended: set[asyncio.Task[None]] = set()
        self._listing_cost = 1

    async def wait(self, export_id: str, schedule: PollSchedule, *, started_at: float, end_time: float) -> Sighting:
        """Wait until the export is ready, has failed, has expired, or `end_time` has passed.

        Args:
            export_id: of the export.
            schedule: how long to wait between two polls, at most.
            started_at: when the wait began, in seconds since the epoch; a time to come is taken for now.
            end_time: when to stop waiting, likewise; SendGrid is asked at least once. Where SendGrid cannot be asked
                then, for its rate limit or an outage, the wait ends half a minute later with what was seen last.

        Raises:
            SendGridError: SendGrid could not be asked.
        """
        now = self._clock()
        waiter = _Waiter(export_id, schedule, min(started_at, now), end_time, due_at=_loop_time())
        seconds_left = max(0.0, end_time - now) + _LAST_LOOK_SECONDS
        deadline = asyncio.get_running_loop().call_later(seconds_left, waiter.give_up)
        self._join(waiter)
        try:
            while True:
                news = await waiter.news.get()
                if isinstance(news, SendGridError):
                    raise news
                if news.outcome is not Outcome.WAITING:
                    return news
                log.info("%s Next poll in %.1f s at the latest.", news.describe(), waiter.due_at - _loop_time())
        finally:
            deadline.cancel()
            self._leave(waiter)

    async def aclose(self) -> None:
        """Wait until no request is under way any more: the client may be closed then."""
        self._let_poller_go()
        if self._unended:
            await asyncio.wait(self._unended)

    def _join(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        self._joined.set()
        if self._poller is None:
            self._poller = _detached_task(self._poll())
            self._unended.add(self._poller)
            self._poller.add_done_callback(self._note_end)

    def _leave(self, waiter: _Waiter) -> None:
        del self._waiters[waiter]
        if not self._waiters:
            self._let_poller_go()

    def _let_poller_go(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None

    def _note_end(self, poller: asyncio.Task[None]) -> None:
        """Tell everybody, where the poller did not end because everybody had left."""
        self._unended.discard(poller)
        error = None if poller.cancelled() else poller.exception()
        if poller is self._poller:
            self._poller = None
            for waiter in self._waiters:
                waiter.fail(_unforeseen(error))

    async def _poll(self) -> None:
        while asyncio.current_task() is self._poller:
            if due := self._due():
                await self._serve(due)
            else:
                await self._pause()

    def _due(self) -> list[_Waiter]:
        """Whoever is due, the longest overdue first; nobody while everybody has time."""
        now = _loop_time()
        if not any(waiter.due_at <= now for waiter in self._waiters):
            return []
        due = [waiter for waiter in self._waiters if waiter.due_at <= now + _TOGETHER_SECONDS]
        return sorted(due, key=lambda waiter: waiter.due_at)

    async def _pause(self) -> None:
        """Wait until somebody is due, or joins."""
        self._joined.clear()
        seconds = min(waiter.due_at for waiter in self._waiters) - _loop_time()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._joined.wait(), seconds)

    async def _serve(self, due: Sequence[_Waiter]) -> None:
        by_id: Iterable[_Waiter] = due
        if len(due) > max(2, self._listing_cost):
            try:
                by_id = await self._serve_from_listing(due)
            except SendGridError as error:
                for waiter in due:
                    waiter.fail(error)
                return
        for number, waiter in enumerate(by_id):
            if number >= max(_BY_ID_AT_ONCE, self._listing_cost) and self._is_listing_due():
                return  # those whom the listing serves do not wait for those whom it lacks
            await self._serve_by_id(waiter)

    def _is_listing_due(self) -> bool:
        now = _loop_time()
        return any(waiter.is_listed and waiter.due_at <= now for waiter in self._waiters)

    async def _serve_from_listing(self, due: Sequence[_Waiter]) -> list[_Waiter]:
        """Tell everybody what the listing says, and answer who has to be served by id.

        That is who is due and not in the listing; whose export failed or has no URLs yet, for listings have no
        messages and may have no URLs; and, where requests are to spare, some of those whose export is ready, for
        listings have no counts.
        """
        successes_before = self._client.successes
        listed = {export.id: export for export in await self._client.converse(protocol.list_exports(self._family))}
        self._listing_cost = self._client.successes - successes_before
        now = self._clock()
        spare = min(self._client.rate_limit.spare(now) - 2 * self._listing_cost, _BY_ID_AT_ONCE)
        counted: list[_Waiter] = []
        unclear: list[_Waiter] = [waiter for waiter in due if waiter.export_id not in listed]
        for waiter in self._waiters:
            export = listed.get(waiter.export_id)
            outcome = look_at(export, now=now, started_at=now, polls=1).outcome if export else None
            waiter.is_listed = export is not None and not _is_unclear(export, outcome)
            if export is None:
                continue
            if not waiter.is_listed:
                unclear.append(waiter)
            elif outcome is Outcome.READY and len(counted) < spare:
                counted.append(waiter)
            else:
                waiter.tell(export, now)
        return counted + unclear

    async def _serve_by_id(self, waiter: _Waiter) -> None:
        if waiter not in self._waiters or waiter.due_at == float("inf"):
            return
        try:
            export = await self._client.converse(protocol.get_export(self._family, waiter.export_id))
        except SendGridError as error:
            waiter.fail(error)
        except Exception as error:  # noqa: BLE001 - whoever waits for this one must learn of it, and nobody else
            waiter.fail(_unforeseen(error))
        else:
            waiter.tell(export, self._clock())


def _is_unclear(export: ContactExport, outcome: Outcome | None) -> bool:
    """Whether only the status by id tells the rest: why it failed, or where its files are."""
    return outcome is Outcome.FAILURE or (export.status == READY and outcome is Outcome.WAITING)


def _unforeseen(error: BaseException | None) -> SendGridError:
    what = f"an unforeseen {type(error).__name__}: {error}" if error else "somebody who cancelled it"
    return SendGridError(redact(f"Polling SendGrid was ended by {what}"))


@dataclass(slots=True)
class _Shared:
    watch: SharedWatch
    client: AsyncSendGridClient
    users: int = 0

    async def aclose(self) -> None:
        await self.watch.aclose()
        await self.client.aclose()


@dataclass(slots=True)
class _Loop:
    """What is shared on one event loop; of an account whom nobody waits for any more, its rate limit alone."""

    shared: dict[Hashable, _Shared] = field(default_factory=dict)
    rate_limits: dict[Hashable, RateLimit] = field(default_factory=dict)


_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = WeakKeyDictionary()


@asynccontextmanager
async def shared_watch(
    key: Hashable, family: ExportFamily, connect: Callable[[], AsyncSendGridClient]
) -> AsyncIterator[SharedWatch]:
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
        client.rate_limit = here.rate_limits.setdefault(key, client.rate_limit)
        shared = here.shared[key, family] = _Shared(SharedWatch(client, family), client)
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
