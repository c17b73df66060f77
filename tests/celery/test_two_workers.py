"""The files of one export on Celery's workers: Redis hands them out, PostgreSQL keeps what became of them.

Each worker is a process of its own that does one task at a time, as two machines would. SendGrid's files come slowly
over each connection, as from afar: that is when a second worker helps.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.airflow.instance import AirflowInstance
from dev.demo.delivery import Delivery
from dev.demo.stack import temporary_folder
from dev.services.postgres import postgres
from dev.services.processes import Process, end_on_sigterm
from dev.services.redis import redis_server
from dev.services.s3 import S3, s3_server
from dev.services.waiting import wait_until

DAG_ID = "spread_export"
FILES = 8
CONTACTS_PER_FILE = 4_000
SECONDS_PER_FILE = 8
SETTINGS = {
    "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    # A task whose worker is gone is missed after so many seconds, and tried again.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}


@dataclass
class World:
    """All that runs."""

    airflow: AirflowInstance
    sendgrid: Emulator
    s3: S3
    workers: dict[str, Process]
    list_id: str

    def start(self, *names: str) -> None:
        """Have these workers run, and no others; they are ready when this returns."""
        for name, worker in self.workers.items():
            worker.stop()
            worker.log.unlink(missing_ok=True)
            if name in names:
                worker.start()
        for name in names:
            worker = self.workers[name]
            wait_until(
                f"{name} ready", lambda worker=worker: "ready." in text_of(worker), seconds=120, evidence=worker.tail
            )

    def export(self) -> str:
        """An export of several files, ready."""
        self.sendgrid._log.clear()
        export_id = self.sendgrid.start_export([self.list_id])
        assert FILES == len(self.sendgrid.export_files(export_id))
        return export_id

    def fetched(self) -> Counter:
        """How often each file was asked for, by its number."""
        paths = [request.path for request in self.sendgrid.requests(listener="files")]
        return Counter(int(re.search(r"-(\d{5})\.", path)[1]) for path in paths)

    def done_by(self, name: str) -> set[int]:
        """The mapped tasks that a worker began, by its own log."""
        return {int(index) for index in re.findall(r"store_file\D.*?map_index=(\d+)", text_of(self.workers[name]))}

    def assert_delivered(self, run_id: str, export_id: str) -> None:
        account = self.airflow.describe_run(DAG_ID, run_id)
        delivery = Delivery(self.s3, self.airflow.api.xcom(DAG_ID, run_id, "write_manifest"))
        manifest = delivery.manifest()
        assert FILES == len(delivery.keys) == len(manifest["entries"]), account
        assert FILES * CONTACTS_PER_FILE == manifest["meta"]["record_count"] == delivery.contacts()
        assert {*delivery.keys, f"{export_id}/_manifest.json"} == set(delivery.sizes())


def text_of(worker: Process) -> str:
    return worker.log.read_text(errors="replace") if worker.log.exists() else ""


@pytest.fixture(scope="module")
def world():
    end_on_sigterm()
    with temporary_folder("celery") as folder, ExitStack() as stack:
        folder.chmod(0o755)
        sendgrid = stack.enter_context(
            Emulator(Settings(encoding="plain", contacts_per_file=CONTACTS_PER_FILE), populate=False)
        )
        list_id = sendgrid.add_list("Many", contacts=FILES * CONTACTS_PER_FILE)
        size = len(sendgrid.export_files(sendgrid.start_export([list_id]))[0].read())
        sendgrid.configure(bytes_per_second=size // SECONDS_PER_FILE)
        s3 = stack.enter_context(s3_server("lake", folder))
        database = stack.enter_context(postgres(folder))
        queue = {
            "AIRFLOW__CELERY__BROKER_URL": stack.enter_context(redis_server(folder)),
            "AIRFLOW__CELERY__RESULT_BACKEND": "db+" + database,
        }
        airflow = stack.enter_context(
            AirflowInstance(
                Path(sys.executable),
                folder / "airflow",
                Path(__file__).parent / "dags",
                database_url=database,
                environment=SETTINGS | queue,
            )
        )
        airflow.up({"aws_default": s3.connection, "sendgrid_default": json.loads(sendgrid.connection_json())})
        workers = {name: airflow.celery_worker(name) for name in ("worker-1", "worker-2")}
        stack.callback(lambda: [worker.stop() for worker in workers.values()])
        yield World(airflow, sendgrid, s3, workers, list_id)


def run(world: World, export_id: str) -> str:
    return world.airflow.trigger(DAG_ID, {"export_id": export_id, "files": FILES})


def test_two_workers_share_the_files_and_halve_the_time(world):
    """Each file is fetched once, by one of them; the manifest is right."""
    seconds = {}
    for names in (("worker-1", "worker-2"), ("worker-1",)):
        world.start(*names)
        export_id = world.export()
        started = time.monotonic()
        run_id = run(world, export_id)
        assert "success" == world.airflow.wait_for_run(DAG_ID, run_id, seconds=600)
        seconds[len(names)] = time.monotonic() - started
        world.assert_delivered(run_id, export_id)
        assert dict.fromkeys(range(1, FILES + 1), 1) == world.fetched()
        shares = [world.done_by(name) for name in names]
        assert set(range(FILES)) == set().union(*shares)
        assert FILES == sum(map(len, shares)), "no file is done twice"
        assert all(shares)
        print(f"{len(names)} workers: {seconds[len(names)]:.0f} s, files {[sorted(share) for share in shares]}")
    print(f"2 workers need {seconds[2] / seconds[1]:.2f} of the time of 1")
    assert seconds[2] < 0.75 * seconds[1]


def test_a_worker_that_is_killed_costs_its_file_alone(world):
    """SIGKILL in the middle of its second file or a later one: the other worker does the rest, and that one again."""
    world.start("worker-1", "worker-2")
    export_id = world.export()
    run_id = run(world, export_id)
    victim = world.workers["worker-2"]
    wait_until("worker-2 in its second file", lambda: len(world.done_by("worker-2")) >= 2, seconds=120)
    asked = world.fetched()
    wait_until("that file on its way", lambda: world.fetched() != asked, seconds=60, pause_seconds=0.05)
    time.sleep(1)
    victim.kill()
    started_by_victim = world.done_by("worker-2")

    assert "success" == world.airflow.wait_for_run(DAG_ID, run_id, seconds=600)

    world.assert_delivered(run_id, export_id)
    again = {number: count for number, count in world.fetched().items() if count > 1}
    print(f"worker-2 had begun {sorted(started_by_victim)}; fetched again: {again}")
    assert 1 == len(again), again
    [(number, count)] = again.items()
    assert 2 == count
    assert number - 1 in started_by_victim
    assert set(range(FILES)) - {number - 1} == {
        task.map_index
        for task in world.airflow.api.task_instances(DAG_ID, run_id)
        if task.task_id == "store_file" and task.try_number == 1
    }
