"""The files of one export on Celery workers, with Redis as broker and PostgreSQL as database.

Each worker is a process with one task at a time. Each download connection is slow, so that a second worker helps.
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
    # A task is retried so many seconds after its worker was killed.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
}


@dataclass
class Services:
    """Everything that runs."""

    airflow: AirflowInstance
    sendgrid: Emulator
    s3: S3
    workers: dict[str, Process]
    list_id: str

    def start(self, *names: str) -> None:
        """Run only these workers, and wait until they are ready."""
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
        """Start an export of several files, which is ready at once."""
        self.sendgrid._log.clear()
        export_id = self.sendgrid.start_export([self.list_id])
        assert FILES == len(self.sendgrid.export_files(export_id))
        return export_id

    def fetched(self) -> Counter:
        """The number of requests for each file, by its number."""
        paths = [request.path for request in self.sendgrid.requests(listener="files")]
        return Counter(int(re.search(r"-(\d{5})\.", path)[1]) for path in paths)

    def started_by(self, name: str) -> set[int]:
        """The mapped tasks that a worker started, from its log."""
        return {int(index) for index in re.findall(r"store_file\D.*?map_index=(\d+)", text_of(self.workers[name]))}

    def assert_delivered(self, run_id: str, export_id: str) -> None:
        description = self.airflow.describe_run(DAG_ID, run_id)
        delivery = Delivery(self.s3, self.airflow.api.xcom(DAG_ID, run_id, "write_manifest"))
        manifest = delivery.manifest()
        assert FILES == len(delivery.keys) == len(manifest["entries"]), description
        assert FILES * CONTACTS_PER_FILE == manifest["meta"]["record_count"] == delivery.contacts()
        assert {*delivery.keys, f"{export_id}/_manifest.json"} == set(delivery.sizes())


def text_of(worker: Process) -> str:
    return worker.log.read_text(errors="replace") if worker.log.exists() else ""


@pytest.fixture(scope="module")
def services():
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
        yield Services(airflow, sendgrid, s3, workers, list_id)


def run(services: Services, export_id: str) -> str:
    return services.airflow.trigger(DAG_ID, {"export_id": export_id, "files": FILES})


def test_two_workers_share_the_files_and_halve_the_time(services):
    """Each file is downloaded once; the manifest is right."""
    seconds = {}
    for names in (("worker-1", "worker-2"), ("worker-1",)):
        services.start(*names)
        export_id = services.export()
        started = time.monotonic()
        run_id = run(services, export_id)
        assert "success" == services.airflow.wait_for_run(DAG_ID, run_id, seconds=600)
        seconds[len(names)] = time.monotonic() - started
        services.assert_delivered(run_id, export_id)
        assert dict.fromkeys(range(1, FILES + 1), 1) == services.fetched()
        shares = [services.started_by(name) for name in names]
        assert set(range(FILES)) == set().union(*shares)
        assert FILES == sum(map(len, shares)), "no file is done twice"
        assert all(shares)
        print(f"{len(names)} workers: {seconds[len(names)]:.0f} s, files {[sorted(share) for share in shares]}")
    print(f"2 workers need {seconds[2] / seconds[1]:.2f} of the time of 1")
    assert seconds[2] < 0.75 * seconds[1]


def test_a_killed_worker_costs_only_its_own_file(services):
    """SIGKILL during its second file or a later one; the other worker continues, and repeats that file."""
    services.start("worker-1", "worker-2")
    export_id = services.export()
    run_id = run(services, export_id)
    victim = services.workers["worker-2"]
    wait_until("worker-2 in its second file", lambda: len(services.started_by("worker-2")) >= 2, seconds=120)
    downloads_before = services.fetched()
    wait_until("download of that file", lambda: services.fetched() != downloads_before, seconds=60, pause_seconds=0.05)
    time.sleep(1)
    victim.kill()
    started_by_victim = services.started_by("worker-2")

    assert "success" == services.airflow.wait_for_run(DAG_ID, run_id, seconds=600)

    services.assert_delivered(run_id, export_id)
    again = {number: count for number, count in services.fetched().items() if count > 1}
    print(f"worker-2 had started {sorted(started_by_victim)}; downloaded again: {again}")
    assert 1 == len(again), again
    [(number, count)] = again.items()
    assert 2 == count
    assert number - 1 in started_by_victim
    assert set(range(FILES)) - {number - 1} == {
        task.map_index
        for task in services.airflow.api.task_instances(DAG_ID, run_id)
        if task.task_id == "store_file" and task.try_number == 1
    }
