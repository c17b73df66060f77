"""Export contacts to S3 as JSON lines, then create a table of Athena and Glue over them.

JSON, because Athena's CSV readers end a row at a line break inside a value. Needs the connections `sendgrid_default`
and `aws_default`, a database `sendgrid` in the Glue catalog, and the name of a bucket in the environment variable
SENDGRID_EXPORT_BUCKET.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta

try:
    from airflow.sdk import DAG
except ImportError:  # Airflow 2
    from airflow import DAG

from airflow.providers.amazon.aws.operators.athena import AthenaOperator

from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

BUCKET = os.environ.get("SENDGRID_EXPORT_BUCKET", "lake")

with DAG(
    dag_id="sendgrid_contacts_to_athena",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    tags=["sendgrid", "example"],
):
    start = SendGridExportContactsOperator(task_id="start_export", file_type="json")
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
    )
    load = AthenaOperator(
        task_id="load",
        database="sendgrid",
        output_location=f"s3://{BUCKET}/athena/",
        query=f"""CREATE EXTERNAL TABLE contacts_{{{{ ts_nodash | lower }}}} (email string, contact_id string)
        ROW FORMAT SERDE 'org.openx.data.jsonserde.JsonSerDe'
        LOCATION 's3://{BUCKET}/sendgrid/contacts/run={{{{ ts_nodash }}}}/'""",
    )
    wait >> store >> load
