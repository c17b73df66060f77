"""What is counted, as it arrives at a real statsd socket through Airflow's own logger of metrics."""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from airflow_provider_sendgrid import metrics
from airflow_provider_sendgrid._compat import AirflowFailException, AirflowSensorTimeout
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exports.polling import Outcome
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "metrics.md"
NAMES = {
    *("exports_started", "exports_found", "polls", "retries", "fetched_bytes", "resumptions", "url_renewals"),
    *("deliveries", "delivered_files", "delivered_bytes", "delivered_rows", "delivery", "wait"),
    *("waits_ready", "waits_failure", "waits_expired", "waits_timeout", "waits_without_files"),
}

pytestmark = pytest.mark.usefixtures("no_waiting")


class Statsd:
    """A socket that statsd's clients send to."""

    def __init__(self, receiver):
        self._receiver = receiver
        self._lines = []

    @property
    def lines(self):
        """Everything that was sent so far; on this machine a datagram is there as soon as it is sent."""
        self._receiver.setblocking(False)
        try:
            while True:
                self._lines.append(self._receiver.recv(65_536).decode())
        except BlockingIOError:
            return self._lines

    @property
    def counts(self):
        """The sum of each counter."""
        found = Counter()
        for line in self.lines:
            name, _, rest = line.partition(":")
            if rest.endswith("|c"):
                found[name.removeprefix("airflow.sendgrid.")] += int(rest.removesuffix("|c"))
        return dict(found)

    def milliseconds(self, name):
        """Every duration of that name."""
        prefix = f"airflow.sendgrid.{name}:"
        return [float(line.removeprefix(prefix).removesuffix("|ms")) for line in self.lines if line.startswith(prefix)]


@pytest.fixture
def statsd(monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(receiver.getsockname()[1]))
        backend = airflows_statsd()
        monkeypatch.setattr(metrics, "Stats", backend)
        yield Statsd(receiver)
        backend.statsd.close()


def airflows_statsd():
    """What Airflow's Stats would send with, as its settings say now."""
    try:
        from airflow.sdk.observability.metrics.statsd_logger import get_statsd_logger
    except ImportError:
        from airflow.metrics.statsd_logger import get_statsd_logger

        return get_statsd_logger(None)  # made for a class, which it does not use
    return get_statsd_logger()


def start(**arguments):
    return SendGridExportContactsOperator(task_id="start", **arguments).execute({})


def wait(export_id, **arguments):
    return SendGridExportSensor(task_id="wait", export_id=export_id, poke_interval=0.01, **arguments).execute({})


def store(s3, export_id, **arguments):
    places = {"s3_bucket": s3.bucket, "s3_key_prefix": "contacts/"}
    return SendGridToS3Operator(task_id="store", export_id=export_id, **places, **arguments).execute({})


def test_an_export_is_counted_from_its_start_to_its_objects(ticking_emulator, s3, statsd):
    ticking_emulator.configure(contacts_per_file=1_000)
    export_id = start()
    wait(export_id)
    files = ticking_emulator.export_files(export_id)

    store(s3, export_id)

    size = sum(file.stored_bytes for file in files)
    assert {
        "exports_started": 1,
        "polls": 2,
        "waits_ready": 1,
        "fetched_bytes": size,
        "deliveries": 1,
        "delivered_files": len(files),
        "delivered_bytes": size,
        "delivered_rows": sum(file.rows for file in files),
    } == statsd.counts
    assert [1, 1] == [len(statsd.milliseconds(name)) for name in ("wait", "delivery")]


@pytest.mark.usefixtures("sendgrid_emulator")
def test_what_is_stored_already_is_not_counted_again(s3, statsd):
    export_id = start()
    store(s3, export_id)
    before = statsd.counts

    store(s3, export_id)

    assert before | {"deliveries": 2} == statsd.counts


def test_breaks_and_renewals_are_counted(sendgrid_emulator, s3, statsd):
    """Though the delivery went well in the end."""
    sendgrid_emulator.inject(Fault("cut", listener="files", first=2), Fault("expire", listener="files", nth=3))

    store(s3, start())

    assert (3, 1) == (statsd.counts["resumptions"], statsd.counts["url_renewals"])


def test_what_a_delivery_that_failed_has_fetched_is_counted(sendgrid_emulator, s3, statsd):
    export_id = start()
    sendgrid_emulator.inject(Fault("corrupt", listener="files", at=5_000))

    with pytest.raises(Exception, match="Nothing of it was stored"):
        store(s3, export_id)

    assert statsd.counts["fetched_bytes"] > 5_000
    assert "deliveries" not in statsd.counts


def test_requests_made_again_are_counted(sendgrid_emulator, statsd):
    sendgrid_emulator.inject(Fault("status", method="GET", first=2))

    SendGridHook().list_exports()

    assert {"retries": 2} == statsd.counts


def test_the_end_of_a_wait_is_counted_by_its_kind(sendgrid_emulator, statsd):
    failing, stuck = (sendgrid_emulator.add_list(kind, outcome=kind) for kind in ("failure", "stuck"))
    with pytest.raises(AirflowFailException):
        wait(start(list_ids=[failing]))
    with pytest.raises(AirflowSensorTimeout):
        wait(start(list_ids=[stuck]), timeout=0)

    assert (1, 1) == (statsd.counts["waits_failure"], statsd.counts["waits_timeout"])


def test_a_deferred_wait_is_counted_when_it_is_over(statsd):
    """With the polls of the triggerer, which the event contains."""
    summary = {"id": "e", "status": "ready", "polls": 7, "waited_seconds": 90.5}
    sensor = SendGridExportSensor(task_id="wait", export_id="e", deferrable=True)

    sensor.execute_complete({}, {"outcome": "ready", "export": summary})

    assert {"polls": 7, "waits_ready": 1} == statsd.counts
    assert [90_500] == statsd.milliseconds("wait")


@pytest.mark.usefixtures("sendgrid_emulator")
def test_a_backend_that_breaks_fails_no_export(monkeypatch, caplog):
    class Broken:
        def incr(self, *_, **__):
            raise OSError("SG.secret")

    monkeypatch.setattr(metrics, "Stats", Broken())

    assert start()
    assert "SG.secret" not in caplog.text


def test_an_export_that_is_found_is_no_other_start(sendgrid_emulator, statsd):
    """The answer to the first try was lost."""
    sendgrid_emulator.inject(Fault("lost", method="POST", nth=1))

    start()

    assert 1 == statsd.counts["exports_found"]
    assert "exports_started" not in statsd.counts


def test_the_documentation_names_every_metric_and_no_other():
    documented = set(re.findall(r"`sendgrid\.(\w+)`", DOCUMENTATION.read_text()))
    in_code = set(re.findall(r'"(\w+)"', "".join(re.findall(r"_(?:count|time)\((.*)\)", source()))))

    assert NAMES == documented
    assert NAMES == in_code | {f"waits_{outcome.value}" for outcome in Outcome if outcome is not Outcome.WAITING}


def source():
    return Path(metrics.__file__).read_text()
