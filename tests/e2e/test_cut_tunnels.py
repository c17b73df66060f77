"""Starts through a CONNECT proxy that cuts tunnels, on Celery workers with wrong clocks: exactly one export.

The proxy resets the tunnel after SendGrid accepted the export, so no worker sees the response. The clocks of SendGrid
and of Airflow's other processes are right.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from dev.airflow.faketime import shifted_clock
from dev.airflow.instance import AirflowInstance
from dev.demo.stack import temporary_folder
from dev.services.ports import LOCALHOST
from dev.services.postgres import postgres
from dev.services.processes import Process, end_on_sigterm
from dev.services.redis import redis_server
from dev.services.waiting import wait_until
from tests.support.clock import FakeClock
from tests.support.cutting_proxy import CuttingProxy, cutting_proxy
from tests.support.local_airflow import EXPORTS, PYTHON, version

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="libfaketime is preloaded into programs by Linux's loader"),
    pytest.mark.skipif(version() == (3, 0), reason="Airflow 3.0 does not retry a task whose worker was killed"),
]

# Only the proxy resolves this name, so no client can bypass it.
HOST = "sendgrid.test"
DAG_ID = "start_behind_a_proxy"
DAG = """
import time
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:
    from airflow import DAG

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator


def record_clock(context):
    context["ti"].xcom_push(key="clock", value=time.time())


