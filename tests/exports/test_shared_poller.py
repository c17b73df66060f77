"""One poller serves all waits, and each wait ends with its own export.

The client with its retries and rate limit is real; the responses are made up, and time is virtual.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_sendgrid.exceptions import (
    ExportWithoutFilesError,
    SendGridAuthError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridRateLimitError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.poller_pool import acquire_poller
from airflow_provider_sendgrid.exports.polling import Outcome, PollResult, PollSchedule
from airflow_provider_sendgrid.exports.shared_poller import SharedPoller
from tests.support import virtual_time

httpx = pytest.importorskip("httpx")

NOW = 1_767_323_045.0
PATH = "/v3/marketing/contacts/exports"
CREATED = "2026-01-01T00:00:00Z"
LISTING = "the listing"
FILES = ["https://files.example/1?X-Amz-Signature=5ecret"]

PENDING = {"status": "pending"}
READY = {"status": "ready", "urls": FILES, "contact_count": 5}
FAILURE = {"status": "failure", "message": "list is gone"}
LOGGER = "airflow_provider_sendgrid.exports.shared_poller"


def expiring_in(seconds, status="pending"):
    return {"status": status, "expires_at": datetime.fromtimestamp(NOW + seconds, tz=timezone.utc).isoformat()}


def ready_after(seconds):
    """An export that becomes ready so long after the test began."""
    return lambda now: READY if now >= NOW + seconds else PENDING


@dataclass
class Account:
    """SendGrid as seen over the wire.

    Attributes:
        answers: for each export the responses in turn, the last one repeatedly; or a function of the time.
        unlisted: exports that the listing lacks.
        page_size: exports on each page of the listing.
        answer_seconds: how long each response takes.
        limit: requests allowed in each `window_seconds`; None is no limit, and no rate-limit headers.
        refusals: statuses of the next responses.
        retry_after: of these, in seconds.
        headers: more headers of the next responses.
        broken_listing: the listing is not JSON.
        hanging: exports, or the listing, that are answered after an hour.
        requested: each request and its time, in seconds since the test began.
    """

    answers: dict = field(default_factory=dict)
    unlisted: set = field(default_factory=set)
    page_size: int = 100
    answer_seconds: float = 0.0
    limit: int | None = None
    window_seconds: float = 20.0
    refusals: list = field(default_factory=list)
    retry_after: int | None = None
    headers: list = field(default_factory=list)
    broken_listing: bool = False
    hanging: set = field(default_factory=set)
    requested: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    clients: list = field(default_factory=list)
    path: str = PATH
    closed: int = 0
    under_way: int = 0
    window_ends: float = -math.inf
    left: int = 0

    @property
    def now(self):
        return NOW + asyncio.get_running_loop().time()

    @property
    def questions(self):
        return [what for _, what in self.requested]

    @property
    def times(self):
        return [when for when, _ in self.requested]

    def client(self):
        """A client of ours, with this account at the other end of the wire."""
        connection = SendGridConnection("SG.a-key", base_url="http://127.0.0.1:1", verify=False)
        client = AsyncSendGridClient(connection, clock=lambda: self.now)
        client._client = httpx.AsyncClient(transport=_Wire(self), base_url=connection.base_url)
        self.clients.append(client)
        return client

    def poller(self):
        return SharedPoller(self.client(), ExportFamily.MARKETING, clock=lambda: self.now)

    async def answer(self, request):
        what = request.url.path.removeprefix(self.path).lstrip("/") or LISTING
        self.requested.append((round(self.now - NOW, 3), what))
        await asyncio.sleep(3600.0 if what in self.hanging else self.answer_seconds)
        headers = self._take_slot() | self.headers.pop(0) if self.headers else self._take_slot()
        if headers.get("X-RateLimit-Remaining") == "-1":
            self.refused.append(self.requested[-1])
            return httpx.Response(429, headers=headers | {"X-RateLimit-Remaining": "0"}, json={})
        if self.refusals:
            headers = headers | ({"Retry-After": str(self.retry_after)} if self.retry_after else {})
            return httpx.Response(self.refusals.pop(0), headers=headers, json={"errors": [{"message": "no"}]})
        if what == LISTING and self.broken_listing:
            return httpx.Response(200, headers=headers, text="oops")
        page = int(request.url.params.get("page", 0))
        payload = self._listing(page) if what == LISTING else self._status(what)
        return httpx.Response(200 if payload else 404, headers=headers, json=payload or {})

    def _take_slot(self):
        if self.limit is None:
            return {}
        if self.now >= self.window_ends:
            self.window_ends, self.left = self.now + self.window_seconds, self.limit
        self.left -= 1
        reset = math.ceil(self.window_ends - self.now)
        return {"X-RateLimit-Remaining": str(max(-1, self.left)), "X-RateLimit-Reset": str(reset)}

    def _listing(self, page):
        listed = [each for each in self.answers if each not in self.unlisted]
        items = listed[page * self.page_size : (page + 1) * self.page_size]
        is_last = (page + 1) * self.page_size >= len(listed)
        following = {} if is_last else {"next": f"https://api.sendgrid.com{PATH}?page={page + 1}"}
        return {"result": [self._listed(each) for each in items], "_metadata": following}

    def _listed(self, export_id):
        """Without count and message, as in SendGrid."""
        seen = self._current(export_id)
        names = ("status", "urls", "expires_at", "completed_at")
        return {"id": export_id, "created_at": CREATED, **{name: seen[name] for name in names if name in seen}}

    def _status(self, export_id):
        if export_id not in self.answers:
            return None
        seen = self._current(export_id)
        if isinstance(self.answers[export_id], list) and len(self.answers[export_id]) > 1:
            self.answers[export_id].pop(0)
        return {"id": export_id, **seen}

    def _current(self, export_id):
        answers = self.answers[export_id]
        seen = answers(self.now) if callable(answers) else answers[0]
        if isinstance(seen, Exception):
            raise seen
        return seen


class _Wire(httpx.AsyncBaseTransport):
    def __init__(self, account):
        self.account = account

    async def handle_async_request(self, request):
        self.account.under_way += 1
        try:
            answer = await self.account.answer(request)
            # As from a wire, nothing of its content has been read yet.
            return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # a connection takes its time to close
            raise
        finally:
            self.account.under_way -= 1

    async def aclose(self):
        assert self.account.under_way == 0, "closed while a request was under way"
        self.account.closed += 1


def schedule(interval=60.0):
    return PollSchedule(interval, jitter=lambda: 0.0)


def waits(poller, *export_ids, interval=60.0, started_at=NOW, end_time=NOW + 3600):
    """A task for each export, which waits for it."""
    return [
        asyncio.ensure_future(
            poller.wait(export_id, schedule(interval), started_at=started_at, end_time=end_time),
        )
        for export_id in export_ids
    ]


def wait_for_all(account, **options):
    """Wait for all exports of an account at once; return their results or errors in order."""

    async def scenario():
        poller = account.poller()
        seen = await asyncio.gather(*waits(poller, *account.answers, **options), return_exceptions=True)
        await poller.aclose()
        return seen

    return virtual_time.run(scenario())


def wait(account, **options):
    """Wait for the only export of an account."""
    [seen] = wait_for_all(account, **options)
    if isinstance(seen, BaseException):
        raise seen
    return seen


# --- one wait


@pytest.mark.parametrize(
    ("last", "outcome"), [(READY, Outcome.READY), (FAILURE, Outcome.FAILURE), (expiring_in(-1), Outcome.EXPIRED)]
)
def test_a_wait_ends_with_the_status_of_the_export(last, outcome):
    account = Account({"a": [PENDING, {"status": "ready"}, last]})
    result = wait(account)
    assert result == PollResult(ContactExport.from_payload({"id": "a", **last}), outcome, polls=3, waited_seconds=4.0)
    assert account.requested == [(0.0, "a"), (2.0, "a"), (4.0, "a")]


def test_an_export_that_is_ready_needs_one_poll():
    account = Account({"a": [READY]})
    assert wait(account).outcome is Outcome.READY
    assert account.times == [0.0]


@pytest.mark.parametrize("status", ["pending", "archived", "ready"])
def test_an_endless_export_is_polled_until_the_deadline(status):
    """The last poll comes at the deadline itself: an export that is ready then is not missed."""
    account = Account({"a": [{"status": status}]})
    result = wait(account, end_time=NOW + 100)
    assert result.outcome is Outcome.TIMEOUT
    assert result.export.status == status
    assert result.waited_seconds == pytest.approx(100)
    assert result.polls == len(account.requested)
    assert account.times[-1] == pytest.approx(100)


def test_an_export_that_is_ready_at_the_deadline_is_ready():
    account = Account({"a": [PENDING, READY]})
    assert wait(account, end_time=NOW + 1).outcome is Outcome.READY
    assert account.times == [0.0, 1.0]


@pytest.mark.parametrize(("seen", "outcome"), [(PENDING, Outcome.TIMEOUT), (READY, Outcome.READY)])
def test_a_deadline_in_the_past_polls_once(seen, outcome):
    """A trigger may have been away for long: what is ready by now is no timeout."""
    account = Account({"a": [seen]})
    assert wait(account, end_time=NOW - 100).outcome is outcome
    assert account.requested == [(0.0, "a")]


def test_a_wait_without_a_deadline_has_no_timeout():
    account = Account({"a": ready_after(1_000_000)})
    assert wait(account, end_time=math.inf, interval=3600.0).outcome is Outcome.READY


def test_a_wait_in_a_new_process_keeps_its_pace():
    """It knows when it began, not the number of polls."""
    account = Account({"a": [PENDING, READY]})
    wait(account, started_at=NOW - 40)
    assert account.times == [0.0, 20.0]


def test_a_wait_that_begins_in_the_future_begins_now():
    """The worker's clock may be ahead of the triggerer's: else it would be polled every 2 s for all that time."""
    account = Account({"a": ready_after(600)})
    result = wait(account, started_at=NOW + 600)
    assert result.waited_seconds >= 600
    assert len(account.requested) < 30


def test_the_time_of_requests_counts():
    """Each may take long: tries, and waits in between."""
    account = Account({"a": [PENDING]}, answer_seconds=4.0)
    result = wait(account, end_time=NOW + 10)
    assert (result.outcome, result.polls) == (Outcome.TIMEOUT, 2)
    assert account.times == [0.0, 6.0]


def test_an_export_may_expire_during_a_wait():
    account = Account({"a": [expiring_in(50)]})
    assert wait(account, interval=10.0).outcome is Outcome.EXPIRED


def test_an_unknown_export_is_requested_a_few_times():
    """Its id may be too new to be known everywhere."""
    account = Account()

    async def scenario():
        poller = account.poller()
        with pytest.raises(SendGridNotFoundError, match="404"):
            await poller.wait("gone", schedule(), started_at=NOW, end_time=NOW + 60)
        await poller.aclose()

    virtual_time.run(scenario())
    assert account.questions == ["gone"] * 3


@pytest.mark.parametrize("export_id", ["", ".."])
def test_an_invalid_export_id_is_not_requested(export_id):
    account = Account({export_id: [PENDING]})
    with pytest.raises(SendGridError, match="is invalid: it must be"):
        wait(account)
    assert account.requested == []


def test_a_refusal_ends_the_wait_with_sendgrids_message():
    with pytest.raises(SendGridAuthError, match="401") as caught:
        wait(Account({"a": [PENDING]}, refusals=[401]))
    assert (caught.value.status_code, caught.value.errors) == (401, ({"message": "no"},))


def test_a_passing_outage_does_not_end_the_wait():
    assert wait(Account({"a": [READY]}, refusals=[500, 503, 429])).outcome is Outcome.READY


def test_a_long_outage_ends_in_a_timeout_with_the_reason():
    result = wait(Account({"a": [PENDING]}, refusals=[500] * 999), end_time=NOW + 300)
    assert (result.outcome, result.polls) == (Outcome.TIMEOUT, 0)
    assert "could not be polled" in result.describe()
    assert "answered 500" in result.describe()


def test_an_unexpected_error_ends_the_wait():
    """Otherwise all waits would hang without a poller."""
    with pytest.raises(SendGridError, match="unexpected KeyError"):
        wait(Account({"a": [KeyError("oops")]}))


def test_each_poll_is_logged_without_urls(caplog):
    caplog.set_level("INFO", logger=LOGGER)
    wait(Account({"a": [{"status": "archived", "urls": FILES}, READY]}))
    [message] = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert "is 'archived'" in message
    assert "Next poll in 2.0 s" in message
    assert "5ecret" not in message


# --- deadlines while SendGrid is unavailable


def test_a_deadline_is_kept_while_the_rate_limit_waits():
    """The window may end in two minutes; half a minute after the deadline what was seen last must do."""
    account = Account({"a": [PENDING]}, limit=2, window_seconds=110.0)
    result = wait(account, end_time=NOW + 10)
    assert (result.outcome, result.polls, result.waited_seconds) == (Outcome.TIMEOUT, 2, 40.0)
    assert account.times == [0.0, 2.0]


def test_the_last_poll_may_be_a_little_late():
    """It is worth it: the export may be ready."""
    account = Account({"a": ready_after(3)}, limit=2, window_seconds=25.0)
    result = wait(account, end_time=NOW + 10)
    assert (result.outcome, account.times) == (Outcome.READY, [0.0, 2.0, 25.0])


def test_a_deadline_is_kept_through_an_outage():
    account = Account({"a": [PENDING]})

    async def scenario():
        poller = account.poller()
        [waiting] = waits(poller, "a", end_time=NOW + 10)
        await asyncio.sleep(1)
        account.answer_seconds = 3600.0
        result = await waiting
        ended_at = account.now
        await poller.aclose()
        return result, ended_at

    result, ended_at = virtual_time.run(scenario())
    assert (result.outcome, ended_at) == (Outcome.TIMEOUT, NOW + 40)


def test_each_wait_has_its_own_deadline():
    async def scenario():
        account = Account({"a": [PENDING], "b": ready_after(50)})
        poller = account.poller()
        waiting = [*waits(poller, "a", end_time=NOW + 10), *waits(poller, "b", end_time=NOW + 100)]
        first, second = await asyncio.gather(*waiting)
        await poller.aclose()
        return first, second

    first, second = virtual_time.run(scenario())
    assert (first.outcome, second.outcome) == (Outcome.TIMEOUT, Outcome.READY)


def test_a_clock_that_is_set_back_does_not_delay_the_next_poll():
    async def scenario():
        account = Account({"a": ready_after(-7200)})
        account.answers["a"] = lambda _now: READY if len(account.requested) == 2 else PENDING
        back = 0.0
        poller = SharedPoller(account.client(), ExportFamily.MARKETING, clock=lambda: account.now - back)
        [waiting] = waits(poller, "a")
        await asyncio.sleep(1)
        back = 3600.0
        await waiting
        await poller.aclose()
        return account.times

    assert virtual_time.run(scenario()) == [0.0, 2.0]


# --- errors that may pass, and slow responses


def test_a_wait_logs_an_outage_and_continues(caplog):
    account = Account({"a": [READY]}, refusals=[503] * 60)
    assert wait(account).outcome is Outcome.READY
    assert account.times[-1] > 600
    assert "answered 503" in caplog.text


def test_a_timeout_after_an_outage_names_the_status_and_the_error():
    account = Account({"a": [PENDING]}, refusals=[])
    account.answers["a"] = lambda _now: account.refusals.extend([503] * 99) or PENDING
    result = wait(account, end_time=NOW + 60)
    assert result.outcome is Outcome.TIMEOUT
    assert re.search(r"is 'pending' after \d+ s\. The last poll failed: .*answered 503", result.describe())


def test_retry_after_delays_the_next_poll():
    account = Account({"a": [READY]}, refusals=[429], retry_after=100)
    assert wait(account).outcome is Outcome.READY
    assert account.times[0] == 0.0
    assert account.times[1] >= 100.0


@pytest.mark.parametrize("refused_polls", [1, 3])
def test_a_few_stray_refusals_do_not_end_a_wait(refused_polls):
    account = Account({f"e{n}": ready_after(30) for n in range(4)}, refusals=[403] * refused_polls)
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}


def test_lasting_refusals_end_the_wait():
    with pytest.raises(SendGridPermissionError, match="403"):
        wait(Account({"a": [PENDING]}, refusals=[403] * 99))


def test_a_wait_with_silent_fail_goes_on_after_any_refusal():
    async def scenario():
        account = Account({"a": [READY]}, refusals=[401] * 30)
        poller = account.poller()
        result = await poller.wait("a", schedule(), started_at=NOW, end_time=NOW + 3600, ignores_refusals=True)
        await poller.aclose()
        return result.outcome

    assert virtual_time.run(scenario()) is Outcome.READY


def test_an_unreadable_listing_is_replaced_by_polls_by_id():
    """One odd entry must not hold up the waits for all other exports."""
    account = Account({f"e{n}": [READY] for n in range(20)}, broken_listing=True)
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert max(account.times) < 20


@pytest.mark.parametrize("hanging", [1, 8, 20])
def test_hanging_requests_delay_no_other_wait(hanging):
    slow = {f"slow{n}": [PENDING] for n in range(hanging)}
    account = Account(slow | {"fine": ready_after(20)}, hanging=set(slow), unlisted=set(slow) | {"fine"})

    async def scenario():
        poller = account.poller()
        tasks = waits(poller, *account.answers, end_time=NOW + 100)
        result = await tasks[-1]
        seen_at = account.now - NOW
        others = await asyncio.gather(*tasks[:-1])
        ended_at = account.now - NOW
        await poller.aclose()
        return result.outcome, seen_at, {each.outcome for each in others}, ended_at

    outcome, seen_at, others, ended_at = virtual_time.run(scenario())
    assert (outcome, others) == (Outcome.READY, {Outcome.TIMEOUT})
    assert seen_at <= 20 + 25
    assert ended_at <= 130


def test_a_hanging_listing_delays_no_wait():
    account = Account({f"e{n}": ready_after(20) for n in range(10)}, hanging={LISTING})

    async def scenario():
        poller = account.poller()
        results = await asyncio.gather(*waits(poller, *account.answers))
        seen_at = account.now - NOW
        await poller.aclose()
        return {each.outcome for each in results}, seen_at

    outcomes, seen_at = virtual_time.run(scenario())
    assert outcomes == {Outcome.READY}
    assert seen_at <= 45


def test_concurrent_polls_do_not_exceed_the_rate_limit():
    names = {f"e{n}": ready_after(n) for n in range(60)}
    account = Account(names, unlisted=set(names), limit=7, window_seconds=20.0, answer_seconds=0.7)
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert account.refused == []


# --- ready without files


def completed(seconds, **more):
    when = datetime.fromtimestamp(NOW + seconds, tz=timezone.utc).isoformat()
    return {"status": "ready", "completed_at": when, "created_at": CREATED, **more}


@pytest.mark.parametrize("count", [{}, {"contact_count": 5}])
def test_ready_without_files_is_final_after_five_minutes(count):
    result = wait(Account({"a": [completed(0, **count)]}), end_time=NOW + 36_000)
    assert result.outcome is Outcome.WITHOUT_FILES
    assert 300 <= result.waited_seconds <= 365
    assert type(result.error()) is ExportWithoutFilesError


def test_without_times_the_five_minutes_count_from_a_poll():
    result = wait(Account({"a": [PENDING, {"status": "ready"}]}), end_time=NOW + 36_000)
    assert result.outcome is Outcome.WITHOUT_FILES
    assert 302 <= result.waited_seconds <= 367


def test_one_response_without_files_is_not_final():
    account = Account({"a": [completed(-3600), completed(-3600, urls=FILES, contact_count=5)]})
    assert wait(account).outcome is Outcome.READY


def test_many_exports_without_files_end_as_well():
    account = Account({f"e{n}": [completed(0)] for n in range(20)})
    results = wait_for_all(account, end_time=NOW + 36_000)
    assert {each.outcome for each in results} == {Outcome.WITHOUT_FILES}


# --- exports without contacts

EMPTY = {"status": "ready", "urls": [], "contact_count": 0}


def listed_as_empty(export_id):
    return {"id": export_id, "created_at": CREATED, **EMPTY}


def test_an_empty_export_needs_more_than_the_listing():
    """SendGrid may fill in count and URLs a moment after the status."""
    account = Account({f"e{n}": [READY] for n in range(20)})
    account._listed = listed_as_empty
    assert {len(each.export.urls) for each in wait_for_all(account)} == {1}


def test_an_empty_export_refused_by_id_is_polled_again():
    account = Account({f"e{n}": [READY] for n in range(3)})

    def listed(export_id):
        account.refusals = [503] * 9
        return listed_as_empty(export_id)

    account._listed = listed
    assert {len(each.export.urls) for each in wait_for_all(account)} == {1}


def test_an_empty_export_is_ready_after_a_second_poll():
    account = Account({"a": [EMPTY]})
    result = wait(account)
    assert (result.outcome, result.export.contact_count, account.times) == (Outcome.READY, 0, [0.0, 5.0])


def test_the_second_poll_finds_late_files():
    assert len(wait(Account({"a": [EMPTY, READY]})).export.urls) == 1


def test_a_refused_second_poll_keeps_the_first_result():
    account = Account({"a": [EMPTY]})
    first = account._status

    def status(export_id):
        account.refusals = [429] * 3 * (len(account.requested) == 1)
        return first(export_id)

    account._status = status
    assert wait(account).outcome is Outcome.READY
    assert account.questions == ["a"] * 5


def test_a_second_poll_at_the_deadline_is_a_little_late():
    """A trigger may have been away for long."""
    assert wait(Account({"a": [EMPTY]}), end_time=NOW - 60).outcome is Outcome.READY


@pytest.mark.parametrize("listed", [True, False])
def test_second_polls_keep_to_the_rate_limit(listed):
    names = {f"e{n}": [EMPTY] for n in range(40)}
    account = Account(names, limit=10, answer_seconds=0.2, unlisted=set() if listed else set(names))
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert account.refused == []
    assert len(account.requested) <= 2 * 40 + 4


def test_many_empty_exports_delay_no_other_wait():
    names = {f"e{n}": [EMPTY] for n in range(200)}
    account = Account({**names, "last": [READY]}, answer_seconds=0.2, unlisted={*names, "last"})
    assert wait_for_all(account)[-1].waited_seconds < 20


@pytest.mark.parametrize("urls", [[None], [""], [*FILES, None], [{}], [*FILES, " "]])
def test_a_file_without_a_url_is_waited_for(urls):
    half = {"status": "ready", "urls": urls, "contact_count": 3}
    for others in (0, 4):
        account = Account({f"e{n}": [half, half, READY] for n in range(1 + others)})
        assert {each.export.urls for each in wait_for_all(account)} == {tuple(FILES)}


# --- what one odd response must not do


@pytest.mark.parametrize("reset", ["86400", str(int(NOW) + 86_400), str(int(NOW * 1000) + 86_400_000)])
def test_a_distant_reset_does_not_stop_waits_for_long(reset):
    account = Account({"a": [PENDING, READY]})
    account.headers = [{"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}]
    assert wait(account, end_time=NOW + 600).outcome is Outcome.READY
    assert account.times[-1] <= 125


def test_a_long_retry_after_delays_polls_by_ten_minutes():
    account = Account({"a": [READY]}, refusals=[503], retry_after=86_400)
    assert wait(account, end_time=NOW + 7200).outcome is Outcome.READY
    assert account.times == [0.0, 600.0]


def test_the_last_poll_ignores_retry_after():
    account = Account({"a": [READY]}, refusals=[503], retry_after=86_400)
    assert wait(account, end_time=NOW + 8).outcome is Outcome.READY
    assert account.times == [0.0, 8.0]


@pytest.mark.parametrize("status", [401, 407])
def test_one_refused_listing_does_not_end_a_wait(status):
    account = Account({f"e{n}": ready_after(30) for n in range(6)}, refusals=[status])
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}


@pytest.mark.parametrize("waits_for", [1, 6])
def test_one_wrong_date_does_not_expire_an_export(waits_for):
    later = {"Date": "Fri, 02 Jan 2099 00:00:00 GMT"}
    account = Account({f"e{n}": [expiring_in(43_000), READY] for n in range(waits_for)}, headers=[later])
    account.answers = {name: lambda now: READY if now > NOW + 1 else expiring_in(43_000) for name in account.answers}
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}


def test_two_responses_confirm_an_expiry():
    date = {"Date": "Fri, 02 Jan 2099 00:00:00 GMT"}
    account = Account({"a": [expiring_in(43_000)]}, headers=[date] * 2)
    assert (wait(account).outcome, account.times) == (Outcome.EXPIRED, [0.0, 5.0])


def test_old_times_do_not_end_a_recently_pending_export():
    """It is ready without files for five minutes only if no poll saw another status meanwhile."""
    old = completed(-700)
    account = Account({"a": [PENDING, old, old, old, completed(-700, urls=FILES)]})
    assert wait(account).outcome is Outcome.READY


def test_a_wait_with_a_wrong_interval_fails_alone():
    account = Account({f"e{n}": ready_after(20) for n in range(5)})

    async def scenario():
        poller = account.poller()
        with pytest.raises(TypeError, match="poll_interval must be a number"):
            PollSchedule.for_sensor("60")
        seen = await asyncio.gather(*waits(poller, *account.answers))
        await poller.aclose()
        return {each.outcome for each in seen}

    assert virtual_time.run(scenario()) == {Outcome.READY}


def test_a_404_after_an_earlier_poll_may_be_stray():
    """The sensor's own poll was served, then it deferred to the triggerer."""

    async def scenario():
        account = Account({"a": [READY]}, refusals=[404] * 3)
        poller = account.poller()
        result = await poller.wait("a", schedule(), started_at=NOW, end_time=NOW + 60, has_polled=True)
        await poller.aclose()
        return result.outcome

    assert virtual_time.run(scenario()) is Outcome.READY


