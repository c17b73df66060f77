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

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not HAS_EVENT_TRIGGERS, reason="Airflow 2 starts no DAG from a trigger"),
]
FILES = ("https://files.example/1?X-Amz-Signature=5ecret",)


class Trigger(SendGridNewExportTrigger):
    """It need not wait until an event is in the database."""

    stored_after_seconds = 0.0


class Store:
    """An asset's state store of Airflow 3.3, which outlives the triggerer: JSON values by key."""

    def __init__(self):
        self.kept = {}
        self.failures = []

    def get(self, key, default=None):
        self._fail()
        return json.loads(self.kept[key]) if key in self.kept else default

    def set(self, key, value):
        self._fail()
        self.kept[key] = json.dumps(value)

    def delete(self, key):
        self.kept.pop(key, None)

    def _fail(self):
        if self.failures:
            raise self.failures.pop()


def at(seconds):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def export(export_id, status="ready", **fields):
    urls = FILES if status == "ready" else ()
    return ContactExport(export_id, status, urls=urls, **{"created_at": at(-60), "completed_at": at(0), **fields})


def pending(export_id, **fields):
    return export(export_id, "pending", completed_at=None, **fields)


def trigger_on(store=None, **arguments):
    """A trigger as the triggerer makes it; before Airflow 3.3 there are no stores."""
    trigger = Trigger(**arguments)
    trigger.asset_state_store = store
    return trigger


async def fired(trigger, *listings):
    """The payloads that it fires at each of these looks at the list, as JSON: Airflow stores them so."""
    looks = []

    async def stream():
        for listed in listings:
            looks.append([])
            yield listed

    async for event in trigger.filter_shared_stream(stream()):
        looks[-1].append(json.loads(json.dumps(event.payload)))
    return looks


async def ids_fired(trigger, *listings):
    return [[each["id"] for each in look] for look in await fired(trigger, *listings)]


@pytest.fixture(autouse=True)
def nobody_knows_counts(sendgrid_emulator):
    """The exports below are none of the emulator's: it answers 404, and nobody waits for that."""
    sendgrid_emulator.inject(Fault("status", path="*/exports/*", method="GET", status=400))


# --- what fires


async def test_what_becomes_ready_fires_once():
    looks = [[pending("a")], [export("a")], [export("a")], [export("a"), export("b")]]
    assert await ids_fired(trigger_on(), *looks) == [[], ["a"], [], ["b"]]


async def test_what_is_ready_at_the_first_look_does_not_fire():
    """Else the first start of a DAG would bring everything of the last twelve hours."""
    assert await ids_fired(trigger_on(), [export("old")], [export("old"), export("new")]) == [[], ["new"]]


async def test_what_was_pending_at_the_first_look_fires_when_it_is_ready_however_long_that_takes():
    looks = [[pending("a", created_at=at(-40_000))]] * 3 + [[export("a", created_at=at(-40_000))]] * 2
    assert await ids_fired(trigger_on(), *looks) == [[], [], [], ["a"], []]


async def test_several_at_once_fire_one_by_one_the_first_one_first():
    both = [export("second", completed_at=at(-1)), export("first", completed_at=at(-9))]
    assert await ids_fired(trigger_on(), [], both) == [[], ["first", "second"]]


@pytest.mark.parametrize("status", ["failure", "pending", "simmering", ""])
async def test_nothing_else_fires(status):
    assert await ids_fired(trigger_on(), [], [export("a", status)]) == [[], []]


async def test_what_has_expired_does_not_fire():
    assert await ids_fired(trigger_on(), [], [export("a", expires_at=at(-1))]) == [[], []]


async def test_an_export_that_the_list_lacks_for_a_while_does_not_fire_again():
    assert await ids_fired(trigger_on(), [], [export("a")], [], [export("a")]) == [[], ["a"], [], []]


@pytest.mark.parametrize("spelled", [datetime.isoformat, datetime.timestamp])
async def test_from_a_given_moment_on(spelled):
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
        ({"segment_id": "t"}, set()),
    ],
)
@pytest.mark.parametrize("tells_type", [True, False])
async def test_only_what_was_asked_for_fires(arguments, expected, tells_type):
    """Where the list does not tell the type, lists and segments do."""

    def typed(export_id, export_type, **fields):
        return export(export_id, export_type=export_type if tells_type else None, **fields)

    listed = [
        typed("everybody", "contacts_export"),
        typed("list 1", "list_export", list_ids=("1",)),
        typed("lists 1 and 2", "list_export", list_ids=("1", "2")),
        typed("segment s", "segment_export", segment_ids=("s",)),
    ]
    [_, ids] = await ids_fired(trigger_on(**arguments), [], listed)
    assert set(ids) == expected


