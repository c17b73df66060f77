"""One poll serves all who wait; each wait ends as its own export does; no clock, no sleep."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pytest

from airflow_provider_sendgrid.exceptions import SendGridError, SendGridRateLimitError, SendGridServerError
from airflow_provider_sendgrid.exports.export import ContactExport, ExportFamily
from airflow_provider_sendgrid.exports.protocol import RateLimit, Reply
from airflow_provider_sendgrid.exports.shared_watch import SharedWatch, shared_watch
from airflow_provider_sendgrid.exports.watch import Outcome, PollSchedule, Sighting

NOW = 1_767_323_045.0
AT = datetime.fromtimestamp(NOW, tz=timezone.utc)
BEFORE = AT - timedelta(seconds=1)
PATH = "/v3/marketing/contacts/exports"
FILES = ["https://files.example/1?X-Amz-Signature=5ecret"]

PENDING = {"status": "pending"}
READY = {"status": "ready", "urls": FILES, "contact_count": 5}
FAILURE = {"status": "failure", "message": "list is gone"}


def expiring_at(moment, status="pending"):
    return {"status": status, "expires_at": moment.isoformat()}


@dataclass
class Account:
    """SendGrid as its client shows it: the answers for each export in turn, the last one again and again.

    Time passes while somebody sleeps, and `question_seconds` with each question.
    """

    answers: dict
    listed_fields: tuple[str, ...] | None = ("status", "urls", "expires_at")
    question_seconds: float = 0.0
    now: float = NOW
    asked: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)
    rate_limit: RateLimit = field(default_factory=RateLimit)
    requests_sent: int = 0
    closed: int = 0

    async def converse(self, conversation):
        request = next(conversation)
        self.requests_sent += 1
        self.now += self.question_seconds
        self.asked.append(request.target.removeprefix(PATH).lstrip("/") or "the listing")
        await asyncio.sleep(0)
        try:
            conversation.send(self._reply(self.asked[-1]))
        except StopIteration as end:
            return end.value
        raise AssertionError("one answer is enough")

    async def aclose(self):
        self.closed += 1

    async def sleep(self, seconds):
        if seconds == float("inf"):  # everybody has been told; whoever leaves last ends it
            await asyncio.Event().wait()
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def watch(self):
        return SharedWatch(self, ExportFamily.MARKETING, sleep=self.sleep, clock=lambda: self.now)

    def _reply(self, asked):
        if asked == "the listing":
            fields = self.listed_fields
            items = [
                {"id": each} | {name: value for name, value in answers[0].items() if name in fields}
                for each, answers in self.answers.items()
                if fields is not None
            ]
            return self._json({"result": items})
        answers = self.answers[asked]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return self._json({"id": asked, **answer})

    def _json(self, payload):
        return Reply(200, {}, json.dumps(payload).encode(), self.now)


def finished(coroutine):
    """What a coroutine returns; a wait that never ends fails instead of hanging."""
    return asyncio.run(asyncio.wait_for(coroutine, timeout=30))


def wait(account, *, started_at=NOW, end_time=NOW + 3600, interval=60.0):
    """Wait for the only export of an account."""
    schedule = PollSchedule(interval, jitter=lambda: 0.0)
    return finished(account.watch().wait("a", schedule, started_at=started_at, end_time=end_time))


def wait_for_all(account, **options):
    """Wait for all exports of an account at once; return their sightings or errors in order."""

    async def run():
        watch, schedule = account.watch(), PollSchedule(60.0, jitter=lambda: 0.0)
        times = {"started_at": NOW, "end_time": NOW + 3600} | options
        waits = (watch.wait(export_id, schedule, **times) for export_id in account.answers)
        return await asyncio.gather(*waits, return_exceptions=True)

    return finished(run())


# --- one who waits


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (READY, Outcome.READY),
        (FAILURE, Outcome.FAILURE),
        (expiring_at(BEFORE), Outcome.EXPIRED),
    ],
)
def test_the_wait_ends_with_what_has_become_of_the_export(last, outcome):
    account = Account({"a": [PENDING, {"status": "ready"}, last]})
    sighting = wait(account)
    assert sighting == Sighting(ContactExport.from_payload({"id": "a", **last}), outcome, polls=3, waited_seconds=4.0)
    assert account.slept == [2.0, 2.0]


def test_an_export_that_is_ready_at_once_is_not_waited_for():
    account = Account({"a": [READY]})
    assert wait(account).outcome is Outcome.READY
    assert account.slept == []


@pytest.mark.parametrize("status", ["pending", "archived", "", "ready"])
def test_what_never_ends_is_waited_on_until_the_deadline_and_not_beyond(status):
    """The last poll comes at the deadline itself: an export that is ready then is not missed."""
    account = Account({"a": [{"status": status}]})
    sighting = wait(account, end_time=NOW + 100)
    assert sighting.outcome is Outcome.TIMEOUT
    assert sighting.export.status == status
    assert sighting.waited_seconds == pytest.approx(100)
    assert sighting.polls == len(account.asked) == len(account.slept) + 1


def test_an_export_that_is_ready_at_the_deadline_is_ready():
    account = Account({"a": [PENDING, READY]})
    assert wait(account, end_time=NOW + 1).outcome is Outcome.READY
    assert account.slept == [1.0]


@pytest.mark.parametrize(("seen", "outcome"), [(PENDING, Outcome.TIMEOUT), (READY, Outcome.READY)])
def test_a_deadline_in_the_past_asks_once(seen, outcome):
    """A trigger may have been away for long: what is ready by now is no timeout."""
    account = Account({"a": [seen]})
    assert wait(account, end_time=NOW - 100).outcome is outcome
    assert (account.asked, account.slept) == (["a"], [])


def test_a_wait_that_moved_to_another_process_keeps_its_pace():
    """It knows when it began, not how often it was asked."""
    account = Account({"a": [PENDING, READY]})
    wait(account, started_at=NOW - 40)
    assert account.slept == [20.0]


def test_time_spent_in_questions_counts():
    """Each may take long: tries, and waits in between."""
    account = Account({"a": [PENDING]}, question_seconds=70.0)
    sighting = wait(account, end_time=NOW + 100)
    assert sighting.outcome is Outcome.TIMEOUT
    assert (sighting.polls, sum(account.slept)) == (2, pytest.approx(30.0))


def test_an_export_that_expires_while_it_is_waited_for_is_expired():
    account = Account({"a": [expiring_at(AT + timedelta(seconds=50))]})
    assert wait(account, interval=10.0).outcome is Outcome.EXPIRED


def test_what_asking_raises_ends_the_wait():
    """The tries are the protocol's; what it gives up on is not waited out."""
    error = SendGridServerError("it broke", status_code=500, errors=[{"message": "x"}])
    with pytest.raises(SendGridServerError, match="it broke") as caught:
        wait(Account({"a": [PENDING, error]}))
    assert (caught.value.status_code, caught.value.errors) == (500, ({"message": "x"},))