with DAG("start_behind_a_proxy", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    SendGridExportContactsOperator(
        task_id="start",
        list_ids=["{{ dag_run.conf['list'] }}"],
        retries=2,
        # The worker is replaced before the second try is queued.
        retry_delay=timedelta(seconds=20),
        pre_execute=record_clock,
    )
"""
AIRFLOW_2 = version() < (3, 0)
KEEPS_STATE = version() >= (3, 3)
SETTINGS_OF_2 = {
    # Airflow 2 compares heartbeats of the worker's clock with the scheduler's clock.
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "3600",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "5",
    # A worker that is behind refuses a new run, because its date is in the future.
    "AIRFLOW__SCHEDULER__ALLOW_TRIGGER_IN_FUTURE": "True",
}
SETTINGS_OF_3 = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}
MINUTE = 60
# Longer than the test.
NEVER = 3600.0
# The age of another export. Without a state store, one of less than ten minutes would be in doubt.
OLDER_BY_MINUTES = 5 if KEEPS_STATE else 20
# If in doubt, a start waits five minutes for other tasks.
RUN_SECONDS = 900


@dataclass
class Services:
    """Everything that runs, except the workers."""

    airflow: AirflowInstance
    sendgrid: Emulator
    clock: FakeClock
    proxy: CuttingProxy

    def new_list(self, older_by_minutes: int = OLDER_BY_MINUTES) -> tuple[str, str]:
        """A list, and an export of it that another client started minutes ago."""
        self.sendgrid.clear_faults()
        self.proxy.restore()
        list_id = self.sendgrid.add_list(f"List at {time.time()}")
        self.clock.ahead_seconds = -older_by_minutes * MINUTE
        older = self.sendgrid.start_export([list_id])
        self.clock.ahead_seconds = 0.0
        return list_id, older

    def exports_of(self, list_id: str) -> list[str]:
        exports = self.sendgrid._backend.account.exports()
        return [export.id for export in exports if [audience.id for audience in export.audiences] == [list_id]]

    def wait_for_acceptance(self, list_id: str, older: str, worker: Process) -> None:
        wait_until(
            "export accepted by SendGrid",
            lambda: {*self.exports_of(list_id)} - {older},
            seconds=240,
            pause_seconds=0.05,
            evidence=lambda: worker.tail() + self.airflow.log_tails(),
        )

    @contextmanager
    def worker(self, name: str, clock_seconds: int) -> Iterator[Process]:
        """Run the only worker."""
        worker = self.airflow.celery_worker(name, shifted_clock(clock_seconds))
        worker.log.unlink(missing_ok=True)
        worker.start()
        try:
            wait_until(
                f"{name} ready",
                lambda: "ready." in worker.log.read_text(errors="replace"),
                seconds=180,
                evidence=worker.tail,
            )
            yield worker
        finally:
            worker.stop()

    def kill_first_try(self, run_id: str, worker: Process) -> None:
        """Kill the worker; in Airflow 2 first the task's process, see `SETTINGS_OF_2`."""
        if AIRFLOW_2:
            task_process(worker).kill()
            self.airflow.wait_for_task(DAG_ID, run_id, "start", "up_for_retry")
        worker.kill()


def task_process(worker: Process) -> psutil.Process:
    """The innermost process below a worker of Airflow 2."""
    descendants = psutil.Process(worker.running.pid).children(recursive=True)
    [process] = [each for each in descendants if "airflow task runner" in " ".join(each.cmdline())]
    return process


@pytest.fixture(scope="module")
def services():
    end_on_sigterm()
    with temporary_folder("cut") as folder, ExitStack() as stack:
        folder.chmod(0o755)
        (folder / "dags").mkdir()
        (folder / "dags" / "start_behind_a_proxy.py").write_text(DAG)
        clock = FakeClock(is_running=True)
        sendgrid = stack.enter_context(Emulator(clock=clock))
        port = int(sendgrid.url.rpartition(":")[2])
        assert_date_is_sent(port)
        proxy = stack.enter_context(cutting_proxy(HOST, port, folder))
        airflow = stack.enter_context(airflow_with_celery(stack, folder))
        airflow.up({"sendgrid_default": connection_through(proxy, sendgrid)})
        yield Services(airflow, sendgrid, clock, proxy)


def assert_date_is_sent(port: int) -> None:
    """Without it, the tests would compare no clocks."""
    with closing(HTTPConnection(LOCALHOST, port)) as connection:
        connection.request("GET", EXPORTS)
        assert connection.getresponse().headers["Date"]


def airflow_with_celery(stack: ExitStack, folder: Path) -> AirflowInstance:
    database = stack.enter_context(postgres(folder))
    celery = {
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CELERY__BROKER_URL": stack.enter_context(redis_server(folder)),
        "AIRFLOW__CELERY__RESULT_BACKEND": "db+" + database,
    }
    settings = celery | (SETTINGS_OF_2 if AIRFLOW_2 else SETTINGS_OF_3)
    return AirflowInstance(PYTHON, folder / "airflow", folder / "dags", database_url=database, environment=settings)


def connection_through(proxy: CuttingProxy, sendgrid: Emulator) -> dict:
    connection = json.loads(sendgrid.connection_json(proxy=proxy.url, verify=str(proxy.trusted)))
    return connection | {"host": f"https://{HOST}"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (0, 7),
        (0, -7),
        *(
            pytest.param(
                *clocks,
                marks=pytest.mark.skipif(
                    not KEEPS_STATE, reason="before Airflow 3.3 no time of the first worker's clock is kept"
                ),
            )
            for clocks in [(7, 0), (-7, 0), (7, -7)]
        ),
    ],
    ids=lambda minutes: f"{minutes:+d} min",
)
def test_a_worker_killed_behind_a_cut_tunnel_leaves_one_export(services, first, second):
    """The second try runs on another worker, with another clock.

    Without a state store, a try knows only the start of the run, by the scheduler's clock. On a worker that is behind,
    the export seems older than the run: the task fails, and names it.
    """
    list_id, older = services.new_list()
    run_id, state = start_on_two_workers(services, list_id, older, first, second)
    if state == "failed" and second < first and not KEEPS_STATE:
        assert_in_doubt(services, run_id, list_id, older)
    else:
        assert_only_export(services, run_id, state, list_id, older)


