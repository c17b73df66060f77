"""The sensor: the outcome is the same in every mode."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException, AirflowSensorTimeout, AirflowSkipException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import SendGridAuthError, SendGridError
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from tests.support.sensor_run import SensorRun

pytestmark = pytest.mark.usefixtures("no_shortest_wait")
WRONG_KEY = "SG.wrong-wrong-wrong-wrong.never-seen-before"
STATUS = "/v3/marketing/contacts/exports/"


@pytest.fixture(params=["poke", "reschedule", "deferrable"])
def mode(request):
    return request.param


@pytest.fixture
def wait_in(airflow_version, request):
    def make(mode, **arguments):
        if mode == "reschedule" and airflow_version.number < (3, 0):
            request.getfixturevalue("airflow_database")
        return SensorRun(mode, airflow_version, **arguments)

    return make


def chain(error):
    """The messages of an error and its causes, as in a task's log."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


# By status: the outcome without and with soft_fail.

READY = {"status": "ready", "contact_count": 10, "file_count": 1}
OUTCOMES = {
    "ready": (READY, READY),
    "failure": ((AirflowFailException, "the list is broken"), (AirflowSkipException, "the list is broken")),
    "timeout": ((AirflowSensorTimeout, "'pending'"), (AirflowSkipException, "'pending'")),
    "expired": ((AirflowFailException, "expired at"), (AirflowSkipException, "expired at")),
    "unknown status": ((AirflowSensorTimeout, "'simmering'"), (AirflowSkipException, "'simmering'")),
    "401": ((SendGridAuthError, "answered 401"), (SendGridAuthError, "answered 401")),
}
LISTS = {
    "ready": {"outcome": "ready"},
    "failure": {"outcome": "failure", "message": "the list is broken"},
    "timeout": {"outcome": "stuck"},
    "expired": {"outcome": "expired"},
    "unknown status": {"outcome": "unknown:simmering", "ready_after": 0},
    "401": {"outcome": "ready"},
}


# Time between the task's poll and the triggerer's.
BETWEEN_SECONDS = {"expired": 24 * 3600}
MODES = ("poke", "reschedule", "deferrable")
TABLE = [(mode, said) for mode in MODES for said in OUTCOMES]
TABLE += [("deferrable at first poll", said) for said in OUTCOMES if said not in ("timeout", "unknown status")]


@pytest.mark.parametrize("soft_fail", [False, True])
@pytest.mark.parametrize(("how", "said"), TABLE)
def test_the_outcome_is_the_same_in_every_mode(
    ticking_emulator, ticking_clock, monkeypatch, output_of_all_logs, wait_in, how, said, soft_fail
):
    """A failed export is not retried. soft_fail skips failed exports and timeouts, but not a refused key."""
    mode = how.partition(" ")[0]
    at_first_poll = how == "deferrable at first poll"
    traits = dict(LISTS[said])
    if at_first_poll or mode != "deferrable":
        traits["ready_after"] = 0
    elif said == "expired":
        traits["outcome"] = "ready"  # pending at the task's poll, expired at the triggerer's, a day later
    export_id = ticking_emulator.start_export([ticking_emulator.add_list("One", **traits)])
    wait = wait_in(mode, export_id=export_id, soft_fail=soft_fail)
    wait.between = partial(ticking_clock.advance, BETWEEN_SECONDS.get(said, 0))
    if said in ("timeout", "unknown status"):
        wait.arguments["timeout"] = 0

    def break_key():
        connection = {"conn_type": "sendgrid", "host": ticking_emulator.url, "password": WRONG_KEY}
        monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(connection))

    if said == "401" and mode == "deferrable" and not at_first_poll:
        wait.between = break_key
    elif said == "401":
        break_key()

    expected = OUTCOMES[said][soft_fail]
    if isinstance(expected, dict):
        summary = wait.run()
        assert {"id": export_id, **expected} == {name: summary[name] for name in ("id", *expected)}
        assert summary == json.loads(json.dumps(summary))
        assert "http" not in json.dumps(summary)
    else:
        error_class, text = expected
        with pytest.raises((AirflowFailException, AirflowSensorTimeout, AirflowSkipException, SendGridError)) as caught:
            wait.run()
        assert error_class is type(caught.value)
        assert text in chain(caught.value)

    assert (mode == "deferrable" and not at_first_poll) == (wait.detours == 1)
    logged = output_of_all_logs() + json.dumps(wait.logged_values)
    for secret in (ticking_emulator.api_key, WRONG_KEY, "X-Amz", ticking_emulator.files_url):
        assert secret not in logged
    assert "http" not in json.dumps(wait.logged_values)


