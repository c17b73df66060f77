"""Kills worker, triggerer and scheduler at random moments; every pipeline must succeed nevertheless.

The seed (`KILLS_SEED`) is printed.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field

import psutil
import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.demo.delivery import Delivery
from tests.support.local_airflow import airflow_with, connection_to, version

pytestmark = pytest.mark.skipif(
    version() == (3, 0), reason="Airflow 3.0 fails a killed task whatever its retries: see test_killed_workers"
)
DAG_ID = "killed"
PIPELINES = 6
CONTACTS = 40_000
KILLS = 9
SEED = int(os.environ.get("KILLS_SEED", "7"))
DAG = """
from datetime import datetime, timedelta, timezone

try:
    from airflow.sdk import DAG, task, task_group
except ImportError:
    from airflow import DAG
    from airflow.decorators import task, task_group

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator


@task
def lists(**context):
    return context["dag_run"].conf["lists"]


with DAG(
    "killed",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 20, "retry_delay": timedelta(seconds=1)},
):

    @task_group
    def pipeline(list_ids):
        start = SendGridExportContactsOperator(task_id="start", list_ids=list_ids)
        wait = SendGridExportSensor(
            task_id="wait", export_id=start.output, deferrable=True, poke_interval=3, timeout=1800
        )
        store = SendGridToS3Operator(
            task_id="store",
            export_id=start.output,
            s3_key_prefix="s3://lake/killed/{{ ti.map_index }}/",
            compression="none",
            part_size=5 * 1024 * 1024,
            max_concurrency=2,
        )
        wait >> store

    pipeline.expand(list_ids=lists())
"""
# Airflow detects a killed process and repeats its work within seconds.
FAST_DETECTION = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "20",
    "AIRFLOW__SCHEDULER__ZOMBIE_DETECTION_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__LOCAL_TASK_JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


@dataclass
class Killer:
    """Kills one process after another, at random moments."""

    airflow: object
    run_id: str
    rng: random.Random
    killed: list[str] = field(default_factory=list)
    attempts: int = -1

    def is_over(self) -> bool:
        return self.airflow.api.run_state(DAG_ID, self.run_id) in ("success", "failed")

    def kill_next(self) -> None:
        """Kill a worker, the triggerer or the scheduler, in turn."""
        self.attempts += 1
        kind = ("worker", "triggerer", "scheduler")[self.attempts % 3]
        if kind == "worker":
            if self._kill_a_worker():
                self.killed.append(kind)
            return
        component = self.airflow.components[kind]
        component.kill()
        time.sleep(self.rng.uniform(0.0, 3.0))
        component.start()
        self.killed.append(kind)

    def _kill_a_worker(self) -> bool:
        """Kill the process of a task, but not its supervisor."""
        scheduler = psutil.Process(self.airflow.components["scheduler"].running.pid)
        deadline = time.monotonic() + 30
        while not (tasks := sorted(task_processes(scheduler), key=lambda each: each.pid)):
            if time.monotonic() > deadline or self.is_over():
                return False
            time.sleep(0.1)
        self.rng.choice(tasks).kill()
        return True


def task_processes(scheduler: psutil.Process) -> list[psutil.Process]:
    """The innermost processes below the executor's workers, which are the scheduler's children."""
    found = []
    for worker in scheduler.children():
        try:
            found += [each for each in worker.children(recursive=True) if not each.children()]
        except psutil.NoSuchProcess:
            continue
    return found


@dataclass(frozen=True)
class KilledRun:
    airflow: object
    sendgrid: Emulator
    s3: object
    run_id: str
    lists: list[str]
    killed: list[str]


@pytest.fixture(scope="module")
def killed_run():
    rng = random.Random(SEED)
    settings = Settings(ready_after=20, encoding="plain", bytes_per_second=1_500_000)
    with (
        Emulator(settings, populate=False) as sendgrid,
        airflow_with("kills", {"killed.py": DAG}, FAST_DETECTION) as (airflow, s3),
    ):
        airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
        lists = [sendgrid.add_list(f"List {number}", contacts=CONTACTS + number) for number in range(PIPELINES)]
        run_id = airflow.trigger(DAG_ID, {"lists": [[each] for each in lists]})
        killer = Killer(airflow, run_id, rng)
        deadline = time.monotonic() + 400
        while len(killer.killed) < KILLS and time.monotonic() < deadline and not killer.is_over():
            time.sleep(rng.uniform(2.0, 12.0))
            killer.kill_next()
        airflow.wait_until_healthy()
        state = airflow.wait_for_run(DAG_ID, run_id, seconds=900)
        print(f"KILLS_SEED={SEED}: {len(killer.killed)} kills: {', '.join(killer.killed)}")
        assert "success" == state, airflow.describe_run(DAG_ID, run_id)
        yield KilledRun(airflow, sendgrid, s3, run_id, lists, killer.killed)


def test_every_kind_of_process_was_killed(killed_run):
    assert {"worker", "triggerer", "scheduler"} == set(killed_run.killed)


def test_every_list_was_exported_once(killed_run):
    """Its id is that of the XCom."""
    started = killed_run.sendgrid._backend.account.exports()
    for index, list_id in enumerate(killed_run.lists):
        ids = [each.id for each in started if [chosen.id for chosen in each.audiences] == [list_id]]
        assert [killed_run.airflow.api.xcom(DAG_ID, killed_run.run_id, "pipeline.start", index)] == ids


def test_every_file_is_delivered_once_without_leftovers(killed_run):
    client, sizes = killed_run.s3.client(), killed_run.s3.sizes("killed/")
    named = set()
    for index in range(PIPELINES):
        export_id = killed_run.airflow.api.xcom(DAG_ID, killed_run.run_id, "pipeline.start", index)
        uris = killed_run.airflow.api.xcom(DAG_ID, killed_run.run_id, "pipeline.store", index)
        delivery = Delivery(killed_run.s3, uris)
        expected = [file.read() for file in killed_run.sendgrid.export_files(export_id)]
        stored = [killed_run.s3.open(uri.removeprefix("s3://lake/")).read() for uri in uris]
        assert expected == stored
        assert CONTACTS + index == delivery.contacts() == delivery.manifest()["meta"]["record_count"]
        named |= {uri.removeprefix("s3://lake/") for uri in uris} | {f"killed/{index}/_manifest.json"}
    assert named == set(sizes)
    assert [] == client.list_multipart_uploads(Bucket="lake").get("Uploads", [])


def test_every_task_succeeded(killed_run):
    tasks = killed_run.airflow.api.task_instances(DAG_ID, killed_run.run_id)
    assert {"success"} == {task.state for task in tasks}
    tries = sorted((task.try_number for task in tasks), reverse=True)
    print(f"tries of the tasks: {tries}")
    assert tries[0] > 1