def test_the_first_poll_is_not_before_retry_after():
    async def scenario():
        account = Account({"a": [READY]})
        poller = account.poller()
        await poller.wait("a", schedule(), started_at=NOW, end_time=NOW + 60, not_before=NOW + 8)
        await poller.aclose()
        return account.times

    assert virtual_time.run(scenario()) == [8.0]


def test_an_endless_listing_is_replaced_by_polls_by_id():
    account = Account({f"e{n}": ready_after(5) for n in range(6)}, answer_seconds=4.0)
    account._listing = lambda page: {
        "result": [],
        "_metadata": {"next": f"https://api.sendgrid.com{PATH}?page={page + 1}"},
    }
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert max(account.times) < 90


def test_two_hundred_hanging_requests_delay_no_other_wait():
    hanging = {f"h{n}" for n in range(200)}
    fine = {f"e{n}": ready_after(5) for n in range(10)}
    account = Account({name: [PENDING] for name in hanging} | fine, hanging=hanging, unlisted=hanging | set(fine))
    results = wait_for_all(account, end_time=NOW + 200)
    assert max(each.waited_seconds for each in results if each.outcome is Outcome.READY) < 45
    assert sum(each.outcome is Outcome.READY for each in results) == 10


# --- what a timeout says


def test_a_timeout_reports_the_status_in_the_listing():
    account = Account({f"e{n}": [{"status": "ready"}] for n in range(100)}, limit=10)
    results = wait_for_all(account, end_time=NOW + 60)
    said = {each.describe() for each in results[-20:]}
    assert all("is 'ready', but without files" in each for each in said)
    assert all("rate limit left no request" in each for each in said)


