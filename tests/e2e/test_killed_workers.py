"""Workers killed and responses lost between the start of an export and its XCom: exactly one export."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from tests.support.local_airflow import airflow_with, connection_to, version

DAG_ID = "killed_start"
# Airflow 3.0 fails a killed task regardless of its retries. Someone must clear it; unless that is within seconds, the
# cleared task starts a new export.
RETRIES_THE_KILLED = version() != (3, 0)
DAG = '''
import os
import signal
import threading
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:
    from airflow import DAG

from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledStart(SendGridExportContactsOperator):
    """Its process is killed at the point that the run names, in the first try."""

    def execute(self, context):
        point = context["dag_run"].conf.get("killed_at") if context["ti"].try_number == 1 else None
        start_export_once = SendGridHook.start_export_once

        def start(hook, selection, attempt):
            if point == "before the POST":
                kill_self()
            if point == "while it waits for the answer":
                threading.Timer(3.0, kill_self).start()
            started = start_export_once(hook, selection, attempt)
            if point == "after the answer":
                kill_self()
            return started

        SendGridHook.start_export_once = start
        export_id = super().execute(context)
        if point == "before the XCom":
            kill_self()
        return export_id


with DAG("killed_start", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    KilledStart(
        task_id="start",
        list_ids=["{{ dag_run.conf['list'] }}"],
        retries=2,
        retry_delay=timedelta(seconds=1),
    )

with DAG("identical_starts", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    SendGridExportContactsOperator.partial(
        task_id="start", list_ids=["{{ dag_run.conf['list'] }}"], retries=0
    ).expand(max_file_size=[5000, 5000])
'''
WAITING = "while it waits for the answer"
KILLS = [
    ("before the POST", None),
    (WAITING, Fault("delay", method="POST", nth=1, seconds=20)),
    (WAITING, Fault("hang", method="POST", nth=1)),
    ("after the answer", None),
    ("after the answer", Fault("lost", method="POST", nth=1)),
    ("before the XCom", None),
]
LOST_RESPONSES = [
    (None, Fault("refuse", method="POST", nth=1)),
    (None, Fault("lost", method="POST", nth=1, with_reset=True)),
    (None, Fault("cut", method="POST", nth=1)),
]


@pytest.fixture(scope="module")
def sendgrid():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(sendgrid):
    with airflow_with("killed", {"killed_start.py": DAG}) as (airflow, _):
        airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
        yield airflow


@pytest.mark.parametrize(("killed_at", "fault"), [*KILLS, *LOST_RESPONSES])
def test_there_is_exactly_one_export_afterwards(airflow, sendgrid, killed_at, fault):
    """It is that of the XCom; other exports of the account are ignored."""
    sendgrid.clear_faults()
    sendgrid.start_export()
    list_id = sendgrid.add_list(f"Wanted {killed_at} {fault}")
    if fault:
        sendgrid.inject(fault)

    run_id = airflow.trigger(DAG_ID, {"list": list_id, "killed_at": killed_at})
    state = airflow.wait_for_run(DAG_ID, run_id)
    is_cleared = killed_at is not None and not RETRIES_THE_KILLED
    if is_cleared:
        assert state == "failed"
        airflow.api.clear(DAG_ID, run_id, "start")
        state = airflow.wait_for_run(DAG_ID, run_id)

    description, started = airflow.describe_run(DAG_ID, run_id), exports_of(sendgrid, list_id)
    assert state == "success", description
    export_id = airflow.api.xcom(DAG_ID, run_id, "start")
    assert export_id in started, description
    assert len(started) <= (2 if is_cleared else 1), description
    [task] = airflow.api.task_instances(DAG_ID, run_id)
    assert task.try_number == (2 if killed_at else 1), description


def test_two_identical_mapped_starts_have_one_export_each(airflow, sendgrid):
    """Though the second start is lost, and the export of the first one has the same list."""
    sendgrid.clear_faults()
    list_id = sendgrid.add_list("Wanted twice")
    sendgrid.inject(Fault("reset", method="POST", nth=2))

    run_id = airflow.trigger("identical_starts", {"list": list_id})
    state = airflow.wait_for_run("identical_starts", run_id)

    description = airflow.describe_run("identical_starts", run_id)
    assert state == "success", description
    export_ids = [airflow.api.xcom("identical_starts", run_id, "start", map_index=number) for number in (0, 1)]
    assert sorted(export_ids) == sorted(exports_of(sendgrid, list_id)), description
    assert "answer was lost" not in description


def exports_of(sendgrid, list_id):
    started = sendgrid._backend.account.exports()
    return [each.id for each in started if [chosen.id for chosen in each.audiences] == [list_id]]