def test_a_mistake_of_ours_ends_the_wait_too():
    """Rather than letting everybody wait for a poller that is no more."""
    with pytest.raises(SendGridError, match="unforeseen KeyError"):
        wait(Account({"a": [KeyError("oops")]}))


def test_the_log_tells_of_each_poll_but_of_no_url(caplog):
    caplog.set_level("INFO", logger="airflow_provider_sendgrid")
    wait(Account({"a": [{"status": "archived", "urls": FILES}, READY]}))
    [message] = caplog.messages
    assert "is 'archived'" in message
    assert "Next poll in 2.0 s" in message
    assert "5ecret" not in message


# --- many who wait


def test_many_cost_one_listing_and_one_question_for_each_that_is_ready():
    account = Account({f"e{n}": [PENDING] for n in range(50)})
    account.answers["e7"] = [READY]
    sightings = wait_for_all(account, end_time=NOW + 1)
    outcomes = Counter(each.outcome for each in sightings)
    assert outcomes == {Outcome.TIMEOUT: 49, Outcome.READY: 1}
    assert Counter(account.asked) == {"the listing": 2, "e7": 1}
    assert sightings[7].export.contact_count == 5


def test_few_are_asked_for_one_by_one():
    """The listing may be long, and holds no counts."""
    account = Account({"a": [PENDING, READY], "b": [READY]})
    assert [each.outcome for each in wait_for_all(account)] == [Outcome.READY, Outcome.READY]
    assert sorted(account.asked) == ["a", "a", "b"]


def test_a_listing_without_urls_hides_no_ready_export():
    """Or those who are many would wait for ever for what each alone would see at once."""
    account = Account({f"e{n}": [READY] for n in range(5)}, listed_fields=("status",))
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}


