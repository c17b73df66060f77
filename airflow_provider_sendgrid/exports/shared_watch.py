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
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from airflow_provider_sendgrid.exceptions import SendGridError, redact
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.export import READY, ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.watch import Outcome, PollSchedule, Sighting, look_at

log = logging.getLogger(__name__)

# Those who are due within this time are served together.
_TOGETHER_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Waiter:
    """One who waits for one export; all times are seconds since the epoch."""

    export_id: str
    schedule: PollSchedule
    started_at: float
    end_time: float
    due_at: float
    polls: int = 0
    news: asyncio.Queue[Sighting | SendGridError] = field(default_factory=asyncio.Queue)

    def tell(self, export: ContactExport, now: float) -> None:
        """Pass on what SendGrid says, and settle when to ask again."""
        self.polls += 1
        sighting = look_at(export, now=now, started_at=self.started_at, polls=self.polls)
        if sighting.outcome is Outcome.WAITING and now >= self.end_time:
            sighting = replace(sighting, outcome=Outcome.TIMEOUT)
        wait = self.schedule.wait_seconds(sighting.waited_seconds)
        self.due_at = min(now + wait, self.end_time) if sighting.outcome is Outcome.WAITING else float("inf")
        self.news.put_nowait(sighting)

    def fail(self, error: SendGridError) -> None:
        """Pass on a failure, as one of this waiter's own."""
        self.due_at = float("inf")
        self.news.put_nowait(SendGridError.from_event(error.to_event()))


class SharedWatch:
    """Polls for all who wait for exports of one account and family.

    Args:
        client: how to ask; its owner closes it.
        family: of the exports.
        sleep: how to wait, in seconds.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        client: AsyncSendGridClient,
        family: ExportFamily,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._family = family
        self._sleep = sleep
        self._clock = clock
        self._waiters: list[_Waiter] = []
        self._joined = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._listing_cost = 1

    async def wait(self, export_id: str, schedule: PollSchedule, *, started_at: float, end_time: float) -> Sighting:
        """Wait until the export is ready, has failed, has expired, or `end_time` has passed.

        Args:
            export_id: of the export.
            schedule: how long to wait between two polls, at most.
            started_at: when the wait began, in seconds since the epoch.
            end_time: when to stop waiting, likewise; SendGrid is asked at least once.

        Raises:
            SendGridError: SendGrid could not be asked.
        """
        waiter = _Waiter(export_id, schedule, started_at, end_time, due_at=self._clock())
        self._waiters.append(waiter)
        self._joined.set()
        if self._poller is None:
            self._poller = _detached_task(self._poll())
        try:
            while True:
                news = await waiter.news.get()
                if isinstance(news, SendGridError):
                    raise news
                if news.outcome is not Outcome.WAITING:
                    return news
                log.info("%s Next poll in %.1f s at the latest.", news.describe(), waiter.due_at - self._clock())
        finally:
            self._waiters.remove(waiter)
            if not self._waiters and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    async def _poll(self) -> None:
        while self._waiters:
            due = self._due(self._clock())
            if due:
                await self._serve(due)
            else:
                await self._pause(min(waiter.due_at for waiter in self._waiters) - self._clock())

    def _due(self, now: float) -> list[_Waiter]:
        if not any(waiter.due_at <= now for waiter in self._waiters):
            return []
        return [waiter for waiter in self._waiters if waiter.due_at <= now + _TOGETHER_SECONDS]

    async def _pause(self, seconds: float) -> None:
        """Wait for a time, or until somebody joins."""
        self._joined.clear()
        waits = [asyncio.ensure_future(self._sleep(max(0.0, seconds))), asyncio.ensure_future(self._joined.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _serve(self, due: Sequence[_Waiter]) -> None:
        try:
            unlisted: Iterable[_Waiter] = due
            if len(due) > max(2, self._listing_cost):
                unlisted = await self._serve_from_listing(due)
            for waiter in unlisted:
                await self._serve_by_id(waiter)
        except SendGridError as error:
            for waiter in due:
                waiter.fail(error)
        except Exception as error:  # noqa: BLE001 - whoever waits must learn of it, whatever broke
            broken = SendGridError(redact(f"Polling SendGrid ended by an unforeseen {type(error).__name__}: {error}"))
            for waiter in due:
                waiter.fail(broken)

    async def _serve_from_listing(self, due: Sequence[_Waiter]) -> list[_Waiter]:
        """Tell everybody what the listing says, and answer who has to be served by id.

        That is who is due and not in the listing, and whose export has ended where requests are to spare, or where
        the listing cannot tell: it has neither counts nor messages, and may have no URLs.
        """
        sent_before = self._client.requests_sent
        listed = {export.id: export for export in await self._client.converse(protocol.list_exports(self._family))}
        self._listing_cost = self._client.requests_sent - sent_before
        now = self._clock()
        by_id: list[_Waiter] = [waiter for waiter in due if waiter.export_id not in listed]
        spare = self._client.rate_limit.spare(now) - 2 * self._listing_cost
        for waiter in list(self._waiters):
            if (export := listed.get(waiter.export_id)) is None:
                continue
            outcome = look_at(export, now=now, started_at=now, polls=1).outcome
            lacks_files = export.status == READY and outcome is not Outcome.READY
            if outcome is Outcome.FAILURE or lacks_files or (outcome is Outcome.READY and spare > 0):
                by_id.append(waiter)
                spare -= 1
            else:
                waiter.tell(export, now)
        return by_id

    async def _serve_by_id(self, waiter: _Waiter) -> None:
        if waiter not in self._waiters:
            return
        try:
            export = await self._client.converse(protocol.get_export(self._family, waiter.export_id))
        except (SendGridError, ValueError) as error:
            waiter.fail(error if isinstance(error, SendGridError) else SendGridError(str(error)))
        else:
            waiter.tell(export, self._clock())


@dataclass(slots=True)
class _Shared:
    watch: SharedWatch
    client: AsyncSendGridClient
    users: int = 0


_SHARED: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_watch(
    key: Hashable, family: ExportFamily, connect: Callable[[], AsyncSendGridClient]
) -> AsyncIterator[SharedWatch]:
    """The watch that everybody with the same `key` on this event loop shares; closed when the last one leaves.

    Args:
        key: who may share: the connection, by its name and all it holds.
        family: of the exports.
        connect: makes the client, where there is none yet.
    """
    shared_here = _SHARED.setdefault(asyncio.get_running_loop(), {})
    shared = shared_here.get((key, family))
    if shared is None:
        client = connect()
        shared = shared_here[key, family] = _Shared(SharedWatch(client, family), client)
    shared.users += 1
    try:
        yield shared.watch
    finally:
        shared.users -= 1
        if not shared.users:
            del shared_here[key, family]
            await asyncio.shield(shared.client.aclose())


def _detached_task(coroutine: Awaitable[None]) -> asyncio.Task[None]:
    """A task that belongs to nobody: what it logs does not go into the log of whoever happened to start it."""
    return contextvars.Context().run(asyncio.ensure_future, coroutine)
