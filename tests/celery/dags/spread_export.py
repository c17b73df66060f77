"""One export whose files are distributed to workers; the run's conf has its id."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

with DAG(
    "spread_export",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=timezone.utc),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=1)},
):

    @task
    def file_indexes(**context: Any) -> list[int]:
        return list(range(context["dag_run"].conf["files"]))

    export = {
        "export_id": "{{ dag_run.conf['export_id'] }}",
        "s3_key_prefix": "s3://lake/{{ dag_run.conf['export_id'] }}/",
    }
    store_files = SendGridToS3Operator.partial(task_id="store_file", **export).expand(file_index=file_indexes())
    store_files >> SendGridToS3Operator(task_id="write_manifest", **export)
