"""The trigger that waits for an export on the triggerer's event loop."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from importlib import import_module

import pytest

from airflow_provider_sendgrid._compat import HAS_EVENT_TRIGGERS, AirflowNotFoundException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import SendGridServerError
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.polling import Outcome, PollResult
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger, SendGridNewExportTrigger

pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("no_shortest_wait")]
STATUS = "/v3/marketing/contacts/exports/"


def trigger_for(export_id, **arguments):
    return SendGridExportTrigger(export_id, **{"poll_interval": 0.01, **arguments})


async def events_of(trigger):
    """All events that it fires, as JSON, as Airflow stores them."""
    return [json.loads(json.dumps(event.payload)) async for event in trigger.run()]


async def test_it_fires_one_event_when_the_export_is_ready(ticking_emulator):
    export_id = ticking_emulator.start_export()

    [event] = await events_of(trigger_for(export_id))

    assert ("ready", 2, None) == (event["outcome"], event["export"]["polls"], event["error"])
    assert (export_id, "ready", 1) == tuple(event["export"][name] for name in ("id", "status", "file_count"))


@pytest.mark.parametrize(("failures", "outcome"), [(1, "ready"), (3, "ready"), (9, "error")])
async def test_it_waits_out_an_outage_of_the_secrets_backend(sendgrid_emulator, monkeypatch, failures, outcome):
    """Airflow does not distinguish a backend that fails from a missing connection."""
    found = SendGridHook.get_connection
    left = [failures]

    def get_connection(name):
        left[0] -= 1
        if left[0] >= 0:
            raise AirflowNotFoundException("throttled")
        return found(name)

    export_id = sendgrid_emulator.start_export()
    monkeypatch.setattr(SendGridHook, "get_connection", staticmethod(lambda _: get_connection("sendgrid_default")))
    monkeypatch.setattr(SendGridExportTrigger, "connection_waits_seconds", (0.0,) * 5)
    [event] = await events_of(trigger_for(export_id, sendgrid_conn_id="elsewhere"))
    assert outcome == event["outcome"]
    if outcome == "error":
        assert "SendGridUnavailableError" == event["error"]["type"]
        assert "is_setting" not in event


async def test_a_missing_connection_fails_at_the_deadline(monkeypatch):
    def get_connection(_name):
        raise AirflowNotFoundException

    monkeypatch.setattr(SendGridHook, "get_connection", staticmethod(get_connection))
    [event] = await events_of(trigger_for("an-id", sendgrid_conn_id="elsewhere", end_time=time.time()))
    assert "There is no connection 'elsewhere'" in event["error"]["message"]


async def test_it_is_restored_from_its_serialized_form():
    """The path is that of its class, with all arguments."""
    trigger = SendGridExportTrigger(
        export_id="an-id",
        family="legacy",
        sendgrid_conn_id="another",
        poll_interval=7.5,
        end_time=1_800_000_000.0,
        start_time=1_700_000_000.0,
    )

    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    again = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))

    assert "airflow_provider_sendgrid.triggers.sendgrid.SendGridExportTrigger" == path
    assert trigger.serialize() == again.serialize()
    assert {"an-id", "legacy", "another", 7.5, 1_800_000_000.0, 1_700_000_000.0} == set(arguments.values())


@pytest.mark.parametrize(
    ("outcome", "expected_class", "expected_text"),
    [
        ("failure", "ExportFailedError", "the list is broken"),
        ("expired", "ExportExpiredError", "expired at"),
    ],
)
async def test_an_export_that_will_never_be_ready_ends_the_wait(
    sendgrid_emulator, outcome, expected_class, expected_text
):
    lost = sendgrid_emulator.add_list("Lost", outcome=outcome, message="the list is broken")

    [event] = await events_of(trigger_for(sendgrid_emulator.start_export([lost])))

    assert outcome == event["outcome"]
    assert expected_class == event["error"]["type"]
    assert expected_text in event["error"]["message"]


@pytest.mark.parametrize(("outcome", "status"), [("stuck", "pending"), ("unknown:simmering", "simmering")])
async def test_an_end_time_in_the_past_ends_the_wait_after_one_poll(sendgrid_emulator, outcome, status):
    """The triggerer may have been down at the deadline, and the export may be ready."""
    slow = sendgrid_emulator.add_list("Slow", outcome=outcome)

    [event] = await events_of(trigger_for(sendgrid_emulator.start_export([slow]), end_time=time.time() - 60))

    assert ("timeout", 1) == (event["outcome"], event["export"]["polls"])
    assert repr(status) in event["description"]


@pytest.mark.parametrize(
    ("worker_ahead", "triggerer_ahead", "last_error", "deadlines"),
    [
        pytest.param(0, 3600, None, [600, 4200], id="the triggerer is ahead"),
        pytest.param(-3600, 0, None, [-3000, 600], id="the worker is behind"),
        pytest.param(3600, 3600, None, [4200], id="both are ahead"),
        pytest.param(0, 5, None, [600], id="they agree"),
        pytest.param(0, 3600, SendGridServerError("no"), [600], id="what SendGrid said last is old"),
    ],
)
@pytest.mark.usefixtures("sendgrid_emulator")
async def test_a_triggerer_with_a_fast_clock_ends_no_wait_early(
    monkeypatch, worker_ahead, triggerer_ahead, last_error, deadlines
):
    """The deadline is by the worker's clock; SendGrid's time shows the difference."""
    now, asked = 1_800_000_000.0, []

    class Watch:
        async def wait(self, export_id, _schedule, *, end_time, **_):
            asked.append(end_time - now)
            export = ContactExport(export_id, "pending", as_of=datetime.fromtimestamp(now, timezone.utc))
            return PollResult(export, Outcome.TIMEOUT, last_error=last_error)

    @asynccontextmanager
    async def watch(_hook):
        yield Watch()

    monkeypatch.setattr(SendGridHook, "watch", watch)
    monkeypatch.setattr(time, "time", lambda: now + triggerer_ahead)
    started_at = now + worker_ahead
    trigger = trigger_for("an-id", start_time=started_at, end_time=started_at + 600, clock_ahead=worker_ahead)

    [event] = await events_of(trigger)

    assert (asked, event["outcome"]) == (deadlines, "timeout")


async def test_clock_ahead_is_serialized_only_if_clocks_differ():
    assert "clock_ahead" not in trigger_for("an-id").serialize()[1]
    assert trigger_for("an-id", clock_ahead=-90).serialize()[1]["clock_ahead"] == -90


async def test_the_time_waited_counts_from_the_start_of_the_task(sendgrid_emulator):
    """Not from the start of the trigger, which may be restarted."""
    slow = sendgrid_emulator.add_list("Slow", outcome="stuck")
    now = time.time()

    [event] = await events_of(
        trigger_for(sendgrid_emulator.start_export([slow]), start_time=now - 3600, end_time=now - 1)
    )

    assert 3600 <= event["export"]["waited_seconds"] < 3660
    assert "after 3600 s" in event["description"]


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "SendGridAuthError"), (403, "SendGridPermissionError"), (400, "SendGridBad")]
)
async def test_a_refusal_ends_the_wait_with_its_class_and_status(sendgrid_emulator, status, expected):
    sendgrid_emulator.inject(Fault("status", status=status, message="no"))

    [event] = await events_of(trigger_for("an-id"))

    assert "error" == event["outcome"]
    assert event["error"]["type"].startswith(expected)
    assert status == event["error"]["status_code"]


@pytest.mark.usefixtures("no_waiting")
async def test_a_passing_outage_does_not_end_the_wait(sendgrid_emulator):
    export_id = sendgrid_emulator.start_export()
    sendgrid_emulator.inject(Fault("status", first=2), Fault("lost", nth=3))

    [event] = await events_of(trigger_for(export_id))

    assert "ready" == event["outcome"]


@pytest.mark.parametrize("connection", ["{}", '{"conn_type": "sendgrid", "password": ""}'])
async def test_a_wrong_connection_fires_an_error_event(monkeypatch, connection):
    """Otherwise the task would only see that its trigger failed."""
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", connection)

    [event] = await events_of(trigger_for("an-id"))

    assert ("error", "SendGridError") == (event["outcome"], event["error"]["type"])
    assert "has no API key" in event["error"]["message"]


async def test_no_key_or_url_is_in_event_arguments_or_logs(ticking_emulator, output_of_all_logs):
    """Airflow logs events whole and stores them unencrypted."""
    trigger = trigger_for(ticking_emulator.start_export())

    logged_values = json.dumps([await events_of(trigger), trigger.serialize()])

    logged = output_of_all_logs()
    assert "Next poll in" in logged
    for secret in (ticking_emulator.api_key, "X-Amz", ticking_emulator.files_url):
        assert secret not in logged_values + logged
    assert "http" not in logged_values


async def test_a_cancelled_wait_fires_nothing(sendgrid_emulator):
    """The triggerer cancels the trigger when the task is cleared or the triggerer ends."""
    slow = sendgrid_emulator.add_list("Slow", outcome="stuck")
    trigger = trigger_for(sendgrid_emulator.start_export([slow]), poll_interval=3600)
    waiting = asyncio.ensure_future(events_of(trigger))
    await asyncio.to_thread(sendgrid_emulator.wait_for_requests, 1, "GET", STATUS)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_many_waits_do_not_block_the_event_loop(sendgrid_emulator):
    export_ids = [sendgrid_emulator.start_export() for _ in range(20)]

    fired = await asyncio.gather(*(events_of(trigger_for(export_id)) for export_id in export_ids))

    assert [("ready", export_id) for export_id in export_ids] == [
        (event["outcome"], event["export"]["id"]) for [event] in fired
    ]


@pytest.mark.parametrize(
    "arguments", [{"poll_interval": None}, {"poll_interval": "60"}, {"max_wait": "1", "exponential_backoff": True}]
)
async def test_a_wrong_interval_fails_only_its_own_wait(sendgrid_emulator, arguments):
    export_id = sendgrid_emulator.start_export()

    [wrong], [right] = await asyncio.gather(
        events_of(trigger_for(export_id, **arguments)), events_of(trigger_for(export_id))
    )

    assert ("error", True) == (wrong["outcome"], wrong["is_setting"])
    assert f"{next(iter(arguments))} must be a number of seconds" in wrong["error"]["message"]
    assert "ready" == right["outcome"]


@pytest.mark.parametrize("name", ["family", "sendgrid_conn_id"])
@pytest.mark.parametrize("value", [["marketing"], {"marketing": 1}, None, "", 1.5], ids=repr)
async def test_a_wrong_type_of_family_or_connection_is_a_setting_error(sendgrid_emulator, name, value):
    [event] = await events_of(trigger_for("an-id", **{name: value}))
    assert ("error", True) == (event["outcome"], event["is_setting"])
    assert f"{name} must be" in event["error"]["message"]
    assert 0 == sendgrid_emulator.count()


async def test_not_before_is_serialized_only_if_it_is_set():
    """A triggerer of the previous version accepts triggers without new arguments."""
    assert "not_before" not in trigger_for("an-id").serialize()[1]
    assert trigger_for("an-id", not_before=7.0).serialize()[1]["not_before"] == 7.0


@pytest.mark.skipif(HAS_EVENT_TRIGGERS, reason="Airflow 3 has such triggers")
async def test_on_airflow_2_it_names_the_needed_version():
    with pytest.raises(RuntimeError, match="needs Airflow 3"):
        SendGridNewExportTrigger()
