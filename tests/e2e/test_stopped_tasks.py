"""A task stopped during a 200 MB upload: its process ends within seconds and leaves no upload open."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil
import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.airflow.api import run_path
from dev.services.waiting import wait_until
from tests.support.local_airflow import airflow_with, connection_to, version
from tests.support.throttling_proxy import throttling_proxy

TASK_ID = "store"
TIMEOUT_SECONDS = 20
# About 230 bytes each.
CONTACTS = 900_000
# For each of a few connections, so the whole file would take minutes.
BYTES_PER_SECOND = 250_000
SENT_BEFORE_THE_STOP = 6_000_000
# Airflow 3 kills the process 5 s after SIGTERM.
LIMIT_SECONDS = 10
DAG = f'''
import json
import os
import time
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:
    from airflow import DAG

from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator


def note(event, **facts):
    line = json.dumps({{"event": event, "pid": os.getpid(), "at": time.time(), **facts}})
    with open(os.environ["STOPPED_TASKS_NOTES"], "a") as notes:
        notes.write(line + "\\n")


class Noted(SendGridToS3Operator):
    """Records its process and the call of `on_kill`; only its first try has a timeout."""

    def pre_execute(self, context):
        if context["ti"].try_number > 1:
            self.execution_timeout = None

    def execute(self, context):
        note("began", run_id=context["dag_run"].run_id, try_number=context["ti"].try_number)
        return super().execute(context)

    def on_kill(self):
        note("stopped")
        super().on_kill()


for dag_id, timeout in ("stopped", None), ("timed_out", timedelta(seconds={TIMEOUT_SECONDS})):
    with DAG(dag_id, start_date=datetime(2026, 1, 1), schedule=None, catchup=False) as dag:
        Noted(
            task_id="{TASK_ID}",
            export_id="{{{{ dag_run.conf['export'] }}}}",
            s3_key_prefix="s3://lake/{{{{ dag_run.conf['prefix'] }}}}",
            compression="none",
            execution_timeout=timeout,
            retries=1,
            retry_delay=timedelta(seconds=1),
        )
    globals()[dag_id] = dag
'''


@pytest.fixture(scope="module")
def sendgrid():
    with Emulator(Settings(encoding="plain"), populate=False) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def export(sendgrid):
    """One export of one large file, and the file's SHA-256."""
    export_id = sendgrid.start_export([sendgrid.add_list("Everybody", contacts=CONTACTS)])
    [file] = sendgrid.export_files(export_id)
    content = file.read()
    assert len(content) > 190_000_000
    return export_id, hashlib.sha256(content).hexdigest()


@dataclass
class Services:
    """A whole Airflow, its storage behind a proxy, and the notes of its tasks."""

    airflow: object
    s3: object
    proxy: object
    notes_file: object

    def notes(self, event, pid=None):
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        found = [json.loads(line) for line in lines]
        return [note for note in found if note["event"] == event and pid in (None, note["pid"])]

    def process_of(self, run_id):
        """The note of a run's first try."""
        return next((note for note in self.notes("began") if note["run_id"] == run_id), None)

    def open_uploads(self):
        return self.s3.client().list_multipart_uploads(Bucket=self.s3.bucket).get("Uploads", [])


@pytest.fixture(scope="module")
def services(sendgrid, tmp_path_factory):
    notes_file = tmp_path_factory.mktemp("notes") / "notes.jsonl"
    environment = {"STOPPED_TASKS_NOTES": str(notes_file)}
    with ExitStack() as stack:
        airflow, s3 = stack.enter_context(airflow_with("stopped", {"stopped_tasks.py": DAG}, environment))
        proxy = stack.enter_context(throttling_proxy(urlsplit(s3.endpoint).port))
        connection = s3.connection
        connection["extra"] = {**connection["extra"], "endpoint_url": proxy.url}
        airflow.api.store_connection("aws_default", connection)
        airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
        yield Services(airflow, s3, proxy, notes_file)


def sigterm(_world, _run_id, process):
    os.kill(process.pid, signal.SIGTERM)