# --- what it says


async def test_it_says_what_became_ready_and_no_url(sendgrid_emulator):
    sendgrid_emulator.clear_faults()
    customers = sendgrid_emulator.list_id("Customers")
    export_id = sendgrid_emulator.start_export([customers])
    sendgrid_emulator.export_files(export_id)
    trigger = trigger_on()

    async def stream():
        yield []
        async with aclosing(Trigger.open_shared_stream(trigger.serialize()[1])) as looks:
            yield await anext(looks)

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


async def test_a_count_that_cannot_be_had_is_null():
    [_, [payload]] = await fired(trigger_on(), [], [export("a")])
    assert payload["contact_count"] is None


async def test_many_at_once_are_not_all_asked_for_their_count(sendgrid_emulator):
    """The rate limit is for those who wait."""
    [_, payloads] = await fired(trigger_on(), [], [export(f"e{n}") for n in range(200)])
    assert len(payloads) == 200
    assert sendgrid_emulator.count("GET") == 10


# --- over a restart of the triggerer


async def test_a_restart_repeats_nothing_and_loses_nothing():
    store = Store()
    await ids_fired(trigger_on(store), [export("old")], [export("old"), export("a")])

    again = await ids_fired(trigger_on(store), [export("old"), export("a"), export("meanwhile")])

    assert again == [["meanwhile"]]


async def test_since_counts_for_the_first_start_only():
    store, since = Store(), at(-3600).isoformat()
    assert await ids_fired(trigger_on(store, since=since), [export("a")]) == [["a"]]
    assert await ids_fired(trigger_on(store, since=since), [export("a")]) == [[]]


async def test_without_a_store_what_is_ready_after_a_restart_has_been_there_before():
    await ids_fired(trigger_on(), [], [export("a")])
    assert await ids_fired(trigger_on(), [export("a")]) == [[]]


async def test_what_a_killed_trigger_fired_but_could_not_keep_fires_again():
    """Rather than being lost: it is kept only when the event is in the database."""
    store = Store()

    async def stream():
        yield []
        yield [export("a")]

    events = trigger_on(store).filter_shared_stream(stream())
    assert (await anext(events)).payload["id"] == "a"
    await events.aclose()

    assert await ids_fired(trigger_on(store), [export("a")]) == [["a"]]


async def test_triggers_that_watch_for_one_asset_remember_each_for_itself():
    store = Store()
    await ids_fired(trigger_on(store, list_id="1"), [], [export("one", list_ids=("1",))])
    other = trigger_on(store, list_id="2")
    assert await ids_fired(other, [export("was there", list_ids=("2",))]) == [[]]


async def test_what_is_long_gone_is_forgotten():
    store = Store()
    trigger = trigger_on(store)
    store.set(
        trigger._key, {"long ago": time.time() - 90_000, "still listed": time.time() - 90_000, "today": time.time()}
    )
    store.set("sendgrid_started_long ago", "task")

    await ids_fired(trigger, [export("still listed")])

    assert set(store.get(trigger._key)) == {"still listed", "today"}
    assert "sendgrid_started_long ago" not in store.kept


async def test_a_store_that_fails_for_a_while_neither_ends_the_trigger_nor_loses_anything(caplog):
    store = Store()
    await ids_fired(trigger_on(store), [])
    trigger = trigger_on(store)
    store.failures = [OSError("no connection")]

    assert await ids_fired(trigger, [export("a")], [export("a")], [export("a")]) == [[], ["a"], []]
    assert "no connection" in caplog.text
    assert await ids_fired(trigger_on(store), [export("a")]) == [[]]


async def test_what_could_not_be_kept_is_kept_at_the_next_look():
    class Failing(Store):
        sets = 0

        def set(self, key, value):
            self.sets += 1
            if self.sets == 2:
                raise OSError("no connection")
            super().set(key, value)

    store = Failing()
    await ids_fired(trigger_on(store), [], [export("a")], [export("a")])
    assert await ids_fired(trigger_on(store), [export("a")]) == [[]]


async def test_an_asset_that_shares_its_trigger_with_another_is_told_of(caplog):
    """Airflow cannot say then in whose store to look."""
    store = Store()
    store.failures = [ValueError("Task has 2 concrete inlets")]
    assert await ids_fired(trigger_on(store), [], [export("a")]) == [[], ["a"]]
    assert "cannot be remembered over a restart" in caplog.text


