"""The trigger that fires for each new export, for an asset's watcher."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from datetime import datetime, timedelta, timezone
from importlib import import_module

import pytest

from airflow_provider_sendgrid._compat import HAS_EVENT_TRIGGERS
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.triggers.sendgrid import SendGridNewExportTrigger
from tests.support.state_store import StateStore

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not HAS_EVENT_TRIGGERS, reason="Airflow 2 starts no DAG from a trigger"),
]
FILES = ("https://files.example/1?X-Amz-Signature=5ecret",)


class Trigger(SendGridNewExportTrigger):
    """Does not wait until an event is in the database."""

    stored_after_seconds = 0.0


def at(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def export(export_id, status="ready", **fields):
    urls = FILES if status == "ready" else ()
    return ContactExport(export_id, status, urls=urls, **{"created_at": at(-60), "completed_at": at(0), **fields})


def pending(export_id, **fields):
    return export(export_id, "pending", completed_at=None, **fields)


def trigger_on(store=None, **arguments):
    """A trigger as the triggerer creates it; before Airflow 3.3 there are no stores."""
    trigger = Trigger(**arguments)
    trigger.asset_state_store = store
    return trigger


async def fired(trigger, *listings):
    """The events that it fires after each poll, as JSON. Each listing is the result of one poll."""
    polls = []

    async def stream():
        for listed in listings:
            polls.append([])
            yield listed

    async for event in trigger.filter_shared_stream(stream()):
        polls[-1].append(json.loads(json.dumps(event.payload)))
    return polls


async def ids_fired(trigger, *listings):
    return [[each["id"] for each in poll] for poll in await fired(trigger, *listings)]


@pytest.fixture(autouse=True)
def counts_are_unknown(sendgrid_emulator):
    """The emulator does not know the exports below, so their counts cannot be fetched."""
    sendgrid_emulator.inject(Fault("status", path="*/exports/*", method="GET", status=400))


# --- which exports fire


async def test_an_export_fires_once_when_it_becomes_ready():
    polls = [[pending("a")], [export("a")], [export("a")], [export("a"), export("b")]]
    assert await ids_fired(trigger_on(), *polls) == [[], ["a"], [], ["b"]]


async def test_an_export_that_is_ready_at_the_first_poll_is_ignored():
    """Otherwise a new DAG would get all exports of the last twelve hours."""
    assert await ids_fired(trigger_on(), [export("old")], [export("old"), export("new")]) == [[], ["new"]]


async def test_an_export_that_is_pending_for_hours_fires_when_ready():
    polls = [[pending("a", created_at=at(-40_000))]] * 3 + [[export("a", created_at=at(-40_000))]] * 2
    assert await ids_fired(trigger_on(), *polls) == [[], [], [], ["a"], []]


async def test_several_exports_fire_in_the_order_of_completion():
    both = [export("second", completed_at=at(-1)), export("first", completed_at=at(-9))]
    assert await ids_fired(trigger_on(), [], both) == [[], ["first", "second"]]


@pytest.mark.parametrize("status", ["failure", "pending", "simmering", ""])
async def test_only_ready_exports_fire(status):
    assert await ids_fired(trigger_on(), [], [export("a", status)]) == [[], []]


async def test_an_expired_export_does_not_fire():
    assert await ids_fired(trigger_on(), [], [export("a", expires_at=at(-1))]) == [[], []]


async def test_an_export_missing_from_one_list_does_not_fire_again():
    assert await ids_fired(trigger_on(), [], [export("a")], [], [export("a")]) == [[], ["a"], [], []]


@pytest.mark.parametrize("spelled", [datetime.isoformat, datetime.timestamp])
async def test_with_since_exports_ready_since_then_fire(spelled):
    """As ISO 8601 or as seconds since the epoch; SendGrid's times are whole seconds."""
    since = spelled(at(-100))
    listed = [
        export("before", completed_at=at(-110)),
        export("then", completed_at=at(-100).replace(microsecond=0)),
        export("after", completed_at=at(-50)),
    ]
    assert await ids_fired(trigger_on(since=since), listed, listed) == [["then", "after"], []]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"everybody", "list 1", "lists 1 and 2", "segment s"}),
        ({"export_type": "contacts_export"}, {"everybody"}),
        ({"export_type": "list_export"}, {"list 1", "lists 1 and 2"}),
        ({"export_type": "segment_export"}, {"segment s"}),
        ({"list_id": "1"}, {"list 1", "lists 1 and 2"}),
        ({"list_id": 2}, {"lists 1 and 2"}),
        ({"segment_id": "s"}, {"segment s"}),
        ({"segment_id": " S "}, {"segment s"}),  # SendGrid's ids have no case
        ({"segment_id": "t"}, set()),
    ],
)
@pytest.mark.parametrize("has_type", [True, False])
async def test_only_exports_that_match_the_arguments_fire(arguments, expected, has_type):
    """If the list lacks the type, lists and segments imply it."""

    def typed(export_id, export_type, **fields):
        return export(export_id, export_type=export_type if has_type else None, **fields)

    listed = [
        typed("everybody", "contacts_export"),
        typed("list 1", "list_export", list_ids=("1",)),
        typed("lists 1 and 2", "list_export", list_ids=("1", "2")),
        typed("segment s", "segment_export", segment_ids=("s",)),
    ]
    [_, ids] = await ids_fired(trigger_on(**arguments), [], listed)
    assert set(ids) == expected


