"""A whole Airflow of this environment's version, with given DAGs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from airflow_provider_sendgrid.emulator import Emulator
from dev.airflow.instance import AirflowInstance, airflow_version
from dev.demo.stack import temporary_folder
from dev.services.postgres import postgres
from dev.services.s3 import S3, s3_server

PYTHON = Path(sys.executable)
EXPORTS = "/v3/marketing/contacts/exports"


def version() -> tuple[int, ...]:
    """Airflow's major and minor version."""
    return tuple(int(part) for part in airflow_version(PYTHON).split(".")[:2])


def connection_to(emulator: Emulator) -> dict[str, Any]:
    """The Airflow connection to an emulator."""
    connection: dict[str, Any] = json.loads(emulator.connection_json())
    return connection


@contextmanager
def airflow_with(
    name: str,
    dags: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    storage: Callable[[str, Path], AbstractContextManager[S3]] = s3_server,
) -> Iterator[tuple[AirflowInstance, S3]]:
    """Start Airflow on PostgreSQL with these DAG files, and an S3 server with a bucket."""
    with temporary_folder(name) as folder, ExitStack() as stack:
        folder.chmod(0o755)
        dags_folder = folder / "dags"
        dags_folder.mkdir()
        for file, text in dags.items():
            (dags_folder / file).write_text(text)
        s3 = stack.enter_context(storage("lake", folder))
        settings = {"SENDGRID_EXPORT_BUCKET": s3.bucket, **(environment or {})}
        airflow = stack.enter_context(
            AirflowInstance(
                PYTHON,
                folder / "airflow",
                dags_folder,
                database_url=stack.enter_context(postgres(folder)),
                environment=settings,
            )
        )
        airflow.up({"aws_default": s3.connection})
        yield airflow, s3


def runs_of(airflow: AirflowInstance, dag_id: str) -> list[dict[str, Any]]:
    """All runs of a DAG, the oldest first."""
    response = airflow.api.request("GET", f"/dags/{dag_id}/dagRuns?limit=100&order_by=id")
    runs: list[dict[str, Any]] = response["dag_runs"]
    return runs
