"""Export each contact list separately: a mapped task group per list that exists when the DAG runs.

Each export has its own prefix and manifest; a list that fails does not affect the others. Needs the connections
`sendgrid_default` (the API key as password) and `aws_default`, and the name of a bucket in the environment variable
SENDGRID_EXPORT_BUCKET.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG, task, task_group
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task, task_group

from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

BUCKET = os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")

with DAG(
    dag_id="sendgrid_lists_to_s3",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["sendgrid", "example"],
):

    @task
    def find_lists() -> list[list[str]]:
        """The `list_ids` of one export per list that has contacts."""
        return [[item["id"]] for item in SendGridHook().get_lists() if item["contact_count"]]

    @task
    def destination(export_id: str) -> str:
        """A separate prefix per export."""
        return f"s3://{BUCKET}/sendgrid/lists/export={export_id}/"

    @task_group
    def export_list(list_ids: list[str]) -> None:
        """Start, wait for and store the export of one list."""
        start = SendGridExportContactsOperator(task_id="start_export", list_ids=list_ids)
        wait = SendGridExportSensor(
            task_id="wait_for_export",
            export_id=start.output,
            deferrable=True,
            timeout=timedelta(hours=2).total_seconds(),
        )
        store = SendGridToS3Operator(task_id="store", export_id=start.output, s3_key_prefix=destination(start.output))
        wait >> store

    export_list.expand(list_ids=find_lists())