# --- the event


async def test_the_event_describes_the_export_without_urls(sendgrid_emulator):
    sendgrid_emulator.clear_faults()
    customers = sendgrid_emulator.list_id("Customers")
    export_id = sendgrid_emulator.start_export([customers])
    sendgrid_emulator.export_files(export_id)
    trigger = trigger_on()

    async def stream():
        yield []
        async with aclosing(Trigger.open_shared_stream(trigger.serialize()[1])) as polls:
            yield await anext(polls)

    [payload] = [event.payload async for event in trigger.filter_shared_stream(stream())]

    assert payload == payload | {
        "id": export_id,
        "family": "marketing",
        "export_type": "list_export",
        "list_ids": [customers],
        "segment_ids": [],
        "contact_count": 500,
    }
    assert {"created_at", "completed_at", "expires_at"} <= payload.keys()
    assert "http" not in json.dumps(payload)


async def test_a_count_that_cannot_be_fetched_is_null():
    [_, [payload]] = await fired(trigger_on(), [], [export("a")])
    assert payload["contact_count"] is None


async def test_at_most_ten_counts_are_requested_at_once(sendgrid_emulator):
    """The account's rate limit is for waiting tasks."""
    [_, payloads] = await fired(trigger_on(), [], [export(f"e{n}") for n in range(200)])
    assert len(payloads) == 200
    assert sendgrid_emulator.count("GET") == 10


# --- restarts of the triggerer


async def test_a_restart_repeats_nothing_and_loses_nothing():
    store = StateStore()
    await ids_fired(trigger_on(store), [export("old")], [export("old"), export("a")])

    again = await ids_fired(trigger_on(store), [export("old"), export("a"), export("meanwhile")])

    assert again == [["meanwhile"]]


async def test_since_counts_for_the_first_start_only():
    store, since = StateStore(), at(-3600).isoformat()
    assert await ids_fired(trigger_on(store, since=since), [export("a")]) == [["a"]]
    assert await ids_fired(trigger_on(store, since=since), [export("a")]) == [[]]


async def test_without_a_store_a_restart_ignores_ready_exports():
    await ids_fired(trigger_on(), [], [export("a")])
    assert await ids_fired(trigger_on(), [export("a")]) == [[]]


async def test_an_event_before_a_kill_that_was_not_stored_fires_again():
    """It is stored as fired only when the event is in the database."""
    store = StateStore()

    async def stream():
        yield []
        yield [export("a")]

    events = trigger_on(store).filter_shared_stream(stream())
    assert (await anext(events)).payload["id"] == "a"
    await events.aclose()

    assert await ids_fired(trigger_on(store), [export("a")]) == [["a"]]


async def test_triggers_on_one_asset_keep_separate_state():
    store = StateStore()
    await ids_fired(trigger_on(store, list_id="1"), [], [export("one", list_ids=("1",))])
    other = trigger_on(store, list_id="2")
    assert await ids_fired(other, [export("was there", list_ids=("2",))]) == [[]]