# Waiting


def test_a_pending_export_is_waited_for(ticking_emulator, wait_in, mode):
    """Each mode waits once: by sleep, reschedule or deferral."""
    wait = wait_in(mode, export_id=ticking_emulator.start_export())

    assert "ready" == wait.run()["status"]
    assert int(mode != "poke") == wait.detours
    assert 2 <= ticking_emulator.count("GET", STATUS) <= 3


def test_every_poll_logs_state_time_waited_and_next_poll(ticking_emulator, output_of_all_logs, wait_in, mode):
    wait_in(mode, export_id=ticking_emulator.start_export()).run()

    polls = [line for line in output_of_all_logs().splitlines() if "is 'pending' after 0 s" in line]
    assert polls
    assert any("Next poll in 0.0 s" in line or "Deferring" in line for line in polls)


def test_a_timeout_names_export_status_and_limit(sendgrid_emulator, wait_in, mode):
    """The message holds the status at the last poll."""
    slow = sendgrid_emulator.add_list("Slow", outcome="stuck")
    export_id = sendgrid_emulator.start_export([slow])

    with pytest.raises(AirflowSensorTimeout) as caught:
        wait_in(mode, export_id=export_id, timeout=0).run()

    assert export_id in str(caught.value)
    assert "'pending'" in str(caught.value)


def test_a_timeout_while_poking_names_no_wrong_duration(sendgrid_emulator, wait_in):
    """The last poll began 0 s before the timeout, the wait did not."""
    slow = sendgrid_emulator.add_list("Slow", outcome="stuck")

    with pytest.raises(AirflowSensorTimeout) as caught:
        wait_in("poke", export_id=sendgrid_emulator.start_export([slow]), timeout=1).run()

    assert sendgrid_emulator.count("GET", STATUS) > 1
    assert "after 0 s" not in str(caught.value)


def test_a_deferrable_sensor_does_not_defer_a_ready_export(sendgrid_emulator, wait_in):
    """A ready export needs no triggerer."""
    wait = wait_in("deferrable", export_id=sendgrid_emulator.start_export())

    assert "ready" == wait.run()["status"]
    assert (0, 1) == (wait.detours, sendgrid_emulator.count("GET", STATUS))


def test_the_triggers_end_time_is_the_sensors_deadline(ticking_emulator, airflow_version):
    """It is absolute, so that a restart of the triggerer does not move it."""
    sensor = SendGridExportSensor(
        task_id="wait", export_id=ticking_emulator.start_export(), deferrable=True, timeout=7200, poke_interval=45
    )
    before = time.time()

    with pytest.raises(airflow_version.exceptions().TaskDeferred) as caught:
        sensor.execute({})

    arguments = caught.value.trigger.serialize()[1]
    assert before <= arguments["start_time"] <= time.time()
    assert 7200 == arguments["end_time"] - arguments["start_time"]
    assert 45 == arguments["poll_interval"]
    assert "execute_complete" == caught.value.method_name


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_it_waits_for_exports_of_both_families(sendgrid_emulator, wait_in, mode, family):
    export_id = sendgrid_emulator.start_export(family=family)

    summary = wait_in(mode, export_id=export_id, family=family).run()

    assert (export_id, "ready") == (summary["id"], summary["status"])