def test_a_failure_in_the_listing_is_reported_at_the_deadline():
    account = Account({f"e{n}": [FAILURE] for n in range(100)}, limit=10)
    assert {each.outcome for each in wait_for_all(account, end_time=NOW + 60)} == {Outcome.FAILURE}


def test_a_failure_without_its_message_is_a_failure():
    account = Account({f"e{n}": [FAILURE] for n in range(5)})
    account._status = lambda _each: None
    assert {each.outcome for each in wait_for_all(account, end_time=NOW + 60)} == {Outcome.FAILURE}


def test_an_export_that_is_ready_in_the_listing_is_ready_at_the_deadline():
    """Only its count is missing, and the request for that is not answered."""
    names = {f"e{n}": [READY] for n in range(5)}
    results = wait_for_all(Account(names, hanging=set(names)), end_time=NOW + 60)
    assert {(each.outcome, each.export.urls, each.last_error) for each in results} == {
        (Outcome.READY, tuple(FILES), None)
    }


def test_a_timeout_names_the_request_that_was_not_answered():
    account = Account({"a": [PENDING]}, hanging={"a"})
    result = wait(account, end_time=NOW + 5)
    assert type(result.last_error) is SendGridUnavailableError
    assert "not been answered for 35 s" in result.describe()


# --- many waits


