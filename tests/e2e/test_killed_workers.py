"""Workers killed, and answers lost, at every point between the start of an export and its XCom: exactly one export."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from tests.support.local_airflow import airflow_with, connection_to, version

DAG_ID = "dying_start"
# Airflow 3.0 fails a task whose process was killed, whatever its retries: there somebody has to clear it, and a task
# that is cleared starts anew, unless that was within moments.
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


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(SendGridExportContactsOperator):
    """Its process is killed at the point that the run names, in the first try."""

    def execute(self, context):
        point = context["dag_run"].conf.get("dies") if context["ti"].try_number == 1 else None
        start_export_once = SendGridHook.start_export_once

        def start(hook, selection, attempt):
            if point == "before the POST":
                die()
            if point == "while it waits for the answer":
                threading.Timer(3.0, die).start()
            started = start_export_once(hook, selection, attempt)
            if point == "after the answer":
                die()
            return started

        SendGridHook.start_export_once = start
        export_id = super().execute(context)
        if point == "before the XCom":
            die()
        return export_id


with DAG("dying_start", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    Dying(
        task_id="start",
        list_ids=["{{ dag_run.conf['list'] }}"],
        retries=2,
        retry_delay=timedelta(seconds=1),
    )

with DAG("twins", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    SendGridExportContactsOperator.partial(
        task_id="start", list_ids=["{{ dag_run.conf['list'] }}"], retries=0
    ).expand(max_file_size=[5000, 5000])
'''
WAITING = "while it waits for the answer"
DEATHS = [
    ("before the POST", None),
    (WAITING, Fault("delay", method="POST", nth=1, seconds=20)),
    (WAITING, Fault("hang", method="POST", nth=1)),
    ("after the answer", None),
    ("after the answer", Fault("lost", method="POST", nth=1)),
    ("before the XCom", None),
]
LOSSES = [
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
    with airflow_with("killed", {"dying_start.py": DAG}) as (airflow, _):
        airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
        yield airflow


@pytest.mark.parametrize(("dies", "fault"), [*DEATHS, *LOSSES])
def test_there_is_exactly_one_export_afterwards(airflow, sendgrid, dies, fault):
    """And it is the one that the tasks that follow learn of; others of the same account are none of its business."""
    sendgrid.clear_faults()
    sendgrid.start_export()
    wanted = sendgrid.add_list(f"Wanted {dies} {fault}")
    if fault:
        sendgrid.inject(fault)

    run_id = airflow.trigger(DAG_ID, {"list": wanted, "dies": dies})
    state = airflow.wait_for_run(DAG_ID, run_id)
    is_cleared = dies is not None and not RETRIES_THE_KILLED
    if is_cleared:
        assert state == "failed"
        airflow.api.clear(DAG_ID, run_id, "start")
        state = airflow.wait_for_run(DAG_ID, run_id)

    account, begun = airflow.describe_run(DAG_ID, run_id), exports_of(sendgrid, wanted)
    assert state == "success", account
    told = airflow.api.xcom(DAG_ID, run_id, "start")
    assert told in begun, account
    assert len(begun) <= (2 if is_cleared else 1), account
    [task] = airflow.api.task_instances(DAG_ID, run_id)
    assert task.try_number == (2 if dies else 1), account


def test_two_mapped_tasks_that_start_the_same_at_once_have_one_each(airflow, sendgrid):
    """Though the start of the second is lost, and the export of the first one looks like its own."""
    sendgrid.clear_faults()
    wanted = sendgrid.add_list("Wanted twice")
    sendgrid.inject(Fault("reset", method="POST", nth=2))

    run_id = airflow.trigger("twins", {"list": wanted})
    state = airflow.wait_for_run("twins", run_id)

    account = airflow.describe_run("twins", run_id)
    assert state == "success", account
    told = [airflow.api.xcom("twins", run_id, "start", map_index=number) for number in (0, 1)]
    assert sorted(told) == sorted(exports_of(sendgrid, wanted)), account
    assert "answer was lost" not in account


def exports_of(sendgrid, list_id):
    begun = sendgrid._backend.account.exports()
    return [each.id for each in begun if [chosen.id for chosen in each.audiences] == [list_id]]
