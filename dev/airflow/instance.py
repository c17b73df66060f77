"""A whole Airflow of any version from 2.10 to 3.3 on this machine, each part a process of its own.

with RealAirflow(python, home, dags_folder) as airflow:
    airflow.up({"aws_default": {"conn_type": "aws"}})
    run_id = airflow.trigger("my_dag")
    airflow.parts["triggerer"].kill()
    airflow.parts["triggerer"].start()
    airflow.wait_for_run("my_dag", run_id)
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.airflow.api import FINAL_RUN_STATES, AirflowApi, AirflowApiError, TaskInstance
from dev.airflow.settings import ADMIN, Place, child_environment, is_airflow_2
from dev.services.processes import Process, stop_all
from dev.waiting import wait_until

# The commands that run for ever, without their log servers: those listen to the whole network.
PARTS_OF_2 = {
    "webserver": (),
    "scheduler": ("--skip-serve-logs",),
    "triggerer": ("--skip-serve-logs",),
}
PARTS_OF_3 = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "triggerer": ("--skip-serve-logs",),
    "dag-processor": (),
}
COMMAND_SECONDS = 180
HEALTHY_SECONDS = 400
PARSED_SECONDS = 90


class RealAirflow:
    """Owns its processes: leaving the `with` block ends them, whatever happened inside."""

    def __init__(
        self,
        python: Path,
        home: Path,
        dags_folder: Path,
        *,
        database_url: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        version = airflow_version(python)
        self.python = python
        self.place = Place(version, home.resolve(), dags_folder.resolve(), database_url=database_url)
        self.environment = child_environment(self.place, python, environment or {})
        self.api = AirflowApi(self.place.url, version)
        self.parts = {name: self._part(name, arguments) for name, arguments in parts_of(version).items()}

    def __enter__(self) -> RealAirflow:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def up(self, connections: Mapping[str, dict[str, Any]]) -> None:
        """From nothing to healthy; connections are kept in the metadata database."""
        self.migrate()
        self.start()
        self.wait_until_healthy()
        for connection_id, connection in connections.items():
            self.api.store_connection(connection_id, connection)

    def migrate(self) -> None:
        self.place.home.mkdir(parents=True, exist_ok=True)
        self.airflow("db", "migrate")
        if self.place.is_airflow_2:
            self._create_admin()

    def start(self) -> None:
        for part in self.parts.values():
            part.start()

    def stop(self) -> None:
        stop_all(self.parts.values())

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            self._check_parts()
            return self.api.is_healthy()

        wait_until("Airflow healthy", healthy, seconds=HEALTHY_SECONDS, evidence=self._why_unhealthy)

    def wait_for_dag(self, dag_id: str) -> None:
        def parsed() -> bool:
            self._check_imports()
            return self.api.has_dag(dag_id)

        wait_until(f"DAG {dag_id} parsed", parsed, seconds=PARSED_SECONDS, evidence=self.tails)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Waits until the DAG is known, starts a run and returns its id."""
        self.wait_for_dag(dag_id)
        self.api.unpause(dag_id)
        return self.api.trigger(dag_id, conf)

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 180) -> str:
        """The run's final state."""

        def final_state() -> str | None:
            self._check_parts()
            state = self.api.run_state(dag_id, run_id)
            return state if state in FINAL_RUN_STATES else None

        return wait_until(
            f"run {run_id} of {dag_id} over",
            final_state,
            seconds=seconds,
            evidence=lambda: self.account_of(dag_id, run_id),
        )

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, state: str, seconds: float = 120) -> TaskInstance:
        """The first instance of the task that is in the state."""

        def found() -> TaskInstance | None:
            self._check_parts()
            return next(
                (
                    task
                    for task in self.api.task_instances(dag_id, run_id)
                    if (task.task_id, task.state) == (task_id, state)
                ),
                None,
            )

        return wait_until(
            f"task {task_id} of {dag_id} {state}",
            found,
            seconds=seconds,
            evidence=lambda: self.account_of(dag_id, run_id),
        )

    def account_of(self, dag_id: str, run_id: str) -> str:
        """What there is to know about a run that went wrong: its tasks, their logs, the processes."""
        tasks = self.api.task_instances(dag_id, run_id)
        states = [f"{task.task_id}[{task.map_index}]: {task.state}, try {task.try_number}" for task in tasks]
        return "\n".join([*states, *(self._log_of(dag_id, run_id, task) for task in tasks), self.tails()])

    def airflow(self, *arguments: str) -> str:
        """Runs an airflow command; its output."""
        command = [self.python, "-m", "airflow", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        if done.returncode != 0:
            raise RuntimeError(f"airflow {' '.join(arguments[:2])} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def celery_worker(self, name: str, environment: Mapping[str, str] | None = None) -> Process:
        """A worker that does one task at a time, not started yet; without its log server, for the logs are local."""
        arguments = ["celery", "worker", "--concurrency", "1", "--celery-hostname", f"{name}@%h", "--skip-serve-logs"]
        command = [self.python, "-m", "airflow", *arguments]
        return Process(name, command, {**self.environment, **(environment or {})}, self._log_file(name))

    def tails(self) -> str:
        return "\n".join(part.tail() for part in self.parts.values())

    def _part(self, name: str, arguments: tuple[str, ...]) -> Process:
        command = [self.python, "-m", "airflow", name, *arguments]
        return Process(name, command, self.environment, self._log_file(name))

    def _log_file(self, name: str) -> Path:
        return self.place.home / "processes" / f"{name}.log"

    def _create_admin(self) -> None:
        person = ["--firstname", "A", "--lastname", "B", "--email", "admin@example.com", "--role", "Admin"]
        self.airflow("users", "create", "--username", ADMIN, "--password", ADMIN, *person)

    def _check_parts(self) -> None:
        for part in self.parts.values():
            if part.has_died():
                raise RuntimeError(f"Airflow's {part.name} has ended\n{part.tail()}")

    def _check_imports(self) -> None:
        if errors := self.api.import_errors():
            raise RuntimeError("DAG files that Airflow cannot import:\n" + "\n".join(errors))

    def _why_unhealthy(self) -> str:
        return f"{self.api.health()}\n{self.tails()}"

    def _log_of(self, dag_id: str, run_id: str, task: TaskInstance) -> str:
        if not task.try_number:
            return f"--- {task.task_id}: never started"
        try:
            log = self.api.task_log(dag_id, run_id, task.task_id, task.try_number, task.map_index)
        except AirflowApiError as error:
            log = str(error)
        return f"--- log of {task.task_id}[{task.map_index}], try {task.try_number}\n{log}"


def parts_of(version: str) -> dict[str, tuple[str, ...]]:
    """Airflow's long-running commands; in Airflow 2 the scheduler parses the DAGs, too."""
    return PARTS_OF_2 if is_airflow_2(version) else PARTS_OF_3


def airflow_version(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('apache-airflow'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