def test_many_waits_cost_one_listing_and_a_poll_per_ready():
    account = Account({f"e{n}": [PENDING] for n in range(50)})
    account.answers["e7"] = [READY]
    results = wait_for_all(account, end_time=NOW + 1)
    outcomes = Counter(each.outcome for each in results)
    assert outcomes == {Outcome.TIMEOUT: 49, Outcome.READY: 1}
    assert Counter(account.questions) == {LISTING: 2, "e7": 1}
    assert results[7].export.contact_count == 5


def test_few_waits_are_polled_by_id():
    """The listing may be long, and holds no counts."""
    account = Account({"a": [PENDING, READY], "b": [READY]})
    assert [each.outcome for each in wait_for_all(account)] == [Outcome.READY, Outcome.READY]
    assert sorted(account.questions) == ["a", "a", "b"]


def test_the_number_of_pages_is_remembered():
    """Five pages are dearer than four questions; failed tries of theirs do not count."""
    slow = {f"slow{n}": ready_after(60) for n in range(4)}
    account = Account(slow | {f"e{n}": [READY] for n in range(45)}, page_size=10, refusals=[500])
    wait_for_all(account)
    assert account.questions.count(LISTING) == 6
    assert set(account.questions[-4:]) == set(slow)


def test_exports_missing_from_the_listing_are_polled_by_id():
    names = {f"e{n}": [READY] for n in range(5)}
    account = Account(names, unlisted=set(names))
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert Counter(account.questions) == {LISTING: 1, **dict.fromkeys(names, 1)}


