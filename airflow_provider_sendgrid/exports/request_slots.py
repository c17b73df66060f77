"""How many requests may be in flight on one account, and whether a listing in flight makes progress.

Knows numbers of requests and the rate limit; knows nothing of waits.
"""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.protocol import Flow, RateLimit
from airflow_provider_sendgrid.exports.waiter import NEVER, loop_time

# A poll that takes longer no longer counts as in flight, and other waits continue without it.
SLOW_SECONDS = 5.0
# Polls in flight at once on one account: usually, if some are slow, and including the slow ones.
_MAX_POLLS = 8
_MAX_POLLS_BESIDE_SLOW = 64
_MAX_POLLS_IN_FLIGHT = 400
# A listing whose pages take longer in all is abandoned.
_MAX_LISTING_SECONDS = 30.0


class RequestSlots:
    """Limits the requests of one account, by its rate limit and by a fixed number."""

    def __init__(self, rate_limit: RateLimit) -> None:
        self.rate_limit = rate_limit
        self.wakeups: WeakSet[asyncio.Event] = WeakSet()
        self._polls = 0
        self._slow = 0
        self._requests = 0
        self._has_answered = False
        self._is_limited = False

    def free(self, now: float) -> int:
        """How many polls may start now."""
        spare = self.rate_limit.spare(now)
        self._is_limited = self._is_limited or spare != NEVER
        if spare == NEVER and (self._is_limited or not self._has_answered):
            spare = 1  # the limit of a new window is known after its first response
        # Polls that hang must not delay others: the more of them there are, the more may start.
        at_once = min(_MAX_POLLS + self._slow, _MAX_POLLS_BESIDE_SLOW)
        most = min(at_once - self._polls, _MAX_POLLS_IN_FLIGHT - self._polls - self._slow)
        return int(min(spare - self._requests, most))

    def acquire(self, requests: int) -> None:
        """Start a poll that takes this many requests."""
        self._polls += 1
        self._requests += requests

    def release(self, requests: int, *, has_answered: bool) -> None:
        """End it, and wake all pollers of the account."""
        self._polls -= 1
        self._requests -= requests
        self._has_answered = self._has_answered or has_answered
        for wakeup in self.wakeups:
            wakeup.set()

    def count_slow(self, task: asyncio.Task[None]) -> None:
        """Count a poll as slow until it ends: its slot was released while it is still in flight."""
        self._slow += 1

        def uncount(_task: asyncio.Task[None]) -> None:
            self._slow -= 1

        task.add_done_callback(uncount)


class ListingProgress:
    """How far the listing in flight is, and how many requests a listing takes.

    Attributes:
        request_count: of the last listing.
        slow_at: the listing in flight is slow from then on, in `loop_time`.
    """

    def __init__(self) -> None:
        self.request_count = 1
        self.slow_at = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether other waits should continue without it."""
        return loop_time() >= self.slow_at

    def note_progress(self) -> None:
        """A new page is requested."""
        self.slow_at = loop_time() + SLOW_SECONDS

    def track(self, flow: Flow[list[ContactExport]]) -> Flow[list[ContactExport]]:
        """Run `flow` and count the pages that it requests, each once.

        Raises:
            SendGridError: the pages took too long.
        """
        pages = set[str]()
        began_at = loop_time()
        try:
            request = next(flow)
            while True:
                if request.target not in pages:
                    if (seconds := loop_time() - began_at) > _MAX_LISTING_SECONDS:
                        self.request_count = len(pages)
                        raise SendGridError(f"its first {len(pages)} pages took {seconds:.0f} s")
                    pages.add(request.target)
                    self.note_progress()
                try:
                    response = yield request
                except SendGridError as error:
                    request = flow.throw(error)
                else:
                    request = flow.send(response)
        except StopIteration as end:
            self.request_count = len(pages)
            return end.value  # type: ignore[no-any-return]