def test_an_empty_export_is_ready(sendgrid_emulator, wait_in, mode):
    empty = sendgrid_emulator.list_id("Empty list")

    summary = wait_in(mode, export_id=sendgrid_emulator.start_export([empty])).run()

    assert ("ready", 0) == (summary["status"], summary["contact_count"])


@pytest.mark.usefixtures("no_waiting")
def test_a_timeout_during_an_outage_names_the_outage(sendgrid_emulator, wait_in, mode):
    export_id = sendgrid_emulator.start_export()
    sendgrid_emulator.inject(Fault("status", method="GET", status=503))

    with pytest.raises(AirflowSensorTimeout, match=r"could not be polled.*answered 503"):
        wait_in(mode, export_id=export_id, timeout=0).run()


@pytest.mark.usefixtures("no_waiting")
def test_a_wait_continues_after_an_outage(ticking_emulator, wait_in, mode):
    """Each poll makes 3 tries, so the first two polls fail."""
    export_id = ticking_emulator.start_export()
    ticking_emulator.inject(Fault("status", method="GET", status=503, first=6))

    assert "ready" == wait_in(mode, export_id=export_id).run()["status"]


# Airflow's other ways to end a sensor


@pytest.mark.parametrize("said", ["failure", "401"])
@pytest.mark.parametrize("how", ["poke", "reschedule", "deferrable", "deferrable at first poll"])
@pytest.mark.usefixtures("no_waiting")
def test_never_fail_skips_on_every_error(ticking_emulator, wait_in, how, said):
    """Even if the key is refused, in every mode."""
    mode = how.partition(" ")[0]
    ready_after = 5 if how == "deferrable" else 0
    broken = ticking_emulator.add_list("Broken", outcome="failure", ready_after=ready_after)
    export_id = ticking_emulator.start_export([broken])
    wait = wait_in(mode, export_id=export_id, never_fail=True)

    def break_api():
        if said != "failure":
            ticking_emulator.inject(Fault("status", method="GET", status=int(said)))

    if how == "deferrable":
        wait.between = break_api
    else:
        break_api()

    with pytest.raises(AirflowSkipException):
        wait.run()
    assert int(how == "deferrable") == wait.detours


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        "ready",
        {"outcome": "waiting"},
        {"outcome": "success"},
        {"outcome": "error"},
        {"outcome": "error", "error": None},
        {"outcome": "ready"},
        {"status": "ready", "export": {}},
        {"outcome": "failure"},
        {"outcome": "failure", "error": {}},
        {"outcome": ["ready"]},
    ],
)
def test_an_unknown_event_is_never_a_success(event):
    """Scheduler, triggerer and workers may run different versions for a while."""
    sensor = SendGridExportSensor(task_id="wait", export_id="an-id", deferrable=True)

    with pytest.raises(SendGridError, match=r"an-id.*an event that this version does not know"):
        sensor.execute_complete({}, event)


def test_a_timeout_event_without_details_is_a_timeout():
    sensor = SendGridExportSensor(task_id="wait", export_id="an-id", deferrable=True)

    with pytest.raises(AirflowSensorTimeout, match="an-id"):
        sensor.execute_complete({}, {"outcome": "timeout"})


def test_templates_are_rendered_before_they_are_used(sendgrid_emulator):
    """The constructor takes them as they are."""
    sensor = SendGridExportSensor(
        task_id="wait",
        export_id="{{ export }}",
        family="{{ family }}",
        sendgrid_conn_id="sendgrid_{{ which }}",
        deferrable=False,
    )

    sensor.render_template_fields(
        {"export": sendgrid_emulator.start_export(family="legacy"), "family": "legacy", "which": "default"}
    )

    assert "ready" == sensor.execute({})["status"]


def test_deferrable_defaults_to_airflows_setting():
    """`[operators] default_deferrable`, off by Airflow's default."""
    assert SendGridExportSensor(task_id="wait", export_id="an-id").deferrable is False