def test_exports_missing_from_the_listing_delay_no_other():
    """100 questions take 200 s at this rate."""
    lacking = {f"lacking{n}": ready_after(1000) for n in range(100)}
    listed = {f"listed{n}": ready_after(100) for n in range(20)}
    account = Account(listed | lacking, unlisted=set(lacking), limit=10, window_seconds=20.0, page_size=100)
    seen_at = {}

    async def scenario():
        poller = account.poller()
        tasks = waits(poller, *account.answers, interval=10.0)
        for name, task in zip(account.answers, tasks, strict=True):
            task.add_done_callback(lambda _, name=name: seen_at.setdefault(name, account.now - NOW))
        await asyncio.gather(*tasks)
        await poller.aclose()

    virtual_time.run(scenario())
    assert max(seen_at[name] for name in listed) <= 100 + 45
    assert max(seen_at[name] for name in lacking) <= 1000 + 450
    assert account.refused == []


def test_the_message_of_a_failure_is_polled_by_id():
    """Listings have no messages."""
    account = Account({f"e{n}": [FAILURE] for n in range(5)})
    assert {each.export.message for each in wait_for_all(account)} == {"list is gone"}


def test_a_listing_without_urls_does_not_end_a_wait():
    account = Account({f"e{n}": [{"status": "ready", "contact_count": 0}] for n in range(5)})
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}


