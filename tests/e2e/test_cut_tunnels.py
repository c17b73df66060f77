"""Starts through a CONNECT proxy that cuts its tunnels, on Celery workers whose clocks are minutes wrong: one export.

SendGrid has accepted the export when the proxy resets the tunnel, so no worker ever sees the response. SendGrid's own
clock is right, and so are those of Airflow's other processes.
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

# A name that only the proxy knows: a client that bypasses the proxy finds no host.
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


def note_the_clock(context):
    context["ti"].xcom_push(key="clock", value=time.time())


with DAG("start_behind_a_proxy", start_date=datetime(2026, 1, 1), schedule=None, catchup=False):
    SendGridExportContactsOperator(
        task_id="start",
        list_ids=["{{ dag_run.conf['list'] }}"],
        retries=2,
        # Time enough to replace the worker before the second try is queued.
        retry_delay=timedelta(seconds=20),
        pre_execute=note_the_clock,
    )
"""
AIRFLOW_2 = version() < (3, 0)
KEEPS_STATE = version() >= (3, 3)
SETTINGS_OF_2 = {
    # Airflow 2 compares heartbeats by the worker's clock with the scheduler's: one that is behind would be dead.
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "3600",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "5",
    # And such a worker refuses a run of this very minute, because its date is in the future.
    "AIRFLOW__SCHEDULER__ALLOW_TRIGGER_IN_FUTURE": "True",
}
SETTINGS_OF_3 = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}
MINUTE = 60
# The response would come after all is over.
NEVER = 3600.0
# The age of an export of others. Without a state store, one of the ten minutes before the run would leave a doubt.
OLDER_BY_MINUTES = 5 if KEEPS_STATE else 20
# In doubt, a start waits five minutes for other tasks.
RUN_SECONDS = 900


@dataclass
class World:
    """All that runs, but for the workers."""

    airflow: AirflowInstance
    sendgrid: Emulator
    clock: FakeClock
    proxy: CuttingProxy

    def new_list(self, older_by_minutes: int = OLDER_BY_MINUTES) -> tuple[str, str]:
        """A list, and an export of it that somebody else started minutes ago."""
        self.sendgrid.clear_faults()
        self.proxy.mend()
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
        """The only worker, for the time of the block."""
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

    def kill_the_try(self, run_id: str, worker: Process) -> None:
        """SIGKILL to the worker; in Airflow 2 to the task's process first, see `SETTINGS_OF_2`."""
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
def world():
    end_on_sigterm()
    with temporary_folder("cut") as folder, ExitStack() as stack:
        folder.chmod(0o755)
        (folder / "dags").mkdir()
        (folder / "dags" / "start_behind_a_proxy.py").write_text(DAG)
        clock = FakeClock(is_running=True)
        sendgrid = stack.enter_context(Emulator(clock=clock))
        port = int(sendgrid.url.rpartition(":")[2])
        assert_time_is_sent(port)
        proxy = stack.enter_context(cutting_proxy(HOST, port, folder))
        airflow = stack.enter_context(airflow_with_celery(stack, folder))
        airflow.up({"sendgrid_default": connection_through(proxy, sendgrid)})
        yield World(airflow, sendgrid, clock, proxy)


def assert_time_is_sent(port: int) -> None:
    """Or the tests below would pass without any clock being compared."""
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
def test_a_worker_killed_behind_a_cut_tunnel_leaves_one_export(world, first, second):
    """The second try runs on another worker, whose clock is minutes away from that of the first.

    Without a state store, a try knows only when the run began, by the scheduler's clock. On a worker that is behind,
    the export seems to be older than the run: the task fails, and names it.
    """
    list_id, older = world.new_list()
    run_id, state = start_on_two_workers(world, list_id, older, first, second)
    if state == "failed" and second < first and not KEEPS_STATE:
        assert_doubt(world, run_id, list_id, older)
    else:
        assert_only_export(world, run_id, state, list_id, older)