def test_reschedules_follow_the_poll_schedule(ticking_emulator, airflow_version, request):
    """The first wait is two seconds, less a fifth at most, not `poke_interval`."""
    if airflow_version.number < (3, 0):
        request.getfixturevalue("airflow_database")
    sensor = SendGridExportSensor(
        task_id="wait",
        export_id=ticking_emulator.start_export(),
        mode="reschedule",
        poke_interval=300,
        deferrable=False,
    )
    before = time.time()

    with pytest.raises(airflow_version.exceptions().AirflowRescheduleException) as caught:
        sensor.execute(airflow_version.reschedule_context())

    assert before + 1.6 <= caught.value.reschedule_date.timestamp() <= time.time() + 2.0


def test_the_summary_holds_polls_and_waited_seconds(ticking_emulator, wait_in, mode):
    """In reschedule mode both are null, because each poll is a new process."""
    export_id = ticking_emulator.start_export([ticking_emulator.list_id("Customers")])

    summary = wait_in(mode, export_id=export_id).run()

    known = (summary["polls"], summary["waited_seconds"])
    assert (None, None) == known if mode == "reschedule" else known[0] >= 1 and 0 <= known[1] < 60


# Arguments have the same effect in every mode


@pytest.mark.parametrize("flags", [{}, {"soft_fail": True}, {"silent_fail": True}])
@pytest.mark.parametrize(
    ("export_id", "expected"),
    [
        (None, "export_id is None"),
        ("", "cannot be the id"),
        ("None", "cannot be the id"),
        (["a"], "expand"),
        ({"id": "a"}, "id"),
    ],
)
def test_a_wrong_export_id_fails_without_a_request(sendgrid_emulator, wait_in, mode, export_id, expected, flags):
    with pytest.raises(AirflowFailException, match=expected):
        wait_in(mode, export_id=export_id, **flags).run()
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize("name", ["family", "sendgrid_conn_id"])
@pytest.mark.parametrize("value", [["marketing"], {"marketing": 1}, {"legacy"}, None, "", True], ids=repr)
def test_a_wrong_family_or_connection_id_fails_permanently(sendgrid_emulator, wait_in, mode, name, value):
    with pytest.raises(AirflowFailException, match=f"{name} must be .*, not "):
        wait_in(mode, export_id="an-id", **{name: value}).run()
    assert sendgrid_emulator.count("GET") == 0


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_wrong_connection_fails_permanently_without_a_skip(monkeypatch, wait_in, mode, soft_fail):
    monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", '{"conn_type": "sendgrid"}')
    with pytest.raises(AirflowFailException, match="has no API key"):
        wait_in(mode, export_id="an-id", soft_fail=soft_fail).run()


@pytest.mark.usefixtures("no_waiting")
def test_silent_fail_continues_after_refusals_in_every_mode(sendgrid_emulator, wait_in, mode):
    sendgrid_emulator.inject(Fault("status", method="GET", status=401))
    with pytest.raises(AirflowSensorTimeout, match="answered 401"):
        wait_in(mode, export_id="an-id", silent_fail=True, timeout=0).run()


def test_never_fail_does_not_skip_a_timeout_in_any_mode(sendgrid_emulator, wait_in, mode):
    """Airflow's poke does not either."""
    stuck = sendgrid_emulator.add_list("Slow", outcome="stuck")
    with pytest.raises(AirflowSensorTimeout):
        wait_in(mode, export_id=sendgrid_emulator.start_export([stuck]), timeout=0, never_fail=True).run()