def test_an_expiry_in_the_listing_ends_the_wait():
    account = Account({f"e{n}": [expiring_in(-1, "ready")] for n in range(5)})
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.EXPIRED}
    assert account.questions == [LISTING]


def test_few_requests_are_spent_on_counts():
    """The delivery requests each of them again; no wait is delayed for counts of others."""
    account = Account({f"e{n}": [READY] for n in range(300)}, answer_seconds=0.5)
    results = wait_for_all(account)
    assert {each.outcome for each in results} == {Outcome.READY}
    assert max(account.times) < 10


def test_one_unknown_export_affects_no_other_wait():
    account = Account({"a": [KeyError("oops")], "b": [PENDING, READY]})
    broken, ready = wait_for_all(account)
    assert type(broken) is SendGridError
    assert ready.outcome is Outcome.READY


def test_one_unknown_export_among_many_affects_no_other():
    account = Account({f"e{n}": ready_after(5) for n in range(20)})

    async def scenario():
        poller = account.poller()
        seen = await asyncio.gather(*waits(poller, *account.answers, "gone"), return_exceptions=True)
        await poller.aclose()
        return seen

    *results, error = virtual_time.run(scenario())
    assert {each.outcome for each in results} == {Outcome.READY}
    assert type(error) is SendGridNotFoundError