async def test_exports_unlisted_for_a_day_are_deleted_from_the_store():
    store = StateStore()
    trigger = trigger_on(store)
    store.set(
        trigger._fired_exports()._fired_key,
        {"long ago": time.time() - 90_000, "still listed": time.time() - 90_000, "today": time.time()},
    )
    store.set("sendgrid_started_long ago", "task")

    await ids_fired(trigger, [export("still listed")])

    assert set(store.get(trigger._fired_exports()._fired_key)) == {"still listed", "today"}
    assert "sendgrid_started_long ago" not in store.kept


async def test_a_failing_store_ends_no_trigger_and_loses_no_event(caplog):
    store = StateStore()
    await ids_fired(trigger_on(store), [])
    trigger = trigger_on(store)
    store.failures = [OSError("no connection")]

    assert await ids_fired(trigger, [export("a")], [export("a")], [export("a")]) == [[], ["a"], []]
    assert "no connection" in caplog.text
    assert await ids_fired(trigger_on(store), [export("a")]) == [[]]


async def test_state_that_could_not_be_stored_is_stored_later():
    class Failing(StateStore):
        sets = 0

        def set(self, key, value):
            self.sets += 1
            if self.sets == 2:
                raise OSError("no connection")
            super().set(key, value)

    store = Failing()
    await ids_fired(trigger_on(store), [], [export("a")], [export("a")])
    assert await ids_fired(trigger_on(store), [export("a")]) == [[]]


async def test_a_trigger_shared_by_several_assets_logs_a_warning(caplog):
    """Airflow does not know then which asset's store to use."""
    store = StateStore()
    store.failures = [ValueError("Task has 2 concrete inlets")]
    assert await ids_fired(trigger_on(store), [], [export("a")]) == [[], ["a"]]
    assert "cannot be kept across restarts" in caplog.text


async def test_an_export_marked_by_a_start_task_does_not_fire():
    store = StateStore()
    store.set("sendgrid_started_ours", "start_export")
    polls = [[], [export("ours"), export("theirs")], [export("ours")]]
    assert await ids_fired(trigger_on(store), *polls) == [[], ["theirs"], []]


async def test_marks_of_failed_exports_are_deleted_after_a_day():
    store = StateStore()
    listed = [export("failed", "failure"), export("unwanted", list_ids=("2",)), pending("ours")]
    for each in listed:
        store.set(f"sendgrid_started_{each.id}", "start_export")
    trigger = trigger_on(store, list_id="1")
    await ids_fired(trigger, listed)
    kept = store.get(trigger._fired_exports()._listed_key)
    store.set(
        trigger._fired_exports()._listed_key,
        {"failed": time.time() - 90_000, "unwanted": time.time() - 90_000, "ours": 0},
    )

    await ids_fired(trigger_on(store, list_id="1"), [pending("ours")])

    assert set(kept) == {"failed", "unwanted", "ours"}
    assert {key for key in store.kept if key.startswith("sendgrid_started_")} == {"sendgrid_started_ours"}
    assert set(store.get(trigger._fired_exports()._listed_key)) == {"ours"}


# --- the poll


@pytest.mark.usefixtures("no_waiting")
async def test_a_failed_poll_is_always_retried(sendgrid_emulator, caplog):
    """A watcher that ended would start no DAG any more, without an error."""
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.start_export()
    sendgrid_emulator.inject(Fault("status", status=401, first=2), Fault("html", nth=3), Fault("reset", nth=6))
    stream = Trigger.open_shared_stream(Trigger(poll_interval=0.01).serialize()[1])

    polls = [await anext(stream) for _ in range(5)]
    await stream.aclose()

    assert [len(poll) for poll in polls] == [1] * 5
    assert "401" in caplog.text
    assert sendgrid_emulator.api_key not in caplog.text


async def test_a_corrected_connection_is_read_again(sendgrid_emulator, monkeypatch):
    right = sendgrid_emulator.connection_json()
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", '{"conn_type": "sendgrid", "password": ""}')

    async def correct(_seconds):
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", right)

    monkeypatch.setattr("airflow_provider_sendgrid.triggers.sendgrid._sleep", correct)
    stream = Trigger.open_shared_stream(Trigger().serialize()[1])
    assert await anext(stream) == []
    await stream.aclose()