def mark_failed(services, run_id, _process):
    body = {"new_state": "failed"}
    if version() < (3, 0):
        body["dry_run"] = False
    services.airflow.api.request("PATCH", f"{run_path('stopped', run_id)}/taskInstances/{TASK_ID}", body)


def clear(services, run_id, _process=None):
    if version() < (3, 0):
        # Airflow 2's REST API returns 200 but does not clear a running task; the command does, like the button "Clear".
        date = services.airflow.api.request("GET", run_path("stopped", run_id))["logical_date"]
        dates = ["--start-date", date, "--end-date", date]
        services.airflow.airflow("tasks", "clear", "stopped", "--task-regex", f"^{TASK_ID}$", *dates, "--yes")
        return
    body = {"dag_run_id": run_id, "task_ids": [TASK_ID], "dry_run": False, "only_failed": False}
    services.airflow.api.request("POST", "/dags/stopped/clearTaskInstances", body)


def wait_for_the_timeout(_world, _run_id, _process):
    """Airflow stops the task."""


STOPS = {
    "SIGTERM": ("stopped", sigterm),
    "marked failed": ("stopped", mark_failed),
    "cleared": ("stopped", clear),
    "execution_timeout": ("timed_out", wait_for_the_timeout),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_task_that_is_stopped_ends_and_leaves_no_upload_open(services, export, name):
    """The next try delivers the file."""
    dag_id, stop = STOPS[name]
    export_id, sha256 = export
    prefix = f"{name.replace(' ', '-')}/"
    services.proxy.throttle(BYTES_PER_SECOND)
    sent_before = services.proxy.received_bytes
    run_id = services.airflow.trigger(dag_id, {"export": export_id, "prefix": prefix})

    def description():
        return services.airflow.describe_run(dag_id, run_id)

    began = wait_until("the task runs", lambda: services.process_of(run_id), seconds=120, evidence=description)
    process = psutil.Process(began["pid"])
    wait_until(
        "the upload is under way",
        lambda: services.proxy.received_bytes - sent_before > SENT_BEFORE_THE_STOP,
        seconds=60,
        pause_seconds=0.1,
        evidence=description,
    )
    assert [f"{prefix}{export_id}-00001-of-00001.csv"] == [each["Key"] for each in services.open_uploads()], (
        description()
    )
    asked_at = time.time()
    stop(services, run_id, process)
    wait_until("the process ended", lambda: has_ended(process), seconds=90, pause_seconds=0.02, evidence=description)
    ended_at = time.time()
    uploads, sent = services.open_uploads(), services.proxy.received_bytes - sent_before
    services.proxy.release()
    stops = [note["at"] for note in services.notes("stopped", process.pid)]
    assert stops, f"on_kill was not called\n{description()}"
    notified_at = min(stops)
    print(
        f"\n{name}: on_kill after {notified_at - asked_at:.1f} s, "
        f"process ended {ended_at - notified_at:.2f} s later, {sent / 1e6:.0f} MB sent, {len(uploads)} uploads left"
    )
    assert ended_at - notified_at < LIMIT_SECONDS, description()
    assert [] == uploads, description()

    if stop is mark_failed:
        assert "failed" == services.airflow.wait_for_run(dag_id, run_id)
        clear(services, run_id)
    assert "success" == services.airflow.wait_for_run(dag_id, run_id, seconds=300), description()
    assert_delivered(services, prefix, export_id, sha256)
    assert "Logging error" not in description()
    assert [2] == [task.try_number for task in services.airflow.api.task_instances(dag_id, run_id)]


def has_ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_delivered(services, prefix, export_id, sha256):
    """There are only the object and its manifest."""
    name = f"{prefix}{export_id}-00001-of-00001.csv"
    assert {name, f"{prefix}_manifest.json"} == set(services.s3.sizes(prefix))
    assert sha256 == hashlib.sha256(services.s3.open(name).read()).hexdigest()
    [entry] = json.load(services.s3.open(f"{prefix}_manifest.json"))["entries"]
    assert sha256 == entry["meta"]["sha256"]
    assert [] == services.open_uploads()
