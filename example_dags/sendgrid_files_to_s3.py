"""Spread one export over many workers: one mapped task per file, then a task that writes the manifest.

For accounts whose export has many files (`max_file_size` splits it, in MB). Needs the connections `sendgrid_default`
(the API key as password) and `aws_default`, and the name of a bucket in the environment variable
SENDGRID_EXPORT_BUCKET.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

try:
    from airflow.sdk import DAG, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

with DAG(
    dag_id="sendgrid_files_to_s3",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["sendgrid", "example"],
):
    start = SendGridExportContactsOperator(task_id="start_export", max_file_size=500)
    wait = SendGridExportSensor(
        task_id="wait_for_export",
        export_id=start.output,
        deferrable=True,
        timeout=timedelta(hours=2).total_seconds(),
    )

    @task
    def file_indexes(summary: dict[str, Any]) -> list[int]:
        """One index per file of the export."""
        return list(range(summary["file_count"]))

    destination = {
        "export_id": start.output,
        "s3_bucket": os.environ.get("SENDGRID_EXPORT_BUCKET", "lake"),
        "s3_key_prefix": "sendgrid/files/run={{ ts_nodash }}/",
    }
    # If the export has no files, there is nothing to map: this task and the next are skipped, and the run succeeds.
    store_files = SendGridToS3Operator.partial(task_id="store_file", **destination).expand(
        file_index=file_indexes(wait.output)
    )
    # Finds the stored files, compares their rows with SendGrid's count, and writes the manifest.
    write_manifest = SendGridToS3Operator(task_id="write_manifest", **destination)
    store_files >> write_manifest