async def test_run_polls_and_filters(sendgrid_emulator):
    """Airflow uses it before 3.3, where triggers share no poll."""
    sendgrid_emulator.clear_faults()
    export_id = sendgrid_emulator.start_export()
    sendgrid_emulator.export_files(export_id)
    events = trigger_on(poll_interval=0.01, since=at(-60).isoformat()).run()

    assert (await anext(events)).payload["id"] == export_id
    await events.aclose()


async def test_triggers_on_one_connection_share_a_poll():
    keys = {Trigger(list_id=each).shared_stream_key() for each in ("1", "2")}
    assert len(keys) == 1
    others = ({"sendgrid_conn_id": "other"}, {"family": "legacy"}, {"poll_interval": 5})
    assert len(keys | {Trigger(**each).shared_stream_key() for each in others}) == 4


# --- arguments


async def test_it_is_restored_from_its_serialized_form():
    arguments = {
        "sendgrid_conn_id": "another",
        "family": "legacy",
        "export_type": "list_export",
        "list_id": 7,
        "segment_id": 8,
        "poll_interval": 7.5,
        "since": "2026-01-02T03:04:05Z",
    }
    path, kept = SendGridNewExportTrigger(**arguments).serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**json.loads(json.dumps(kept)))
    assert again.serialize() == (path, arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"export_type": "everything"}, "export_type must be one of contacts_export"),
        ({"poll_interval": 0}, "poll_interval must be"),
        ({"since": "yesterday"}, "since must be a time"),
    ],
)
async def test_wrong_arguments_fail_when_the_dag_is_parsed(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        SendGridNewExportTrigger(**arguments)


# --- faults of the store and of SendGrid


async def test_fired_exports_are_stored_if_a_mark_cannot_be_deleted(caplog):
    class Refusing(StateStore):
        def delete(self, key):
            raise RuntimeError("state store answered 500")

    store = Refusing()
    first = trigger_on(store)._fired_exports()
    seen = await first.load(None)
    seen.ids, seen.forgotten, seen.is_changed = {"a": 1}, {"gone"}, True
    await first.save(seen)
    assert "mark of SendGrid export gone could not be deleted" in caplog.text

    again = await trigger_on(store)._fired_exports().load(None)
    assert (again.ids, again.listed) == ({"a": 1}, {"gone": 1.0})
    again.record([])
    assert again.forgotten >= {"gone"}


async def test_an_old_export_missing_from_the_first_poll_is_ignored():
    store, old = StateStore(), export("old", completed_at=at(-10_000), created_at=at(-10_060))
    assert await ids_fired(trigger_on(store), []) == [[]]
    assert await ids_fired(trigger_on(store), [old], [old, export("new")]) == [[], ["new"]]


async def test_slow_counts_do_not_delay_events(sendgrid_emulator, monkeypatch):
    monkeypatch.setattr(Trigger, "count_seconds", 0.2)
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.inject(Fault("hang", path="*/exports/*", method="GET", seconds=3.0))
    news = [export(f"e{number}") for number in range(6)]
    [_, poll] = await asyncio.wait_for(fired(trigger_on(), [], news), 2.5)
    assert [each["contact_count"] for each in poll] == [None] * 6


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"poll_interval": "60"}, TypeError, "poll_interval"),
        ({"poll_interval": None}, TypeError, "poll_interval"),
        ({"poll_interval": float("nan")}, ValueError, "poll_interval"),
        ({"family": "legcy"}, ValueError, "family must be 'marketing' or 'legacy', not 'legcy'"),
        ({"family": ["legacy"]}, ValueError, "family must be"),
        ({"sendgrid_conn_id": ["main"]}, ValueError, "sendgrid_conn_id must be"),
        ({"list_id": ""}, ValueError, "list_id must hold ids"),
        ({"list_id": ["7"]}, ValueError, "list_id must hold ids"),
        ({"segment_id": True}, ValueError, "segment_id must hold ids"),
        ({"list_id": "6f0a", "family": "legacy"}, ValueError, "list_id of the legacy family must be numbers"),
        ({"since": True}, ValueError, "since must be a time"),
        ({"since": float("nan")}, ValueError, "since must be a time"),
    ],
)
async def test_wrong_types_of_arguments_fail_when_the_dag_is_parsed(arguments, error, said):
    with pytest.raises(error, match=said):
        SendGridNewExportTrigger(**arguments)