def test_a_refused_key_gives_each_wait_its_own_error():
    """One exception raised in several tasks would collect all their tracebacks."""
    errors = wait_for_all(Account({f"e{n}": [PENDING] for n in range(5)}, refusals=[401] * 99))
    assert {type(each) for each in errors} == {SendGridAuthError}
    assert len({id(each) for each in errors}) == 5


def test_an_unexpected_error_ends_all_waits_but_no_later_one():
    account = Account({f"e{n}": [KeyError("oops")] for n in range(5)} | {"fine": [READY]}, unlisted={"fine"})

    async def scenario():
        poller = account.poller()
        errors = await asyncio.gather(*waits(poller, *(f"e{n}" for n in range(5))), return_exceptions=True)
        [later] = await asyncio.gather(*waits(poller, "fine"))
        await poller.aclose()
        return errors, later

    errors, later = virtual_time.run(scenario())
    assert {str(each) for each in errors} == {"Polling SendGrid failed with an unexpected KeyError: 'oops'"}
    assert later.outcome is Outcome.READY


# --- the rate limit


def test_the_rate_limit_is_kept_without_a_refusal():
    """500 exports on 5 pages, 10 requests per 20 s: each is seen soon after it is ready, with no 429 at all."""
    account = Account({f"e{n}": ready_after(n * 0.5) for n in range(500)}, limit=10, window_seconds=20.0)
    seen_at = {}

    async def scenario():
        poller = account.poller()
        tasks = waits(poller, *account.answers, interval=30.0)
        for number, task in enumerate(tasks):
            task.add_done_callback(lambda _, number=number: seen_at.setdefault(number, account.now - NOW))
        await asyncio.gather(*tasks)
        await poller.aclose()

    virtual_time.run(scenario())
    assert account.refused == []
    assert max(seen - number * 0.5 for number, seen in seen_at.items()) <= 45
    assert len(account.requested) <= 10 * (max(seen_at.values()) / 20 + 1)


def test_a_429_delays_all_waits():
    """No request is sent while others use up the limit."""
    account = Account({f"e{n}": ready_after(30) for n in range(20)}, refusals=[429])
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert len([when for when in account.times if when < 1.9]) == 2


def test_a_rate_limit_that_others_use_up_is_the_reason():
    account = Account({f"e{n}": [PENDING] for n in range(5)}, refusals=[429] * 999)
    results = wait_for_all(account, end_time=NOW + 300)
    assert {each.outcome for each in results} == {Outcome.TIMEOUT}
    assert {type(each.last_error) for each in results} == {SendGridRateLimitError}


# --- waits that begin and end


def test_a_later_wait_is_polled_immediately():
    async def scenario():
        account = Account({"a": [PENDING, PENDING, READY], "b": [READY]})
        poller = account.poller()
        [first] = waits(poller, "a")
        await asyncio.sleep(0.5)
        [second] = waits(poller, "b")
        await asyncio.gather(first, second)
        await poller.aclose()
        return account.requested

    assert virtual_time.run(scenario()) == [(0.0, "a"), (0.5, "b"), (2.0, "a"), (4.0, "a")]


@pytest.mark.parametrize("leaves_after", [0.0, 0.5, 1.5, 2.5])
def test_a_cancelled_wait_affects_no_other(leaves_after):
    """In the middle of a question of theirs, too."""

    async def scenario():
        account = Account({"a": [PENDING], "b": [PENDING, PENDING, READY]}, answer_seconds=1.0)
        poller = account.poller()
        leaving, staying = waits(poller, "a", "b")
        await asyncio.sleep(leaves_after)
        leaving.cancel()
        result = await staying
        await poller.aclose()
        return result.outcome, leaving.cancelled()

    assert virtual_time.run(scenario()) == (Outcome.READY, True)


def test_polling_stops_with_the_last_wait():
    async def scenario():
        account = Account({"a": [PENDING]}, answer_seconds=1.0)
        poller = account.poller()
        [waiting] = waits(poller, "a")
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.sleep(100)
        return account.requested, account.under_way

    assert virtual_time.run(scenario()) == ([(0.0, "a")], 0)


def test_a_new_wait_does_not_need_the_ending_poller():
    """And one only: no poll is doubled."""

    async def scenario():
        account = Account({"a": [PENDING], "b": [PENDING, PENDING, READY]}, answer_seconds=1.0)
        poller = account.poller()
        [leaving] = waits(poller, "a")
        await asyncio.sleep(0.5)
        leaving.cancel()
        await asyncio.sleep(0)
        [staying] = waits(poller, "b")
        result = await staying
        await poller.aclose()
        return result.outcome, account.requested

    outcome, requested = virtual_time.run(scenario())
    assert outcome is Outcome.READY
    assert requested == [(0.0, "a"), (0.5, "b"), (3.5, "b"), (6.75, "b")]


def test_a_cancelled_poller_ends_all_waits():
    """It should not happen, but the waits must not hang."""

    async def scenario():
        account = Account({"a": [PENDING]})
        poller = account.poller()
        [waiting] = waits(poller, "a")
        await asyncio.sleep(0.5)
        poller._polling.cancel()
        with pytest.raises(SendGridError, match="was cancelled from outside"):
            await waiting
        await poller.aclose()

    virtual_time.run(scenario())