def test_where_requests_are_scarce_the_listing_will_do():
    """A count is not worth being refused for: whoever fetches the files asks for it anyway."""
    account = Account({f"e{n}": [READY] for n in range(5)})
    headers = {"x-ratelimit-remaining": "2", "x-ratelimit-reset": "60"}
    account.rate_limit.note(Reply(200, headers, b"", NOW))
    sightings = wait_for_all(account)
    assert account.asked == ["the listing"]
    assert {each.outcome for each in sightings} == {Outcome.READY}
    assert {each.export.contact_count for each in sightings} == {None}


def test_what_the_listing_lacks_is_asked_for_by_id():
    account = Account({f"e{n}": [READY] for n in range(5)}, listed_fields=None)
    assert {each.outcome for each in wait_for_all(account)} == {Outcome.READY}
    assert Counter(account.asked) == {"the listing": 1, **dict.fromkeys(account.answers, 1)}


def test_why_an_export_failed_is_asked_for_by_id():
    """Listings have no messages."""
    account = Account({f"e{n}": [FAILURE] for n in range(5)})
    assert {each.export.message for each in wait_for_all(account)} == {"list is gone"}


def test_one_unknown_export_disturbs_nobody():
    account = Account({"a": [SendGridServerError("it broke")], "b": [PENDING, READY]})
    broken, ready = wait_for_all(account)
    assert type(broken) is SendGridServerError
    assert ready.outcome is Outcome.READY


def test_a_failed_listing_fails_each_with_an_error_of_its_own():
    """One exception raised in several tasks would collect all their tracebacks."""

    class Refusing(Account):
        async def converse(self, conversation):
            conversation.close()
            raise SendGridRateLimitError("too many", status_code=429)

    errors = wait_for_all(Refusing({f"e{n}": [PENDING] for n in range(5)}))
    assert {type(each) for each in errors} == {SendGridRateLimitError}
    assert len({id(each) for each in errors}) == 5


def test_who_joins_later_is_served_at_once():
    async def run():
        account = Account({"a": [PENDING, PENDING, READY], "b": [READY]})
        asleep = asyncio.Event()

        async def sleep_until_joined(_seconds):
            asleep.set()
            await asyncio.Event().wait()

        account.sleep = sleep_until_joined
        watch, schedule = account.watch(), PollSchedule(60.0, jitter=lambda: 0.0)
        first = asyncio.ensure_future(watch.wait("a", schedule, started_at=NOW, end_time=NOW + 9))
        await asleep.wait()
        second = await watch.wait("b", schedule, started_at=NOW, end_time=NOW + 9)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return second, account

    second, account = finished(run())
    assert second.outcome is Outcome.READY
    assert account.asked == ["a", "b"]


def test_who_leaves_disturbs_nobody_and_the_last_one_ends_the_poller():
    async def run():
        there_before = asyncio.all_tasks()
        account = Account({"a": [PENDING], "b": [PENDING] * 5 + [READY]})
        watch, schedule = account.watch(), PollSchedule(60.0, jitter=lambda: 0.0)
        leaving = asyncio.ensure_future(watch.wait("a", schedule, started_at=NOW, end_time=NOW + 3600))
        staying = asyncio.ensure_future(watch.wait("b", schedule, started_at=NOW, end_time=NOW + 3600))
        await asyncio.sleep(0)
        leaving.cancel()
        sighting = await staying
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.sleep(0)
        return sighting, asyncio.all_tasks() - there_before

    sighting, left_over = finished(run())
    assert sighting.outcome is Outcome.READY
    assert left_over == set()


# --- shared


def test_everybody_with_the_same_key_shares_a_client_until_the_last_one_leaves():
    async def run():
        made = []

        def connect():
            made.append(Account({}))
            return made[-1]

        async with shared_watch("key", ExportFamily.MARKETING, connect) as first:
            async with shared_watch("key", ExportFamily.MARKETING, connect) as second:
                assert first is second
            assert [each.closed for each in made] == [0]
            async with shared_watch("another", ExportFamily.MARKETING, connect) as other:
                assert other is not first
            async with shared_watch("key", ExportFamily.LEGACY, connect) as other:
                assert other is not first
        assert [each.closed for each in made] == [1, 1, 1]
        async with shared_watch("key", ExportFamily.MARKETING, connect) as anew:
            assert anew is not first
        return [each.closed for each in made]

    assert finished(run()) == [1, 1, 1, 1]
