"""Worker, triggerer and scheduler are killed at random moments; after each restart everything ends right.

The moments are those of a seed (`KILLS_SEED`), which is printed.
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
# A process that died is missed soon, and its work begun anew.
SOON = {
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
    """Kills one process after another, at moments of its seed."""

    airflow: object
    run_id: str
    chance: random.Random
    killed: list[str] = field(default_factory=list)
    strikes: int = -1

    def is_over(self) -> bool:
        return self.airflow.api.run_state(DAG_ID, self.run_id) in ("success", "failed")

    def strike(self) -> None:
        """One of the three, in turn."""
        self.strikes += 1
        kind = ("worker", "triggerer", "scheduler")[self.strikes % 3]
        if kind == "worker":
            if self._kill_a_worker():
                self.killed.append(kind)
            return
        part = self.airflow.components[kind]
        part.kill()
        time.sleep(self.chance.uniform(0.0, 3.0))
        part.start()
        self.killed.append(kind)

    def _kill_a_worker(self) -> bool:
        """The process in which one task's operator runs, with no word to the one that watches over it."""
        scheduler = psutil.Process(self.airflow.components["scheduler"].running.pid)
        deadline = time.monotonic() + 30
        while not (tasks := sorted(tasks_below(scheduler), key=lambda each: each.pid)):
            if time.monotonic() > deadline or self.is_over():
                return False
            time.sleep(0.1)
        self.chance.choice(tasks).kill()
        return True


def tasks_below(scheduler: psutil.Process) -> list[psutil.Process]:
    """The last of each line below the executor's workers, which are the scheduler's children."""
    found = []
    for worker in scheduler.children():
        try:
            found += [each for each in worker.children(recursive=True) if not each.children()]
        except psutil.NoSuchProcess:
            continue
    return found


@dataclass(frozen=True)
class Survived:
    airflow: object
    sendgrid: Emulator
    s3: object
    run_id: str
    lists: list[str]
    killed: list[str]


@pytest.fixture(scope="module")
def survived():
    chance = random.Random(SEED)
    settings = Settings(ready_after=20, encoding="plain", bytes_per_second=1_500_000)
    with (
        Emulator(settings, populate=False) as sendgrid,
        airflow_with("kills", {"killed.py": DAG}, SOON) as (airflow, s3),
    ):
        airflow.api.store_connection("sendgrid_default", connection_to(sendgrid))
        lists = [sendgrid.add_list(f"List {number}", contacts=CONTACTS + number) for number in range(PIPELINES)]
        run_id = airflow.trigger(DAG_ID, {"lists": [[each] for each in lists]})
        killer = Killer(airflow, run_id, chance)
        deadline = time.monotonic() + 400
        while len(killer.killed) < KILLS and time.monotonic() < deadline and not killer.is_over():
            time.sleep(chance.uniform(2.0, 12.0))
            killer.strike()
        airflow.wait_until_healthy()
        state = airflow.wait_for_run(DAG_ID, run_id, seconds=900)
        print(f"KILLS_SEED={SEED}: {len(killer.killed)} kills: {', '.join(killer.killed)}")
        assert "success" == state, airflow.describe_run(DAG_ID, run_id)
        yield Survived(airflow, sendgrid, s3, run_id, lists, killer.killed)


def test_each_kind_was_killed(survived):
    assert {"worker", "triggerer", "scheduler"} == set(survived.killed)


def test_every_list_was_exported_once(survived):
    """And the export is the one that the tasks that follow learnt of."""
    begun = survived.sendgrid._backend.account.exports()
    for index, list_id in enumerate(survived.lists):
        ids = [each.id for each in begun if [chosen.id for chosen in each.audiences] == [list_id]]
        assert [survived.airflow.api.xcom(DAG_ID, survived.run_id, "pipeline.start", index)] == ids


def test_every_byte_arrived_once_and_nothing_is_left_behind(survived):
    client, sizes = survived.s3.client(), survived.s3.sizes("killed/")
    named = set()
    for index in range(PIPELINES):
        export_id = survived.airflow.api.xcom(DAG_ID, survived.run_id, "pipeline.start", index)
        uris = survived.airflow.api.xcom(DAG_ID, survived.run_id, "pipeline.store", index)
        delivery = Delivery(survived.s3, uris)
        truth = [file.read() for file in survived.sendgrid.export_files(export_id)]
        stored = [survived.s3.open(uri.removeprefix("s3://lake/")).read() for uri in uris]
        assert truth == stored
        assert CONTACTS + index == delivery.contacts() == delivery.manifest()["meta"]["record_count"]
        named |= {uri.removeprefix("s3://lake/") for uri in uris} | {f"killed/{index}/_manifest.json"}
    assert named == set(sizes)
    assert [] == client.list_multipart_uploads(Bucket="lake").get("Uploads", [])


def test_every_task_ended_well(survived):
    tasks = survived.airflow.api.task_instances(DAG_ID, survived.run_id)
    assert {"success"} == {task.state for task in tasks}
    tries = sorted((task.try_number for task in tasks), reverse=True)
    print(f"tries of the tasks: {tries}")
    assert tries[0] > 1