def test_the_poller_does_not_log_into_a_triggers_log(caplog):
    """Airflow's triggerer separates the logs of tasks by context."""
    caplog.set_level("DEBUG")
    mine = contextvars.ContextVar("mine", default="no wait")
    logged = []

    class Listener(logging.Handler):
        def emit(self, record):
            logged.append((mine.get(), record.getMessage()))

    async def waiter(poller, name):
        mine.set(name)
        await poller.wait(name, schedule(), started_at=NOW, end_time=NOW + 3600)

    async def scenario():
        account = Account({"a": [PENDING, READY], "b": [PENDING, READY]}, refusals=[500])
        poller = account.poller()
        await asyncio.gather(waiter(poller, "a"), waiter(poller, "b"))
        await poller.aclose()

    listener = Listener()
    logging.getLogger("airflow_provider_sendgrid").addHandler(listener)
    try:
        virtual_time.run(scenario())
    finally:
        logging.getLogger("airflow_provider_sendgrid").removeHandler(listener)
    assert {(name, name) for name in "ab"} == {
        (whose, text.split()[2]) for whose, text in logged if text.startswith("SendGrid export")
    }
    assert [whose for whose, text in logged if "Trying again" in text] == ["no wait"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 60)), min_size=1, max_size=12),
    st.floats(0, 3),
    st.sampled_from([None, 3, 10]),
)
def test_waits_that_stay_get_results_as_others_come_and_go(visits, answer_seconds, limit):
    """Waits begin and are cancelled at different times; the others all end with their export."""
    staying = {f"s{n}": ready_after(20) for n in range(3)}
    account = Account({f"v{n}": [PENDING] for n in range(len(visits))} | staying, limit=limit)
    account.answer_seconds = answer_seconds

    async def visit(poller, name, comes, stays):
        await asyncio.sleep(comes)
        [waiting] = waits(poller, name, end_time=math.inf)
        await asyncio.wait([waiting], timeout=stays)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def scenario():
        connect: Callable = account.client
        async with acquire_poller("key", ExportFamily.MARKETING, connect) as poller:
            poller._clock = lambda: account.now
            visitors = [visit(poller, f"v{n}", *times) for n, times in enumerate(visits)]
            stayers = asyncio.gather(*waits(poller, *staying, end_time=math.inf))
            await asyncio.gather(stayers, *visitors)
            return stayers.result()

    assert {each.outcome for each in virtual_time.run(scenario())} == {Outcome.READY}
    assert (account.closed, account.refused) == (1, [])


# --- shared


def test_the_same_key_shares_a_client():
    async def scenario():
        account = Account()

        async with acquire_poller("key", ExportFamily.MARKETING, account.client) as first:
            async with acquire_poller("key", ExportFamily.MARKETING, account.client) as second:
                assert first is second
            assert (len(account.clients), account.closed) == (1, 0)
            async with acquire_poller("another", ExportFamily.MARKETING, account.client) as other:
                assert other is not first
            async with acquire_poller("key", ExportFamily.LEGACY, account.client) as other:
                assert other is not first
        assert (len(account.clients), account.closed) == (3, 3)
        async with acquire_poller("key", ExportFamily.MARKETING, account.client) as later:
            assert later is not first
        assert account.closed == 4

    virtual_time.run(scenario())


@pytest.mark.parametrize("family", list(ExportFamily))
def test_the_rate_limit_outlives_the_last_wait(family):
    """After a restart of the triggerer one after another finds its export ready; none is refused for that."""
    account = Account({"a": [READY]}, limit=2, window_seconds=20.0)

    async def visit(chosen):
        async with acquire_poller("key", chosen, account.client) as poller:
            poller._clock = lambda: account.now
            await poller.wait("a", schedule(), started_at=NOW, end_time=NOW + 3600)

    async def scenario():
        for chosen in (ExportFamily.MARKETING, ExportFamily.MARKETING, family):
            account.path = "/v3/contactdb/exports" if chosen is ExportFamily.LEGACY else PATH
            await visit(chosen)

    virtual_time.run(scenario())
    assert (account.times, account.refused, account.closed) == ([0.0, 0.0, 20.0], [], 3)


def test_nothing_is_shared_between_event_loops():
    """A client belongs to the loop that it was made on."""

    async def hold(other_loop):
        async with acquire_poller("key", ExportFamily.MARKETING, Account().client) as here:
            there = await asyncio.to_thread(other_loop) if other_loop else here
            return here, there

    here, there = asyncio.run(hold(lambda: asyncio.run(hold(None))[0]))
    assert here is not there


def test_the_client_is_closed_when_no_request_is_in_flight():
    """The task is cleared in the middle of a question."""

    async def wait_shared(account):
        async with acquire_poller("key", ExportFamily.MARKETING, account.client) as poller:
            await poller.wait("a", schedule(), started_at=NOW, end_time=math.inf)

    async def scenario():
        account = Account({"a": [PENDING]}, answer_seconds=5.0)
        waiting = asyncio.ensure_future(wait_shared(account))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return account.closed, account.under_way

    assert virtual_time.run(scenario()) == (1, 0)


@pytest.mark.parametrize("seed", range(10))
def test_a_stopping_triggerer_leaves_nothing_open(seed):
    """In any order: also the poller and its request before the waits."""

    async def wait_shared(account, export_id):
        async with acquire_poller("key", ExportFamily.MARKETING, account.client) as poller:
            await poller.wait(export_id, schedule(), started_at=NOW, end_time=math.inf)

    async def scenario():
        account = Account({f"e{n}": [PENDING] for n in range(20)}, answer_seconds=5.0)
        waiting = [asyncio.ensure_future(wait_shared(account, each)) for each in account.answers]
        await asyncio.sleep(1)
        everything = sorted(asyncio.all_tasks() - {asyncio.current_task()}, key=asyncio.Task.get_name)
        random.Random(seed).shuffle(everything)
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        return account.closed, account.under_way, {task.cancelled() for task in waiting}

    assert virtual_time.run(scenario()) == (1, 0, {True})
