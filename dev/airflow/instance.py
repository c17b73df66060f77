"""A whole Airflow of any version from 2.10 to 3.3 on this machine, each component in its own process.

with AirflowInstance(python, home, dags_folder) as airflow:
    airflow.up({"aws_default": {"conn_type": "aws"}})
    run_id = airflow.trigger("my_dag")
    airflow.components["triggerer"].kill()
    airflow.components["triggerer"].start()
    airflow.wait_for_run("my_dag", run_id)
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dev.airflow.api import FINAL_RUN_STATES, AirflowApi, AirflowApiError, TaskInstance
from dev.airflow.settings import ADMIN, InstanceConfig, child_environment, is_airflow_2
from dev.services.processes import Process, stop_all
from dev.services.waiting import wait_until

# Airflow's long-running commands; without their log servers, which listen on every interface.
COMPONENTS_2 = {
    "webserver": (),
    "scheduler": ("--skip-serve-logs",),
    "triggerer": ("--skip-serve-logs",),
}
COMPONENTS_3 = {
    "api-server": (),
    "scheduler": ("--skip-serve-logs",),
    "triggerer": ("--skip-serve-logs",),
    "dag-processor": (),
}
COMMAND_SECONDS = 180
HEALTHY_SECONDS = 400
PARSED_SECONDS = 90


class AirflowInstance:
    """Leaving the `with` block stops its processes."""

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
        self.config = InstanceConfig(version, home.resolve(), dags_folder.resolve(), database_url=database_url)
        self.environment = child_environment(self.config, python, environment or {})
        self.api = AirflowApi(self.config.url, version)
        self.components = {name: self._component(name, arguments) for name, arguments in components_of(version).items()}

    def __enter__(self) -> AirflowInstance:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def up(self, connections: Mapping[str, dict[str, Any]]) -> None:
        """Create the database, start Airflow and store connections."""
        self.migrate()
        self.start()
        self.wait_until_healthy()
        for connection_id, connection in connections.items():
            self.api.store_connection(connection_id, connection)

    def migrate(self) -> None:
        self.config.home.mkdir(parents=True, exist_ok=True)
        self.airflow("db", "migrate")
        if self.config.is_airflow_2:
            self._create_admin()

    def start(self) -> None:
        for component in self.components.values():
            component.start()

    def stop(self) -> None:
        stop_all(self.components.values())

    def wait_until_healthy(self) -> None:
        def healthy() -> bool:
            self._check_components()
            return self.api.is_healthy()

        wait_until("Airflow healthy", healthy, seconds=HEALTHY_SECONDS, evidence=self._why_unhealthy)

    def wait_for_dag(self, dag_id: str) -> None:
        def parsed() -> bool:
            self._check_imports()
            return self.api.has_dag(dag_id)

        wait_until(f"DAG {dag_id} parsed", parsed, seconds=PARSED_SECONDS, evidence=self.log_tails)

    def trigger(self, dag_id: str, conf: dict[str, Any] | None = None) -> str:
        """Wait until the DAG is parsed, start a run and return its id."""
        self.wait_for_dag(dag_id)
        self.api.unpause(dag_id)
        return self.api.trigger(dag_id, conf)

    def wait_for_run(self, dag_id: str, run_id: str, seconds: float = 180) -> str:
        """Wait for the final state of a run, and return it."""

        def final_state() -> str | None:
            self._check_components()
            state = self.api.run_state(dag_id, run_id)
            return state if state in FINAL_RUN_STATES else None

        return wait_until(
            f"end of run {run_id} of {dag_id}",
            final_state,
            seconds=seconds,
            evidence=lambda: self.describe_run(dag_id, run_id),
        )

    def wait_for_task(self, dag_id: str, run_id: str, task_id: str, state: str, seconds: float = 120) -> TaskInstance:
        """Wait until an instance of the task is in the state, and return it."""

        def found() -> TaskInstance | None:
            self._check_components()
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
            evidence=lambda: self.describe_run(dag_id, run_id),
        )

    def describe_run(self, dag_id: str, run_id: str) -> str:
        """The tasks of a run, their logs and those of the processes."""
        tasks = self.api.task_instances(dag_id, run_id)
        states = [f"{task.task_id}[{task.map_index}]: {task.state}, try {task.try_number}" for task in tasks]
        return "\n".join([*states, *(self._log_of(dag_id, run_id, task) for task in tasks), self.log_tails()])

    def airflow(self, *arguments: str) -> str:
        """Run an airflow command and return its output."""
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
        """A worker for one task at a time, not yet started; without a log server, because logs are local."""
        arguments = ["celery", "worker", "--concurrency", "1", "--celery-hostname", f"{name}@%h", "--skip-serve-logs"]
        command = [self.python, "-m", "airflow", *arguments]
        return Process(name, command, {**self.environment, **(environment or {})}, self._log_file(name))

    def log_tails(self) -> str:
        return "\n".join(component.tail() for component in self.components.values())

    def _component(self, name: str, arguments: tuple[str, ...]) -> Process:
        command = [self.python, "-m", "airflow", name, *arguments]
        return Process(name, command, self.environment, self._log_file(name))

    def _log_file(self, name: str) -> Path:
        return self.config.home / "processes" / f"{name}.log"

    def _create_admin(self) -> None:
        person = ["--firstname", "A", "--lastname", "B", "--email", "admin@example.com", "--role", "Admin"]
        self.airflow("users", "create", "--username", ADMIN, "--password", ADMIN, *person)

    def _check_components(self) -> None:
        for component in self.components.values():
            if component.has_exited():
                raise RuntimeError(f"Airflow's {component.name} has exited\n{component.tail()}")

    def _check_imports(self) -> None:
        if errors := self.api.import_errors():
            raise RuntimeError("DAG files that Airflow cannot import:\n" + "\n".join(errors))

    def _why_unhealthy(self) -> str:
        return f"{self.api.health()}\n{self.log_tails()}"

    def _log_of(self, dag_id: str, run_id: str, task: TaskInstance) -> str:
        if not task.try_number:
            return f"--- {task.task_id}: never started"
        try:
            log = self.api.task_log(dag_id, run_id, task.task_id, task.try_number, task.map_index)
        except AirflowApiError as error:
            log = str(error)
        return f"--- log of {task.task_id}[{task.map_index}], try {task.try_number}\n{log}"


def components_of(version: str) -> dict[str, tuple[str, ...]]:
    """The components of a version; in Airflow 2, the scheduler also parses the DAGs."""
    return COMPONENTS_2 if is_airflow_2(version) else COMPONENTS_3


def airflow_version(python: Path) -> str:
    code = "from importlib.metadata import version; print(version('apache-airflow'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
