"""Export all contacts to S3 every night, and update an asset.

Needs the connections `sendgrid_default` (the API key as password) and `aws_default`, and the name of a bucket in the
environment variable SENDGRID_EXPORT_BUCKET. DAGs scheduled by the asset run when the files are stored.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG, Asset
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.datasets import Dataset as Asset

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

BUCKET = os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")

with DAG(
    dag_id="sendgrid_contacts_to_s3",
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
    store = SendGridToS3Operator(
        task_id="store",
        export_id=start.output,
        s3_bucket=BUCKET,
        s3_key_prefix="sendgrid/contacts/run={{ ts_nodash }}/",
        outlets=[Asset(f"s3://{BUCKET}/sendgrid/contacts")],
    )
    wait >> store
