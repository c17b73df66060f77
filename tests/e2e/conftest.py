"""One whole Airflow on PostgreSQL for all end-to-end tests, with SendGrid's emulator and an S3 server."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator import Emulator
from dev import WORK_FOLDER
from dev.airflow.api import TaskInstance
from dev.airflow.instance import AirflowInstance, airflow_version
from dev.services.postgres import postgres
from dev.services.processes import end_on_sigterm
from dev.services.s3 import S3, s3_server
from tests.support.clock import FakeClock

DAGS_FOLDER = Path(__file__).parent / "dags"
SETTINGS = {
    # The triggers of a killed triggerer are moved to another one after so many seconds.
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
}
RUN_SECONDS = 600


@dataclass(frozen=True)
class Services:
    """Everything that runs."""

    airflow: AirflowInstance
    sendgrid: Emulator
    clock: FakeClock
    s3: S3

    def tasks(self, dag_id: str, run_id: str, task_id: str) -> list[TaskInstance]:
        """The instances of one task, by map index."""
        found = [task for task in self.airflow.api.task_instances(dag_id, run_id) if task.task_id == task_id]
        return sorted(found, key=lambda task: task.map_index)

    def log(self, dag_id: str, run_id: str, task: TaskInstance) -> str:
        return self.airflow.api.task_log(dag_id, run_id, task.task_id, task.try_number, task.map_index)


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Iterator[Services]:
    end_on_sigterm()
    WORK_FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"e2e-{airflow_version(Path(sys.executable))}-", dir=WORK_FOLDER))
    # PostgreSQL runs as another user.
    folder.chmod(0o755)
    with ExitStack() as stack:
        clock = FakeClock(is_running=True)
        sendgrid = stack.enter_context(Emulator(clock=clock, populate=False))
        s3 = stack.enter_context(s3_server("lake", folder))
        url = stack.enter_context(postgres(folder))
        airflow = AirflowInstance(
            Path(sys.executable), folder / "airflow", DAGS_FOLDER, database_url=url, environment=SETTINGS
        )
        stack.enter_context(airflow)
        airflow.migrate()
        add_connection(airflow, "sendgrid_default", sendgrid.connection_json())
        add_connection(airflow, "aws_default", json.dumps(s3.connection))
        airflow.start()
        airflow.wait_until_healthy()
        yield Services(airflow, sendgrid, clock, s3)
    if request.session.testsfailed:
        print(f"All logs are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def add_connection(airflow: AirflowInstance, connection_id: str, connection: str) -> None:
    """Store a connection in the metadata database."""
    airflow.airflow("connections", "add", connection_id, "--conn-json", connection)