@pytest.mark.parametrize("said", ["failure", "timeout"])
def test_a_skip_names_its_reason_in_every_mode(ticking_emulator, wait_in, mode, said):
    """In the exception's own message, because Airflow logs that."""
    traits = LISTS[said] | {"ready_after": 5 if mode == "deferrable" else 0}
    export_id = ticking_emulator.start_export([ticking_emulator.add_list("One", **traits)])
    timeout = 0 if said == "timeout" else 60
    with pytest.raises(AirflowSkipException, match=OUTCOMES[said][1][1]):
        wait_in(mode, export_id=export_id, soft_fail=True, timeout=timeout).run()


def test_the_trigger_gets_the_flags_of_the_sensor(ticking_emulator, airflow_version):
    sensor = SendGridExportSensor(
        task_id="wait",
        export_id=ticking_emulator.start_export(),
        deferrable=True,
        poke_interval=timedelta(seconds=30),
        timeout=timedelta(hours=2),
        exponential_backoff=True,
        max_wait=timedelta(minutes=10),
        silent_fail=True,
    )
    with pytest.raises(airflow_version.exceptions().TaskDeferred) as caught:
        sensor.execute({})
    arguments = caught.value.trigger.serialize()[1]
    assert {"poll_interval": 30.0, "exponential_backoff": True, "max_wait": 600.0, "silent_fail": True}.items() <= (
        arguments.items()
    )
    assert arguments["end_time"] - arguments["start_time"] == 7200


def test_a_timeout_of_none_is_airflows_default():
    assert SendGridExportSensor(task_id="wait", export_id="a", timeout=None).timeout == 7 * 24 * 3600


# --- responses that must not end or prolong a wait


def test_the_triggerer_respects_retry_after_of_the_first_poll(sendgrid_emulator, airflow_version):
    sendgrid_emulator.inject(Fault("status", method="GET", status=429, retry_after=300))
    sensor = SendGridExportSensor(task_id="wait", export_id="an-id", deferrable=True, timeout=900)

    with pytest.raises(airflow_version.exceptions().TaskDeferred) as caught:
        sensor.execute({})

    assert time.time() + 200 < caught.value.trigger.serialize()[1]["not_before"] <= time.time() + 300


@pytest.mark.parametrize(("seconds", "passed_on"), [(3600, 3600), (-600, -600), (20, 0)])
def test_the_trigger_gets_the_lead_of_the_workers_clock(
    ticking_emulator, airflow_version, monkeypatch, seconds, passed_on
):
    at_sendgrid = datetime.fromtimestamp(time.time() - seconds, timezone.utc)
    monkeypatch.setattr(protocol, "time_at_sendgrid", lambda _: at_sendgrid)
    sensor = SendGridExportSensor(task_id="wait", export_id=ticking_emulator.start_export(), deferrable=True)

    with pytest.raises(airflow_version.exceptions().TaskDeferred) as caught:
        sensor.execute({})

    assert abs(caught.value.trigger.clock_ahead - passed_on) <= 10 * bool(passed_on)


def test_the_last_poke_is_at_the_deadline_despite_retry_after(sendgrid_emulator):
    export_id = sendgrid_emulator.start_export()
    sendgrid_emulator.inject(Fault("status", method="GET", status=503, retry_after=86_400, first=1))

    sensor = SendGridExportSensor(task_id="wait", export_id=export_id, poke_interval=60, timeout=2 * 86_400)
    assert not sensor.poke({}).is_done
    assert sensor._seconds_to_next_poll(5.0) == 600.0
    assert sensor._seconds_to_next_poll(2 * 86_400 - 8.0) == pytest.approx(8, abs=0.1)
    assert sensor.poke({}).is_done


def test_a_poke_ends_half_a_minute_after_the_deadline_at_most():
    sensor = SendGridExportSensor(task_id="wait", export_id="an-id", timeout=0)
    assert sensor._bounded(SendGridConnection("SG.key", timeout_seconds=30.0)).timeout_seconds <= 7.5
    sensor = SendGridExportSensor(task_id="wait", export_id="an-id", timeout=3600)
    assert sensor._bounded(SendGridConnection("SG.key", timeout_seconds=30.0)).timeout_seconds == 30.0