async def test_an_export_of_which_our_own_task_left_word_does_not_fire():
    store = Store()
    store.set("sendgrid_started_ours", "start_export")
    looks = [[], [export("ours"), export("theirs")], [export("ours")]]
    assert await ids_fired(trigger_on(store), *looks) == [[], ["theirs"], []]


async def test_marks_of_failed_and_unwanted_exports_are_deleted_a_day_later():
    store = Store()
    listed = [export("failed", "failure"), export("unwanted", list_ids=("2",)), pending("ours")]
    for each in listed:
        store.set(f"sendgrid_started_{each.id}", "start_export")
    trigger = trigger_on(store, list_id="1")
    await ids_fired(trigger, listed)
    kept = store.get(trigger._listed_key)
    store.set(trigger._listed_key, {"failed": time.time() - 90_000, "unwanted": time.time() - 90_000, "ours": 0})

    await ids_fired(trigger_on(store, list_id="1"), [pending("ours")])

    assert set(kept) == {"failed", "unwanted", "ours"}
    assert {key for key in store.kept if key.startswith("sendgrid_started_")} == {"sendgrid_started_ours"}
    assert set(store.get(trigger._listed_key)) == {"ours"}


# --- the poll


@pytest.mark.usefixtures("no_waiting")
async def test_a_poll_that_fails_is_tried_again_for_ever(sendgrid_emulator, caplog):
    """A watcher that died would start no DAG any more, and nobody would notice."""
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.start_export()
    sendgrid_emulator.inject(Fault("status", status=401, first=2), Fault("html", nth=3), Fault("reset", nth=6))
    stream = Trigger.open_shared_stream(Trigger(poll_interval=0.01).serialize()[1])

    looks = [await anext(stream) for _ in range(5)]
    await stream.aclose()

    assert [len(look) for look in looks] == [1] * 5
    assert "401" in caplog.text
    assert sendgrid_emulator.api_key not in caplog.text


async def test_a_connection_that_is_mended_is_read_anew(sendgrid_emulator, monkeypatch):
    right = sendgrid_emulator.connection_json()
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", '{"conn_type": "sendgrid", "password": ""}')

    async def mend(_seconds):
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", right)

    monkeypatch.setattr("airflow_provider_sendgrid.triggers.sendgrid._sleep", mend)
    stream = Trigger.open_shared_stream(Trigger().serialize()[1])
    assert await anext(stream) == []
    await stream.aclose()


async def test_run_is_poll_and_filter_in_one(sendgrid_emulator):
    """Before Airflow 3.3 triggers share no poll."""
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


async def test_it_comes_back_from_the_database_as_it_was():
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
async def test_what_cannot_be_right_shows_when_the_dag_is_read(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        SendGridNewExportTrigger(**arguments)


# --- odd worlds


async def test_what_has_fired_is_stored_although_a_mark_cannot_be_deleted(caplog):
    class Refusing(Store):
        def delete(self, key):
            raise RuntimeError("state store answered 500")

    store = Refusing()
    first = trigger_on(store)
    seen = await first._recall()
    seen.ids, seen.forgotten, seen.is_changed = {"a": 1}, {"gone"}, True
    await first._remember(seen)
    assert "mark of SendGrid export gone could not be deleted" in caplog.text

    again = await trigger_on(store)._recall()
    assert (again.ids, again.listed) == ({"a": 1}, {"gone": 1.0})
    again.record([])
    assert again.forgotten >= {"gone"}


async def test_an_export_that_was_ready_before_an_empty_first_look_does_not_fire_after_a_restart():
    store, old = Store(), export("old", completed_at=at(-10_000), created_at=at(-10_060))
    assert await ids_fired(trigger_on(store), []) == [[]]
    assert await ids_fired(trigger_on(store), [old], [old, export("new")]) == [[], ["new"]]


async def test_counts_that_do_not_come_delay_no_event(sendgrid_emulator, monkeypatch):
    monkeypatch.setattr(Trigger, "count_seconds", 0.2)
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.inject(Fault("hang", path="*/exports/*", method="GET", seconds=3.0))
    news = [export(f"e{number}") for number in range(6)]
    [_, look] = await asyncio.wait_for(fired(trigger_on(), [], news), 2.5)
    assert [each["contact_count"] for each in look] == [None] * 6


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
async def test_a_wrong_interval_or_family_is_named_when_the_dag_is_read(arguments, error, said):
    with pytest.raises(error, match=said):
        SendGridNewExportTrigger(**arguments)