@pytest.mark.skipif(KEEPS_STATE, reason="from Airflow 3.3 on, the state store tells the two exports apart")
def test_without_a_state_store_a_recent_export_leaves_a_named_doubt(world):
    """The export of others is five minutes older than the run, and clocks may be that far apart."""
    list_id, older = world.new_list(older_by_minutes=5)
    run_id, state = start_on_two_workers(world, list_id, older, 0, 7)

    assert state == "failed", world.airflow.describe_run(DAG_ID, run_id)
    assert_doubt(world, run_id, list_id, older)


@pytest.mark.parametrize("minutes", [7, -7], ids=lambda minutes: f"{minutes:+d} min")
def test_a_tunnel_cut_once_costs_no_second_export(world, minutes):
    """The proxy cuts once, after SendGrid accepted the export, and works again at once."""
    began = time.monotonic()
    list_id, older = world.new_list()
    run_id = trigger(world, list_id)
    with world.worker("worker-1", minutes * MINUTE) as worker:
        before = time.time()
        world.wait_for_acceptance(list_id, older, worker)
        world.proxy.cut()
        world.proxy.mend()
        state = world.airflow.wait_for_run(DAG_ID, run_id, seconds=RUN_SECONDS)

    print(f"clock {minutes:+d} min: {state} after {time.monotonic() - began:.0f} s")
    assert_only_export(world, run_id, state, list_id, older)
    assert_clock(world, run_id, minutes * MINUTE, before)


def trigger(world: World, list_id: str) -> str:
    """A run whose first POST is accepted by SendGrid and not answered."""
    world.sendgrid.inject(Fault("delay", method="POST", path=EXPORTS, nth=1, seconds=NEVER))
    return world.airflow.trigger(DAG_ID, {"list": list_id})


def start_on_two_workers(world: World, list_id: str, older: str, first: int, second: int) -> tuple[str, str]:
    """The first worker is cut off once SendGrid has accepted the export, and killed; the run's id and final state."""
    began = time.monotonic()
    run_id = trigger(world, list_id)
    with world.worker("worker-1", first * MINUTE) as worker:
        world.wait_for_acceptance(list_id, older, worker)
        world.proxy.cut()
        wait_until("the first try refused by the proxy", lambda: world.proxy.refusals, seconds=180)
        world.kill_the_try(run_id, worker)
    world.proxy.mend()
    with world.worker("worker-2", second * MINUTE):
        before = time.time()
        state = world.airflow.wait_for_run(DAG_ID, run_id, seconds=RUN_SECONDS)
    print(f"clocks {first:+d} and {second:+d} min: {state} after {time.monotonic() - began:.0f} s")
    assert_clock(world, run_id, second * MINUTE, before)
    return run_id, state


def assert_only_export(world: World, run_id: str, state: str, list_id: str, older: str) -> None:
    """The run has started one export, and hands its id on."""
    account = world.airflow.describe_run(DAG_ID, run_id)
    started = only_export(world, list_id, older, account)
    assert state == "success", account
    assert world.airflow.api.xcom(DAG_ID, run_id, "start") == started, account


def assert_doubt(world: World, run_id: str, list_id: str, older: str) -> None:
    """The run has started one export; the error of its last try names it."""
    account = world.airflow.describe_run(DAG_ID, run_id)
    started = only_export(world, list_id, older, account)
    [task] = world.airflow.api.task_instances(DAG_ID, run_id)
    log = world.airflow.api.task_log(DAG_ID, run_id, "start", task.try_number)
    assert "ExportInDoubtError" in log, account
    assert started in log, account


def only_export(world: World, list_id: str, older: str, account: str) -> str:
    started = [export for export in world.exports_of(list_id) if export != older]
    assert len(started) == 1, f"{started}\n{account}"
    return started[0]


def assert_clock(world: World, run_id: str, shift_seconds: int, before: float) -> None:
    """The last try ran with that clock: its own time lies within the test's, shifted."""
    clock = float(world.airflow.api.xcom(DAG_ID, run_id, "start", key="clock"))
    assert before - 60 <= clock - shift_seconds <= time.time() + 5
