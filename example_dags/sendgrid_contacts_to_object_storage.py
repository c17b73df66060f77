"""Export all contacts to any storage every night.

Needs the connection `sendgrid_default` (the API key as password), the connection of the storage, and the destination in
the environment variable SENDGRID_EXPORT_PATH: file:///folder, gs://conn_id@bucket/folder,
abfs://conn_id@container/folder or s3://conn_id@bucket/folder.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator

with DAG(
    dag_id="sendgrid_contacts_to_object_storage",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["sendgrid", "example"],
):
    start = SendGridExportContactsOperator(task_id="start_export")
    wait = SendGridExportSensor(
        task_id="wait_for_export",
        export_id=start.output,
        deferrable=True,
        timeout=timedelta(hours=2).total_seconds(),
    )
    store = SendGridToObjectStorageOperator(
        task_id="store",
        export_id=start.output,
        path=os.environ.get("SENDGRID_EXPORT_PATH", "file:///var/lib/sendgrid") + "/contacts/run={{ ts_nodash }}",
    )
    wait >> store
