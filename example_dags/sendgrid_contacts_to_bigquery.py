"""Export contacts to Google Cloud Storage, then load the files that the transfer returns into BigQuery.

Needs the connections `sendgrid_default`, `google_cloud_default` and `bigquery_default` (of type `gcpbigquery`),
`pip install airflow-provider-sendgrid[google]`, the name of a bucket in the environment variable
SENDGRID_EXPORT_BUCKET, and a dataset `sendgrid`.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_object_storage import SendGridToObjectStorageOperator

BUCKET = os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")

with DAG(
    dag_id="sendgrid_contacts_to_bigquery",
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
        path=f"gs://google_cloud_default@{BUCKET}/sendgrid/contacts/run={{{{ ts_nodash }}}}/",
    )
    load = SQLExecuteQueryOperator(
        task_id="load",
        conn_id="bigquery_default",
        sql="""LOAD DATA OVERWRITE sendgrid.contacts FROM FILES (
            format = 'CSV', compression = 'GZIP', uris = {{ ti.xcom_pull(task_ids="store") | tojson }},
            skip_leading_rows = 1, quote = '"', allow_quoted_newlines = true, encoding = 'UTF-8'
        )""",
    )
    wait >> store >> load