@pytest.mark.skipif(KEEPS_STATE, reason="from Airflow 3.3 on, the state store distinguishes the two exports")
def test_without_a_state_store_a_recent_export_is_in_doubt(services):
    """The other export is five minutes older than the run, and clocks may differ by that much."""
    list_id, older = services.new_list(older_by_minutes=5)
    run_id, state = start_on_two_workers(services, list_id, older, 0, 7)

    assert state == "failed", services.airflow.describe_run(DAG_ID, run_id)
    assert_in_doubt(services, run_id, list_id, older)


@pytest.mark.parametrize("minutes", [7, -7], ids=lambda minutes: f"{minutes:+d} min")
def test_a_tunnel_cut_once_costs_no_second_export(services, minutes):
    """The proxy cuts once, after SendGrid accepted the export, and works again at once."""
    began = time.monotonic()
    list_id, older = services.new_list()
    run_id = trigger(services, list_id)
    with services.worker("worker-1", minutes * MINUTE) as worker:
        before = time.time()
        services.wait_for_acceptance(list_id, older, worker)
        services.proxy.cut()
        services.proxy.restore()
        state = services.airflow.wait_for_run(DAG_ID, run_id, seconds=RUN_SECONDS)

    print(f"clock {minutes:+d} min: {state} after {time.monotonic() - began:.0f} s")
    assert_only_export(services, run_id, state, list_id, older)
    assert_clock(services, run_id, minutes * MINUTE, before)


def trigger(services: Services, list_id: str) -> str:
    """Start a run whose first POST is accepted by SendGrid, without a response."""
    services.sendgrid.inject(Fault("delay", method="POST", path=EXPORTS, nth=1, seconds=NEVER))
    return services.airflow.trigger(DAG_ID, {"list": list_id})


def start_on_two_workers(services: Services, list_id: str, older: str, first: int, second: int) -> tuple[str, str]:
    """Cut off and kill the first worker after SendGrid accepted the export; return the run's id and final state."""
    began = time.monotonic()
    run_id = trigger(services, list_id)
    with services.worker("worker-1", first * MINUTE) as worker:
        services.wait_for_acceptance(list_id, older, worker)
        services.proxy.cut()
        wait_until("the first try refused by the proxy", lambda: services.proxy.refusals, seconds=180)
        services.kill_first_try(run_id, worker)
    services.proxy.restore()
    with services.worker("worker-2", second * MINUTE):
        before = time.time()
        state = services.airflow.wait_for_run(DAG_ID, run_id, seconds=RUN_SECONDS)
    print(f"clocks {first:+d} and {second:+d} min: {state} after {time.monotonic() - began:.0f} s")
    assert_clock(services, run_id, second * MINUTE, before)
    return run_id, state


def assert_only_export(services: Services, run_id: str, state: str, list_id: str, older: str) -> None:
    """The run started one export, and returned its id."""
    description = services.airflow.describe_run(DAG_ID, run_id)
    started = only_export(services, list_id, older, description)
    assert state == "success", description
    assert services.airflow.api.xcom(DAG_ID, run_id, "start") == started, description


def assert_in_doubt(services: Services, run_id: str, list_id: str, older: str) -> None:
    """The run started one export; the error of its last try names it."""
    description = services.airflow.describe_run(DAG_ID, run_id)
    started = only_export(services, list_id, older, description)
    [task] = services.airflow.api.task_instances(DAG_ID, run_id)
    log = services.airflow.api.task_log(DAG_ID, run_id, "start", task.try_number)
    assert "ExportInDoubtError" in log, description
    assert started in log, description


def only_export(services: Services, list_id: str, older: str, description: str) -> str:
    started = [export for export in services.exports_of(list_id) if export != older]
    assert len(started) == 1, f"{started}\n{description}"
    return started[0]


def assert_clock(services: Services, run_id: str, shift_seconds: int, before: float) -> None:
    """The last try ran with the shifted clock."""
    clock = float(services.airflow.api.xcom(DAG_ID, run_id, "start", key="clock"))
    assert before - 60 <= clock - shift_seconds <= time.time() + 5
